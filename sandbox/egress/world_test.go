package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// inside is set where this test binary plays a program of the job's.
const inside = "HALLMARK_TEST_INSIDE"

func TestMain(m *testing.M) {
	if what := os.Getenv(inside); what != "" {
		os.Exit(playInside(what, os.Args[1:]))
	}
	os.Exit(m.Run())
}

// memory is a record in memory. It can be told to wait and to fail.
type memory struct {
	mu      sync.Mutex
	entries []any
	kinds   []record.Kind
	before  func(record.Kind, any) error
}

func (m *memory) Append(kind record.Kind, data any) (record.Entry, error) {
	m.mu.Lock()
	before := m.before
	m.mu.Unlock()
	if before != nil {
		if err := before(kind, data); err != nil {
			return record.Entry{}, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, data)
	m.kinds = append(m.kinds, kind)
	return record.Entry{Kind: kind}, nil
}

func (m *memory) hook(f func(record.Kind, any) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

func of[T any](m *memory) []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []T
	for _, e := range m.entries {
		if v, ok := e.(T); ok {
			out = append(out, v)
		}
	}
	return out
}

// world is a border with a GitLab, an origin and a resolver around it.
type world struct {
	t      testing.TB
	b      *Border
	rec    *memory
	names  *zone
	gitlab *httptest.Server
	origin *httptest.Server
	outer  *authority // signs the certificates of GitLab and the origin
	caFile string
	port   int // the origin's
	glPort int // GitLab's
}

const (
	jobID = 42
	depID = 7
	repo  = "/group/project.git"
)

type options struct {
	profile sandbox.Profile
	gitlab  http.Handler
	origin  http.Handler
	rules   func(port int) []policy.Rule
	change  func(*Config)
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	outer, err := newAuthority(0)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, rec: &memory{}, outer: outer, names: newZone(t)}
	w.gitlab, w.glPort = w.serve(o.gitlab)
	w.origin, w.port = w.serve(o.origin)
	roots := x509.NewCertPool()
	roots.AddCert(outer.cert)
	gl := &url.URL{Scheme: "https", Host: net.JoinHostPort("gitlab.test", strconv.Itoa(w.glPort))}
	w.names.set("gitlab.test", "127.0.0.1")
	w.names.set("good.test", "127.0.0.1")
	cfg := Config{
		Policy: policy.Policy{
			Profile: o.profile,
			Job:     policy.Job{ID: jobID, GitLab: gl, Repository: gl.JoinPath(repo), Dependencies: []int64{depID}},
		},
		Record: w.rec, GitLabRoots: roots, UpstreamRoots: roots, SpoolDir: t.TempDir(), Resolver: w.names.resolver(),
		CheckDownload: func(context.Context, int64, string) (string, string, error) { return "", "", nil },
	}
	if o.rules == nil {
		o.rules = func(port int) []policy.Rule {
			return []policy.Rule{{Name: "good", Host: "good.test", Ports: []int{port}}}
		}
	}
	cfg.Policy.Allow = o.rules(w.port)
	if o.change != nil {
		o.change(&cfg)
	}
	if w.b, err = Open(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.b.Close(); err != nil && w.b.broken() == nil {
			t.Errorf("close: %v", err)
		}
	})
	// The origin plays a host of the internet, so its address must pass.
	w.allowAddress(netip.MustParseAddr("127.0.0.1"))
	w.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(w.caFile, w.b.CA(), 0o644); err != nil {
		t.Fatal(err)
	}
	return w
}

// allowAddress makes the border dial one address that it would refuse.
func (w *world) allowAddress(ok netip.Addr) {
	up, err := newUpstream(w.b.cfg, func(a netip.Addr) string {
		if a == ok {
			return ""
		}
		return dialable(a)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.b.up = up
}

func (w *world) serve(h http.Handler) (*httptest.Server, int) {
	if h == nil {
		h = http.NotFoundHandler()
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return w.outer.leaf(hello.ServerName)
	}}
	s.StartTLS()
	w.t.Cleanup(s.Close)
	return s, s.Listener.Addr().(*net.TCPAddr).Port
}

func (w *world) url(path string) string { return fmt.Sprintf("https://good.test:%d%s", w.port, path) }

func (w *world) gitlabURL(path string) string {
	return fmt.Sprintf("https://gitlab.test:%d%s", w.glPort, path)
}

// netns is the path of a role's namespace.
func (w *world) netns(role sandbox.Role) string {
	w.t.Helper()
	path, err := w.b.Namespace(role)
	if err != nil {
		w.t.Fatal(err)
	}
	return path
}

// run runs a command inside a role's namespace.
func (w *world) run(role sandbox.Role, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + w.netns(role), "--"}, args...)...)
	return w.output(cmd)
}

