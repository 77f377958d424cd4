package workspace

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

var testIDs = sandbox.IDs{First: 200_000_000, Count: 65536}

// newWorkspace makes a workspace that the test leaves behind removed, with all
// its mounts.
func newWorkspace(t testing.TB) *Workspace {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(publicDir(t), "workspace")
	w, err := Create(dir, testIDs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		left, err := mountsBelow(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("mounts left behind: %v, %v", left, err)
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("directory left behind: %v", err)
		}
	})
	return w
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
}

// publicDir is a temporary directory whose path everybody may walk.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "workspace-test")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

const projectDir = "/builds/group/project"

// host is where a path of the container lies on the host.
func (w *Workspace) host(inside string) string { return filepath.Join(w.dir, inside) }

func mustMkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o777); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t testing.TB, path, content string) {
	t.Helper()
	mustMkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run runs a command in dir, with git deaf to the machine's own configuration.
func run(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=c", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z",
		"GIT_CONFIG_COUNT=2", "GIT_CONFIG_KEY_0=protocol.file.allow", "GIT_CONFIG_VALUE_0=always",
		"GIT_CONFIG_KEY_1=init.defaultBranch", "GIT_CONFIG_VALUE_1=main",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func sh(t testing.TB, dir, script string) string {
	t.Helper()
	return run(t, dir, "sh", "-euc", script)
}

// A container is a shell as root of a user namespace whose ids the workspace
// belongs to, in a mount namespace that follows the workspace's.
type container struct {
	t      testing.TB
	builds string // where /builds lies in it
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
}

func startContainer(t testing.TB, w *Workspace) *container {
	t.Helper()
	c := &container{t: t, builds: filepath.Join(publicDir(t), "builds")}
	mustMkdir(t, c.builds)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // its namespaces are its own: it ends with the goroutine
		if unix.Gettid() != os.Getpid() {
			started <- c.start(w)
			return
		}
		// The process's first thread is what the whole process is seen as: not that one.
		again := make(chan error)
		go func() {
			runtime.LockOSThread()
			again <- c.start(w)
		}()
		started <- <-again
		runtime.UnlockOSThread()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

func (c *container) start(w *Workspace) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	if err := unix.Mount(w.Mounts()[0].Source, c.builds, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := unix.Mount("", c.builds, "", unix.MS_SLAVE, ""); err != nil {
		return err
	}
	c.cmd = exec.Command("/bin/sh")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(w.ids.First), Size: int(w.ids.Count)}}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Pdeathsig:  0,
	}
	c.cmd.Dir = "/"
	c.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "B=" + c.builds, "LC_ALL=C"}
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	c.cmd.Stderr = c.cmd.Stdout
	c.out = bufio.NewReader(out)
	return c.cmd.Start()
}

// run gives the shell a script and returns its output and status.
func (c *container) run(script string) (string, int) {
	c.t.Helper()
	fmt.Fprintf(c.in, "%s\ns=$?; echo; echo \"done-marker $s\"\n", script)
	var out bytes.Buffer
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			c.t.Fatalf("container: %v\n%s%s", err, out.String(), line)
		}
		if status, ok := strings.CutPrefix(line, "done-marker "); ok {
			var code int
			fmt.Sscan(status, &code)
			return strings.TrimSuffix(out.String(), "\n"), code
		}
		out.WriteString(line)
	}
}

// must runs a script that has to succeed.
func (c *container) must(script string) string {
	c.t.Helper()
	out, code := c.run("( set -e; " + script + "\n)")
	if code != 0 {
		c.t.Fatalf("container: %s: status %d\n%s", script, code, out)
	}
	return strings.TrimSpace(out)
}

// cannot runs a script that has to fail.
func (c *container) cannot(script string) {
	c.t.Helper()
	if out, code := c.run("( set -e; " + script + "\n)"); code == 0 {
		c.t.Errorf("container: %s: succeeded\n%s", script, out)
	}
}

func (c *container) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}
