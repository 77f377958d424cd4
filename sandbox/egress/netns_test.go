package egress

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"hallmark.build/sandbox"
)

func TestNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ns, err := newNamespace(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	if got, err := os.Readlink(ns.path()); err != nil || got == own {
		t.Errorf("%s is %q (%v), the host's is %q", ns.path(), got, err, own)
	}
	if refused, err := ns.takeRefusedUDP(); err != nil || len(refused) != 0 {
		t.Errorf("refused in a new namespace: %v %v", refused, err)
	}
	ns.close() // twice is once
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != own {
		t.Errorf("the process moved to %q (%v)", now, err)
	}
}

func TestRefusedKey(t *testing.T) {
	four := []byte{8, 8, 4, 4, 1, 187, 0, 0}
	if got, ok := refusedKey(four); !ok || got != netip.MustParseAddrPort("8.8.4.4:443") {
		t.Errorf("%v %v", got, ok)
	}
	for _, bad := range [][]byte{nil, four[:7], make([]byte, 21)} {
		if _, ok := refusedKey(bad); ok {
			t.Errorf("a key of %d bytes is read", len(bad))
		}
	}
}

func TestOpenAndCloseOfNothing(t *testing.T) {
	for name, cfg := range map[string]Config{"no record": {SpoolDir: "/x"}, "no spool": {Record: &memory{}}} {
		if _, err := Open(context.Background(), cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	b, err := Open(context.Background(), Config{Record: &memory{}, SpoolDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	b.Begin(sandbox.Build, sandbox.BuildScript) // without a namespace: nothing to open
	if err := b.End(sandbox.Build); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.Namespace(sandbox.Build); err == nil {
		t.Error("a namespace after Close")
	}
}
