package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// Limits towards clients.
const (
	maxLinger   = 256 << 10
	sniffBuffer = 4 << 10
	writeBuffer = 64 << 10
)

// patience is how long the border waits for a client.
type patience struct {
	peek   time.Duration // until it has said what it speaks; a busy host makes it slow
	hello  time.Duration // for a TLS handshake
	head   time.Duration // for one request's head
	idle   time.Duration // between two requests
	body   time.Duration // between two pieces of a request's body
	take   time.Duration // for it to take a piece of an answer
	linger time.Duration // for it to read an answer while it still sends
	answer time.Duration // until a cache's answer begins: GitLab Runner's helper waits thirty seconds
}

func usualPatience() patience {
	return patience{
		peek: 20 * time.Second, hello: 20 * time.Second, head: 20 * time.Second, idle: time.Minute,
		body: time.Minute, take: 10 * time.Minute, linger: time.Second, answer: 20 * time.Second,
	}
}

// Rules of the border itself, beside those of package policy.
const (
	ruleMismatch  = "name-mismatch"     // places that name the host disagree
	ruleMalformed = "malformed"         // not HTTP as every server reads it
	ruleProtocol  = "not-http"          // neither TLS nor HTTP, or the server speaks first
	ruleHTTP2     = "http2"             // HTTP/2 without TLS's negotiation
	ruleTLS       = "tls-handshake"     // the client ended the handshake
	ruleNested    = "nested-connect"    // CONNECT where there is no proxy
	ruleUDP       = "udp"               // a datagram
	ruleCapacity  = "capacity"          // more than the border holds
	ruleRecord    = "record-failed"     // evidence can no longer be recorded
	ruleOrigin    = "origin"            // the origin did not answer
	ruleRedirect  = "redirect"          // a redirect that the border does not follow
	ruleOrigins   = "artifact-origin"   // an earlier job's artifact that may not be given
	ruleUpload    = "upload"            // an upload that cannot be matched
	ruleViolation = "artifact-mismatch" // an artifact that differs from the sealed workspace, or from what was attested
)

// A client is one connection, or the inside of one that was unwrapped.
type client struct {
	p   *period
	raw net.Conn // what came in: deadlines, and cutting it off
	// conn is raw, or TLS on top of it.
	conn   net.Conn
	br     *bufio.Reader
	bw     *bufio.Writer
	claims claims
	scheme string
	port   int
	proxy  bool // a client of the explicit proxy: absolute form and CONNECT
}

func (c *client) patience() patience { return c.p.side.b.patience }

// serveSteered serves a connection that was meant for somewhere else.
func (p *period) serveSteered(raw net.Conn) {
	dst, err := originalDestination(raw)
	if err != nil {
		cut(raw)
		return
	}
	switch {
	case dst.Addr().IsLoopback(): // somebody called the listener by its own name
		_ = p.block(record.Block{Protocol: "tcp", Target: dst.String(), Rule: ruleProtocol, Reason: "nobody listens there for clients"})
		cut(raw)
	case dst.Port() == dnsPort:
		p.side.names.serveDNSStream(raw, bufio.NewReader(raw))
	default:
		c := &client{p: p, raw: raw, conn: raw, claims: dialled(p.side.names, dst.Addr()), scheme: "http", port: int(dst.Port())}
		c.serve(bufio.NewReaderSize(raw, sniffBuffer))
	}
}

// serveProxy serves a client of the explicit proxy.
func (p *period) serveProxy(raw net.Conn) {
	c := &client{p: p, raw: raw, conn: raw, scheme: "http", port: proxyPort, proxy: true}
	c.serve(bufio.NewReaderSize(raw, sniffBuffer))
}

