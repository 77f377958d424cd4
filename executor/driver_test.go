package executor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPanicIsASystemFailure: a driver that crashes never blames the job.
func TestPanicIsASystemFailure(t *testing.T) {
	var b bytes.Buffer
	code := guard(talk{&b}, func() int {
		var list []int
		return list[len(list)]
	})
	if code != exitSystemFailure || !strings.Contains(b.String(), "internal error: runtime error: index out of range") {
		t.Errorf("exit code %d, log %q", code, b.String())
	}
	if code := guard(talk{&b}, func() int { return exitBuildFailure }); code != exitBuildFailure {
		t.Errorf("exit code %d without a panic", code)
	}
}

func TestTalk(t *testing.T) {
	var b bytes.Buffer
	out := talk{&b}
	hostile := "a\x1b[2J\r\nerror: forged\x1b[0Ksection_start:1:x\r\u202e\u009b1m\xff\u2028ü源"
	out.error(errors.New(hostile))
	out.hint(hostile)
	out.line(hostile)
	const clean = "a[2J  error: forged[0Ksection_start:1:x 1m\uFFFD ü源\n"
	want := "\x1b[31;1merror:\x1b[0;m " + clean + "\x1b[0;mhint: " + clean + "\x1b[0;m" + clean
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}

func TestEnvironment(t *testing.T) {
	e := environment{"A=1", "B", "A=2", "=A=3", "CUSTOM_ENV_A=4", "C=x=y\nA=5", "D="}
	for name, want := range map[string]string{"A": "2", "B": "", "C": "x=y\nA=5", "D": "", "E": "", "CUSTOM_ENV": ""} {
		if got := e.get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

// TestNothingReadsTheJobsVariables: the prefix of the job's variables stands in
// no code of the driver's.
func TestNothingReadsTheJobsVariables(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(data), "\n") {
			code, _, _ := strings.Cut(line, "//")
			if strings.Contains(code, "CUSTOM_ENV") || strings.Contains(code, "os.Getenv") || strings.Contains(code, "os.Environ") || strings.Contains(code, "os.LookupEnv") {
				t.Errorf("%s:%d: %s", file, i+1, line)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	dialing := func(errno syscall.Errno) error {
		return fmt.Errorf("connect: %w", &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)})
	}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{dialing(syscall.ENOENT), "systemctl status hallmark-sandboxd"},
		{dialing(syscall.ECONNREFUSED), "systemctl status hallmark-sandboxd"},
		{dialing(syscall.EACCES), "socket_user"},
		{dialing(syscall.EPERM), "socket_user"},
		{fmt.Errorf("x: %w", errNoReply), "journalctl -u hallmark-sandboxd"},
		{errors.New("other"), ""},
	} {
		e, ok := errors.AsType[*driverError]((&driver{}).explain(tt.err))
		if !ok || !strings.Contains(e.hint, tt.want) || tt.want == "" && e.hint != "" {
			t.Errorf("%v: hint %q, want %q", tt.err, e.hint, tt.want)
		}
		if !errors.Is(e, tt.err) {
			t.Errorf("%v: lost", tt.err)
		}
	}
}

// TestConfigAnswer compares with the names that GitLab Runner reads.
func TestConfigAnswer(t *testing.T) {
	data, err := json.Marshal(configAnswer{})
	if err != nil {
		t.Fatal(err)
	}
	var known struct {
		Driver struct {
			Name    *string `json:"name"`
			Version *string `json:"version"`
		} `json:"driver"`
		Hostname          *string           `json:"hostname"`
		BuildsDir         *string           `json:"builds_dir"`
		CacheDir          *string           `json:"cache_dir"`
		BuildsDirIsShared *bool             `json:"builds_dir_is_shared"`
		JobEnv            map[string]string `json:"job_env"`
		Shell             *string           `json:"shell"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&known); err != nil || known.Driver.Name == nil || known.BuildsDir == nil || known.CacheDir == nil || known.BuildsDirIsShared == nil || known.Shell == nil {
		t.Errorf("%s: %v", data, err)
	}
}

func TestSessionsDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := newSession()
		if !ValidSession(s) || seen[s] {
			t.Fatalf("session %q", s)
		}
		seen[s] = true
	}
}

func TestUntilHangup(t *testing.T) {
	t.Run("reader leaves", func(t *testing.T) {
		r, w := pipe(t)
		ctx, stop := untilHangup(t.Context(), w)
		defer stop()
		if ctx.Err() != nil {
			t.Fatal("ended with the reader there")
		}
		r.Close()
		<-ctx.Done()
	})
	t.Run("reader stays", func(t *testing.T) {
		r, w := pipe(t)
		ctx, stop := untilHangup(t.Context(), w)
		io.WriteString(w, "x")
		r.Read(make([]byte, 1))
		if ctx.Err() != nil {
			t.Error("ended")
		}
		stop()
		<-ctx.Done()
	})
	t.Run("full pipe", func(t *testing.T) {
		_, w := pipe(t)
		io.WriteString(w, strings.Repeat("x", 1<<16))
		ctx, stop := untilHangup(t.Context(), w)
		if ctx.Err() != nil {
			t.Error("ended")
		}
		stop()
	})
	t.Run("regular file", func(t *testing.T) {
		ctx, stop := untilHangup(t.Context(), file(t, ""))
		if ctx.Err() != nil {
			t.Error("ended")
		}
		stop()
		<-ctx.Done()
	})
	t.Run("nothing", func(t *testing.T) {
		ctx, stop := untilHangup(t.Context(), nil)
		if ctx.Err() != nil {
			t.Error("ended")
		}
		stop()
	})
	t.Run("keeps no descriptors", func(t *testing.T) {
		_, w := pipe(t)
		before := len(openFDs(t))
		for range 10 {
			_, stop := untilHangup(t.Context(), w)
			stop()
		}
		if after := len(openFDs(t)); after != before {
			t.Errorf("%d descriptors, then %d", before, after)
		}
	})
}

func TestWriteExitCode(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "build_exit_code")
	for code, want := range map[int]string{1: "1\n", 42: "42\n", 255: "255\n"} {
		if err := writeExitCode(path, code); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(path); err != nil || string(data) != want {
			t.Errorf("%d: %q, %v", code, data, err)
		}
	}
	if err := writeExitCode(filepath.Join(dir, "none", "x"), 1); err == nil {
		t.Error("written to nowhere")
	}
}
