package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

func hitOf(c *Container, limit, path string) sandbox.Hit {
	for _, h := range c.Hits() {
		if h.Limit == limit && h.Path == path {
			return h
		}
	}
	return sandbox.Hit{}
}

// TestHitsAreSeenFromOutside: what runs in the container hides each of them.
func TestHitsAreSeenFromOutside(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Limits = sandbox.Limits{MemoryBytes: 64 << 20, Pids: 64, ShmBytes: 4 << 20, Tmpfs: []sandbox.Tmpfs{{Path: "/scratch", Bytes: 2 << 20}}}
	c := b.create(t, s)
	if hits := c.Hits(); len(hits) > 0 {
		t.Fatalf("at the start: %+v", hits)
	}
	for _, tt := range []struct {
		limit, path, script string
		max                 int64
	}{
		{"tmpfs", "/dev/shm", "dd if=/dev/zero of=/dev/shm/x bs=64k 2>/dev/null; true", 4 << 20},
		{"tmpfs", "/scratch", "dd if=/dev/zero of=/scratch/x bs=64k 2>/dev/null; true", 2 << 20},
		{"pids", "", "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done 2>/dev/null; true", 64},
		{"memory", "", "(tail /dev/zero); true", 64 << 20},
	} {
		got := run(t, c, shell(tt.script))
		h := hitOf(c, tt.limit, tt.path)
		if h.Max != tt.max || h.Used <= 0 || tt.path == "" && h.Count <= 0 {
			t.Errorf("%s %s: %+v (the script: %+v)", tt.limit, tt.path, h, got)
		}
	}
	// What is removed again makes room.
	run(t, c, shell("rm /dev/shm/x"))
	if h := hitOf(c, "tmpfs", "/dev/shm"); h.Max != 0 {
		t.Errorf("an empty tmpfs: %+v", h)
	}
}

func TestFurtherLimitsAreSet(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Limits.SwapBytes, s.Limits.ReservationBytes = 64<<20, 32<<20
	s.Limits.CPUShares, s.Limits.CPUSet = 512, "0"
	s.Limits.Ulimits = []sandbox.Ulimit{{Name: "stack", Soft: 4 << 20, Hard: 5 << 20}, {Name: "nproc", Soft: 500, Hard: 600}}
	s.Limits.Tmpfs = []sandbox.Tmpfs{{Path: "/with", Bytes: 1 << 20, Exec: true}, {Path: "/without", Bytes: 1 << 20}}
	c := b.create(t, s)
	got := run(t, c, shell(`ulimit -s; ulimit -Hs; ulimit -u; nproc
for d in with without; do printf '#!/bin/sh\necho runs in '$d > /$d/x; chmod +x /$d/x; /$d/x || true; done 2>/dev/null`))
	if got.out != "4096\n5120\n500\n1\nruns in with\n" {
		t.Errorf("%+v", got)
	}
	want := map[string]string{"cpu/cpu.shares": "512", "cpuset/cpuset.cpus": "0", "memory/memory.soft_limit_in_bytes": "33554432"}
	if b.runtime.cgroups.swap() {
		want["memory/memory.memsw.limit_in_bytes"] = "335544320"
	}
	root := "/sys/fs/cgroup"
	if b.runtime.cgroups.v2 {
		root = b.runtime.cgroups.memory
		want = map[string]string{"cpuset.cpus": "0", "memory.low": "33554432", "memory.swap.max": "67108864"}
	}
	for file, value := range want {
		dir, name := filepath.Split(file)
		raw, err := os.ReadFile(filepath.Join(root, dir, c.box.cgroup, name))
		if err != nil || strings.TrimSpace(string(raw)) != value {
			t.Errorf("%s: %q, want %s, %v", file, raw, value, err)
		}
	}
}

