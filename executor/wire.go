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
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// WireVersion is the version of the protocol between driver and daemon. Both
// come from one package, so there is no negotiation: other versions are refused.
const WireVersion = 1

// MaxMessage is the size of the largest request or reply, its newline included.
const MaxMessage = 64 << 10

// Limits of the parts of a message.
const (
	maxText    = 4 << 10 // bytes of a reply's message or hint; JSON may make six of one
	maxVersion = 128     // bytes of a version
	maxPath    = 4 << 10 // bytes of a path
	maxStage   = 128     // bytes of a stage's or profile's name
	maxFiles   = 3
)

// How long one side waits for the other.
const (
	requestTimeout = 10 * time.Second // for a request that has begun to arrive whole, or be written
	replyTimeout   = 10 * time.Second // for a reply to be written
	// A daemon whose request was canceled has this long to end the stage and
	// answer. It must lie below the runner's graceful_kill_timeout.
	cancelTimeout = 100 * time.Second
	// Nothing hangs on the answer to a cleanup: the daemon finishes it alone.
	cleanupCancelTimeout = 2 * time.Second
)

// Call is what the runner asks of the driver that concerns the daemon.
type Call string

// The calls. There is none for config: it must not allocate anything.
const (
	CallPrepare Call = "prepare"
	CallRun     Call = "run"
	CallCleanup Call = "cleanup"
)

// Request is what the driver asks of the daemon. All of it comes from the
// runner and its configuration, nothing from the job.
type Request struct {
	Version         int    `json:"version"`
	Call            Call   `json:"call"`
	Session         string `json:"session"` // 32 lower-case hex digits
	Profile         string `json:"profile"`
	Stage           string `json:"stage"`    // for run
	TempDir         string `json:"temp_dir"` // the runner's directory for this job; gone when the job is
	ExecutorVersion string `json:"executor_version"`
	RunnerVersion   string `json:"runner_version"` // empty unless the driver knows it for sure
}

// Files are the open files that go with a request.
type Files struct {
	Log     *os.File // the job log: open for writing
	Payload *os.File // the job response, for prepare and run: a regular file, open for reading only
	Script  *os.File // the stage's script, for run: a regular file, open for reading only
}

// Outcome says whose fault it is, if anyone's.
type Outcome string

// The outcomes. A security failure is a system failure to GitLab.
const (
	OK            Outcome = "ok"
	BuildFailure  Outcome = "build_failure"
	SystemFailure Outcome = "system_failure"
)

// Reply is the daemon's answer. ExitCode is the script's status in a build
// failure, 0 if the failure has none. Message and Hint are for the job log;
// both are empty when the log says all already.
type Reply struct {
	Outcome  Outcome `json:"outcome"`
	ExitCode int     `json:"exit_code"`
	Message  string  `json:"message"`
	Hint     string  `json:"hint"`
}

// Peer is the process at the other end of a connection, by the kernel's word.
type Peer struct {
	PID      int
	UID, GID uint32
}

