package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/egress/git"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// maxRequestBody bounds what may go out with one request that is not an upload.
const maxRequestBody = 256 << 20

// maxKept is how much of a body is kept to be read: git's own requests are
// smaller. What a longer one asked for is not known.
const maxKept = git.MaxRequest

// asksGit reports whether a request can be git's for objects.
func asksGit(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/git-upload-pack")
}

// maxFetches bounds the exchanges of one job, so that a job cannot fill its own
// record.
const maxFetches = 500_000

// A request is one request, its head checked.
type request struct {
	*client
	*http.Request
	uri   string  // as in the request line
	hosts headers // what net/http forgets
	body  *body

	ask policy.Request // set once names agree
}

// serve decides about a request, and carries it out. It reports whether the
// connection can take another.
func (q *request) serve() bool {
	t, err := parseTarget(q.uri)
	if err != nil {
		return q.malformed(http.StatusBadRequest, err)
	}
	said, port := q.claims, q.port
	switch {
	case q.proxy && t.scheme == "":
		return q.malformed(http.StatusBadRequest, errors.New("a proxy is asked by a whole URL or by CONNECT"))
	case q.proxy && t.scheme != "http":
		return q.malformed(http.StatusBadRequest, fmt.Errorf("scheme %q: a proxy is asked for https by CONNECT", clip(t.scheme, maxMethod)))
	case q.proxy:
		port = 80
		if t.port != 0 {
			port = t.port
		}
		said = claims{}.with("the request target", t.host)
	case t.scheme != "":
		said = said.with("the request target", t.host)
	}
	if q.hosts.host != "" {
		host, hostPort, err := splitAuthority(q.hosts.host)
		if err != nil {
			return q.malformed(http.StatusBadRequest, fmt.Errorf("host header: %w", err))
		}
		said = said.with("Host", host)
		if hostPort != 0 && hostPort != port {
			return q.mismatch(t, said.host(), port, fmt.Sprintf("the connection is to port %d, Host names port %d", port, hostPort))
		}
	}
	host, disagreement := said.agree()
	switch {
	case disagreement != "":
		return q.mismatch(t, said.host(), port, disagreement)
	case t.scheme != "" && t.scheme != q.scheme, t.port != 0 && t.port != port:
		return q.mismatch(t, host, port, "the request target names another scheme or port than the connection")
	}
	q.ask = policy.Request{
		Role: q.p.side.role, Stage: q.p.stage, Scheme: q.scheme, Method: q.Method,
		Host: host, Port: port, Path: t.path, RawQuery: t.query,
	}
	return q.decide()
}

func (q *request) mismatch(t target, host string, port int, reason string) bool {
	q.ask = policy.Request{Scheme: q.scheme, Host: host, Port: port, Path: t.path, RawQuery: t.query}
	return q.refuse(refusal{status: http.StatusMisdirectedRequest, rule: ruleMismatch, reason: reason,
		remedy: "one connection is for one host; open another for the other"})
}

func (q *request) decide() bool {
	if q.p.side.b.broken() != nil {
		return q.refuse(refusal{status: http.StatusForbidden, rule: ruleRecord, reason: "evidence can no longer be recorded, so nothing may pass",
			remedy: "this is a failure of the runner host; run the job again"})
	}
	if q.ContentLength != 0 && (q.Method == http.MethodGet || q.Method == http.MethodHead) {
		return q.malformed(http.StatusBadRequest, errors.New("a body in a request that has none"))
	}
	d := q.p.side.b.cfg.Policy.Decide(q.ask)
	switch {
	case !d.Allow:
		return q.refuse(refusal{status: http.StatusForbidden, rule: d.Rule, reason: d.Reason, remedy: d.Remedy})
	case q.p.side.b.fetches.Add(1) > maxFetches:
		return q.refuse(refusal{status: http.StatusForbidden, rule: ruleCapacity, reason: fmt.Sprintf("more than %d requests in one job", maxFetches)})
	case d.Upload:
		return q.upload(d)
	case d.Cache != "":
		return q.cache(d)
	}
	return q.forward(d)
}

