package containerd

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd/initproto"
)

func pause(ms int) { time.Sleep(time.Duration(ms) * time.Millisecond) }

// waitFor waits until something is so; the test's own deadline bounds it.
func waitFor(t testing.TB, so func() bool) {
	t.Helper()
	for !so() {
		if t.Context().Err() != nil {
			t.Fatal("never came to be")
		}
		pause(5)
	}
}

func owned(t *testing.T, path string) (uid, gid uint32) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

func TestRun(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	for _, p := range []struct {
		name    string
		process sandbox.Process
		out     string
		code    int
		signal  int
	}{
		{"output and status", shell("echo out; echo err >&2; exit 3"), "out\n", 3, 0},
		{"killed", shell("kill -9 $$"), "", 137, 9},
		{"terminated", shell("kill -15 $$"), "", 143, 15},
		{"search path", sandbox.Process{Args: []string{"env"}, Env: []string{"PATH=/nowhere:/bin", "A=1"}}, "A=1\nHOME=/root\nPATH=/nowhere:/bin\n", 0, 0},
		{"no search path", sandbox.Process{Args: []string{"env"}, Env: []string{"HOME=/x"}}, "HOME=/x\n", 0, 0},
		{"bytes that are not text", sandbox.Process{Args: []string{"/bin/env"}, Env: []string{"HOME=\xff\xfe"}}, "HOME=\xff\xfe\n", 0, 0},
		{"directory", withDir(shell("readlink /proc/self/cwd"), "/etc"), "/etc\n", 0, 0},
		{"directory missing", withDir(shell("readlink /proc/self/cwd"), "/nowhere"), "/\n", 0, 0},
		{"directory is a file", withDir(shell("readlink /proc/self/cwd"), "/etc/passwd"), "/\n", 0, 0},
		{"directory is init's", withDir(shell("readlink /proc/self/cwd"), "/proc/1/cwd"), "/\n", 0, 0},
		{"directory that the user may not enter", withDir(withUser(shell("readlink /proc/self/cwd"), "dev"), "/root"), "/\n", 0, 0},
		{"root", withUser(shell("id"), ""), "uid=0(root) gid=0(root) groups=10(wheel)\n", 0, 0},
		{"user by name", withUser(shell("id; echo $HOME"), "dev"), "uid=1000(dev) gid=1001(dev) groups=10(wheel)\n/home/dev\n", 0, 0},
		{"user by number", withUser(shell("id"), "1000"), "uid=1000(dev) gid=1001(dev) groups=10(wheel)\n", 0, 0},
		{"user and group", withUser(shell("id"), "dev:staff"), "uid=1000(dev) gid=50(staff)\n", 0, 0},
		{"numbers that nobody has", withUser(shell("id; echo $HOME"), "4321:1234"), "uid=4321 gid=1234\n/\n", 0, 0},
		{"own session", shell("test $(cut -d' ' -f6 /proc/$$/stat 2>/dev/null || /bin/busybox cut -d' ' -f6 /proc/$$/stat) = $$ && echo leader"), "leader\n", 0, 0},
	} {
		got := run(t, c, p.process)
		out := got.out
		if strings.HasPrefix(p.name, "search") { // busybox prints in the kernel's order
			out = sortLines(out)
		}
		if out != p.out || got.exit.Code != p.code || got.exit.Signal != p.signal || got.exit.OOM || got.exit.Duration <= 0 {
			t.Errorf("%s: %+v, want %q", p.name, got, p.out)
		}
	}
	if !strings.HasPrefix(b.runtime.Version(), "containerd v2.") || !strings.Contains(b.runtime.Version(), ", runc 1.") {
		t.Errorf("version %q", b.runtime.Version())
	}
}

