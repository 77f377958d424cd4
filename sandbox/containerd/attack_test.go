package containerd

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hallmark.build/sandbox"
)

// probed reads the attacker's lines.
func probed(t *testing.T, out string) map[string]string {
	t.Helper()
	m := map[string]string{}
	for line := range strings.Lines(out) {
		name, result, ok := strings.Cut(strings.TrimSpace(line), " ")
		if _, again := m[name]; !ok || again {
			t.Fatalf("attacker says %q", line)
		}
		m[name] = result
	}
	return m
}

// refusals are the answers of a kernel that does not let one do something.
var refusals = []string{"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "EBUSY"}

// expected are the probes that have another answer than a refusal.
var expected = map[string]string{
	"setuid-unmapped": "EINVAL",
	"sys-entries":     "0", "cgroup-mounts": "0", "cgroup-paths": "0",
	"nonewprivs": "1", "seccomp": "2", "capamb": "0000000000000000", "capinh": "0000000000000000",
	"nofile": "2048",
	// The border's own namespace: sockets work, changes do not.
	"tcp-socket": "ok", "listen": "ok", "bind-device": "ok", "netlink-audit": "ECONNREFUSED",
	"dial-192.0.2.1:443": "ENETUNREACH", "dial-169.254.169.254:80": "ENETUNREACH",
	"dial-[2001:db8::1]:443": "ENETUNREACH", "dial-8.8.8.8:53": "ENETUNREACH",
}

// Everything that the attacker tries from inside is refused, as the container's
// root and as a plain user, with a network namespace that the host owns.
func TestAttackerIsRefused(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.NetNS = hostNetNS(t)
	c := b.create(t, s)
	const caps = "00000000800005fb"
	for user, eff := range map[string]string{"": caps, "1000:1000": "0000000000000000"} {
		p := shell("/attacker probe && /attacker network")
		p.User = user
		got := probed(t, run(t, c, p).out)
		if len(got) < 180 {
			t.Errorf("user %q: only %d probes: the attacker broke off", user, len(got))
		}
		for name, result := range got {
			switch want, special := expected[name]; {
			case name == "capeff" || name == "capbnd":
				if want := map[string]string{"capeff": eff, "capbnd": caps}[name]; result != want {
					t.Errorf("user %q: %s is %s, want %s", user, name, result, want)
				}
			case strings.HasPrefix(name, "read-"):
				if result != "nothing" {
					t.Errorf("user %q: %s: %s", user, name, result)
				}
			case special && result != want:
				t.Errorf("user %q: %s: %s, want %s", user, name, result, want)
			case !special && !slices.Contains(refusals, result):
				t.Errorf("user %q: %s: %s", user, name, result)
			}
		}
	}
	// The container works as before.
	if got := run(t, c, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("afterwards: %+v", got)
	}
}

// No signal, however it is sent, does anything to init.
func TestSignalsToInit(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	for _, user := range []string{"", "1000:1000"} {
		p := shell("/attacker signals")
		p.User = user
		got := run(t, c, p)
		want := map[string]string{"": "sent true refused false\nstate S\n", "1000:1000": "sent false refused true\nstate S\n"}[user]
		if got.out != want || got.exit.Code != 0 {
			t.Errorf("user %q: %+v", user, got)
		}
	}
	if got := run(t, c, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("afterwards: %+v", got)
	}
}

// A stage has its three descriptors and no other.
func TestNoDescriptorLeaks(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	p := sandbox.Process{Args: []string{"/attacker", "fds"}, Env: []string{"PATH=/bin"}}
	if got := run(t, c, p); got.out != "0 /dev/null\n1 pipe\n2 pipe\n" {
		t.Errorf("%q", got.out)
	}
}

// System calls of another architecture end the thread that makes them.
func TestForeignArchitecture(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	p := sandbox.Process{Args: []string{"/attacker", "foreign"}, Env: []string{"PATH=/bin"}}
	if got := run(t, c, p); got.out != "killed\n" {
		t.Errorf("%+v", got)
	}
}

// What a stage leaves behind is gone when Run returns, and what runs in it when
// Kill does.
func TestDaemonsDie(t *testing.T) {
	b := start(t)
	for _, user := range []string{"", "1000:1000"} {
		s := b.spec("base")
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		s.Mounts = []sandbox.Mount{{Source: dir, Target: "/out"}}
		c := b.create(t, s)
		p := sandbox.Process{Args: []string{"/attacker", "daemon", "/out/stage"}, Env: []string{"PATH=/bin"}, User: user}
		if got := run(t, c, p); got.out != "daemon ok\n" {
			t.Fatalf("user %q: %+v", user, got)
		}
		still(t, filepath.Join(dir, "stage"))

		done := make(chan error, 1)
		go func() {
			q := sandbox.Process{Args: []string{"/bin/sh", "-c", "/attacker daemon /out/kill; /attacker pause"}, Env: []string{"PATH=/bin"}, User: user}
			_, err := try(t.Context(), t, c, q)
			done <- err
		}()
		waitFor(t, func() bool {
			info, err := os.Stat(filepath.Join(dir, "kill"))
			return err == nil && info.Size() > 0
		})
		if err := c.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		still(t, filepath.Join(dir, "kill"))
		if err := <-done; err == nil || !strings.Contains(err.Error(), errKilled.Error()) {
			t.Errorf("run: %v", err)
		}
		if pids := inCgroup(b.runtime, c); len(pids) > 0 {
			t.Errorf("still there: %v", pids)
		}
	}
}

// still checks that nobody writes to a file any more.
func still(t *testing.T, path string) {
	t.Helper()
	size := func() int64 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	pause(50)
	if after := size(); after != before {
		t.Errorf("%s: still written to", path)
	}
}

// inCgroup lists the processes of a container by the kernel's account.
func inCgroup(r *Runtime, c *Container) []string {
	b, _ := os.ReadFile(filepath.Join(r.cgroups.memory, c.box.cgroup, "cgroup.procs"))
	return strings.Fields(string(b))
}

func TestForkBomb(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Limits.Pids = 64
	c := b.create(t, s)
	for range 2 {
		got := probed(t, run(t, c, sandbox.Process{Args: []string{"/attacker", "forkbomb"}, Env: []string{"PATH=/bin"}}).out)
		if got["fork"] != "EAGAIN" || got["started"] != "true" {
			t.Errorf("%v", got)
		}
	}
	if got := run(t, c, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("afterwards: %+v", got)
	}
}

func TestMemoryBomb(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Limits.MemoryBytes = 64 << 20
	c := b.create(t, s)
	for range 2 {
		got := run(t, c, sandbox.Process{Args: []string{"/attacker", "membomb"}, Env: []string{"PATH=/bin"}})
		if !got.exit.OOM || got.exit.Code != 137 || got.exit.Signal != 9 {
			t.Errorf("%+v", got.exit)
		}
		// In a child, so that the stage's own process ends well.
		if got = run(t, c, shell("/attacker membomb; echo after")); !got.exit.OOM || got.out != "after\n" {
			t.Errorf("in a child: %+v", got)
		}
		if got = run(t, c, shell("echo fine")); got.exit.OOM || got.out != "fine\n" {
			t.Errorf("afterwards: %+v", got)
		}
	}
	// A tmpfs counts.
	if got := run(t, c, shell("dd if=/dev/zero of=/dev/shm/x bs=1M count=100 2>&1; wc -c < /dev/shm/x")); !strings.HasSuffix(got.out, "8388608\n") {
		t.Errorf("shm: %+v", got)
	}
}

// Container ids are others on the host, and two sandboxes' do not meet.
func TestIDRanges(t *testing.T) {
	b := start(t)
	for i, user := range []string{"", "1000:1001"} {
		s := b.spec("base")
		s.IDs = testIDs(i + 1)
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		s.Mounts = []sandbox.Mount{{Source: dir, Target: "/out"}}
		c := b.create(t, s)
		p := shell("id -u; id -g; touch /out/f; chown 0 /out/f 2>/dev/null; stat -c %u /bin/busybox; cat /proc/self/uid_map | tr -s ' '")
		p.User = user
		got := run(t, c, p)
		uid, gid := uint32(1000*i), uint32(1001*i)
		want := strconv.Itoa(int(uid)) + "\n" + strconv.Itoa(int(gid)) + "\n0\n 0 " + strconv.Itoa(int(s.IDs.First)) + " 65536\n"
		if got.out != want {
			t.Errorf("got %q, want %q", got.out, want)
		}
		owner, group := owned(t, filepath.Join(dir, "f"))
		if owner != s.IDs.First+uid || group != s.IDs.First+gid {
			t.Errorf("on the host: %d:%d", owner, group)
		}
	}
}

// An image cannot lead the runtime astray by links in the places that it mounts
// on, and its labels and working directory mean nothing.
func TestImageWithLinks(t *testing.T) {
	b := start(t)
	before := dirNames(t, "/etc", "/dev")
	s := b.spec("links")
	c, err := b.runtime.Create(t.Context(), s)
	if err == nil {
		if got := run(t, c, shell("ls /dev")); strings.Contains(got.out, "passwd") {
			t.Errorf("%+v", got)
		}
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
	}
	b.clean(t, s.Session)
	if after := dirNames(t, "/etc", "/dev"); !slices.Equal(before, after) {
		t.Errorf("the host has changed")
	}
}

func dirNames(t *testing.T, dirs ...string) []string {
	t.Helper()
	var names []string
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, d+"/"+e.Name())
		}
	}
	return names
}
