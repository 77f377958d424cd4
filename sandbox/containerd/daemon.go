package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Backoff between two starts of containerd, and how long it must have run for
// the backoff to begin anew.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 10 * time.Second
	settled    = time.Minute
)

// maxLogLine bounds one line of containerd's log; keptLines are quoted when it
// does not start.
const (
	maxLogLine = 4 << 10
	keptLines  = 5
)

// disabled lists what containerd is built with and does not need here: each is
// attack surface, or reaches for directories of the distribution's instance.
var disabled = []string{
	"io.containerd.grpc.v1.cri",
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
	"io.containerd.podsandbox.controller.v1.podsandbox",
	"io.containerd.nri.v1.nri",
	"io.containerd.internal.v1.opt",
	"io.containerd.monitor.container.v1.restart",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.zfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs",
	"io.containerd.internal.v1.tracing",
	"io.containerd.tracing.processor.v1.otlp",
}

// configFile is the private instance's configuration. In version 4 the
// addresses are settings of plugins; a [grpc] table would be ignored and the
// distribution's socket taken.
func configFile(cfg Config, l layout) string {
	return fmt.Sprintf(`version = 4
root = %q
state = %q
disabled_plugins = ["%s"]
[debug]
  level = "warn"
[plugins."io.containerd.server.v1.grpc"]
  address = %q
[plugins."io.containerd.server.v1.ttrpc"]
  address = %q
[plugins."io.containerd.shim.v1.manager"]
  socket_dir = %q
`, l.store, filepath.Join(cfg.State, "run"), strings.Join(disabled, `", "`),
		l.socket, l.socket+".ttrpc", filepath.Join(cfg.State, "s"))
}

// A daemon is the private containerd, kept running.
type daemon struct {
	log  *slog.Logger
	cmd  func() *exec.Cmd
	quit chan struct{}
	done chan struct{}

	mu    sync.Mutex
	proc  *os.Process // nil between two runs
	lines []string    // the last of its log
	early func()      // called when it exits
}

func startDaemon(cfg Config, l layout, log *slog.Logger) (*daemon, error) {
	file := filepath.Join(cfg.State, "config.toml")
	if err := os.WriteFile(file, []byte(configFile(cfg, l)), 0o600); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	bin := filepath.Join(cfg.BinDir, "containerd")
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("containerd: %w", err)
	}
	d := &daemon{log: log, quit: make(chan struct{}), done: make(chan struct{})}
	d.cmd = func() *exec.Cmd {
		cmd := exec.Command(bin, "--config", file)
		// Of our environment nothing: NOTIFY_SOCKET above all is not for it.
		cmd.Env = []string{
			"PATH=" + cfg.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"TMPDIR=" + l.tmp,
			// Layers are unpacked by what we built, not by what is on PATH.
			"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1",
		}
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
		cmd.WaitDelay = time.Second
		return cmd
	}
	go d.supervise()
	return d, nil
}

// supervise keeps containerd running until quit is closed. The kernel sends
// PDEATHSIG when the thread ends that forked, so this one is kept.
func (d *daemon) supervise() {
	runtime.LockOSThread()
	defer close(d.done)
	for wait := minBackoff; ; {
		began := time.Now()
		err := d.run()
		if d.stopping() {
			return
		}
		if time.Since(began) > settled {
			wait = minBackoff
		}
		d.log.Error("containerd ended", "error", err, "restart_ms", wait.Milliseconds())
		select {
		case <-d.quit:
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxBackoff)
	}
}

func (d *daemon) stopping() bool {
	select {
	case <-d.quit:
		return true
	default:
		return false
	}
}

// run runs containerd once.
func (d *daemon) run() error {
	cmd := d.cmd()
	pr, pw, err := os.Pipe()
	if err != nil {
		return err
	}
	defer pr.Close()
	cmd.Stderr = pw
	err = cmd.Start()
	pw.Close()
	if err != nil {
		d.ended()
		return err
	}
	d.mu.Lock()
	d.proc = cmd.Process
	d.mu.Unlock()
	read := make(chan struct{})
	go func() {
		defer close(read)
		d.follow(pr)
	}()
	err = cmd.Wait()
	// A shim may have the pipe's other end still; what it says is not awaited.
	pr.SetReadDeadline(time.Now().Add(time.Second))
	<-read
	d.ended() // only now: whoever waits wants to know the last words
	return err
}

// ended notes that no containerd runs.
func (d *daemon) ended() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.proc = nil
	if d.early != nil {
		d.early()
	}
}

// onEarlyExit calls f if containerd ends before the returned function is called.
func (d *daemon) onEarlyExit(f func()) (forget func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.early = f
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.early = nil
	}
}

// follow hands containerd's log on, line by line.
func (d *daemon) follow(r io.Reader) {
	br := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, more, err := br.ReadLine()
		if err != nil {
			return
		}
		text := string(line)
		for more && err == nil { // drop the rest of a long line
			_, more, err = br.ReadLine()
		}
		d.mu.Lock()
		d.lines = append(d.lines, text)
		if len(d.lines) > keptLines {
			d.lines = slices.Delete(d.lines, 0, 1)
		}
		d.mu.Unlock()
		d.log.Log(context.Background(), logLevel(text), "containerd says", "line", text)
	}
}

// logLevel ranks a line below what containerd calls it: it logs as errors what
// is usual when containers end, and what matters comes back from the calls.
func logLevel(line string) slog.Level {
	switch {
	case strings.Contains(line, "level=fatal"), strings.Contains(line, "level=panic"), strings.Contains(line, "panic:"):
		return slog.LevelError
	case strings.Contains(line, "level=error"):
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func (d *daemon) lastWords() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.lines, "; ")
}

// stop ends containerd, gently at first.
func (d *daemon) stop() error {
	close(d.quit)
	d.signal(syscall.SIGTERM)
	select {
	case <-d.done:
		return nil
	case <-time.After(stopTimeout):
	}
	d.signal(syscall.SIGKILL)
	select {
	case <-d.done:
		return nil
	case <-time.After(stopTimeout):
		return errors.New("containerd: does not end")
	}
}

func (d *daemon) signal(sig os.Signal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.proc != nil {
		d.proc.Signal(sig)
	}
}
