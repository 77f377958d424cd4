package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// stopTime is how long a program may take to end in good order.
const stopTime = 60 * time.Second

// A Daemon is a program of the world that runs until it is stopped. It can be
// started again.
type Daemon struct {
	Name string
	Args []string
	UID  int
	Env  []string
	// ready says when it can be used.
	ready func() bool
	log   string // file

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended
}

// Start runs the program and waits until it can be used.
func (d *Daemon) Start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		return fmt.Errorf("%s: runs already", d.Name)
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(d.Args[0], d.Args[1:]...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/lib/hallmark:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent", "LANG=C.UTF-8"}, d.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.UID != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(d.UID), Gid: uint32(d.UID)}
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	done := make(chan struct{})
	d.cmd, d.done = cmd, done
	go func() {
		d.err = cmd.Wait()
		close(done)
	}()
	err = until(2*time.Minute, d.Name+" ready", func() bool { return d.ended() || d.ready == nil || d.ready() })
	if err == nil && d.ended() {
		err = fmt.Errorf("%s: ended at once: %v", d.Name, d.err)
		d.cmd = nil
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(d.log))
	}
	return nil
}

func (d *Daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the program's main process.
func (d *Daemon) Signal(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return fmt.Errorf("%s: does not run", d.Name)
	}
	return d.cmd.Process.Signal(s)
}

// PID is the program's main process, or 0.
func (d *Daemon) PID() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return 0
	}
	return d.cmd.Process.Pid
}

// Stop ends the program in good order; it is an error if it has to be killed.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// Kill ends the program as a crash does. What it started lives on.
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

func (d *Daemon) end(s syscall.Signal) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: %w", d.Name, err)
	}
	select {
	case <-d.done:
	case <-time.After(stopTime):
		_ = d.cmd.Process.Kill()
		<-d.done
		d.cmd = nil
		return fmt.Errorf("%s: still there %v after %v\n%s", d.Name, stopTime, s, tail(d.log))
	}
	d.cmd = nil
	return nil
}

// Wait returns once the program has ended by itself.
func (d *Daemon) Wait(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd == nil {
		return nil
	}
	select {
	case <-d.done:
		d.cmd = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", d.Name, ctx.Err())
	}
}

// Log is what the program has said so far.
func (d *Daemon) Log() string {
	data, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// tail is the end of a log.
func tail(file string) string {
	const most = 8 << 10
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(data) > most {
		data = append([]byte("…"), data[len(data)-most:]...)
	}
	return fmt.Sprintf("--- %s\n%s", filepath.Base(file), data)
}