// hidden are the values that the URL of an exchange may not show. The helper is
// let through to its sources and artifacts alone, whose URLs say which they are:
// no variable of the job may hide that.
func (q *request) hidden() secrets {
	if q.p.side.role == sandbox.Helper {
		return nil
	}
	return q.p.side.b.secrets
}

// block is what is recorded when the request is refused.
func (q *request) block() record.Block {
	target, known := q.where(), q.p.side.b.secrets
	if u, err := originURL(q.ask); err == nil && q.ask.Host != "" {
		target = redactURL(u, known)
	} else if q.ask.Host != "" {
		// A path that does not survive its own parsing is told by its beginning.
		path, _, _ := strings.Cut(q.ask.Path, "?")
		if known.in(path) {
			path = "/" + redacted
		}
		target = q.ask.Scheme + "://" + joinAuthority(q.ask.Scheme, q.ask.Host, q.ask.Port) + clip(path, 200)
	}
	return record.Block{Protocol: q.scheme, Method: clip(q.Method, maxMethod), Target: target}
}

// refuse records and explains, and reports whether the connection goes on.
func (q *request) refuse(v refusal) bool {
	return q.refuseAs(v, q.block())
}

func (q *request) refuseAs(v refusal, b record.Block) bool {
	keep := q.keep()
	q.client.refuse(v, b, q.Method == http.MethodHead, !keep)
	if !keep {
		q.linger()
	}
	return keep
}

// keep reports whether another request can follow on this connection.
func (q *request) keep() bool {
	return !q.Close && q.ProtoAtLeast(1, 1) && q.body.done()
}

// A body reads, counts and hashes a request's body. The transport reads it in a
// goroutine of its own, and may go on after the origin has answered.
type body struct {
	q      *request
	r      io.Reader
	limit  int64
	expect bool // the client waits to be told to go on

	mu    sync.Mutex
	sum   hash.Hash
	n     int64
	ended bool
	kept  *bytes.Buffer // the first maxKept bytes, where they are to be read
}

var errBodyTooLarge = errors.New("the request's body is too large")

func newBody(q *request) *body {
	b := &body{q: q, r: q.Request.Body, sum: sha256.New(), limit: maxRequestBody}
	b.expect = strings.EqualFold(q.Header.Get("Expect"), "100-continue") && q.ProtoAtLeast(1, 1)
	b.ended = q.ContentLength == 0
	if asksGit(q.Request) {
		b.kept = &bytes.Buffer{}
	}
	return b
}

// proceed tells a client that waits to send its body.
func (b *body) proceed() error {
	if !b.expect || b.done() {
		return nil
	}
	if _, err := b.q.bw.WriteString("HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
		return err
	}
	return b.q.bw.Flush()
}

// done reports whether the body was read to its end.
func (b *body) done() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ended
}

func (b *body) Read(p []byte) (int, error) {
	if b.done() {
		return 0, io.EOF
	}
	if err := b.q.raw.SetReadDeadline(time.Now().Add(b.q.patience().body)); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n += int64(n)
	b.sum.Write(p[:n])
	if b.kept != nil && b.kept.Len() <= maxKept {
		b.kept.Write(p[:n])
	}
	if b.n > b.limit {
		return 0, errBodyTooLarge
	}
	b.ended = errors.Is(err, io.EOF)
	return n, err
}

// Close leaves the rest unread: the connection then ends with the answer.
func (b *body) Close() error { return nil }

// describe records what was read of the body.
func (b *body) describe(f *record.Fetch) {
	f.RequestSHA256, f.RequestBytes = b.digest()
	if b.kept == nil || !b.done() || b.kept.Len() > maxKept {
		return
	}
	asked, err := git.ParseRequest(bytes.NewReader(b.kept.Bytes()), strings.Join(b.q.Header["Content-Encoding"], ","))
	if err == nil {
		f.Git = &record.GitRequest{Command: asked.Command, Wants: asked.Wants}
	}
}

// digest is of what was read; it is empty where there was no body.
func (b *body) digest() (sha string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.n == 0 {
		return "", 0
	}
	return hex.EncodeToString(b.sum.Sum(nil)), b.n
}