// An environment may be larger than a packet of init's socket; the kernel says
// what is too large.
func TestLargeEnvironment(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	fill := func(n, size int) []string {
		env := []string{"PATH=/bin", "FIRST=1"}
		for i := range n {
			env = append(env, fmt.Sprintf("V%d=%s", i, strings.Repeat("x", size)))
		}
		return append(env, "LAST=2")
	}
	p := shell("echo $FIRST $LAST; env | grep -c ^V; echo ${#V8}")
	for name, size := range map[string]struct{ n, each int }{"long ones": {9, 120_000}, "many": {12_000, 10}} {
		p.Env = fill(size.n, size.each)
		want := fmt.Sprintf("1 2\n%d\n%d\n", size.n, size.each)
		if got := run(t, c, p); got.out != want {
			t.Errorf("%s: %+v, want %q", name, got, want)
		}
	}
	for name, env := range map[string][]string{"one that is too long": fill(1, 150_000), "one longer than a packet": fill(1, initproto.MaxMessage), "too much": fill(80, 100_000)} {
		p.Env = env
		_, err := try(t.Context(), t, c, p)
		if _, user := errors.AsType[*sandbox.UserError](err); !user {
			t.Errorf("%s: %v, want a UserError", name, err)
		}
	}
	if got := run(t, c, shell("echo $V0")); got.out != "\n" {
		t.Errorf("an environment outlived its stage: %+v", got)
	}
}

func withDir(p sandbox.Process, dir string) sandbox.Process   { p.Dir = dir; return p }
func withUser(p sandbox.Process, user string) sandbox.Process { p.User = user; return p }

func sortLines(s string) string {
	lines := strings.SplitAfter(s, "\n")
	for i := range lines {
		for j := i + 1; j < len(lines); j++ {
			if lines[j] != "" && lines[j] < lines[i] {
				lines[i], lines[j] = lines[j], lines[i]
			}
		}
	}
	return strings.Join(lines, "")
}

// The shell is found in the image and reads the script from standard input.
func TestShell(t *testing.T) {
	b := start(t)
	for _, c := range []struct {
		image  string
		args   []string
		script string
		want   string
	}{
		{"base", nil, "echo $0 $A", "/bin/sh"},
		{"base", []string{"/bin/env", "A=entry"}, "echo $0 $A", "/bin/sh entry"},
		{"kaniko", nil, "echo $0 $A", "/busybox/sh"},
	} {
		box := b.create(t, b.spec(c.image))
		path := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(path, []byte(c.script), 0o600); err != nil {
			t.Fatal(err)
		}
		script, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer script.Close()
		got := run(t, box, sandbox.Process{Args: c.args, Shell: true, Env: []string{"PATH=/bin"}, Stdin: script})
		if strings.TrimSpace(got.out) != c.want || got.exit.Code != 0 {
			t.Errorf("%s %v: %+v", c.image, c.args, got)
		}
	}
}

