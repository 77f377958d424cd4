package containerd

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	got := run(t, c, shell("echo out; echo err >&2; exit 3"))
	if got.out != "out\n" || got.err != "err\n" || got.exit.Code != 3 || got.exit.Signal != 0 || got.exit.OOM || got.exit.Duration <= 0 {
		t.Errorf("%+v", got)
	}
	if !strings.HasPrefix(b.runtime.Version(), "containerd v") || !strings.Contains(b.runtime.Version(), ", runc 1.") {
		t.Errorf("version %q", b.runtime.Version())
	}
}
