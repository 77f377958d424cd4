package egress

import (
	"context"
	"os"
	"testing"
)

func TestNamespaceBuilds(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	ns, err := newNamespace(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.close()
	u, err := ns.takeRefusedUDP()
	t.Log(ns.path(), u, err)
}
