package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"syscall"
	"time"

	"hallmark.build/sandbox/policy"
)

// Limits towards origins.
const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	// answerTimeout is how long an origin may think: GitLab Runner waits as long
	// for GitLab to store an artifact.
	answerTimeout     = 10 * time.Minute
	originIdle        = 11 * time.Minute // no byte in either direction
	poolIdle          = 30 * time.Second
	maxOriginHead     = 256 << 10
	maxIdlePerOrigin  = 16
	maxConnsPerOrigin = 64
	originBuffer      = 64 << 10
)

// upstream is how the border speaks to origins: to GitLab and to the object
// storage of caches whatever their address is, to all others only at addresses of
// the public internet.
type upstream struct {
	gitlab, storage, public *http.Transport
}

// An addressError says that a name led to an address that may not be dialled.
type addressError struct {
	addr netip.Addr
	what string
}

func (e *addressError) Error() string { return fmt.Sprintf("address %s: %s", e.addr, e.what) }

// newUpstream makes the two transports. refuse says why an address may not be
// dialled; it is asked after resolution, about the very address that the socket
// is about to connect to, so that a name cannot change its mind.
func newUpstream(cfg Config, refuse func(netip.Addr) string) (*upstream, error) {
	resolver := cfg.Resolver
	if resolver == nil {
		// Go's own resolver takes no numeric spelling (0x7f.1) for an address.
		resolver = &net.Resolver{PreferGo: true}
	}
	guarded := &net.Dialer{Timeout: dialTimeout, Resolver: resolver, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q: %w", address, err)
		}
		if what := refuse(ap.Addr()); what != "" {
			return &addressError{ap.Addr(), what}
		}
		return nil
	}}
	free := &net.Dialer{Timeout: dialTimeout, Resolver: resolver}
	// only dials what the admin has configured, and follows no redirect away from it.
	only := func(what string, configured ...*url.URL) (func(context.Context, string, string) (net.Conn, error), error) {
		var origins []string
		for _, u := range configured {
			origin, err := dialAuthority(u)
			if err != nil {
				return nil, err
			}
			origins = append(origins, origin)
		}
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			if !slices.Contains(origins, address) {
				return nil, fmt.Errorf("dial %s: not the configured %s", address, what)
			}
			return free.DialContext(ctx, network, address)
		}, nil
	}
	gitlab, err := only("GitLab", cfg.Policy.Job.GitLab)
	if err != nil {
		return nil, err
	}
	storage, err := only("object storage", cfg.Policy.Caches...)
	if err != nil {
		return nil, err
	}
	return &upstream{
		gitlab:  newTransport(gitlab, cfg.GitLabRoots),
		storage: newTransport(storage, cfg.UpstreamRoots),
		public:  newTransport(guarded.DialContext, cfg.UpstreamRoots),
	}, nil
}

// dialAuthority is host:port as a transport dials it, or "" where nothing is
// configured.
func dialAuthority(u *url.URL) (string, error) {
	if u == nil {
		return "", nil
	}
	host, port, err := splitAuthority(u.Host)
	if err != nil {
		return "", fmt.Errorf("configured url %q: %w", u.Redacted(), err)
	}
	switch {
	case port != 0:
	case u.Scheme == "https":
		port = 443
	case u.Scheme == "http":
		port = 80
	default:
		return "", fmt.Errorf("configured url %q: want https or http", u.Redacted())
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}

func newTransport(dial func(context.Context, string, string) (net.Conn, error), roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy: nil, // never from the environment
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &idleConn{Conn: c, limit: originIdle}, nil
		},
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}},
		TLSHandshakeTimeout:    handshakeTimeout,
		ResponseHeaderTimeout:  answerTimeout,
		IdleConnTimeout:        poolIdle,
		MaxIdleConnsPerHost:    maxIdlePerOrigin,
		MaxConnsPerHost:        maxConnsPerOrigin,
		MaxResponseHeaderBytes: maxOriginHead,
		DisableCompression:     true,
		ReadBufferSize:         originBuffer,
		WriteBufferSize:        originBuffer,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 alone
	}
}

// idleConn ends a connection on which nothing moves.
type idleConn struct {
	net.Conn
	limit time.Duration
}

func (c *idleConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *idleConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// roundTrip sends one request and follows nothing.
func (u *upstream) roundTrip(req *http.Request, gitlab bool) (*http.Response, error) {
	if gitlab {
		return u.gitlab.RoundTrip(req)
	}
	return u.public.RoundTrip(req)
}

func (u *upstream) closeIdle() {
	u.gitlab.CloseIdleConnections()
	u.storage.CloseIdleConnections()
	u.public.CloseIdleConnections()
}

// explain turns a failed round trip into words for the client, without what
// belongs to the host alone.
func explain(err error) (reason, remedy string) {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		dns      *net.DNSError
		op       *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "the origin's certificate is signed by an authority that the border does not know",
			"ask the runner's admin to set upstream_ca (or gitlab_ca) in sandboxd.toml"
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return "the origin's certificate is not valid for this name now", "tell the origin's operator"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "the name does not exist", "check the spelling of the host"
	case errors.As(err, &dns):
		return "the name could not be resolved", "try again; if it stays so, tell the runner's admin"
	case errors.Is(err, context.Canceled):
		return "the stage ended", ""
	case errors.As(err, &op) && op.Op == "dial":
		return "the origin did not accept a connection", "try again; if it stays so, check that the host is up"
	}
	return "the origin gave no proper answer", "try again"
}

// originURL makes the URL of a request to an origin, and proves that it reads
// back as what was decided.
func originURL(r policy.Request) (*url.URL, error) {
	plain, err := url.PathUnescape(r.Path)
	if err != nil {
		return nil, fmt.Errorf("path: %w", err)
	}
	u := &url.URL{Scheme: r.Scheme, Host: joinAuthority(r.Scheme, r.Host, r.Port), Path: plain, RawPath: r.Path, RawQuery: r.RawQuery}
	want := r.Path
	if r.RawQuery != "" {
		want += "?" + r.RawQuery
	}
	if u.RequestURI() != want {
		return nil, errors.New("the request target would change on its way")
	}
	return u, nil
}