// parseRequest is the only reader of requests.
func parseRequest(line []byte) (Request, error) {
	var r Request
	if err := decodeStrict("request", line, &r); err != nil {
		return Request{}, err
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	return r, nil
}

// parseReply is the only reader of replies.
func parseReply(line []byte) (Reply, error) {
	var r Reply
	if err := decodeStrict("reply", line, &r); err != nil {
		return Reply{}, err
	}
	if err := r.check(); err != nil {
		return Reply{}, err
	}
	return r, nil
}

// decodeStrict is decode for our own documents: nothing is unknown in them.
func decodeStrict(document string, line []byte, v any) error {
	unknown, err := decode(document, line, v)
	if err != nil {
		return err
	}
	if len(unknown) > 0 {
		return &FieldError{document, unknown[0], "unknown field"}
	}
	return nil
}

func (r Request) check() error {
	bad := func(field, problem string) error { return &FieldError{"request", field, problem} }
	if r.Version != WireVersion {
		return bad("version", fmt.Sprintf("%d, want %d: driver and daemon are of different releases", r.Version, WireVersion))
	}
	switch r.Call {
	case CallPrepare, CallCleanup:
		if r.Stage != "" {
			return bad("stage", "only a run has one")
		}
	case CallRun:
		if !plainWord(r.Stage) {
			return bad("stage", "not a stage's name")
		}
	default:
		return bad("call", "not a call")
	}
	if !ValidSession(r.Session) {
		return bad("session", "want 32 lower-case hex digits")
	}
	if r.Profile != "" && !plainWord(r.Profile) {
		return bad("profile", "not a profile's name")
	}
	if r.TempDir != "" && !plainPath(r.TempDir) {
		return bad("temp_dir", "not a plain absolute path")
	}
	if !plainVersion(r.ExecutorVersion) {
		return bad("executor_version", "not a version")
	}
	if !plainVersion(r.RunnerVersion) {
		return bad("runner_version", "not a version")
	}
	return nil
}

func (r Reply) check() error {
	bad := func(field, problem string) error { return &FieldError{"reply", field, problem} }
	switch r.Outcome {
	case OK, SystemFailure:
		if r.ExitCode != 0 {
			return bad("exit_code", "only a build failure has one")
		}
	case BuildFailure:
		if r.ExitCode < 0 || r.ExitCode > 255 {
			return bad("exit_code", "want 0 to 255")
		}
	default:
		return bad("outcome", "not an outcome")
	}
	if len(r.Message) > maxText || len(r.Hint) > maxText {
		return bad("message", fmt.Sprintf("message or hint of more than %d bytes", maxText))
	}
	return nil
}

// ValidSession reports whether s has the form of a session: 32 lower-case hex
// digits.
func ValidSession(s string) bool { return lowerHex(s, 32) }

// plainWord reports whether s is safe as a word in logs and file names.
func plainWord(s string) bool {
	return s != "" && len(s) <= maxStage && s[0] != '.' && s[0] != '-' &&
		strings.IndexFunc(s, func(r rune) bool { return r != '.' && !plainName(string(r)) }) < 0
}

func plainPath(s string) bool {
	return len(s) <= maxPath && filepath.IsAbs(s) && filepath.Clean(s) == s && printable(s)
}

func plainVersion(s string) bool { return len(s) <= maxVersion && printable(s) }

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}

// filesOf is how many descriptors each call carries.
func filesOf(call Call) int {
	switch call {
	case CallPrepare:
		return 2
	case CallRun:
		return 3
	}
	return 1
}

// Send carries out one request and waits for its reply, however long the stage
// takes. When ctx ends it half-closes the connection, which makes the daemon
// cancel the stage, and still waits for the reply, but not forever.
func Send(ctx context.Context, socket string, req Request, files Files) (Reply, error) {
	wait := cancelTimeout
	if req.Call == CallCleanup {
		wait = cleanupCancelTimeout
	}
	return send(ctx, socket, req, files, wait)
}

// errNoReply: the daemon went away, or was never ours.
var errNoReply = errors.New("the sandbox daemon closed the connection without a whole reply")

func send(ctx context.Context, socket string, req Request, files Files, wait time.Duration) (Reply, error) {
	if err := req.check(); err != nil {
		return Reply{}, err
	}
	// An address that starts with @ would be abstract: without owner or mode.
	if !plainPath(socket) {
		return Reply{}, fmt.Errorf("socket %q: not a plain absolute path", socket)
	}
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return Reply{}, fmt.Errorf("connect to the sandbox daemon: %w", err)
	}
	defer nc.Close()
	c := nc.(*net.UnixConn)
	writeErr := writeRequest(c, req, files)
	if writeErr != nil && !errors.Is(writeErr, syscall.EPIPE) {
		return Reply{}, fmt.Errorf("%s: write request: %w", socket, writeErr)
	}
	// A daemon that refuses to listen closes early, yet may have said why.
	stop := context.AfterFunc(ctx, func() {
		c.CloseWrite()
		c.SetReadDeadline(time.Now().Add(wait))
	})
	defer stop()
	line, err := readLine(c)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Reply{}, fmt.Errorf("%s: canceled, and no reply within %s", socket, wait)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return Reply{}, fmt.Errorf("%s: %w", socket, errors.Join(writeErr, errNoReply))
	case err != nil:
		return Reply{}, fmt.Errorf("%s: read reply: %w", socket, errors.Join(writeErr, err))
	}
	return parseReply(line)
}