// serve finds out what a client speaks, and speaks it.
func (c *client) serve(r *bufio.Reader) {
	k, err := c.sniff(r, c.patience().peek)
	switch {
	case err != nil && r.Buffered() == 0 && errors.Is(err, io.EOF): // connected and left
		return
	case err != nil && r.Buffered() == 0 && errors.Is(err, os.ErrDeadlineExceeded):
		c.unspeakable("tcp", ruleProtocol, "the client waits for the server to speak first; only TLS and HTTP pass the border")
	case k == isTLS && c.scheme == "https":
		c.unspeakable("tls", ruleProtocol, "TLS inside TLS")
	case k == isTLS && c.proxy:
		c.unspeakable("tcp", ruleProtocol, "the explicit proxy is spoken to in plain HTTP")
	case k == isTLS:
		c.serveTLS(r)
	case k == isHTTP:
		c.serveHTTP(r)
	case k == isHTTP2:
		c.unspeakable(c.scheme, ruleHTTP2, "HTTP/2 without negotiation; only HTTP/1.1 passes the border")
	default:
		c.unspeakable("tcp", ruleProtocol, "neither TLS nor HTTP; only these pass the border")
	}
}

// sniff reads until the protocol is known.
func (c *client) sniff(r *bufio.Reader, timeout time.Duration) (kind, error) {
	if err := c.raw.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return isOther, err
	}
	for {
		b, err := r.Peek(r.Buffered())
		if err != nil {
			return isOther, err
		}
		if k := sniff(b); k != undecided {
			return k, c.raw.SetReadDeadline(time.Time{})
		}
		if _, err := r.Peek(len(b) + 1); err != nil {
			return isOther, err
		}
	}
}

// unspeakable records and closes a connection that cannot be answered in words.
func (c *client) unspeakable(protocol, rule, reason string) {
	_ = c.p.block(record.Block{Protocol: protocol, Target: c.where(), Rule: rule, Reason: reason})
	cut(c.raw)
}

// where names the other end as the client does.
func (c *client) where() string {
	return joinAuthority("", c.claims.host(), c.port)
}

// prefixed is a connection some of whose bytes were read already.
type prefixed struct {
	net.Conn
	r *bufio.Reader
}

func (p prefixed) Read(b []byte) (int, error) { return p.r.Read(b) }

// serveTLS ends the client's TLS here, under the name that it asks for: whether
// that name agrees with the others is told inside, in words.
func (c *client) serveTLS(r *bufio.Reader) {
	fallback := c.claims.host()
	cfg := &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		NextProtos:                  []string{"http/1.1", "http/1.0"},
		DynamicRecordSizingDisabled: true,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			name := fallback
			if sni, err := policy.CanonicalHost(hello.ServerName); err == nil {
				name = sni
			}
			return c.p.side.b.ca.leaf(name)
		},
	}
	cfg.SetSessionTicketKeys([][32]byte{c.p.side.b.ca.tickets})
	conn := tls.Server(prefixed{c.raw, r}, cfg)
	if err := c.raw.SetDeadline(time.Now().Add(c.patience().hello)); err != nil {
		return
	}
	if err := conn.HandshakeContext(c.p.ctx); err != nil {
		c.handshakeFailed(err)
		return
	}
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return
	}
	inner := &client{p: c.p, raw: c.raw, conn: conn, claims: c.claims, scheme: "https", port: c.port}
	if sni := conn.ConnectionState().ServerName; sni != "" {
		name, err := policy.CanonicalHost(sni)
		if err != nil {
			name = sni // it will agree with nothing, or be refused as a host
		}
		inner.claims = c.claims.with("SNI", name)
	}
	inner.serveInner()
}

// serveInner goes on after the handshake. A client that says nothing more has
// only connected early.
func (c *client) serveInner() {
	r := bufio.NewReaderSize(c.conn, maxHead)
	if err := c.raw.SetReadDeadline(time.Now().Add(c.patience().idle)); err != nil {
		return
	}
	if _, err := r.Peek(1); err != nil {
		// Some clients look at the certificate only after the handshake.
		if isRemoteAlert(err) {
			c.handshakeFailed(err)
		}
		return
	}
	c.serve(r)
}

// isRemoteAlert reports an alert that the client sent.
func isRemoteAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func (c *client) handshakeFailed(err error) {
	if c.p.ctx.Err() != nil || errors.Is(err, io.EOF) {
		return
	}
	// OpenSSL tells in the clear that it does not trust a certificate, which is
	// then a record that cannot be decrypted; others say so properly. The words
	// must serve for both.
	reason := fmt.Sprintf("the TLS handshake did not complete (%s); if the client does not trust the job's certificate authority, it uses another trust store than the system's",
		clip(printable(err.Error()), 200))
	_ = c.p.block(record.Block{Protocol: "tls", Target: c.where(), Rule: ruleTLS, Reason: reason})
}

