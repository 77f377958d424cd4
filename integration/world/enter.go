package world

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/integration/images"
)

// stageVariable tells a started copy of the program which part it plays.
const stageVariable = "HALLMARK_WORLD"

// scratchVariable names the directory on a disk that a world may fill.
const scratchVariable = "HALLMARK_WORLD_SCRATCH"

// Options of a world.
type Options struct {
	// Images that are needed, by recipe; none means all.
	Images []string
	// More are images that are wanted besides.
	More []images.Recipe
	// Docker adds a Docker Engine and a runner with the docker executor.
	Docker bool
	// Log gets what is worth telling while the world is made. Default: stderr.
	Log io.Writer
	// Prepare, if set, is called outside, where the real network is, with the
	// checkout's root.
	Prepare func(root string) error
	// Logs, if set, is a directory that the logs of all programs are left in.
	Logs string
}

// recipes of the images that a world with these options has.
func (o Options) recipes(root string) []images.Recipe {
	out := append(images.Named(images.Recipes(probe(root)), o.Images...), o.More...)
	if o.Docker {
		out = append(out, images.DockerHelper(program(root, "gitlab-runner")))
	}
	return out
}

func probe(root string) string { return filepath.Join(root, ".cache", "bin", "probe") }

// Main calls inside in a new world and returns what it returned. What stands
// before the call of Main runs three times: outside, as process 1, and inside.
func Main(opts Options, inside func(*World) int) int {
	if opts.Log == nil {
		opts.Log = os.Stderr
	}
	switch os.Getenv(stageVariable) {
	case "":
		return report(outside(opts))
	case "init":
		return report(reap())
	}
	w, err := build(opts)
	if err != nil {
		return report(1, err)
	}
	code := inside(w)
	if err := w.Close(); err != nil {
		return report(max(code, 1), err)
	}
	return code
}

func report(code int, err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, "world:", err)
		return max(code, 1)
	}
	return code
}

// outside makes what needs the real network, then starts process 1.
func outside(opts Options) (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("a world needs root")
	}
	root, err := repository()
	if err != nil {
		return 1, err
	}
	if err := checkPrograms(root); err != nil {
		return 1, err
	}
	if err := prepare(opts, root); err != nil {
		return 1, err
	}
	// Made out here, so that it goes also when what is inside is killed.
	scratch, err := os.MkdirTemp("/var/tmp", "hallmark-world-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(scratch)
	if err := os.Setenv(scratchVariable, scratch); err != nil {
		return 1, err
	}
	return startAgain("init", &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	})
}

// prepare makes what worlds share. Worlds of several packages may start at once.
func prepare(opts Options, root string) error {
	unlock, err := lock(root)
	if err != nil {
		return err
	}
	defer unlock()
	if err := buildProbe(root); err != nil {
		return err
	}
	if err := images.Clients(probe(root)); err != nil {
		return err
	}
	if opts.Docker {
		if err := fetchDocker(root); err != nil {
			return err
		}
	}
	if _, err := images.MakeAll(context.Background(), filepath.Join(root, ".cache", "images"), opts.recipes(root), opts.Log); err != nil {
		return err
	}
	if opts.Prepare != nil {
		return opts.Prepare(root)
	}
	return nil
}

// lock keeps other worlds away from what worlds share.
func lock(root string) (unlock func() error, err error) {
	file, err := os.OpenFile(filepath.Join(root, ".cache", "world.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", file.Name(), err)
	}
	return file.Close, nil
}

// startAgain runs this program once more, with the same arguments and streams,
// and returns its exit code. It ends with this one.
func startAgain(stage string, attr *syscall.SysProcAttr) (int, error) {
	runtime.LockOSThread() // the death signal is the starting thread's
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	if err := os.Setenv(stageVariable, stage); err != nil {
		return 1, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() < 0 {
			return 1, fmt.Errorf("%s: %w", stage, err)
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// reap is process 1: it starts the program's third copy and buries whatever
// daemons leave behind until that ends.
func reap() (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return 1, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return 1, fmt.Errorf("mount /proc: %w", err)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	if err := os.Setenv(stageVariable, "inside"); err != nil {
		return 1, err
	}
	runtime.LockOSThread()
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env:   os.Environ(),
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 1, err
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s)
		}
	}()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("wait: %w", err)
		case pid != child.Pid:
		case status.Signaled():
			return 1, fmt.Errorf("ended by %v", status.Signal())
		case status.Exited():
			return status.ExitStatus(), nil
		}
	}
}

// repository finds the root of the checkout from the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module hallmark.build\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not inside the repository")
		}
		dir = up
	}
}

// programs that a world needs, by where `make` leaves them.
var programs = map[string]string{
	"hallmark":                "bin/hallmark",
	"hallmark-executor":       "bin/hallmark-executor",
	"hallmark-sandboxd":       "bin/hallmark-sandboxd",
	"hallmark-attestd":        "bin/hallmark-attestd",
	"hallmark-init":           "bin/hallmark-init",
	"containerd":              ".cache/bin/containerd",
	"containerd-shim-runc-v2": ".cache/bin/containerd-shim-runc-v2",
	"runc":                    ".cache/bin/runc",
	"cosign":                  ".cache/bin/cosign",
	"gitlab-runner":           ".cache/bin/gitlab-runner",
}

// program is the file of one of them. GITLAB_RUNNER names an installed runner.
func program(root, name string) string {
	if installed := os.Getenv("GITLAB_RUNNER"); name == "gitlab-runner" && installed != "" {
		return installed
	}
	return filepath.Join(root, programs[name])
}

func checkPrograms(root string) error {
	for name := range programs {
		if _, err := os.Stat(program(root, name)); err != nil {
			return fmt.Errorf("%w\nhint: `make build tools` makes the programs that the tests start", err)
		}
	}
	return nil
}

// buildProbe makes the program that jobs try to get out with. It is there whole
// or not at all.
func buildProbe(root string) error {
	file := probe(root)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", file+".new", "./integration/probe")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build probe: %w\n%s", err, out)
	}
	return os.Rename(file+".new", file)
}

// until polls a condition; what is not so after the time is an error.
func until(limit time.Duration, what string, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v", what, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}