// inside plays one of the programs of inside_test.go in a role's namespace.
func (w *world) inside(role sandbox.Role, what string, args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range args { // arguments cannot hold zero bytes
		args[i] = strconv.Quote(args[i])
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + w.netns(role), "--", self}, args...)...)
	cmd.Env = append(os.Environ(), inside+"="+what, "CA="+w.caFile)
	return w.output(cmd)
}

func (w *world) output(cmd *exec.Cmd) (string, string, int) {
	w.t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// curl runs curl inside the build container's namespace.
func (w *world) curl(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	return w.run(sandbox.Build, append([]string{"curl", "-sS", "--noproxy", "*", "--cacert", w.caFile, "--max-time", "50"}, args...)...)
}

// helperCurl runs curl inside the helper's namespace.
func (w *world) helperCurl(args ...string) (stdout, stderr string, code int) {
	w.t.Helper()
	return w.run(sandbox.Helper, append([]string{"curl", "-sS", "--noproxy", "*", "--cacert", w.caFile, "--max-time", "50"}, args...)...)
}

// begin opens a stage; the role's namespace is made if need be.
func (w *world) begin(stage sandbox.Stage) {
	w.t.Helper()
	w.netns(stage.Role())
	w.b.Begin(stage.Role(), stage)
}

func (w *world) end(role sandbox.Role) {
	w.t.Helper()
	if err := w.b.End(role); err != nil {
		w.t.Fatalf("end: %v", err)
	}
}

// wantBlock checks that exactly one refusal was recorded, under a rule.
func (w *world) wantBlock(rule, target string) record.Block {
	w.t.Helper()
	blocks := of[record.Block](w.rec)
	if len(blocks) != 1 {
		w.t.Fatalf("%d refusals, want 1: %+v", len(blocks), blocks)
	}
	if blocks[0].Rule != rule || !strings.Contains(blocks[0].Target, target) {
		w.t.Fatalf("refusal %+v, want rule %s and target %s", blocks[0], rule, target)
	}
	return blocks[0]
}

func (w *world) wantNoFetch() {
	w.t.Helper()
	if f := of[record.Fetch](w.rec); len(f) != 0 {
		w.t.Fatalf("something was fetched: %+v", f)
	}
}

// zone is a name server that tells what the test sets.
type zone struct {
	conn *net.UDPConn

	mu    sync.Mutex
	addrs map[string][]string // answered in turn, the last one for ever
	asked []string
}

func newZone(t testing.TB) *zone {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{conn: conn, addrs: map[string][]string{}}
	done := make(chan struct{})
	go func() { defer close(done); z.serve() }()
	t.Cleanup(func() { conn.Close(); <-done })
	return z
}

func (z *zone) set(name string, addrs ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.addrs[name+"."] = addrs
}

func (z *zone) next(name string, qtype dnsmessage.Type) (netip.Addr, bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = append(z.asked, name)
	list := z.addrs[name]
	if len(list) == 0 {
		return netip.Addr{}, false
	}
	addr := netip.MustParseAddr(list[0])
	if addr.Is4() != (qtype == dnsmessage.TypeA) {
		return netip.Addr{}, true
	}
	if len(list) > 1 {
		z.addrs[name] = list[1:]
	}
	return addr, true
}

func (z *zone) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := z.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		q := m.Questions[0]
		reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
		addr, known := z.next(q.Name.String(), q.Type)
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET}
		switch {
		case !known:
			reply.RCode = dnsmessage.RCodeNameError
		case addr.Is4():
			reply.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}}}
		case addr.Is6():
			reply.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
		}
		if out, err := reply.Pack(); err == nil {
			_, _ = z.conn.WriteTo(out, from)
		}
	}
}

func (z *zone) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp4", z.conn.LocalAddr().String())
	}}
}

// body answers with fixed bytes.
func fixed(data []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data)
	})
}

// chunked answers with the same bytes, of unknown length.
func chunked(data []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, bytes.NewReader(data))
	})
}
