package containerd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/sandbox"
)

// victim is what the process that will be killed is told.
type victim struct {
	Config Config
	Image  string
	Made   []string // sessions with a running stage
	Out    string   // directory mounted at /out
}

func (v victim) spec(session string) sandbox.Spec {
	role := sandbox.Build
	if session != v.Made[0] {
		role = sandbox.ServiceRole(12)
	}
	return sandbox.Spec{
		Session: session, Role: role, Image: v.Image, IDs: testIDs(9),
		Limits: sandbox.Limits{MemoryBytes: 64 << 20, Pids: 64}, Mounts: []sandbox.Mount{{Source: v.Out, Target: "/out"}},
	}
}

// playVictim makes containers with stages that run, says so, and waits for its
// death.
func playVictim(file string) {
	fail := func(err error) {
		fmt.Println("victim:", err)
		os.Exit(1)
	}
	var v victim
	raw, err := os.ReadFile(file)
	if err != nil {
		fail(err)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		fail(err)
	}
	ctx := context.Background()
	r, err := Start(ctx, v.Config, slog.New(slog.DiscardHandler))
	if err != nil {
		fail(err)
	}
	if err := r.Pull(ctx, Order{Reference: v.Image}); err != nil {
		fail(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		fail(err)
	}
	for _, session := range v.Made {
		c, err := r.Create(ctx, v.spec(session))
		if err != nil {
			fail(err)
		}
		go c.Run(ctx, sandbox.Process{
			Args: []string{"/attacker", "daemonized", "/out/" + session, "alone"}, Env: []string{"PATH=/bin"}, Stdin: null, Stdout: null, Stderr: null,
		})
	}
	for _, session := range v.Made {
		for {
			if info, err := os.Stat(filepath.Join(v.Out, session)); err == nil && info.Size() > 0 {
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	fmt.Println("ready", r.daemon.pid())
	select {}
}

func (d *daemon) pid() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc == nil {
		return 0
	}
	return d.proc.Pid
}

// After kill -9 nothing of the tenant's runs, and the next start sweeps up,
// whether the shims have lived on or not.
func TestSweepAfterKill(t *testing.T) {
	for name, sub := range map[string]string{"shims live": "k", "shims killed too": "l"} {
		t.Run(name, func(t *testing.T) { sweepAfterKill(t, sub, sub == "l") })
	}
}

func sweepAfterKill(t *testing.T, sub string, shims bool) {
	b := start(t)
	v := victim{Config: b.config(sub), Image: b.images["base"], Made: []string{freshSession(), freshSession()}, Out: t.TempDir()}
	if err := os.Chmod(v.Out, 0o777); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "victim.json")
	if err := os.WriteFile(file, must(json.Marshal(v)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), crashEnv+"="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var daemonPID int
	if _, scanErr := fmt.Sscanf(line, "ready %d", &daemonPID); scanErr != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("victim says %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()

	// The kernel takes containerd and the tenant's processes with it.
	waitFor(t, func() bool { return syscall.Kill(daemonPID, 0) == syscall.ESRCH })
	cg := must(ownCgroups(v.Config))
	for _, session := range v.Made {
		waitFor(t, func() bool {
			pids, _ := os.ReadFile(filepath.Join(cg.memory, cg.path(session, "build"), "cgroup.procs"))
			return len(pids) == 0
		})
		still(t, filepath.Join(v.Out, session))
		if shims {
			gone := &Runtime{cfg: v.Config, layout: newLayout(v.Config)}
			if err := gone.killShims(session + "-build"); err != nil {
				t.Fatal(err)
			}
		}
	}

	r, err := Start(t.Context(), v.Config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left := existing(filepath.Join(cg.memory, cg.parent)); len(left) > 0 {
			t.Errorf("cgroup left behind: %v", left)
		}
	}()
	// A session that is to be kept is, and can be swept later.
	removed, err := r.Sweep(t.Context(), func(s string) bool { return s == v.Made[0] })
	if err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	b2 := &bench{runtime: r}
	b2.clean(t, v.Made[1])
	if len(traces(r, v.Made[0])) == 0 {
		t.Error("nothing is left of the session that was kept")
	}
	if removed, err = r.Sweep(t.Context(), func(string) bool { return false }); err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	b2.clean(t, v.Made[0])
	if removed, err = r.Sweep(t.Context(), func(string) bool { return false }); err != nil || removed != 0 {
		t.Errorf("removed %d once more, %v", removed, err)
	}
	// The same session can be made again, from an image that is still there.
	c, err := r.Create(t.Context(), v.spec(v.Made[0]))
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, c, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("%+v", got)
	}
	// Sweep removes what is in use too, if it is told so.
	if removed, err = r.Sweep(t.Context(), func(string) bool { return false }); err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	b2.clean(t, v.Made[0])
}

// containerd's own death is not the stages', and it comes back.
func TestContainerdRestarts(t *testing.T) {
	b := start(t)
	r, err := Start(t.Context(), b.config("d"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Pull(t.Context(), Order{Reference: b.images["base"]}); err != nil {
		t.Fatal(err)
	}
	s := b.spec("base")
	c, err := r.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	old := r.daemon.pid()
	done := make(chan said, 1)
	go func() {
		got, err := try(t.Context(), t, c, shell("echo here; sleep 1; echo there"))
		if err != nil {
			t.Error(err)
		}
		done <- got
	}()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.out != "here\nthere\n" {
		t.Errorf("the stage noticed: %+v", got)
	}
	waitFor(t, func() bool { pid := r.daemon.pid(); return pid != 0 && pid != old })
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	(&bench{runtime: r}).clean(t, s.Session)
	s = b.spec("base")
	if c, err = r.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}

// Two daemons on one machine have the same namespace, and cgroups are the whole
// machine's: what one runs is no leftover of the other's.
func TestSweepSparesOtherRuntimes(t *testing.T) {
	b := start(t)
	c := b.create(t, b.spec("base"))
	cfg := b.config("o")
	cfg.Namespace = b.runtime.cfg.Namespace
	other, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	if removed, err := other.Sweep(t.Context(), func(string) bool { return false }); err != nil || removed != 0 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if got := run(t, c, shell("echo alive")); got.out != "alive\n" {
		t.Errorf("%+v", got)
	}
}

// An admin's containerd serves as well, in a namespace of its own.
func TestAdminsContainerd(t *testing.T) {
	b := start(t)
	cfg := b.config("a")
	cfg.Address = b.runtime.layout.socket
	r := b.second(t, cfg)
	s := b.spec("base")
	c, err := r.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if got := run(t, c, shell("echo fine")); got.out != "fine\n" {
		t.Errorf("%+v", got)
	}
	if removed, err := r.Sweep(t.Context(), func(string) bool { return false }); err != nil || removed != 1 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if err := c.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	(&bench{runtime: r}).clean(t, s.Session)
	b.clean(t, s.Session)
	if left := existing(filepath.Join(r.cgroups.memory, r.cgroups.parent)); len(left) > 0 {
		t.Errorf("cgroup left behind: %v", left)
	}
}

func TestStartRefuses(t *testing.T) {
	b := start(t)
	good := b.config("x")
	defer os.RemoveAll(good.State)
	defer os.RemoveAll(good.Root)
	closed := filepath.Join(b.dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		say    string
	}{
		"second on one state": {func(c *Config) { *c = b.config("s") }, "in use"},
		"relative state":      {func(c *Config) { c.State = "s" }, "absolute"},
		"state with a quote":  {func(c *Config) { c.State = `/tmp/a"b` }, "plain characters"},
		"unclean state":       {func(c *Config) { c.State = "/tmp/../x" }, "clean"},
		"long state":          {func(c *Config) { c.State = "/tmp/" + strings.Repeat("x", 40) }, "longer"},
		"closed parent":       {func(c *Config) { c.State = closed + "/s" }, "pass through"},
		"namespace":           {func(c *Config) { c.Namespace = "../x" }, "namespace"},
		"no init":             {func(c *Config) { c.Init = "/nowhere" }, "init"},
		"no binaries":         {func(c *Config) { c.BinDir = "/nowhere" }, "containerd"},
		"not containerd":      {func(c *Config) { c.BinDir = fakeBin(t, "#!/bin/sh\necho no, thank you >&2\nexit 3\n") }, "no, thank you"},
		"nobody at address":   {func(c *Config) { c.Address = "/nowhere/x.sock" }, ""},
	} {
		cfg := good
		c.change(&cfg)
		limit := 30 * time.Second
		if c.say == "" {
			limit = 3 * time.Second // it is waited for in vain
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		r, err := Start(ctx, cfg, slog.New(slog.DiscardHandler))
		cancel()
		if err == nil {
			r.Close()
			t.Errorf("%s: started", name)
			continue
		}
		if !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !strings.Contains(b.runtime.Version(), "containerd") {
		t.Error("the first one has suffered")
	}
}

func fakeBin(t *testing.T, script string) string {
	t.Helper()
	dir, err := os.MkdirTemp(shared.dir, "bin")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "containerd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
