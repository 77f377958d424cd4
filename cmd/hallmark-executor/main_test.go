package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hallmark.build/executor"
)

var update = flag.Bool("update", false, "rewrite the expected output in the scripts")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hallmark-executor": main})
}

const session = "0123456789abcdef0123456789abcdef"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// What GitLab Runner sets, see executors/custom in its source.
			dir := e.Getenv("WORK")
			e.Setenv("TMPDIR", dir)
			e.Setenv("BUILD_FAILURE_EXIT_CODE", "1")
			e.Setenv("SYSTEM_FAILURE_EXIT_CODE", "2")
			e.Setenv("BUILD_EXIT_CODE_FILE", filepath.Join(dir, "build_exit_code"))
			e.Setenv("JOB_RESPONSE_FILE", filepath.Join(dir, "response.json"))
			e.Setenv("HALLMARK_SESSION", session)
			response, err := os.ReadFile("../../executor/testdata/job-success.json")
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "response.json"), response, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": cmdDaemon,
			"exits":  cmdExits,
			"spoof":  cmdSpoof,
		},
	})
}

// cmdDaemon starts a stand-in for the sandbox daemon at $WORK/sock:
//
//	daemon [-raw] REPLY...
//
// It gives one reply, in JSON, to each connection, the last one for good. What
// it was asked it appends to $WORK/requests, and the script to $WORK/script.
// It writes a line into the job log. With -raw it sends the first reply as it
// stands, and closes.
func cmdDaemon(ts *testscript.TestScript, neg bool, args []string) {
	raw := len(args) > 0 && args[0] == "-raw"
	if raw {
		args = args[1:]
	}
	dir := ts.Getenv("WORK")
	d := &daemon{requests: filepath.Join(dir, "requests"), script: filepath.Join(dir, "script.seen"), response: filepath.Join(dir, "response.json"), dir: dir}
	for _, a := range args {
		if raw {
			d.raw = []byte(a + "\n")
			continue
		}
		var r executor.Reply
		ts.Check(json.Unmarshal([]byte(a), &r))
		d.replies = append(d.replies, r)
	}
	stop, err := d.start(filepath.Join(dir, "sock"))
	ts.Check(err)
	ts.Defer(func() { ts.Check(stop()) })
}

type daemon struct {
	requests, script, response, dir string
	replies                         []executor.Reply
	raw                             []byte
}

func (d *daemon) start(socket string) (stop func() error, err error) {
	os.Remove(socket)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	var serving sync.WaitGroup
	var errs []error
	serving.Go(func() {
		for n := 0; ; n++ {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if err := d.serve(c, n); err != nil {
				errs = append(errs, err)
			}
		}
	})
	return func() error {
		l.Close()
		serving.Wait()
		return errors.Join(errs...)
	}, nil
}

func (d *daemon) serve(nc *net.UnixConn, n int) error {
	c, err := executor.Accept(nc)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	defer c.Close()
	if d.raw != nil {
		nc.Write(d.raw)
		return nil
	}
	req := c.Request()
	req.TempDir = strings.Replace(req.TempDir, d.dir, "$WORK", 1)
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	requests, err := os.OpenFile(d.requests, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer requests.Close()
	fmt.Fprintf(requests, "%s\n", line)
	fmt.Fprintf(c.Files().Log, "the stage's own output\n")
	if f := c.Files().Payload; f != nil {
		got, err := executor.ReadFile(f, executor.MaxPayload)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(d.response)
		if err != nil {
			return err
		}
		if string(got) != string(want) {
			return fmt.Errorf("the payload is not JOB_RESPONSE_FILE")
		}
	}
	if f := c.Files().Script; f != nil {
		data, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(d.script, data, 0o600); err != nil {
			return err
		}
	}
	return c.Reply(d.replies[min(n, len(d.replies)-1)])
}

// cmdExits runs a command and compares its exit code: exits CODE COMMAND ARG...
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// cmdSpoof sets every variable that the driver reads, and some that others
// trust, in the form in which a job's variables arrive.
func cmdSpoof(ts *testscript.TestScript, neg bool, args []string) {
	for _, name := range []string{
		"TMPDIR", "BUILD_FAILURE_EXIT_CODE", "SYSTEM_FAILURE_EXIT_CODE", "BUILD_EXIT_CODE_FILE", "JOB_RESPONSE_FILE",
		"HALLMARK_SESSION", "HALLMARK_SOCKET", "HALLMARK_PROFILE", "PATH", "HOME", "GODEBUG",
		"CI_JOB_ID", "CI_PROJECT_ID", "CI_PROJECT_DIR", "CI_COMMIT_SHA", "CI_JOB_IMAGE", "CI_RUNNER_VERSION", "CI_BUILDS_DIR",
	} {
		ts.Setenv("CUSTOM_ENV_"+name, "/evil")
	}
	ts.Setenv("CUSTOM_ENV_MULTI", "a\nJOB_RESPONSE_FILE=/evil\nHALLMARK_SESSION=ffffffffffffffffffffffffffffffff\n")
	ts.Setenv("CUSTOM_ENV_", "JOB_RESPONSE_FILE=/evil")
}
