package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstance(t *testing.T) {
	one, other := t.TempDir(), t.TempDir()
	first, err := instance(one)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := instance(one); err != nil || again != first {
		t.Errorf("%q after %q, %v", again, first, err)
	}
	if second, err := instance(other); err != nil || second == first {
		t.Errorf("two runtimes are called %q, %v", second, err)
	}
	if err := os.WriteFile(filepath.Join(one, "instance"), []byte("../.."), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := instance(one); err == nil || !strings.Contains(err.Error(), "not a name") {
		t.Errorf("%v", err)
	}
}
