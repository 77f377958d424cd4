package egress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	"hallmark.build/sandbox/policy"
)

const (
	maxHead       = 64 << 10 // request line and headers
	maxHeaders    = 200
	maxRequestURI = 16 << 10
)

var errHeadTooLarge = errors.New("request line and headers are larger than 64 KiB")

var endOfHead = []byte("\r\n\r\n")

// readHead waits until a whole head is buffered, and returns it without
// consuming it. The reader must hold maxHead bytes.
func readHead(r *bufio.Reader) ([]byte, error) {
	seen := 0
	for {
		b, err := r.Peek(r.Buffered())
		if err != nil {
			return nil, err
		}
		from := max(seen-len(endOfHead)+1, 0)
		if i := bytes.Index(b[from:], endOfHead); i >= 0 {
			return b[:from+i+len(endOfHead)], nil
		}
		if len(b) >= maxHead {
			return nil, errHeadTooLarge
		}
		seen = len(b)
		if _, err := r.Peek(seen + 1); err != nil {
			return nil, err
		}
	}
}

// headers is what net/http forgets of a head when the target is a whole URL.
type headers struct{ host string }

// checkHead refuses heads that two servers could read in different ways. It is
// stricter than net/http: no bare line feed, no folded line, no length given
// twice.
func checkHead(head []byte) (headers, error) {
	text, ok := strings.CutSuffix(string(head), "\r\n\r\n")
	if !ok {
		return headers{}, errors.New("the head does not end")
	}
	lines := strings.Split(text, "\r\n")
	if len(lines) > maxHeaders+1 {
		return headers{}, fmt.Errorf("more than %d header lines", maxHeaders)
	}
	version, err := checkRequestLine(lines[0])
	if err != nil {
		return headers{}, err
	}
	var kept headers
	count := map[string]int{}
	for _, line := range lines[1:] {
		name, value, err := splitHeader(line)
		if err != nil {
			return headers{}, err
		}
		count[name]++
		switch name {
		case "host":
			kept.host = value
		case "content-length":
			if value == "" || strings.Trim(value, "0123456789") != "" {
				return headers{}, errors.New("content-length is not a number")
			}
		case "transfer-encoding":
			if !strings.EqualFold(value, "chunked") || version == "HTTP/1.0" {
				return headers{}, errors.New("transfer-encoding is not chunked")
			}
		}
	}
	switch {
	case count["content-length"] > 1, count["transfer-encoding"] > 1:
		return headers{}, errors.New("the body's length is given twice")
	case count["content-length"] > 0 && count["transfer-encoding"] > 0:
		return headers{}, errors.New("both content-length and transfer-encoding")
	case count["host"] > 1, count["host"] == 0 && version == "HTTP/1.1":
		return headers{}, errors.New("want exactly one host header")
	}
	return kept, nil
}

func checkRequestLine(line string) (version string, err error) {
	parts := strings.Split(line, " ")
	switch {
	case len(parts) != 3, parts[0] == "", parts[1] == "":
		return "", errors.New("the request line does not have three parts")
	case len(parts[0]) > maxMethod:
		return "", errors.New("the method is too long")
	case len(parts[1]) > maxRequestURI:
		return "", errors.New("the request target is longer than 16 KiB")
	case parts[2] != "HTTP/1.1" && parts[2] != "HTTP/1.0":
		return "", errors.New("not HTTP/1.1 or HTTP/1.0")
	}
	for _, p := range parts[:2] {
		if strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return "", errors.New("the request line has characters that do not belong there")
		}
	}
	return parts[2], nil
}

func splitHeader(line string) (name, value string, err error) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || name == "" {
		return "", "", errors.New("a header line without a name")
	}
	for i := range len(name) {
		if !tokenByte(name[i]) {
			return "", "", errors.New("a header name with characters that do not belong there, or a folded line")
		}
	}
	for i := range len(value) {
		if c := value[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return "", "", errors.New("a header value with control characters")
		}
	}
	return strings.ToLower(name), strings.Trim(value, " \t"), nil
}

// tokenByte is RFC 9110's tchar.
func tokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// A target is what a request line asks for.
type target struct {
	scheme, host string // empty in origin form
	port         int    // 0 where none is given
	path, query  string
}

// parseTarget reads the origin form and the absolute form of a request target.
func parseTarget(raw string) (target, error) {
	var t target
	if !strings.HasPrefix(raw, "/") {
		scheme, rest, ok := strings.Cut(raw, "://")
		if !ok {
			return target{}, errors.New("the request target is neither a path nor a URL")
		}
		end := strings.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		host, port, err := splitAuthority(rest[:end])
		if err != nil {
			return target{}, err
		}
		t.scheme, t.host, t.port = strings.ToLower(scheme), host, port
		if raw = rest[end:]; !strings.HasPrefix(raw, "/") {
			raw = "/" + raw
		}
	}
	if strings.Contains(raw, "#") {
		return target{}, errors.New("the request target has a fragment")
	}
	t.path, t.query, _ = strings.Cut(raw, "?")
	return t, nil
}

// splitAuthority reads host[:port] into canonical form. Port 0 means none given.
func splitAuthority(s string) (host string, port int, err error) {
	if strings.Contains(s, "@") {
		return "", 0, errors.New("user information before the host")
	}
	name := s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		digits := s[i+1:]
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 || digits[0] == '+' {
			return "", 0, errors.New("a port that is not one")
		}
		name, port = s[:i], int(n)
	}
	if strings.Contains(name, ":") && !strings.HasPrefix(name, "[") {
		return "", 0, errors.New("an IPv6 address without brackets")
	}
	host, err = policy.CanonicalHost(name)
	if err != nil {
		return "", 0, err
	}
	return host, port, nil
}

// joinAuthority writes host and port as they stand in a URL.
func joinAuthority(scheme, host string, port int) string {
	if scheme == "https" && port == 443 || scheme == "http" && port == 80 {
		if strings.Contains(host, ":") {
			return "[" + host + "]"
		}
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// forwarded are the request headers that origins get. What is not here either
// belongs to one connection, or lets a client say one thing to the border and
// another to the origin, or serves nothing but to carry data out.
var forwarded = map[string]bool{
	"Accept": true, "Accept-Language": true, "Authorization": true, "Cache-Control": true, "Content-Encoding": true,
	"Content-Type": true, "Git-Protocol": true, "Job-Token": true, "Pragma": true, "Private-Token": true, "Deploy-Token": true,
	"User-Agent": true, "X-Api-Key": true, "X-Gitaly-Correlation-Id": true, "X-Request-Id": true,
}

const (
	maxUserAgent   = 256
	maxHeaderValue = 8 << 10
)

// forwardHeader picks what the origin gets. An origin is always asked for the
// whole, uncompressed and unconditionally: the digest that is recorded is that
// of the file, and no input comes from a cache that nobody saw.
func forwardHeader(in http.Header) http.Header {
	out := http.Header{"Accept-Encoding": {"identity"}}
	for name, values := range in {
		if !forwarded[name] || len(values) == 0 {
			continue
		}
		limit := maxHeaderValue
		if name == "User-Agent" {
			limit = maxUserAgent
		}
		if len(values[0]) <= limit {
			out[name] = values[:1]
		}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // else net/http names itself
	}
	return out
}

// unforwarded are the response headers that clients do not get: those of the
// connection to the origin, and those that would make a client keep state for
// it or come back another way.
var unforwarded = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Content-Length": true, "Alt-Svc": true, "Set-Cookie": true, "Accept-Ranges": true,
	"X-Hallmark-Rule": true,
}
