package egress

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

func dnsQuery(t testing.TB, name string, qtype dnsmessage.Type) []byte {
	t.Helper()
	n, err := dnsmessage.NewName(name + ".")
	if err != nil {
		t.Fatal(err)
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: qtype, Class: dnsmessage.ClassINET}},
	}
	out, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAnswer(t *testing.T) {
	const typeHTTPS, typeSVCB = dnsmessage.Type(65), dnsmessage.Type(64)
	tests := []struct {
		name  string
		qtype dnsmessage.Type
		rcode dnsmessage.RCode
		want  string // the answer, "" for none
	}{
		{"example.com", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.1"},
		{"EXAMPLE.com", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.1"},
		{"_dmarc.example.com", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "198.18.0.2"},
		{"example.com", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, ""},
		{"example.com", dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, ""},
		{"example.com", typeHTTPS, dnsmessage.RCodeSuccess, ""},
		{"example.com", typeSVCB, dnsmessage.RCodeSuccess, ""},
		{"example.com", dnsmessage.TypeALL, dnsmessage.RCodeSuccess, ""},
		{"1.0.18.198.in-addr.arpa", dnsmessage.TypePTR, dnsmessage.RCodeSuccess, ""},
		{"localhost", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1"},
		{"a.localhost", dnsmessage.TypeA, dnsmessage.RCodeSuccess, "127.0.0.1"},
		{"10.0.0.1", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
		{"a b.example", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
		{"é.example", dnsmessage.TypeA, dnsmessage.RCodeNameError, ""},
	}
	n := newNames()
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.name, tt.qtype), func(t *testing.T) {
			var m dnsmessage.Message
			if err := m.Unpack(n.answer(dnsQuery(t, tt.name, tt.qtype))); err != nil {
				t.Fatal(err)
			}
			if m.RCode != tt.rcode || !m.Response || m.ID != 4711 {
				t.Errorf("header %+v", m.Header)
			}
			got := ""
			for _, a := range m.Answers {
				if body, ok := a.Body.(*dnsmessage.AResource); ok {
					got = fmt.Sprintf("%d.%d.%d.%d", body.A[0], body.A[1], body.A[2], body.A[3])
				}
			}
			if got != tt.want || len(m.Answers) > 1 {
				t.Errorf("answer %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAnswerIsSilentOrShort(t *testing.T) {
	n := newNames()
	response := dnsQuery(t, "example.com", dnsmessage.TypeA)
	response[2] |= 0x80
	for name, msg := range map[string][]byte{"a response": response, "nothing": nil, "half a header": {1, 2, 3}} {
		if got := n.answer(msg); got != nil {
			t.Errorf("%s was answered", name)
		}
	}
	update := dnsQuery(t, "example.com", dnsmessage.TypeA)
	update[2] |= 5 << 3
	var m dnsmessage.Message
	if err := m.Unpack(n.answer(update)); err != nil || m.RCode != dnsmessage.RCodeNotImplemented {
		t.Errorf("update: %+v %v", m.Header, err)
	}
	two := dnsQuery(t, "example.com", dnsmessage.TypeA)
	two[5] = 2
	two = append(two, two[12:]...)
	if err := m.Unpack(n.answer(two)); err != nil || m.RCode != dnsmessage.RCodeFormatError {
		t.Errorf("two questions: %+v %v", m.Header, err)
	}
}

func TestNamesAreBoundedAndNotReused(t *testing.T) {
	n := newNames()
	seen := map[string]bool{}
	for i := range maxNames {
		addr, ok := n.address(fmt.Sprintf("n%d.example", i))
		if !ok || seen[addr.String()] || !fakeRange.Contains(addr) {
			t.Fatalf("name %d: %v %v", i, addr, ok)
		}
		seen[addr.String()] = true
		if name, _, ok := n.name(addr); !ok || name != fmt.Sprintf("n%d.example", i) {
			t.Fatalf("address %v is %q", addr, name)
		}
	}
	if _, ok := n.address("one.more.example"); ok {
		t.Error("more names than the limit")
	}
	if _, ok := n.address("n7.example"); !ok {
		t.Error("a known name is not found any more")
	}
	if _, fake, ok := n.name(fakeRange.Addr()); !fake || ok {
		t.Error("the range's first address has a name")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(dnsQuery(f, "example.com", dnsmessage.TypeA))
	f.Add(dnsQuery(f, "x.localhost", dnsmessage.TypeAAAA))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		n := newNames()
		out := n.answer(msg)
		if out == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatalf("the reply cannot be read: %v", err)
		}
		if !m.Response || len(m.Answers) > 1 || len(out) > len(msg)+64 {
			t.Fatalf("reply %+v of %d bytes to %d", m.Header, len(out), len(msg))
		}
		for name := range n.byName {
			if strings.ToLower(name) != name || strings.ContainsAny(name, " @/:") {
				t.Fatalf("name %q", name)
			}
		}
	})
}
