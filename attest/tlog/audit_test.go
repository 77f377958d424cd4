package tlog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"hallmark.build/attest/verify/verifytest"
)

// list is a store of bundles.
func list(bundles ...[]byte) Bundles {
	return func(_ context.Context, each func(string, []byte) error) error {
		for i, b := range bundles {
			if err := each(string(rune('a'+i)), b); err != nil {
				return err
			}
		}
		return nil
	}
}

func audit(t *testing.T, o Options, bundles Bundles) *Report {
	t.Helper()
	r, err := Audit(t.Context(), o, bundles)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAudit(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 5)
	l := open(t, o)
	if r := audit(t, o, list()); !r.Proven() || r.Logs[0].Entries != 0 || r.Logs[0].Checkpoints != 1 {
		t.Errorf("an empty log: %+v", r)
	}
	var bundles [][]byte
	for _, d := range all[:3] {
		b, _ := enter(t, l, d)
		bundles = append(bundles, b)
	}
	// while it is open
	if r := audit(t, o, list(bundles...)); !r.Proven() || r.Bundles != 3 || r.Logs[0].Entries != 3 || r.Logs[0].Checkpoints != 4 {
		t.Errorf("an open log: %+v", r)
	}
	if r := audit(t, o, list(bundles[0], bundles[2])); len(r.Unclaimed) != 1 || r.Unclaimed[0] != (Unclaimed{1, 1, verifytest.BuilderID, verifytest.SignedAt()}) {
		t.Errorf("without a bundle: %+v", r.Unclaimed)
	}
	closeLog(t, l)
	o.Key = otherKey(t)
	if err := Rotate(o); err != nil {
		t.Fatal(err)
	}
	l = open(t, o)
	b, _ := enter(t, l, all[3])
	r := audit(t, o, list(append(bundles, b)...))
	if !r.Proven() || r.Bundles != 4 || len(r.Logs) != 2 || r.Logs[1].Entries != 1 || r.Logs[1].Origin != "log2.ci.example.com" {
		t.Errorf("two logs: %+v", r)
	}
	text, err := json.Marshal(r)
	if err != nil || !strings.HasPrefix(string(text), `{"version":1,"logs":[{"number":1,"origin":"ci.example.com",`) || !strings.HasSuffix(string(text), `"problems":[]}`) {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := Audit(t.Context(), options(t, t.TempDir()), nil); err == nil || !strings.Contains(err.Error(), "no log yet") {
		t.Errorf("no log: %v", err)
	}
}

// TestAuditOfLargeLog goes over the width of a tile.
func TestAuditOfLargeLog(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 260)
	l := open(t, o)
	last := enterAll(t, l, all)
	if r := audit(t, o, list(last)); !r.Proven() || r.Logs[0].Entries != 260 || r.Bundles != 1 {
		t.Errorf("%+v", r)
	}
	name := filepath.Join(string(l.tiles), "tile", "1", "000.p", "1")
	flip(t, name, 20)
	if r := audit(t, o, nil); r.Proven() || !strings.Contains(strings.Join(r.Problems, "\n"), "tile 1/0 is not of the entries") {
		t.Errorf("a spoilt tile: %+v", r)
	}
}

