package initproto

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var samples = []Message{
	Setup{CA: []byte("pem"), MaxID: 65535, Files: []File{{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n")}}, Dirs: []string{"/data", "/var/lib/x"}},
	Setup{CA: []byte{}},
	Start{Seq: 1, Args: []string{"sh", "-c", "true"}, Env: []string{"A=1", "B=\xff"}, Dir: "/", User: "1000:1000"},
	Start{Seq: 1<<32 - 1, Shell: true, Dir: "/builds/a"},
	Environ{},
	Environ{Env: []string{"A=1", "B=\xff=", "C="}},
	Signal{Seq: 3, Signal: 15},
	Ready{Stores: []string{"/etc/ssl/certs/ca-certificates.crt"}},
	Ready{},
	Exited{Seq: 1, Code: 3, Duration: 1},
	Exited{Seq: 1, Code: 137, Signal: 9},
	Failed{Reason: System, Text: "x"},
	Failed{Seq: 9, Reason: NoShell},
}

func TestRoundTrip(t *testing.T) {
	for _, m := range samples {
		b, err := Encode(m)
		if err != nil {
			t.Fatalf("%#v: %v", m, err)
		}
		got, err := Decode(b)
		if err != nil {
			t.Fatalf("%#v: %v", m, err)
		}
		if d := cmp.Diff(m, got); d != "" {
			t.Errorf("%T: %s", m, d)
		}
	}
}

// Every truncation, every extension and every other version is refused.
func TestDecodeExact(t *testing.T) {
	for _, m := range samples {
		b, err := Encode(m)
		if err != nil {
			t.Fatal(err)
		}
		for i := range b {
			if got, err := Decode(b[:i]); err == nil {
				t.Errorf("%T cut to %d of %d: %#v", m, i, len(b), got)
			}
		}
		if got, err := Decode(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%T with a byte more: %#v", m, got)
		}
		b[0]++
		if got, err := Decode(b); err == nil {
			t.Errorf("%T of another version: %#v", m, got)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	raw := func(kind byte, fields ...byte) []byte { return append([]byte{version, kind}, fields...) }
	enc := func(m Message) []byte { return m.append([]byte{version}) }
	for name, b := range map[string][]byte{
		"empty":               nil,
		"unknown kind":        raw(99),
		"kind zero":           raw(0),
		"long varint":         raw(kindSignal, 0x81, 0x00, 15),
		"endless varint":      raw(kindSignal, bytes.Repeat([]byte{0xff}, 12)...),
		"sequence zero":       enc(Signal{Signal: 15}),
		"sequence too large":  binary.AppendUvarint(raw(kindSignal), 1<<32),
		"signal zero":         enc(Signal{Seq: 1}),
		"signal too large":    enc(Signal{Seq: 1, Signal: 65}),
		"bool of two":         raw(kindStart, 1, 0, 2, 0, 1, '/', 0),
		"list longer":         raw(kindReady, 5, 0),
		"list huge":           raw(kindReady, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"string longer":       raw(kindReady, 1, 9, 'a'),
		"no command":          enc(Start{Seq: 1, Dir: "/"}),
		"empty command":       enc(Start{Seq: 1, Args: []string{""}, Dir: "/"}),
		"argument with NUL":   enc(Start{Seq: 1, Args: []string{"a\x00b"}, Dir: "/"}),
		"variable with NUL":   enc(Start{Seq: 1, Shell: true, Env: []string{"A=\x00"}, Dir: "/"}),
		"variable no equals":  enc(Start{Seq: 1, Shell: true, Env: []string{"A"}, Dir: "/"}),
		"variable no name":    enc(Start{Seq: 1, Shell: true, Env: []string{"=A"}, Dir: "/"}),
		"environ no equals":   enc(Environ{Env: []string{"A"}}),
		"environ no name":     enc(Environ{Env: []string{"=A"}}),
		"environ with NUL":    enc(Environ{Env: []string{"A=\x00"}}),
		"relative directory":  enc(Start{Seq: 1, Shell: true, Dir: "builds"}),
		"no directory":        enc(Start{Seq: 1, Shell: true}),
		"user with NUL":       enc(Start{Seq: 1, Shell: true, Dir: "/", User: "\x00"}),
		"relative file":       enc(Setup{Files: []File{{Path: "etc"}}}),
		"relative place":      enc(Setup{Dirs: []string{"etc"}}),
		"code and signal":     enc(Exited{Seq: 1, Code: 1, Signal: 9}),
		"reason zero":         enc(Failed{Seq: 1}),
		"reason unknown":      enc(Failed{Seq: 1, Reason: System + 1}),
		"text too long":       append(binary.AppendUvarint(raw(kindFailed, 1, byte(System)), MaxText+1), make([]byte, MaxText+1)...),
		"larger than maximum": make([]byte, MaxMessage+1),
	} {
		if got, err := Decode(b); err == nil {
			t.Errorf("%s: %#v", name, got)
		}
	}
}

func TestEncodeBounds(t *testing.T) {
	if _, err := Encode(Start{Seq: 1, Shell: true, Dir: "/", Env: []string{"A=" + strings.Repeat("x", MaxMessage)}}); err != ErrTooLarge {
		t.Error(err)
	}
	b, err := Encode(Failed{Reason: System, Text: strings.Repeat("x", MaxMessage)})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := Decode(b); err != nil || len(m.(Failed).Text) != MaxText {
		t.Errorf("%v, %v", m, err)
	}
}

// FuzzDecode stands for both ends: what one accepts has one form only.
func FuzzDecode(f *testing.F) {
	for _, m := range samples {
		b, err := Encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		again, err := Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%#v: %x became %x, %v", m, b, again, err)
		}
	})
}
