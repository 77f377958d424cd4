package egress

import (
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// tcpTable is as the kernel prints it.
const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0000000000000000 100 0 0 10 0
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0000000000000000 100 0 0 10 0
   2: 0100007F:8AE4 0100007F:1538 01 00000000:00000000 00:00000000 00000000     0        0 23 1 0000000000000000 20 4 30 10 -1
   3: 00000000:0051 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24 1 0000000000000000 100 0 0 10 0
`

func TestListening(t *testing.T) {
	ports := map[int]bool{}
	if err := addListening(ports, strings.NewReader(tcpTable)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{80, 5432}, slices.Sorted(maps.Keys(ports))); diff != "" {
		t.Error(diff)
	}
	if err := addListening(ports, strings.NewReader("h\n 0: 0:10000 0:0 0A\n")); err == nil {
		t.Error("a port beyond the last is read")
	}
}

func TestNamespaceKnowsWhatListens(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	ns, err := newNamespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	listen := func(addr string) net.Listener {
		made := make(chan net.Listener, 1)
		go func() {
			defer close(made)
			runtime.LockOSThread() // and never unlocked: the thread ends
			if unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET) == nil {
				if l, err := net.Listen("tcp", addr); err == nil {
					made <- l
				}
			}
		}()
		l := <-made
		if l == nil {
			t.Fatalf("cannot listen on %s", addr)
		}
		return l
	}
	want := func(want ...int) {
		t.Helper()
		ports, err := ns.listening()
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(ports))); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	want()
	four, six := listen("0.0.0.0:5432"), listen("[::1]:80")
	want(80, 5432)
	four.Close()
	want(80)
	six.Close()
	want()
}

func TestLocalNamesAreThisMachine(t *testing.T) {
	n := newNames()
	n.local = []string{"postgres", "registry.example.com__db"}
	for name, want := range map[string]bool{"postgres": true, "POSTGRES": true, "registry.example.com__db": true, "postgres.example.com": false, "other": false} {
		var m dnsmessage.Message
		if err := m.Unpack(n.answer(dnsQuery(t, name, dnsmessage.TypeA))); err != nil || len(m.Answers) != 1 {
			t.Fatalf("%s: %v, %d answers", name, err, len(m.Answers))
		}
		got := m.Answers[0].Body.(*dnsmessage.AResource).A == [4]byte{127, 0, 0, 1}
		if got != want {
			t.Errorf("%s: local %v", name, got)
		}
	}
	var m dnsmessage.Message
	if err := m.Unpack(n.answer(dnsQuery(t, "postgres", dnsmessage.TypeAAAA))); err != nil || len(m.Answers) != 0 || m.RCode != dnsmessage.RCodeSuccess {
		t.Errorf("IPv6: %v, %d answers, %v", err, len(m.Answers), m.RCode)
	}
}

func FuzzListening(f *testing.F) {
	f.Add(tcpTable)
	f.Fuzz(func(t *testing.T, table string) {
		ports := map[int]bool{}
		_ = addListening(ports, strings.NewReader(table))
		for port := range ports {
			if port < 0 || port > 65535 {
				t.Fatalf("port %d", port)
			}
		}
	})
}