// TestAuditFinds: each harm alone makes a log unproven.
func TestAuditFinds(t *testing.T) {
	t.Parallel()
	a, all := drafts(t, 8)
	sound := func(t *testing.T) (Options, *BuiltIn, [][]byte) {
		o := options(t, t.TempDir())
		l := open(t, o)
		var bundles [][]byte
		for _, d := range all[:3] {
			b, _ := enter(t, l, d)
			bundles = append(bundles, b)
		}
		closeLog(t, l)
		return o, l, bundles
	}
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, o *Options, l *BuiltIn, bundles [][]byte)
		want string
	}{
		{"an entry changed", func(t *testing.T, _ *Options, l *BuiltIn, _ [][]byte) {
			flip(t, filepath.Join(string(l.tiles), "tile", "entries", "000.p", "3"), 100)
		}, "is not of the entries that are there"},
		{"a tile changed", func(t *testing.T, _ *Options, l *BuiltIn, _ [][]byte) {
			flip(t, filepath.Join(string(l.tiles), "tile", "0", "000.p", "3"), 40)
		}, "tile 0/0 is not of the entries"},
		{"the checkpoint forged", func(t *testing.T, _ *Options, l *BuiltIn, _ [][]byte) {
			flip(t, filepath.Join(string(l.tiles), "checkpoint"), 20)
		}, "not signed by log"},
		{"the checkpoint rolled back to another key's", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			_, other, _ := sound(t)
			text, err := other.tiles.checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(string(l.tiles), "checkpoint"), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not signed by log"},
		{"a checkpoint that the history does not have", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			fork := forkOf(t, *o, all[4:7])
			text, err := os.ReadFile(filepath.Join(fork, "1", "checkpoint"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(string(l.tiles), "checkpoint"), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "the published checkpoint of 3 entries is not in the history"},
		{"a fork that was signed in between", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			fork := *o
			fork.Tiles, fork.History = t.TempDir(), filepath.Join(t.TempDir(), "history")
			grow(t, fork, all[4:7])
			lines, forked := checkpoints(t, *o), checkpoints(t, fork)
			lines[2] = forked[2]
			writeHistory(t, *o, lines)
		}, "the checkpoint of 2 entries is not of the entries that are there"},
		{"the history out of order", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			lines := checkpoints(t, *o)
			lines[1], lines[2] = lines[2], lines[1]
			writeHistory(t, *o, lines)
		}, "1 entries, after 2"},
		{"one size signed twice", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			lines := checkpoints(t, *o)
			writeHistory(t, *o, append(lines, lines[len(lines)-1]))
		}, "3 entries, after 3"},
		{"a line of the history changed", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			flip(t, filepath.Join(o.History, "1.checkpoints"), 10)
		}, "line 1"},
		{"no witness", func(t *testing.T, o *Options, l *BuiltIn, _ [][]byte) {
			o.WitnessPolicy = []byte("witness w1 " + newWitness(t, l.active.verifier, "w.example.com").vkey + " http://127.0.0.1:1\nquorum w1\n")
		}, "lacks signatures of witnesses"},
		{"a bundle without entry", func(_ *testing.T, _ *Options, _ *BuiltIn, bundles [][]byte) { bundles[1] = all[1] }, "bundle b: has 0 log entries"},
		{"a bundle of another log", func(t *testing.T, _ *Options, _ *BuiltIn, bundles [][]byte) {
			_, _, others := sound(t)
			bundles[1] = others[1]
		}, "bundle b: its entry is in no log of this authority"},
		{"a bundle with another's entry", func(t *testing.T, _ *Options, _ *BuiltIn, bundles [][]byte) {
			bundles[1] = transplant(t, all[1], bundles[2])
		}, "bundle b: the log contradicts itself: entry of something else"},
		{"a bundle signed again", func(t *testing.T, _ *Options, _ *BuiltIn, bundles [][]byte) {
			bundles[1] = transplant(t, a.Bundle(verifytest.Statement()), bundles[1])
		}, "bundle b: the log contradicts itself: entry of something else"},
		{"a bundle under a fork", func(t *testing.T, o *Options, l *BuiltIn, bundles [][]byte) {
			fork := *o
			fork.Tiles, fork.History = t.TempDir(), filepath.Join(t.TempDir(), "history")
			f := open(t, fork)
			enter(t, f, all[5])
			bundles[1], _ = enter(t, f, all[1])
		}, "bundle b: its checkpoint of 2 entries is not in the history"},
		{"no bundle", func(_ *testing.T, _ *Options, _ *BuiltIn, bundles [][]byte) { bundles[1] = []byte("{}") }, "bundle b: has 0 DSSE signatures"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o, l, bundles := sound(t)
			tt.harm(t, &o, l, bundles)
			r := audit(t, o, list(bundles...))
			if r.Proven() || !strings.Contains(strings.Join(r.Problems, "\n"), tt.want) {
				t.Errorf("problems %q, want %q", r.Problems, tt.want)
			}
		})
	}
}