// writeRequest sends the descriptors along with the first byte of the request.
func writeRequest(c *net.UnixConn, req Request, files Files) error {
	line, err := json.Marshal(req)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if len(line) > MaxMessage {
		return fmt.Errorf("%d bytes, more than %d", len(line), MaxMessage)
	}
	list := []*os.File{files.Log, files.Payload, files.Script}[:filesOf(req.Call)]
	fds := make([]int, len(list))
	for i, f := range list {
		if fds[i], err = descriptor(f); err != nil {
			return err
		}
	}
	if err := c.SetWriteDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	n, _, err := c.WriteMsgUnix(line, syscall.UnixRights(fds...), nil)
	runtime.KeepAlive(list)
	if err != nil {
		return err
	}
	_, err = c.Write(line[n:])
	return err
}

// descriptor is f.Fd without its side effect of making the file blocking.
func descriptor(f *os.File) (fd int, err error) {
	if f == nil {
		return 0, errors.New("a file that the call needs is missing")
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// readLine reads one line and nothing behind it.
func readLine(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, 1<<10)
	for {
		if i := bytes.IndexByte(buf, '\n'); i >= 0 {
			if i != len(buf)-1 {
				return nil, errors.New("bytes after the message")
			}
			return buf[:i], nil
		}
		if len(buf) >= MaxMessage {
			return nil, fmt.Errorf("a message of more than %d bytes", MaxMessage)
		}
		part := make([]byte, MaxMessage-len(buf))
		n, err := r.Read(part)
		buf = append(buf, part[:n]...)
		if err != nil && n == 0 {
			if errors.Is(err, io.EOF) {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// Conn is the daemon's side of one request.
type Conn struct {
	conn     *net.UnixConn
	peer     Peer
	request  Request
	files    Files
	canceled chan struct{}
	watching sync.WaitGroup
}

// PeerOf asks the kernel who is at the other end of c.
func PeerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return Peer{}, fmt.Errorf("peer credentials: %w", err)
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// Accept reads the request and its descriptors from a fresh connection, within
// bounds of time and size. It does not decide who may speak: call [PeerOf]
// first. A request that it refuses it answers as a system failure. It takes
// over c: on an error c is closed, otherwise [Conn.Close] closes it.
func Accept(c *net.UnixConn) (*Conn, error) {
	return accept(c, requestTimeout)
}

func accept(c *net.UnixConn, timeout time.Duration) (*Conn, error) {
	conn := &Conn{conn: c, canceled: make(chan struct{})}
	if err := conn.receive(timeout); err != nil {
		// Best effort: the peer may be gone, or may not be reading.
		conn.Reply(Reply{Outcome: SystemFailure, Message: "the sandbox daemon refused the driver's request: " + err.Error()})
		conn.Close()
		return nil, err
	}
	conn.watching.Go(conn.watch)
	return conn, nil
}

// Refuse answers a connection whose peer may not speak, without reading from
// it, and closes it.
func Refuse(c *net.UnixConn, r Reply) error {
	conn := &Conn{conn: c}
	return errors.Join(conn.Reply(r), conn.Close())
}

func (c *Conn) receive(timeout time.Duration) (err error) {
	if c.peer, err = PeerOf(c.conn); err != nil {
		return err
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	r := &rightsReader{conn: c.conn}
	defer r.close()
	line, err := readLine(r)
	if err != nil {
		return fmt.Errorf("request: %w", err)
	}
	req, err := parseRequest(line)
	if err != nil {
		return err
	}
	if len(r.fds) != filesOf(req.Call) {
		return fmt.Errorf("request: %s with %d descriptors, want %d", req.Call, len(r.fds), filesOf(req.Call))
	}
	c.request, c.files = req, r.take()
	if err := c.files.check(); err != nil {
		return err
	}
	return c.conn.SetReadDeadline(time.Time{})
}

// check refuses descriptors of a kind that would let the sender do more than
// the contract says: make the daemon wait on a pipe where it expects a file,
// or hand tenant code a file that it can write to.
func (f Files) check() error {
	if err := checkFile("log", f.Log, true); err != nil {
		return err
	}
	if f.Payload != nil {
		if err := checkFile("payload", f.Payload, false); err != nil {
			return err
		}
	}
	if f.Script != nil {
		return checkFile("script", f.Script, false)
	}
	return nil
}

// oPath is O_PATH, which package syscall lacks.
const oPath = 0x200000

func checkFile(what string, f *os.File, writable bool) error {
	bad := func(problem string) error { return &FieldError{"request", what, problem} }
	fd, err := descriptor(f)
	if err != nil {
		return bad(err.Error())
	}
	flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), syscall.F_GETFL, 0)
	if errno != 0 {
		return bad(errno.Error())
	}
	info, err := f.Stat()
	if err != nil {
		return bad(err.Error())
	}
	access := flags & syscall.O_ACCMODE
	switch {
	case flags&oPath != 0:
		return bad("not open for reading or writing")
	case writable && (info.IsDir() || access == syscall.O_RDONLY):
		return bad("not open for writing")
	case !writable && !info.Mode().IsRegular():
		return bad("not a regular file")
	case !writable && access != syscall.O_RDONLY:
		return bad("open for more than reading")
	}
	return nil
}

// rightsReader reads from a unix socket, and keeps descriptors that arrive with
// the first bytes. Descriptors that arrive later are an error.
type rightsReader struct {
	conn  *net.UnixConn
	fds   []int
	begun bool
}

func (r *rightsReader) Read(p []byte) (int, error) {
	oob := make([]byte, syscall.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, err // nothing was received, so there are no descriptors
	}
	got, err := receivedFDs(oob[:oobn])
	r.fds = append(r.fds, got...)
	first := !r.begun
	r.begun = true
	switch {
	case err != nil:
		return 0, err
	case flags&syscall.MSG_CTRUNC != 0: // what did not fit the kernel has dropped
		return 0, fmt.Errorf("more than %d descriptors", maxFiles)
	case len(got) > 0 && !first:
		return 0, errors.New("descriptors after the first byte")
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// take turns at most maxFiles descriptors into files, which are the caller's.
func (r *rightsReader) take() Files {
	var f Files
	slots := []**os.File{&f.Log, &f.Payload, &f.Script}
	for i, name := range []string{"log", "payload", "script"}[:len(r.fds)] {
		*slots[i] = os.NewFile(uintptr(r.fds[i]), name)
	}
	r.fds = nil
	return f
}

func (r *rightsReader) close() {
	for _, fd := range r.fds {
		syscall.Close(fd)
	}
}

// receivedFDs takes every descriptor out of a control message, also when the
// message turns out to hold something else besides. Go receives them with
// MSG_CMSG_CLOEXEC, so no child of the daemon can inherit one.
func receivedFDs(oob []byte) ([]int, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var fds []int
	var strange error
	for _, m := range messages {
		got, err := syscall.ParseUnixRights(&m)
		if err != nil {
			strange = fmt.Errorf("control message: %w", err)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, strange
}

// watch closes canceled when the driver half-closes its side, goes away, or
// breaks the protocol by writing more.
func (c *Conn) watch() {
	defer close(c.canceled)
	c.conn.Read(make([]byte, 1))
}

// Request is what the driver asked for. Its fields have the right form; whether
// the session exists and the profile is offered is for the caller to check.
func (c *Conn) Request() Request { return c.request }

// Files are the descriptors that came with the request. They are valid until
// Close.
func (c *Conn) Files() Files { return c.files }

// Peer is the driver's process, by the kernel's word.
func (c *Conn) Peer() Peer { return c.peer }

// Canceled is closed when the driver no longer wants the stage: it half-closed
// the connection or is gone. A reply is still owed.
func (c *Conn) Canceled() <-chan struct{} { return c.canceled }

// Reply answers the request, once. Texts beyond the limit are cut, so that they
// never cost the driver its answer.
func (c *Conn) Reply(r Reply) error {
	r.Message, r.Hint = cut(r.Message), cut(r.Hint)
	if err := r.check(); err != nil {
		return err
	}
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(replyTimeout)); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	if _, err := c.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("reply: %w", err)
	}
	return nil
}

func cut(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
	const mark = " …"
	if len(s) <= maxText {
		return s
	}
	return strings.ToValidUTF8(s[:maxText-len(mark)], "") + mark
}

// Close ends the connection and closes the received files. It may be called
// more than once.
func (c *Conn) Close() error {
	err := c.conn.Close() // also ends watch
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	c.watching.Wait()
	for _, f := range []*os.File{c.files.Log, c.files.Payload, c.files.Script} {
		if f != nil {
			f.Close()
		}
	}
	return err
}

// ReadFile reads a file that came with a request from its beginning, and
// refuses one of more than limit bytes. It leaves the file's offset alone, which the
// sender shares.
func ReadFile(f *os.File, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", f.Name(), limit)
	}
	return data, nil
}
