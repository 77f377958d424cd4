package containerd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadCgroups(t *testing.T) {
	none := func(string) string { return "" }
	all := func(string) string { return "cpuset cpu io memory pids\n" }
	const (
		v1 = "30 25 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n" +
			"31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
		unified = "32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		v2      = "33 25 0:29 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		noise   = "22 27 0:21 / /proc rw - proc proc rw\nbroken\n\n40 1 0:5 /sub /mnt rw - cgroup cgroup rw,memory\n"
	)
	for name, c := range map[string]struct {
		mounts      string
		controllers func(string) string
		roots       []string
		memory      string
		v2          bool
	}{
		"version 1": {noise + v1, none, []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct"}, "/sys/fs/cgroup/memory", false},
		"hybrid":    {v1 + unified + noise, none, []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"}, "/sys/fs/cgroup/memory", false},
		"version 2": {noise + v2, all, []string{"/sys/fs/cgroup"}, "/sys/fs/cgroup", true},
		"twice":     {v2 + v2, all, []string{"/sys/fs/cgroup"}, "/sys/fs/cgroup", true},
	} {
		got, err := readCgroups(strings.NewReader(c.mounts), "ns", c.controllers)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(cgroups{roots: c.roots, memory: c.memory, v2: c.v2, parent: "ns"}, got, cmp.AllowUnexported(cgroups{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	for name, mounts := range map[string]string{"nothing": "", "noise": noise, "version 2 without memory": v2, "no root": "40 1 0:5 /sub /mnt rw - cgroup cgroup rw,memory\n"} {
		if got, err := readCgroups(strings.NewReader(mounts), "ns", none); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestOOMKills(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{
		"new/memory.events":      "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n",
		"old/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
		"odd/memory.events":      "oom_kill many\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path string
		v2   bool
		want int64
	}{{"/new", true, 2}, {"/old", false, 5}, {"/odd", true, 0}, {"/gone", true, 0}, {"/old", true, 0}} {
		if got := (cgroups{memory: dir, v2: c.v2}).oomKills(c.path); got != c.want {
			t.Errorf("%s: %d, want %d", c.path, got, c.want)
		}
	}
}