// serveHTTP serves one request after another.
func (c *client) serveHTTP(r *bufio.Reader) {
	if r.Size() < maxHead {
		r = bufio.NewReaderSize(r, maxHead)
	}
	c.br, c.bw = r, bufio.NewWriterSize(deadlineWriter{c}, writeBuffer)
	for c.serveRequest() {
	}
}

// deadlineWriter gives the client time for each piece.
type deadlineWriter struct{ c *client }

func (w deadlineWriter) Write(b []byte) (int, error) {
	if err := w.c.raw.SetWriteDeadline(time.Now().Add(w.c.patience().take)); err != nil {
		return 0, err
	}
	return w.c.conn.Write(b)
}

// serveRequest serves one request and reports whether another may follow.
func (c *client) serveRequest() bool {
	if err := c.raw.SetReadDeadline(time.Now().Add(c.patience().idle)); err != nil {
		return false
	}
	if _, err := c.br.Peek(1); err != nil {
		return false
	}
	if err := c.raw.SetReadDeadline(time.Now().Add(c.patience().head)); err != nil {
		return false
	}
	head, err := readHead(c.br)
	switch {
	case errors.Is(err, errHeadTooLarge):
		return c.malformed(http.StatusRequestHeaderFieldsTooLarge, err)
	case err != nil:
		return false
	}
	hosts, err := checkHead(head)
	if err != nil {
		return c.malformed(http.StatusBadRequest, err)
	}
	uri := requestURI(head)
	req, err := http.ReadRequest(c.br)
	if err != nil {
		return c.malformed(http.StatusBadRequest, errors.New("the head cannot be read"))
	}
	if err := c.raw.SetReadDeadline(time.Time{}); err != nil {
		return false
	}
	q := &request{client: c, Request: req, uri: uri, hosts: hosts}
	q.body = newBody(q)
	if req.Method == http.MethodConnect {
		return q.connect()
	}
	return q.serve()
}

// requestURI is the second word of a checked head.
func requestURI(head []byte) string {
	return string(bytes.SplitN(head, []byte(" "), 3)[1])
}

// malformed refuses what cannot be read, and ends the connection: nobody knows
// where the next request would begin.
func (c *client) malformed(status int, err error) bool {
	v := refusal{status: status, rule: ruleMalformed, reason: "the request is malformed: " + err.Error(), remedy: "send HTTP/1.1 as RFC 9112 has it"}
	c.refuse(v, record.Block{Protocol: c.scheme, Target: c.where()}, false, true)
	c.linger()
	return false
}

// connect opens a tunnel whose other end is here as well.
func (q *request) connect() bool {
	c := q.client
	if !c.proxy {
		return q.refuse(refusal{status: http.StatusForbidden, rule: ruleNested, reason: "CONNECT where there is no proxy",
			remedy: fmt.Sprintf("the explicit proxy is http://127.0.0.1:%d", proxyPort)})
	}
	host, port, err := splitAuthority(q.uri)
	if err == nil && port == 0 {
		err = errors.New("CONNECT without a port")
	}
	if err != nil {
		return c.malformed(http.StatusBadRequest, err)
	}
	if q.ContentLength != 0 {
		return c.malformed(http.StatusBadRequest, errors.New("CONNECT with a body"))
	}
	if _, err := c.bw.WriteString("HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return false
	}
	if err := c.bw.Flush(); err != nil {
		return false
	}
	inner := &client{p: c.p, raw: c.raw, conn: c.raw, claims: claims{}.with("CONNECT", host), scheme: "http", port: port}
	inner.serve(c.br)
	return false
}

// linger lets a client that is still sending read its answer, which a reset
// would take from it.
func (c *client) linger() {
	type closeWriter interface{ CloseWrite() error }
	w, ok := c.conn.(closeWriter)
	if !ok || w.CloseWrite() != nil {
		return
	}
	if err := c.raw.SetReadDeadline(time.Now().Add(c.patience().linger)); err != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.raw, maxLinger)
}