// What the image cannot do is the user's fault, with a hint, and the container
// goes on.
func TestUserErrors(t *testing.T) {
	b := start(t)
	base := b.create(t, b.spec("base"))
	bare := b.create(t, b.spec("noshell"))
	for _, c := range []struct {
		name    string
		box     *Container
		process sandbox.Process
		say     string
	}{
		{"no shell", bare, sandbox.Process{Shell: true}, "no shell"},
		{"no such command", base, sandbox.Process{Args: []string{"nope"}, Env: []string{"PATH=/bin"}}, "nope"},
		{"no such file", base, sandbox.Process{Args: []string{"/nope"}}, "/nope"},
		{"entrypoint is a directory", base, sandbox.Process{Args: []string{"/etc"}, Shell: true}, "/etc"},
		{"not executable", base, sandbox.Process{Args: []string{"/etc/passwd"}}, "/etc/passwd"},
		{"unknown user", base, withUser(shell("true"), "nobody-here"), "nobody-here"},
		{"unknown group", base, withUser(shell("true"), "dev:nobody-here"), "nobody-here"},
		{"user without group", base, withUser(shell("true"), "dev:"), "user"},
		{"user out of range", base, withUser(shell("true"), "65536"), "65536"},
		{"group out of range", base, withUser(shell("true"), "1:65536"), "65536"},
		{"user number too large", base, withUser(shell("true"), "4294967296"), "4294967296"},
		{"highest number", base, withUser(shell("true"), "4294967295"), "4294967295"},
		{"negative user", base, withUser(shell("true"), "-1"), "-1"},
		{"control characters", base, sandbox.Process{Args: []string{"/\x1b[31mred\nline"}}, "/?[31mred?line"},
		{"huge environment", base, sandbox.Process{Args: []string{"/bin/true"}, Env: []string{"A=" + strings.Repeat("x", initproto.MaxMessage)}}, "larger"},
	} {
		_, err := try(t.Context(), t, c.box, c.process)
		var user *sandbox.UserError
		if !errors.As(err, &user) || user.Hint == "" || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, p := range []sandbox.Process{
		{}, {Args: []string{""}}, {Args: []string{"/bin/true"}, Env: []string{"A"}}, {Args: []string{"/bin/true"}, Env: []string{"A=\x00"}},
		{Args: []string{"a\x00b"}}, {Args: []string{"/bin/true"}, Dir: "relative"},
	} {
		var user *sandbox.UserError
		if _, err := try(t.Context(), t, base, p); !errors.As(err, &user) || user.Hint == "" {
			t.Errorf("%+v: %v", p, err)
		}
	}
	// Descriptors that are not given are /dev/null.
	if exit, err := base.Run(t.Context(), shell("cat && echo out && echo err >&2")); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
	if got := run(t, base, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("afterwards: %+v", got)
	}
}

// When the context ends, the stage gets SIGTERM, then SIGKILL, and the next one
// runs as if nothing had been.
func TestStop(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	for _, s := range []struct {
		name, script string
		grace        time.Duration
		code         int
	}{
		{"ends on SIGTERM", "trap 'echo bye; exit 9' TERM; echo here; while :; do sleep 0.01; done", time.Minute, 9},
		{"ignores SIGTERM", "trap '' TERM; echo here; while :; do sleep 0.01; done", 20 * time.Millisecond, 137},
		{"leaves one that ends on SIGTERM", "trap 'exit 9' TERM; (trap 'echo bye; exit' TERM; echo here; while :; do sleep 0.01; done) & while :; do sleep 0.01; done", time.Minute, 9},
		{"leaves one that ignores SIGTERM", "trap 'exit 9' TERM; (trap '' TERM; echo here; while :; do sleep 0.01; done) & while :; do sleep 0.01; done", 300 * time.Millisecond, 9},
		{"no grace", "/attacker pause", 0, 137},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("the user has canceled")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			r.Read(make([]byte, 16)) // it is here
			cancel(why)
		})
		p := shell(s.script)
		p.Stdin, p.Stdout, p.Stderr, p.Grace = null, w, null, s.grace
		exit, err := c.Run(ctx, p)
		wg.Wait()
		w.Close()
		r.Close()
		null.Close()
		if !errors.Is(err, why) || exit.Code != s.code {
			t.Errorf("%s: %+v, %v", s.name, exit, err)
		}
		if got := run(t, c, shell("echo fine; ls /proc | grep -c '^[0-9]'")); !strings.HasPrefix(got.out, "fine\n") {
			t.Errorf("%s: afterwards: %+v", s.name, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := try(ctx, t, c, shell("echo never")); !errors.Is(err, context.Canceled) {
		t.Errorf("ended before: %v", err)
	}
}

// A stage that stops init's own answer cannot make Run hang.
func TestInitKilled(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	pids := inCgroup(b.runtime, c)
	done := make(chan error, 1)
	go func() {
		_, err := try(t.Context(), t, c, shell("/attacker pause"))
		done <- err
	}()
	waitFor(t, func() bool { return len(inCgroup(b.runtime, c)) > len(pids) })
	fd, err := c.init()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	err = <-done
	var user *sandbox.UserError
	if !errors.Is(err, errGone) || errors.As(err, &user) {
		t.Errorf("got %v", err)
	}
	if err := awaitDeath(t.Context(), fd); err != nil {
		t.Error(err)
	}
	if pids := inCgroup(b.runtime, c); len(pids) > 0 {
		t.Errorf("still there: %v", pids)
	}
	if _, err := try(t.Context(), t, c, shell("true")); err == nil {
		t.Error("ran in a dead container")
	}
}

// An init that says nothing any more costs its container, but nobody's time.
func TestInitSilent(t *testing.T) {
	b := start(t)
	b.runtime.patience = 50 * time.Millisecond
	defer func() { b.runtime.patience = answerTimeout }()
	c := b.create(t, b.spec("base"))
	fd, err := c.init()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	idle := inCgroup(b.runtime, c)
	go func() {
		for len(inCgroup(b.runtime, c)) == len(idle) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond) // until the stage runs: before, nothing has to be killed
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0); err != nil {
			t.Error(err)
		}
		for !stopped(t, idle[0]) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond) // a thread in the kernel may answer first
		}
		cancel(why)
	}()
	if _, err := try(ctx, t, c, shell("/attacker pause")); !errors.Is(err, why) || !errors.Is(err, errKilled) {
		t.Errorf("got %v", err)
	}
	if pids := inCgroup(b.runtime, c); len(pids) > 0 {
		t.Errorf("still there: %v", pids)
	}
}

