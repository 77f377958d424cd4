package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const session = "0123456789abcdef0123456789abcdef"

func validRequest(call Call) Request {
	r := Request{Version: WireVersion, Call: call, Session: session, Profile: "hermetic", TempDir: "/tmp/custom-executor1", ExecutorVersion: "devel"}
	if call == CallRun {
		r.Stage = "build_script"
	}
	return r
}

// listen returns a listening socket in a directory of the test's.
func listen(t testing.TB) (*net.UnixListener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, path
}

// serve answers one connection with what handle says.
func serve(t testing.TB, handle func(*Conn)) (socket string) {
	t.Helper()
	l, path := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		nc, err := l.AcceptUnix()
		if err != nil {
			return
		}
		c, err := Accept(nc)
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		defer c.Close()
		handle(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func file(t testing.TB, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func TestSend(t *testing.T) {
	tests := []struct {
		call  Call
		reply Reply
	}{
		{CallPrepare, Reply{Outcome: OK}},
		{CallPrepare, Reply{Outcome: BuildFailure, Message: "image nope: not found", Hint: "check the name"}},
		{CallRun, Reply{Outcome: BuildFailure, ExitCode: 42}},
		{CallRun, Reply{Outcome: SystemFailure, Message: strings.Repeat("<&\x1b\u2028", 600)}},
		{CallCleanup, Reply{Outcome: OK}},
	}
	for _, tt := range tests {
		t.Run(string(tt.call)+" "+string(tt.reply.Outcome), func(t *testing.T) {
			logR, logW := pipe(t)
			socket := serve(t, func(c *Conn) {
				if diff := cmp.Diff(validRequest(tt.call), c.Request()); diff != "" {
					t.Errorf("request (-want +got):\n%s", diff)
				}
				if want := (Peer{os.Getpid(), uint32(os.Getuid()), uint32(os.Getgid())}); c.Peer() != want {
					t.Errorf("peer %+v, want %+v", c.Peer(), want)
				}
				checkReceived(t, tt.call, c.Files())
				if err := c.Reply(tt.reply); err != nil {
					t.Error(err)
				}
			})
			reply, err := Send(t.Context(), socket, validRequest(tt.call), Files{logW, file(t, "payload"), file(t, "script")})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.reply, reply); diff != "" {
				t.Errorf("reply (-want +got):\n%s", diff)
			}
			logW.Close()
			if log, err := io.ReadAll(logR); err != nil || string(log) != "from the daemon\n" {
				t.Errorf("log %q, %v", log, err)
			}
		})
	}
}

func checkReceived(t *testing.T, call Call, f Files) {
	t.Helper()
	fmt.Fprintln(f.Log, "from the daemon")
	for _, want := range []struct {
		name string
		file *os.File
		sent bool
	}{{"log", f.Log, true}, {"payload", f.Payload, call != CallCleanup}, {"script", f.Script, call == CallRun}} {
		if (want.file != nil) != want.sent {
			t.Errorf("%s of a %s: sent: %v", want.name, call, want.file != nil)
		}
		if want.file == nil {
			continue
		}
		fd, err := descriptor(want.file)
		if err != nil {
			t.Fatal(err)
		}
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC == 0 {
			t.Errorf("%s would be inherited by a child of the daemon (flags %#x, %v)", want.name, flags, errno)
		}
		if want.name == "log" {
			continue
		}
		if data, err := ReadFile(want.file, 16); err != nil || string(data) != want.name {
			t.Errorf("%s: %q, %v", want.name, data, err)
		}
		if data, err := ReadFile(want.file, 16); err != nil || string(data) != want.name {
			t.Errorf("%s read again: %q, %v", want.name, data, err)
		}
		if _, err := ReadFile(want.file, 3); err == nil {
			t.Errorf("%s: read beyond the limit", want.name)
		}
	}
}

func TestSendRefusesOwnMistakes(t *testing.T) {
	_, w := pipe(t)
	payload := file(t, "{}")
	good := validRequest(CallRun)
	tests := []struct {
		name, socket string
		change       func(*Request)
		files        Files
	}{
		{"relative socket", "sandboxd.sock", func(*Request) {}, Files{w, payload, payload}},
		{"abstract socket", "@hallmark", func(*Request) {}, Files{w, payload, payload}},
		{"abstract socket by NUL", "\x00hallmark", func(*Request) {}, Files{w, payload, payload}},
		{"no session", "", func(r *Request) { r.Session = "" }, Files{w, payload, payload}},
		{"no version", "", func(r *Request) { r.Version = 0 }, Files{w, payload, payload}},
		{"no script", "", func(*Request) {}, Files{w, payload, nil}},
		{"no payload", "", func(*Request) {}, Files{w, nil, payload}},
		{"no log", "", func(*Request) {}, Files{nil, payload, payload}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, path := listen(t)
			go func() { // somebody must be there to connect to
				if c, err := l.Accept(); err == nil {
					c.Close()
				}
			}()
			if tt.socket != "" {
				path = tt.socket
			}
			req := good
			tt.change(&req)
			if _, err := Send(t.Context(), path, req, tt.files); err == nil {
				t.Error("sent")
			}
		})
	}
}

func TestSendToHostileDaemon(t *testing.T) {
	tests := []struct {
		name string
		talk func(c *net.UnixConn)
		want string
	}{
		{"closes at once", func(c *net.UnixConn) {}, errNoReply.Error()},
		{"half a reply", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"ok"`) }, errNoReply.Error()},
		{"endless reply", func(c *net.UnixConn) { io.Copy(c, endless{}) }, "more than 65536 bytes"},
		{"two replies", func(c *net.UnixConn) {
			io.WriteString(c, `{"outcome":"system_failure"}`+"\n"+`{"outcome":"ok"}`+"\n")
		}, "bytes after the message"},
		{"no JSON", func(c *net.UnixConn) { io.WriteString(c, "ok\n") }, "not valid JSON"},
		{"nothing said", func(c *net.UnixConn) { io.WriteString(c, "{}\n") }, "outcome"},
		{"unknown outcome", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"fine"}`+"\n") }, "outcome"},
		{"unknown field", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"ok","x":1}`+"\n") }, "x: unknown field"},
		{"outcome twice", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"system_failure","outcome":"ok"}`+"\n") }, "stands twice"},
		{"outcome of another case", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"system_failure","Outcome":"ok"}`+"\n") }, "Outcome: unknown field"},
		{"ok with an exit code", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"ok","exit_code":1}`+"\n") }, "exit_code"},
		{"exit code too large", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"build_failure","exit_code":256}`+"\n") }, "exit_code"},
		{"exit code negative", func(c *net.UnixConn) { io.WriteString(c, `{"outcome":"build_failure","exit_code":-1}`+"\n") }, "exit_code"},
		{"message too long", func(c *net.UnixConn) {
			io.WriteString(c, `{"outcome":"ok","message":"`+strings.Repeat("x", maxText+1)+`"}`+"\n")
		}, "message"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, path := listen(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, err := l.AcceptUnix()
				if err != nil {
					return
				}
				defer c.Close()
				c.Read(make([]byte, MaxMessage))
				tt.talk(c)
			}()
			_, w := pipe(t)
			reply, err := Send(t.Context(), path, validRequest(CallCleanup), Files{Log: w})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("reply %+v, error %v: want an error with %q", reply, err, tt.want)
			}
			<-done
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// TestRefuse: a daemon that does not want to hear the request still gets its
// reason across.
func TestRefuse(t *testing.T) {
	l, path := listen(t)
	want := Reply{Outcome: SystemFailure, Message: "user 65534 may not use the sandbox daemon"}
	done := make(chan error, 1)
	go func() {
		c, err := l.AcceptUnix()
		if err != nil {
			done <- err
			return
		}
		done <- Refuse(c, want)
	}()
	_, w := pipe(t)
	reply, err := Send(t.Context(), path, validRequest(CallCleanup), Files{Log: w})
	if err != nil || reply != want {
		t.Errorf("reply %+v, %v", reply, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCancel(t *testing.T) {
	t.Run("is answered", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		socket := serve(t, func(c *Conn) {
			select {
			case <-c.Canceled():
				t.Error("canceled before the driver said so")
			default:
			}
			cancel()
			<-c.Canceled()
			c.Reply(Reply{Outcome: SystemFailure, Message: "canceled"})
		})
		_, w := pipe(t)
		reply, err := Send(ctx, socket, validRequest(CallPrepare), Files{Log: w, Payload: file(t, "{}")})
		if err != nil || reply.Message != "canceled" {
			t.Errorf("reply %+v, %v", reply, err)
		}
	})
	t.Run("is not waited for without end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		socket := serve(t, func(c *Conn) {
			cancel()
			<-c.Canceled()
			<-release
		})
		_, w := pipe(t)
		_, err := send(ctx, socket, validRequest(CallCleanup), Files{Log: w}, 10*time.Millisecond)
		close(release)
		if err == nil || !strings.Contains(err.Error(), "no reply within") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("before the connection", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, path := listen(t)
		if _, err := Send(ctx, path, validRequest(CallCleanup), Files{}); !errors.Is(err, context.Canceled) && err == nil {
			t.Error("sent")
		}
	})
	t.Run("more bytes than the request cancel", func(t *testing.T) {
		socket := serve(t, func(c *Conn) { <-c.Canceled() })
		c := dial(t, socket)
		_, w := pipe(t)
		sendRaw(t, c, requestLine(t, validRequest(CallCleanup)), w)
		io.WriteString(c, "x")
		io.ReadAll(c)
	})
}

// TestDriverIsKilled starts a process that sends a request, and kills it.
func TestDriverIsKilled(t *testing.T) {
	if socket := os.Getenv("TEST_SEND_TO"); socket != "" {
		Send(context.Background(), socket, validRequest(CallCleanup), Files{Log: os.Stdout})
		return
	}
	kill := make(chan struct{})
	socket := serve(t, func(c *Conn) {
		close(kill)
		<-c.Canceled()
		if err := c.Reply(Reply{Outcome: SystemFailure}); err == nil {
			t.Error("a killed driver took the reply")
		}
	})
	cmd := exec.Command(os.Args[0], "-test.run=^TestDriverIsKilled$")
	cmd.Env = append(os.Environ(), "TEST_SEND_TO="+socket)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-kill
	cmd.Process.Kill()
	io.Copy(io.Discard, out)
	cmd.Wait()
}

func dial(t testing.TB, socket string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func requestLine(t testing.TB, r Request) string {
	t.Helper()
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(line) + "\n"
}

func sendRaw(t testing.TB, c *net.UnixConn, text string, files ...*os.File) {
	t.Helper()
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fd, err := descriptor(f)
			if err != nil {
				t.Fatal(err)
			}
			fds = append(fds, fd)
		}
		rights = syscall.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix([]byte(text), rights, nil); err != nil {
		t.Fatal(err)
	}
}

// openFDs lists this process's descriptors.
func openFDs(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := map[string]string{}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = target
		}
	}
	return fds
}

// TestAcceptHostileDriver: whatever a peer does, Accept comes back with an
// error, and keeps none of the descriptors that it was handed.
func TestAcceptHostileDriver(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(path string, flags int) *os.File {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	logR, logW := pipe(t)
	payload, script := file(t, "{}"), file(t, "true")
	writable := open(filepath.Join(dir, "writable"), os.O_RDWR|os.O_CREATE)
	writeOnly := open(filepath.Join(dir, "writable"), os.O_WRONLY)
	run, cleanup := validRequest(CallRun), validRequest(CallCleanup)
	line := requestLine(t, cleanup)
	tests := []struct {
		name string
		talk func(c *net.UnixConn)
		want string
	}{
		{"says nothing", func(c *net.UnixConn) { c.CloseWrite() }, "EOF"},
		{"goes away", func(c *net.UnixConn) { c.Close() }, "EOF"},
		{"never finishes", func(c *net.UnixConn) { sendRaw(t, c, line[:20], logW) }, "timeout"},
		{"half-closes in the middle", func(c *net.UnixConn) { sendRaw(t, c, line[:20], logW); c.CloseWrite() }, "EOF"},
		{"never ends", func(c *net.UnixConn) { go io.Copy(c, endless{}) }, "more than 65536 bytes"},
		{"two requests", func(c *net.UnixConn) { sendRaw(t, c, line+line, logW) }, "bytes after"},
		{"no descriptors", func(c *net.UnixConn) { sendRaw(t, c, line) }, "0 descriptors, want 1"},
		{"too few descriptors", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, payload) }, "2 descriptors, want 3"},
		{"one descriptor too many", func(c *net.UnixConn) { sendRaw(t, c, line, logW, payload) }, "2 descriptors, want 1"},
		{"as many descriptors as the kernel has room for", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, payload, script, script) }, "4 descriptors, want 3"},
		{"far too many descriptors", func(c *net.UnixConn) { sendRaw(t, c, line, logW, logW, logW, logW, logW, logW, logW) }, "more than 3 descriptors"},
		{"descriptors in two helpings", func(c *net.UnixConn) {
			sendRaw(t, c, requestLine(t, run)[:10], logW)
			sendRaw(t, c, requestLine(t, run)[10:], payload, script)
		}, "after the first byte"},
		{"descriptors behind the request", func(c *net.UnixConn) {
			sendRaw(t, c, line[:len(line)-1], logW)
			sendRaw(t, c, "\n", logW)
		}, "after the first byte"},
		{"log not open for writing", func(c *net.UnixConn) { sendRaw(t, c, line, logR) }, "log: not open for writing"},
		{"log a directory", func(c *net.UnixConn) { sendRaw(t, c, line, open(dir, os.O_RDONLY)) }, "log: not open for writing"},
		{"log only a path", func(c *net.UnixConn) { sendRaw(t, c, line, open(dir, oPath)) }, "log: not open"},
		{"payload a pipe", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, logR, script) }, "payload: not a regular file"},
		{"payload a named pipe", func(c *net.UnixConn) {
			sendRaw(t, c, requestLine(t, run), logW, open(fifo, os.O_RDWR), script)
		}, "payload: not a regular file"},
		{"payload a device", func(c *net.UnixConn) {
			sendRaw(t, c, requestLine(t, run), logW, open("/dev/zero", os.O_RDONLY), script)
		}, "payload: not a regular file"},
		{"payload a directory", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, open(dir, os.O_RDONLY), script) }, "payload: not a regular file"},
		{"payload only a path", func(c *net.UnixConn) {
			sendRaw(t, c, requestLine(t, run), logW, open(payload.Name(), oPath), script)
		}, "payload: not open"},
		{"script open for writing", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, payload, writable) }, "script: open for more than reading"},
		{"script not open for reading", func(c *net.UnixConn) { sendRaw(t, c, requestLine(t, run), logW, payload, writeOnly) }, "script: open for more than reading"},
		{"other version", func(c *net.UnixConn) {
			r := cleanup
			r.Version = 2
			sendRaw(t, c, requestLine(t, r), logW)
		}, "different releases"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, path := listen(t)
			c := dial(t, path)
			served, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			tt.talk(c)
			before := openFDs(t)
			wait := requestTimeout
			if tt.want == "timeout" {
				wait = 10 * time.Millisecond
			}
			conn, err := accept(served, wait)
			if err == nil {
				conn.Close()
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q, want %q in it", err, tt.want)
			}
			for fd, target := range openFDs(t) {
				if _, known := before[fd]; !known && !strings.HasPrefix(target, "/proc/") {
					t.Errorf("descriptor %s (%s) was kept", fd, target)
				}
			}
			if tt.name == "goes away" {
				return
			}
			c.SetReadDeadline(time.Now().Add(requestTimeout))
			answer, err := readLine(c)
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			if reply, err := parseReply(answer); err != nil || reply.Outcome != SystemFailure {
				t.Errorf("answer %+v, %v", reply, err)
			}
		})
	}
}

func TestParseRequest(t *testing.T) {
	base := requestLine(t, validRequest(CallRun))
	base = base[:len(base)-1]
	if _, err := parseRequest([]byte(base)); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, old, new, want string }{
		{"no version", `"version":1,`, ``, "version"},
		{"version as a string", `"version":1`, `"version":"1"`, "version"},
		{"unknown call", `"call":"run"`, `"call":"exec"`, "call"},
		{"no call", `"call":"run",`, ``, "call"},
		{"config is no call", `"call":"run"`, `"call":"config"`, "call"},
		{"session upper case", `"session":"0123456789abcdef`, `"session":"0123456789ABCDEF`, "session"},
		{"session too short", `"session":"01`, `"session":"`, "session"},
		{"session a path", `"session":"0123456789abcdef0123456789abcdef"`, `"session":"../../../../../../../../../etc/x"`, "session"},
		{"run without stage", `"stage":"build_script",`, ``, "stage"},
		{"stage a path", `"stage":"build_script"`, `"stage":"../x"`, "stage"},
		{"stage with an escape", `"stage":"build_script"`, `"stage":"a\u001b[31m"`, "stage"},
		{"stage an option", `"stage":"build_script"`, `"stage":"-c"`, "stage"},
		{"stage hidden", `"stage":"build_script"`, `"stage":".."`, "stage"},
		{"stage too long", `"stage":"build_script"`, `"stage":"` + strings.Repeat("x", 129) + `"`, "stage"},
		{"prepare with a stage", `"call":"run"`, `"call":"prepare"`, "stage"},
		{"profile with a blank", `"profile":"hermetic"`, `"profile":"her metic"`, "profile"},
		{"temp_dir relative", `"temp_dir":"/tmp/custom-executor1"`, `"temp_dir":"tmp"`, "temp_dir"},
		{"temp_dir climbs", `"temp_dir":"/tmp/custom-executor1"`, `"temp_dir":"/tmp/../etc"`, "temp_dir"},
		{"temp_dir with a newline", `"temp_dir":"/tmp/custom-executor1"`, `"temp_dir":"/tmp/\n"`, "temp_dir"},
		{"version with a newline", `"executor_version":"devel"`, `"executor_version":"1\n"`, "executor_version"},
		{"runner version too long", `"runner_version":""`, `"runner_version":"` + strings.Repeat("1", 129) + `"`, "runner_version"},
		{"unknown field", `"version":1`, `"version":1,"uid":0`, "uid: unknown field"},
		{"field of another case", `"version":1`, `"version":1,"Session":"x"`, "Session: unknown field"},
		{"field twice", `"version":1`, `"version":1,"version":1`, "stands twice"},
		{"a second value", `"runner_version":""}`, `"runner_version":""}{}`, "more than one value"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(base, tt.old) != 1 {
				t.Fatalf("%q stands %d times in %s", tt.old, strings.Count(base, tt.old), base)
			}
			_, err := parseRequest([]byte(strings.Replace(base, tt.old, tt.new, 1)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q in it", err, tt.want)
			}
		})
	}
	for _, stage := range []string{"prepare_script", "get_sources", "step_release", "step_a11y", "upload_artifacts_on_success"} {
		r := validRequest(CallRun)
		r.Stage = stage
		if err := r.check(); err != nil {
			t.Errorf("stage %s: %v", stage, err)
		}
	}
}

// TestReplyAlwaysFits: no text keeps a reply from being sent or understood.
func TestReplyAlwaysFits(t *testing.T) {
	for _, text := range []string{
		"", "plain", "a\x00b", "\xff\xfe", strings.Repeat("x", 1<<20), strings.Repeat("\x01", 1<<20),
		strings.Repeat("源", 1<<16), strings.Repeat("<", 1<<16), strings.Repeat("\u2028", 1<<16), strings.Repeat("\xff", 1<<16),
	} {
		socket := serve(t, func(c *Conn) {
			if err := c.Reply(Reply{Outcome: BuildFailure, ExitCode: 7, Message: text, Hint: text}); err != nil {
				t.Error(err)
			}
		})
		_, w := pipe(t)
		reply, err := Send(t.Context(), socket, validRequest(CallCleanup), Files{Log: w})
		if err != nil || reply.ExitCode != 7 || len(reply.Message) > maxText || (text != "" && reply.Message == "") {
			t.Errorf("text %.20q: reply %.80q, %v", text, reply.Message, err)
		}
	}
}

func TestReplyRefusesOwnMistakes(t *testing.T) {
	for _, r := range []Reply{{}, {Outcome: "fine"}, {Outcome: OK, ExitCode: 1}, {Outcome: SystemFailure, ExitCode: 1}, {Outcome: BuildFailure, ExitCode: 256}} {
		socket := serve(t, func(c *Conn) {
			if err := c.Reply(r); err == nil {
				t.Errorf("sent %+v", r)
			}
		})
		_, w := pipe(t)
		if reply, err := Send(t.Context(), socket, validRequest(CallCleanup), Files{Log: w}); err == nil {
			t.Errorf("got %+v", reply)
		}
	}
}

func TestConnCloseClosesFiles(t *testing.T) {
	logR, logW := pipe(t)
	socket := serve(t, func(c *Conn) {
		c.Reply(Reply{Outcome: OK})
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := c.Files().Log.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
			t.Errorf("log after Close: %v", err)
		}
	})
	if _, err := Send(t.Context(), socket, validRequest(CallCleanup), Files{Log: logW}); err != nil {
		t.Fatal(err)
	}
	logW.Close()
	// The reader sees the end only when the daemon's copy is closed as well.
	if _, err := io.ReadAll(logR); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, call := range []Call{CallPrepare, CallRun, CallCleanup} {
		f.Add([]byte(requestLine(f, validRequest(call))))
	}
	f.Add([]byte(`{"version":1,"call":"run","session":"` + session + `","stage":"step_\u0061","x":[[{}]]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err != nil {
			return
		}
		again, err := parseRequest([]byte(requestLine(t, r)))
		if err != nil || again != r {
			t.Fatalf("%+v does not survive: %+v, %v", r, again, err)
		}
		if !ValidSession(r.Session) || strings.ContainsAny(r.Stage+r.Profile+r.Session, "/\\ \n\x1b") || r.Stage == ".." {
			t.Fatalf("unsafe name in %+v", r)
		}
		if bytes.ContainsAny([]byte(r.TempDir), "\n\x1b") {
			t.Fatalf("unsafe path %q", r.TempDir)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte(`{"outcome":"ok","exit_code":0,"message":"","hint":""}`))
	f.Add([]byte(`{"outcome":"build_failure","exit_code":42,"message":"m","hint":"h"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseReply(data)
		if err == nil && r.check() != nil {
			t.Fatalf("accepted %+v", r)
		}
	})
}