// TestScratchTakesWhatIsWritten: the container's own files are where the caller
// wants them, owned as in any other container.
func TestScratchTakesWhatIsWritten(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Scratch = filepath.Join(t.TempDir(), "scratch")
	c := b.create(t, s)
	if got := run(t, c, shell("echo hello > /made && mkdir /dir && stat -c '%u %g %a' / /made /dir && rm /bin/true; ls /bin/true 2>/dev/null")); got.out != "0 0 755\n0 0 644\n0 0 755\n" {
		t.Errorf("%+v", got)
	}
	for _, name := range []string{"made", "dir"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(s.Scratch, "upper", name), &st); err != nil || st.Uid != s.IDs.First {
			t.Errorf("%s: %v, owner %d", name, err, st.Uid)
		}
	}
	s.Session = freshSession()
	if _, err := b.runtime.Create(t.Context(), s); err == nil {
		t.Error("two containers write to one place")
	}
	b.clean(t, s.Session)
}

func TestDevicesOfTheAllowList(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	fuse := node(t, "fuse", unix.S_IFCHR|0o666, 10, 229)
	s.Limits.Devices = []string{fuse}
	c := b.create(t, s)
	got := run(t, c, shell(`test -c `+fuse+` && echo there; (exec 3<>`+fuse+`) && echo opens
test -e /dev/loop-control || echo no other`))
	if got.out != "there\nopens\nno other\n" {
		t.Errorf("%+v", got)
	}
}

// node makes a device for the test, on a file system that lets devices be.
func node(t *testing.T, name string, mode, major, minor uint32) string {
	t.Helper()
	path := fmt.Sprintf("/dev/hallmark-test-%d-%s", os.Getpid(), name)
	if err := errors.Join(unix.Mknod(path, mode, int(unix.Mkdev(major, minor))), unix.Chmod(path, mode&0o777)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return path
}

func TestCheckDevice(t *testing.T) {
	const char, block = unix.S_IFCHR | 0o666, unix.S_IFBLK | 0o666
	for _, tt := range []struct{ path, want string }{
		{"/dev/null", ""}, {node(t, "kvm", char, 10, 232), ""}, {node(t, "closed", unix.S_IFCHR|0o660, 10, 232), "keeps containers out"},
		{"/dev/loop-control", "makes disks"},
		{"/dev/loop0", "block device"},
		{"/dev", "want a clean path below /dev"}, {"/dev/../etc/passwd", "want a clean path"}, {"/etc/passwd", "want a clean path"},
		{"/dev/shm", "not a character device"}, {"/dev/absent", "no such file"}, {"/dev/fd", "not a character device"},
		// By another name it is what it is.
		{node(t, "a", char, 1, 1), "memory"}, {node(t, "b", char, 1, 4), "memory and ports"}, {node(t, "c", char, 1, 11), "kernel's log"},
		{node(t, "d", char, 10, 196), "host's memory"}, {node(t, "e", block, 253, 0), "block device"},
		{node(t, "f", char, 13, 64), "input"}, {node(t, "g", char, 21, 0), "disks"}, {node(t, "h", char, 4, 1), "terminal"},
		{node(t, "i", char, 5, 2), "terminals"}, {node(t, "j", char, 10, 231), "whole host"},
	} {
		err := CheckDevice(tt.path)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.path, err, tt.want)
		}
	}
}

func TestLimitsRefused(t *testing.T) {
	for name, l := range map[string]sandbox.Limits{
		"swap": {SwapBytes: -1}, "shares": {CPUShares: -1}, "shm": {ShmBytes: -1}, "reservation": {ReservationBytes: -1},
		"processors": {CPUSet: "0;1"}, "no processor": {CPUSet: ","}, "few processes": {Pids: 3},
		"ulimit": {Ulimits: []sandbox.Ulimit{{Name: "nofile"}}}, "priority": {Ulimits: []sandbox.Ulimit{{Name: "rtprio"}}},
		"tmpfs at root": {Tmpfs: []sandbox.Tmpfs{{Path: "/", Bytes: 1}}}, "tmpfs in proc": {Tmpfs: []sandbox.Tmpfs{{Path: "/proc/x", Bytes: 1}}},
		"tmpfs unclean": {Tmpfs: []sandbox.Tmpfs{{Path: "/a/../b", Bytes: 1}}}, "tmpfs without size": {Tmpfs: []sandbox.Tmpfs{{Path: "/a"}}},
	} {
		if checkLimits(l) == nil {
			t.Errorf("%s: %+v is accepted", name, l)
		}
	}
}
