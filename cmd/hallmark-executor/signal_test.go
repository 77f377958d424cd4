package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"hallmark.build/executor"
)

// runnerEnv is the environment that GitLab Runner gives a driver.
func runnerEnv(t testing.TB) (env []string, script string) {
	t.Helper()
	dir := t.TempDir()
	response, err := os.ReadFile("../../executor/testdata/job-success.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"response.json": response, "script": []byte("true\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return append(os.Environ(),
		"TMPDIR="+dir, "BUILD_FAILURE_EXIT_CODE=1", "SYSTEM_FAILURE_EXIT_CODE=2",
		"BUILD_EXIT_CODE_FILE="+filepath.Join(dir, "build_exit_code"),
		"JOB_RESPONSE_FILE="+filepath.Join(dir, "response.json"),
		"HALLMARK_SESSION="+session,
	), filepath.Join(dir, "script")
}

// accepting serves connections with handle until the test ends.
func accepting(t testing.TB, handle func(*executor.Conn)) (socket string) {
	t.Helper()
	l, socket := listening(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c, err := executor.Accept(nc)
			if err != nil {
				t.Errorf("accept: %v", err)
				continue
			}
			handle(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return socket
}

// startRun starts the driver for a stage, in a process group of its own as the
// runner does.
func startRun(t testing.TB, socket string) (cmd *exec.Cmd, out io.ReadCloser) {
	t.Helper()
	env, script := runnerEnv(t)
	cmd = exec.Command("hallmark-executor", "-socket", socket, "run", script, "build_script")
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

// TestTerminate: SIGTERM to the group cancels the stage, and the driver stays
// until the daemon has ended it.
func TestTerminate(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	socket := accepting(t, func(c *executor.Conn) {
		close(started)
		<-c.Canceled()
		io.WriteString(c.Files().Log, "stopping\n") // the log still works
		close(ended)
		c.Reply(executor.Reply{Outcome: executor.SystemFailure, Message: "the stage was canceled"})
	})
	cmd, out := startRun(t, socket)
	<-started
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	log, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	select {
	case <-ended:
	default:
		t.Error("the driver left before the stage had ended")
	}
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	if !strings.Contains(string(log), "stopping\n") || !strings.Contains(string(log), "the stage was canceled") {
		t.Errorf("log %q", log)
	}
}

// TestRunnerIsKilled: nobody signals the driver, but its output has no reader
// any more.
func TestRunnerIsKilled(t *testing.T) {
	started, canceled := make(chan struct{}), make(chan struct{})
	socket := accepting(t, func(c *executor.Conn) {
		close(started)
		<-c.Canceled()
		close(canceled)
	})
	cmd, out := startRun(t, socket)
	<-started
	out.Close()
	<-canceled
	cmd.Wait()
	if cmd.ProcessState.Success() {
		t.Error("the driver reports success")
	}
}

// TestDriverIsKilled: SIGKILL to the group cancels the stage as well.
func TestDriverIsKilled(t *testing.T) {
	started, canceled := make(chan struct{}), make(chan struct{})
	socket := accepting(t, func(c *executor.Conn) {
		close(started)
		<-c.Canceled()
		close(canceled)
	})
	cmd, _ := startRun(t, socket)
	<-started
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-canceled
	cmd.Wait()
}

// TestDaemonIsKilled: a connection that ends without a reply is the platform's
// fault.
func TestDaemonIsKilled(t *testing.T) {
	socket := accepting(t, func(c *executor.Conn) {})
	cmd, out := startRun(t, socket)
	log, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{"closed the connection without a whole reply", "hint: ask the runner's administrator for `journalctl"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("log %q lacks %q", log, want)
		}
	}
}

// TestPipesAreFreeAfterwards: nothing of the driver's holds the runner's pipes
// once it has exited, though the daemon still has a copy until it closes it.
func TestPipesAreFreeAfterwards(t *testing.T) {
	socket := accepting(t, func(c *executor.Conn) {
		c.Reply(executor.Reply{Outcome: executor.OK})
	})
	cmd, out := startRun(t, socket)
	if _, err := io.ReadAll(out); err != nil { // returns when the last writer is gone
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
