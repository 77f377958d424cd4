package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

const maxCAFile = 4 << 20

var (
	errTooLarge = fmt.Errorf("the registry's answer is larger than %d bytes", maxBody)
	errPlain    = errors.New("the registry is not on the list of those that may be spoken to without TLS")
	errLocal    = errors.New("the registry's address belongs to this host or its link")
)

// Transport is the way to registries. It runs on the host's network in the
// tenant's name, so it refuses plain HTTP and the addresses of this host and
// its link (loopback, link-local with the clouds' metadata services,
// unspecified, multicast) unless the admin listed the registry in PlainHTTP.
// The address that is dialled decides, not the name: neither a redirect nor a
// name that resolves to such an address gets around it.
func (p Policy) Transport() (http.RoundTripper, error) {
	roots, err := p.roots()
	if err != nil {
		return nil, err
	}
	exempt := proxies()
	free := &net.Dialer{Timeout: 30 * time.Second}
	checked := &net.Dialer{Timeout: 30 * time.Second, Control: refuseLocal}
	return plainGuard{policy: p, next: &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  60 * time.Second,
		IdleConnTimeout:        60 * time.Second,
		MaxIdleConnsPerHost:    8,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if slices.Contains(exempt, addr) || p.Plain(addr) {
				return free.DialContext(ctx, network, addr)
			}
			return checked.DialContext(ctx, network, addr)
		},
	}}, nil
}

func (p Policy) roots() (*x509.CertPool, error) {
	if p.CAFile == "" {
		return nil, nil
	}
	f, err := os.Open(p.CAFile)
	if err != nil {
		return nil, fmt.Errorf("image policy: ca: %w", err)
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return nil, fmt.Errorf("image policy: ca: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("image policy: system roots: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("image policy: ca: %s: no certificate in it", p.CAFile)
	}
	return pool, nil
}

// proxies lists the addresses of the proxies that the admin set up in the
// daemon's environment; they may well be on this host.
func proxies() []string {
	var list []string
	for _, scheme := range []string{"http", "https"} {
		u, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: scheme, Host: "registry.invalid"}})
		if err != nil || u == nil {
			continue
		}
		port := u.Port()
		if port == "" {
			port = map[string]string{"http": "80", "https": "443", "socks5": "1080"}[u.Scheme]
		}
		list = append(list, net.JoinHostPort(u.Hostname(), port))
	}
	return list
}

func refuseLocal(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return errLocal
	}
	a := ap.Addr().Unmap()
	if a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a == awsMetadata6 {
		return errLocal
	}
	return nil
}

// awsMetadata6 is the one metadata service that has no link-local address.
var awsMetadata6 = netip.MustParseAddr("fd00:ec2::254")

// plainGuard refuses plain HTTP to every registry that is not listed.
type plainGuard struct {
	policy Policy
	next   http.RoundTripper
}

func (g plainGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.policy.Plain(strings.ToLower(r.URL.Host)) {
		return nil, errPlain
	}
	return g.next.RoundTrip(r)
}

// boundedBodies makes reading more than maxBody of a response an error.
type boundedBodies struct{ next http.RoundTripper }

func (b boundedBodies) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxBody}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if len(p) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if n > b.left {
		b.left = 0
		return 0, errTooLarge
	}
	b.left -= n
	return n, err
}