// stopped reports whether no thread of a process runs any more.
func stopped(t *testing.T, pid string) bool {
	t.Helper()
	threads, err := filepath.Glob(filepath.Join("/proc", pid, "task/*/stat"))
	if err != nil || len(threads) == 0 {
		t.Errorf("process %s: no threads (%v)", pid, err)
		return true
	}
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if _, state, ok := strings.Cut(string(text), ") "); err == nil && ok && !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// The two containers of several sandboxes at once: nobody is in another's way.
func TestTogether(t *testing.T) {
	b := start(t)
	var wg sync.WaitGroup
	for i := range 3 {
		s := b.spec("base")
		s.IDs = testIDs(10 + i)
		for _, role := range []sandbox.Role{sandbox.Build, sandbox.Helper} {
			s := s
			s.Role = role
			wg.Go(func() {
				c, err := b.runtime.Create(t.Context(), s)
				if err != nil {
					t.Error(err)
					return
				}
				for range 3 {
					if exit, err := c.Run(t.Context(), shell("test $(hostname) = "+string(role))); err != nil || exit.Code != 0 {
						t.Errorf("%+v, %v", exit, err)
					}
				}
				if err := c.Delete(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		defer b.clean(t, s.Session)
	}
	wg.Wait()
}

// Limits are the kernel's, not only the Spec's.
func TestLimitsAreSet(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.Limits = sandbox.Limits{MemoryBytes: 96 << 20, CPUs: 0.5, Pids: 77, OpenFiles: 123}
	c := b.create(t, s)
	read := func(controller, file string) string {
		dir := filepath.Join("/sys/fs/cgroup", controller)
		if b.runtime.cgroups.v2 {
			dir = b.runtime.cgroups.memory
		}
		raw, err := os.ReadFile(filepath.Join(dir, c.box.cgroup, file))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(raw))
	}
	want := map[[2]string]string{
		{"memory", "memory.limit_in_bytes"}: "100663296", {"memory", "memory.memsw.limit_in_bytes"}: "100663296",
		{"pids", "pids.max"}: "77", {"cpu", "cpu.cfs_quota_us"}: "50000",
	}
	if b.runtime.cgroups.v2 {
		want = map[[2]string]string{{"", "memory.max"}: "100663296", {"", "memory.swap.max"}: "0", {"", "pids.max"}: "77", {"", "cpu.max"}: "50000 100000"}
	}
	for where, value := range want {
		if got := read(where[0], where[1]); got != value {
			t.Errorf("%s: %s, want %s", where[1], got, value)
		}
	}
	if got := run(t, c, shell("ulimit -n; ulimit -Hn; ulimit -c")); got.out != "123\n123\n0\n" {
		t.Errorf("%+v", got)
	}
}

func TestKillAndDelete(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	c, err := b.runtime.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.runtime.Create(t.Context(), s); err == nil {
		t.Error("made the same container twice")
	}
	if got := run(t, c, shell("echo the first lives")); got.exit.Code != 0 {
		t.Errorf("%+v", got)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := c.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if err := c.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 2 {
		if err := c.Delete(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
	b.clean(t, s.Session)
	if _, err := try(t.Context(), t, c, shell("true")); err == nil {
		t.Error("ran in a deleted container")
	}
}

// Whatever fails, Create leaves nothing.
func TestCreateUndoes(t *testing.T) {
	b := start(t)
	for name, change := range map[string]func(*sandbox.Spec){
		"unknown image":       func(s *sandbox.Spec) { s.Image = "example.com/a@sha256:" + strings.Repeat("0", 64) },
		"no such mount":       func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{Source: "/nowhere", Target: "/x"}} },
		"no such namespace":   func(s *sandbox.Spec) { s.NetNS = "/nowhere" },
		"not a namespace":     func(s *sandbox.Spec) { s.NetNS = "/etc/passwd" },
		"image breaks set-up": func(s *sandbox.Spec) { s.Image, s.CA = b.images["fifo"], authority("x") },
	} {
		s := b.spec("base")
		change(&s)
		c, err := b.runtime.Create(t.Context(), s)
		if err == nil && name != "image breaks set-up" {
			t.Errorf("%s: made", name)
		}
		if err == nil {
			if err := c.Delete(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		b.clean(t, s.Session)
	}
}

// A Create that is cancelled leaves nothing, wherever it was: what containerd
// has begun goes on without the caller, and must not outlive the removal.
func TestCreateCancelled(t *testing.T) {
	b := start(t)
	for after := time.Duration(0); after < 300*time.Millisecond; after += 10 * time.Millisecond {
		ctx, cancel := context.WithCancel(t.Context())
		s := b.spec("base")
		time.AfterFunc(after, cancel)
		if c, err := b.runtime.Create(ctx, s); err == nil {
			if err := c.Delete(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if b.clean(t, s.Session); t.Failed() {
			t.Fatalf("cancelled after %s", after)
		}
	}
}

func TestSpecRefusals(t *testing.T) {
	ok := sandbox.Spec{Session: "0a", Role: "build", Image: "example.com/a@sha256:" + strings.Repeat("0", 64), IDs: testIDs(0)}
	if err := check(ok); err != nil {
		t.Fatal(err)
	}
	mount := func(source, target string) func(*sandbox.Spec) {
		return func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{{Source: source, Target: target}} }
	}
	for name, change := range map[string]func(*sandbox.Spec){
		"no session":         func(s *sandbox.Spec) { s.Session = "" },
		"session is a path":  func(s *sandbox.Spec) { s.Session = "../x" },
		"session hyphen":     func(s *sandbox.Spec) { s.Session = "a-b" },
		"role":               func(s *sandbox.Spec) { s.Role = "Build" },
		"role of 1000":       func(s *sandbox.Spec) { s.Role = sandbox.ServiceRole(1000) },
		"role is a path":     func(s *sandbox.Spec) { s.Role = "a/1" },
		"image by tag":       func(s *sandbox.Spec) { s.Image = "example.com/a:b" },
		"short digest":       func(s *sandbox.Spec) { s.Image = "a@sha256:00" },
		"hostname":           func(s *sandbox.Spec) { s.Hostname = "a b" },
		"host's root":        func(s *sandbox.Spec) { s.IDs.First = 0 },
		"host's users":       func(s *sandbox.Spec) { s.IDs.First = 1000 },
		"no ids":             func(s *sandbox.Spec) { s.IDs.Count = 0 },
		"ids wrap":           func(s *sandbox.Spec) { s.IDs.First, s.IDs.Count = 1<<32-10, 100 },
		"relative namespace": func(s *sandbox.Spec) { s.NetNS = "x" },
		"negative memory":    func(s *sandbox.Spec) { s.Limits.MemoryBytes = -1 },
		"negative cpus":      func(s *sandbox.Spec) { s.Limits.CPUs = -1 },
		"few pids":           func(s *sandbox.Spec) { s.Limits.Pids = 1 },
		"huge ca":            func(s *sandbox.Spec) { s.CA = make([]byte, initproto.MaxMessage) },
		"mount on root":      mount("/x", "/"),
		"mount on /dev":      mount("/x", "/dev"),
		"mount on init":      mount("/x", initproto.Init),
		"mount on /proc":     mount("/x", "/proc/sys"),
		"mount on /sys":      mount("/x", "/sys"),
		"relative source":    mount("x", "/y"),
		"relative target":    mount("/x", "y"),
		"unclean target":     mount("/x", "/y/../proc"),
		"NUL":                mount("/x", "/y\x00"),
		"mount in a mount": func(s *sandbox.Spec) {
			s.Mounts = []sandbox.Mount{{Source: "/x", Target: "/builds/a/b"}, {Source: "/x", Target: "/builds"}}
		},
	} {
		s := ok
		change(&s)
		if err := check(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A read-only root has its tmpfs, within their limits; mounts are what the
// Spec says.
func TestReadOnlyAndMounts(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	s.ReadOnly, s.Hostname = true, "box-1"
	s.Limits.TmpfsBytes = 1 << 20
	s.CA = authority("ours")
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Mounts = []sandbox.Mount{{Source: file, Target: "/opt/some/file", ReadOnly: true}, {Source: file, Target: "/etc/hostname", ReadOnly: true}, {Source: dir, Target: "/tmp/dir", ReadOnly: true}}
	c := b.create(t, s)
	got := run(t, c, shell(`cat /opt/some/file /etc/hostname; hostname; cat /etc/resolv.conf; grep -c box-1 /etc/hosts
for f in /x /etc/x /opt/some/file /etc/hosts /tmp/dir/x /bin/x; do touch $f 2>/dev/null && echo "wrote $f"; done
touch /tmp/a /run/a /dev/shm/a && echo tmpfs
for d in /tmp /run /dev/shm; do dd if=/dev/zero of=$d/big bs=64k count=64 2>/dev/null; wc -c < $d/big; rm $d/big; done
i=0; while touch /tmp/i$i 2>/dev/null; do i=$((i+1)); done; test $i -lt 300 && echo inodes
grep -c ' / / ro,' /proc/self/mountinfo; grep -v nosuid /proc/self/mountinfo | grep -c /opt/some/file; grep -v nodev /proc/self/mountinfo | grep -c /opt/some/file
cat $SSL_CERT_FILE /dev/hallmark/ca.pem | grep -c BEGIN`))
	want := "content\ncontent\nbox-1\nnameserver 127.0.0.1\n1\ntmpfs\n1048576\n1048576\n1048576\ninodes\n1\n0\n0\n1\n"
	if d := cmp.Diff(want, got.out); d != "" {
		t.Error(d, got.err)
	}
}

// A mount that follows sees what the host mounts below it later, and cannot
// take it away.
func TestFollow(t *testing.T) {
	b := start(t)
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	sealed := t.TempDir()
	for path, data := range map[string]string{filepath.Join(sub, "old"): "", filepath.Join(sealed, "new"): "sealed\n"} {
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	s := b.spec("base")
	s.Mounts = []sandbox.Mount{{Source: dir, Target: "/builds", Follow: true}, {Source: dir, Target: "/other"}}
	c := b.create(t, s)
	if got := run(t, c, shell("ls /builds/sub")); got.out != "old\n" {
		t.Errorf("before: %+v", got)
	}
	if err := unix.Mount(sealed, sub, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sub, unix.MNT_DETACH)
	if err := unix.Mount("", sub, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		t.Fatal(err)
	}
	got := run(t, c, shell("cat /builds/sub/new; ls /other/sub; touch /builds/sub/x 2>/dev/null && echo wrote; umount /builds/sub 2>/dev/null && echo unmounted; mv /builds/sub /builds/y 2>/dev/null && echo moved; cat /builds/sub/new"))
	if got.out != "sealed\nold\nsealed\n" {
		t.Errorf("after: %+v", got)
	}
}

func TestTrust(t *testing.T) {
	b := start(t)
	ca := authority("the job's")
	block, _ := pem.Decode(ca)
	body := strings.TrimSpace(string(ca))
	for _, c := range []struct {
		image string
		ours  []string // files that must have the job's authority exactly once
	}{
		{"trust", []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt", initproto.RootsFile, initproto.CAFile}},
		{"base", []string{"/etc/ssl/certs/ca-certificates.crt", initproto.RootsFile, initproto.CAFile}},
	} {
		s := b.spec(c.image)
		s.CA = ca
		box := b.create(t, s)
		for _, f := range c.ours {
			got := run(t, box, withUser(shell("cat "+f), "dev"))
			if strings.Count(got.out, body) != 1 {
				t.Errorf("%s: %s: %q", c.image, f, got.out)
			}
			theirs := 0
			if c.image == "trust" && f != initproto.CAFile && !strings.Contains(f, "pki") {
				theirs = 1
			}
			if strings.Count(got.out, strings.TrimSpace(string(otherRoot()))) != theirs {
				t.Errorf("%s: %s: the image's own root is there %d times", c.image, f, 1-theirs)
			}
		}
		store := run(t, box, shell("cat "+initproto.JavaFile)).out
		if !strings.Contains(store, string(block.Bytes)) {
			t.Errorf("%s: Java's store lacks the authority", c.image)
		}
		if c.image == "trust" {
			javaReads(t, store, 2)
		}
		got := run(t, box, shell("cat /etc/resolv.conf; readlink /etc/resolv.conf; echo more >> /etc/hosts && grep -c build /etc/hosts; stat -c %u%a /etc/hosts"))
		if got.out != "nameserver 127.0.0.1\n1\n0644\n" {
			t.Errorf("%s: %+v", c.image, got)
		}
	}
	bare := b.spec("base")
	bare.CA = ca
	files := hashedCA(ca)
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	if got := run(t, b.create(t, bare), shell("cat "+files[0].Path)); strings.TrimSpace(got.out) != body {
		t.Errorf("%+v", got)
	}
	for _, v := range TrustEnv() {
		if name, value, ok := strings.Cut(v, "="); !ok || name == "" || value == "" {
			t.Errorf("%q", v)
		}
	}
}

// The name under which OpenSSL would look for a certificate is OpenSSL's.
func TestSubjectHash(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("needs openssl")
	}
	for _, name := range []string{"hallmark", "Hallmark  Job 17", " Ünïcode ÄÖ ", "a+b, c=d/e", "UPPER lower"} {
		ca := authority(name)
		cmd := exec.Command(openssl, "x509", "-noout", "-subject_hash")
		cmd.Stdin = strings.NewReader(string(ca))
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		files := hashedCA(ca)
		if want := opensslDir + strings.TrimSpace(string(out)) + ".0"; len(files) != 1 || files[0].Path != want {
			t.Errorf("%q: %v, want %s", name, files, want)
		}
	}
	for _, junk := range []string{"", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if files := hashedCA([]byte(junk)); files != nil {
			t.Errorf("%q: %v", junk, files)
		}
	}
}

// javaReads has the JDK's own tool read the store, where there is one.
func javaReads(t *testing.T, store string, want int) {
	t.Helper()
	keytool, err := exec.LookPath("keytool")
	if err != nil {
		t.Log("keytool is not installed: Java's store is not checked by Java")
		return
	}
	path := filepath.Join(t.TempDir(), "roots.p12")
	if err := os.WriteFile(path, []byte(store), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(keytool, "-list", "-keystore", path, "-storetype", "PKCS12", "-storepass", "").CombinedOutput()
	if n := strings.Count(string(out), "trustedCertEntry"); n != want {
		t.Errorf("keytool: %v: %d trusted certificates, want %d: %s", err, n, want, out)
	}
}

// An image with hostile things where the trust stores should be is refused or
// used, but does not hang or fool the set-up.
func TestHostileStores(t *testing.T) {
	b := start(t)
	s := b.spec("fifo")
	s.CA = authority("x")
	c, err := b.runtime.Create(t.Context(), s)
	if err != nil {
		var user *sandbox.UserError
		if !errors.As(err, &user) {
			t.Errorf("got %v", err)
		}
		b.clean(t, s.Session)
		return
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	b.clean(t, s.Session)
}