// TestAuditCannotDecide: what is not there proves nothing, and refutes nothing.
func TestAuditCannotDecide(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 2)
	l := open(t, o)
	enterAll(t, l, all)
	broken := func(context.Context, func(string, []byte) error) error { return errors.New("disk") }
	if _, err := Audit(t.Context(), o, broken); err == nil || !strings.Contains(err.Error(), "disk") {
		t.Errorf("a store that does not answer: %v", err)
	}
	remove(t, filepath.Join(string(l.tiles), "tile", "entries"))
	if _, err := Audit(t.Context(), o, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("entries are gone: %v", err)
	}
}

func TestAuditURL(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 4)
	l := open(t, o)
	server := httptest.NewServer(l.Handler())
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	trusted := &trustpb.TrustedRoot{Tlogs: l.Trusted()}
	enter(t, l, all[0])
	enter(t, l, all[1])
	before, err := Latest(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	enter(t, l, all[2])
	at := func(trusted *trustpb.TrustedRoot, earlier []byte) *Report {
		t.Helper()
		r, err := AuditURL(t.Context(), u, trusted, earlier)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := at(trusted, nil); !r.Proven() || r.Logs[0].Entries != 3 {
		t.Errorf("%+v", r)
	}
	if r := at(trusted, before); !r.Proven() || r.Logs[0].Checkpoints != 2 {
		t.Errorf("since two entries: %+v", r)
	}
	fork := o
	fork.Tiles, fork.History = t.TempDir(), filepath.Join(t.TempDir(), "history")
	grow(t, fork, all[2:])
	forked, err := Latest(t.Context(), fork)
	if err != nil {
		t.Fatal(err)
	}
	if r := at(trusted, forked); r.Proven() || !strings.Contains(r.Problems[0], "checkpoint of 2 entries is not of the entries") {
		t.Errorf("since a fork: %+v", r)
	}
	grow(t, fork, append(all[:1:1], all[1]))
	longer, err := Latest(t.Context(), fork)
	if err != nil {
		t.Fatal(err)
	}
	if r := at(trusted, longer); r.Proven() || !strings.Contains(r.Problems[0], "has 3 entries, and had 4") {
		t.Errorf("since more entries: %+v", r)
	}
	if r := at(&trustpb.TrustedRoot{}, nil); r.Proven() || !strings.Contains(r.Problems[0], "no log of the trusted root") {
		t.Errorf("not trusted: %+v", r)
	}
	if _, err := AuditURL(t.Context(), u, trusted, []byte("no checkpoint")); err == nil {
		t.Error("an earlier checkpoint that is none")
	}
}

// transplant gives a draft the entry of a bundle.
func transplant(t *testing.T, draft, bundle []byte) []byte {
	t.Helper()
	var b bundlepb.Bundle
	if err := protojson.Unmarshal(draft, &b); err != nil {
		t.Fatal(err)
	}
	b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, entryOf(t, bundle))
	text, err := protojson.Marshal(&b)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func writeHistory(t *testing.T, o Options, lines []string) {
	t.Helper()
	text := strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(filepath.Join(o.History, "1.checkpoints"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// flip changes a byte of a file.
func flip(t *testing.T, name string, at int) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Clone(data)
	data[at] ^= 1
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkAudit(b *testing.B) {
	o := options(b, b.TempDir())
	_, all := drafts(b, b.N)
	enterAll(b, open(b, o), all)
	b.ResetTimer()
	r, err := Audit(b.Context(), o, nil)
	if err != nil || !r.Proven() {
		b.Fatal(err, r)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

func BenchmarkReopen(b *testing.B) {
	o := options(b, b.TempDir())
	_, all := drafts(b, b.N)
	l := open(b, o)
	enterAll(b, l, all)
	closeLog(b, l)
	b.ResetTimer()
	closeLog(b, open(b, o))
}

func FuzzEntry(f *testing.F) {
	_, all := drafts(f, 1)
	d, err := parseDraft(all[0])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(d.body)
	f.Add([]byte(`{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := checkEntry(data); err == nil && !json.Valid(data) {
			t.Errorf("%q is an entry", data)
		}
	})
}
