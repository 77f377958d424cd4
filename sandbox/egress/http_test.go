package egress

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// seen is what an origin was asked.
type seen struct {
	hits   atomic.Int64
	header http.Header
	host   string
	uri    string
	method string
	body   []byte
}

func (s *seen) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.hits.Add(1)
	s.header, s.host, s.uri, s.method = r.Header, r.Host, r.RequestURI, r.Method
	s.body, _ = io.ReadAll(r.Body)
	_, _ = io.WriteString(w, "good")
}

// Where two places name different hosts, nothing passes.
func TestNamesMustAgree(t *testing.T) {
	// The second rule allows the host that is fronted for, so that nothing but
	// the disagreement refuses.
	rules := func(port int) []policy.Rule {
		return []policy.Rule{{Name: "good", Host: "good.test", Ports: []int{port, 80}}, {Name: "other", Host: "other.test", Ports: []int{port, 80}}}
	}
	tests := []struct {
		name string
		args func(w *world) []string
	}{
		{"Host and SNI", func(w *world) []string { return []string{"-H", fmt.Sprintf("Host: other.test:%d", w.port), w.url("/")} }},
		{"Host's port", func(w *world) []string { return []string{"-H", "Host: good.test:444", w.url("/")} }},
		{"Host and address, plain", func(w *world) []string { return []string{"-H", "Host: other.test", "http://good.test/"} }},
		{"SNI and address", func(w *world) []string {
			return []string{"--connect-to", fmt.Sprintf("good.test:%d:other.test:%d", w.port, w.port), w.url("/")}
		}},
		{"private address and Host", func(w *world) []string {
			return []string{"--connect-to", fmt.Sprintf("good.test:%d:10.0.0.1:%d", w.port, w.port), w.url("/")}
		}},
		{"metadata address and Host", func(w *world) []string {
			return []string{"--connect-to", "good.test:80:169.254.169.254:80", "http://good.test/"}
		}},
		{"CONNECT and SNI", func(w *world) []string {
			return []string{"--noproxy", "", "-x", "http://127.0.0.1:3128", "--connect-to", fmt.Sprintf("good.test:%d:other.test:%d", w.port, w.port), w.url("/")}
		}},
		{"CONNECT and Host", func(w *world) []string {
			return []string{"--noproxy", "", "-x", "http://127.0.0.1:3128", "-H", fmt.Sprintf("Host: other.test:%d", w.port), w.url("/")}
		}},
		{"proxied target and Host", func(w *world) []string {
			return []string{"--noproxy", "", "-x", "http://127.0.0.1:3128", "-H", "Host: other.test", "http://good.test/"}
		}},
		{"absolute form inside TLS", func(w *world) []string {
			return []string{"--request-target", fmt.Sprintf("https://other.test:%d/", w.port), w.url("/")}
		}},
		{"absolute form of another scheme", func(w *world) []string {
			return []string{"--request-target", fmt.Sprintf("http://good.test:%d/", w.port), w.url("/")}
		}},
		{"absolute form of another port", func(w *world) []string {
			return []string{"--request-target", "https://good.test:1/", w.url("/")}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			origin := &seen{}
			w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin, rules: rules})
			w.names.set("other.test", "127.0.0.1")
			w.begin(sandbox.BuildScript)
			out, errs, _ := w.curl(append([]string{"-i"}, tt.args(w)...)...)
			if !strings.Contains(out, "HTTP/1.1 421 ") || !strings.Contains(out, "X-Hallmark-Rule: name-mismatch") {
				t.Errorf("answer: %s%s", out, errs)
			}
			w.wantBlock("name-mismatch", "")
			w.wantNoFetch()
			if origin.hits.Load() != 0 {
				t.Error("the origin was asked")
			}
		})
	}
}

func TestNamesThatAgreePass(t *testing.T) {
	tests := map[string]func(w *world) []string{
		"plain":                 func(w *world) []string { return []string{w.url("/")} },
		"explicit proxy":        func(w *world) []string { return []string{"--noproxy", "", "-x", "http://127.0.0.1:3128", w.url("/")} },
		"case and trailing dot": func(w *world) []string { return []string{"-H", fmt.Sprintf("Host: GOOD.test.:%d", w.port), w.url("/")} },
		"Host without port":     func(w *world) []string { return []string{"-H", "Host: good.test", w.url("/")} },
		"absolute form":         func(w *world) []string { return []string{"--request-target", w.url("/"), w.url("/")} },
		"name by public address": func(w *world) []string {
			return []string{"--resolve", fmt.Sprintf("good.test:%d:93.184.216.34", w.port), w.url("/")}
		},
		"http/1.0":      func(w *world) []string { return []string{"--http1.0", w.url("/")} },
		"tls 1.2":       func(w *world) []string { return []string{"--tls-max", "1.2", w.url("/")} },
		"offers http/2": func(w *world) []string { return []string{"--http2", w.url("/")} },
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			origin := &seen{}
			w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin})
			w.begin(sandbox.BuildScript)
			out, errs, _ := w.curl(args(w)...)
			if out != "good" {
				t.Errorf("answer: %q %s %+v", out, errs, of[record.Block](w.rec))
			}
			if want := fmt.Sprintf("good.test:%d", w.port); origin.host != want || origin.uri != "/" {
				t.Errorf("origin was asked for %s %s", origin.host, origin.uri)
			}
			f := of[record.Fetch](w.rec)
			if len(f) != 1 || f[0].URL != w.url("/") {
				t.Errorf("fetched: %+v", f)
			}
		})
	}
}

var statusLine = regexp.MustCompile(`HTTP/1\.1 [0-9]{3} `)

// Heads that two servers could read in different ways do not pass, and what
// passes is written anew.
func TestMalformedRequests(t *testing.T) {
	tests := map[string][]string{
		"both lengths":              {"POST / HTTP/1.1", "Host: good.test", "Content-Length: 5", "Transfer-Encoding: chunked", "", "0"},
		"length twice":              {"POST / HTTP/1.1", "Host: good.test", "Content-Length: 5", "Content-Length: 6"},
		"length twice, equal":       {"POST / HTTP/1.1", "Host: good.test", "Content-Length: 5", "Content-Length: 5"},
		"length list":               {"POST / HTTP/1.1", "Host: good.test", "Content-Length: 5, 5"},
		"negative length":           {"POST / HTTP/1.1", "Host: good.test", "Content-Length: -1"},
		"signed length":             {"POST / HTTP/1.1", "Host: good.test", "Content-Length: +1"},
		"encoding unknown":          {"POST / HTTP/1.1", "Host: good.test", "Transfer-Encoding: xchunked"},
		"encoding list":             {"POST / HTTP/1.1", "Host: good.test", "Transfer-Encoding: gzip, chunked"},
		"encoding twice":            {"POST / HTTP/1.1", "Host: good.test", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"},
		"encoding in 1.0":           {"POST / HTTP/1.0", "Host: good.test", "Transfer-Encoding: chunked"},
		"two hosts":                 {"GET / HTTP/1.1", "Host: good.test", "Host: other.test"},
		"no host":                   {"GET / HTTP/1.1"},
		"space before colon":        {"GET / HTTP/1.1", "Host: good.test", "Content-Length : 5"},
		"folded line":               {"GET / HTTP/1.1", "Host: good.test", "X: a", " b"},
		"bare line feed":            {"GET / HTTP/1.1\nHost: good.test", "X: a"},
		"bare line feed in value":   {"GET / HTTP/1.1", "Host: good.test", "X: a\nTransfer-Encoding: chunked"},
		"bare carriage return":      {"GET / HTTP/1.1", "Host: good.test", "X: a\rY: b"},
		"nul in value":              {"GET / HTTP/1.1", "Host: good.test", "X: a\x00"},
		"two spaces":                {"GET  / HTTP/1.1", "Host: good.test"},
		"no version":                {"GET /", "Host: good.test"},
		"version 2":                 {"GET / HTTP/2.0", "Host: good.test"},
		"version 1.2":               {"GET / HTTP/1.2", "Host: good.test"},
		"a body in GET":             {"GET / HTTP/1.1", "Host: good.test", "Content-Length: 1", "", "x"},
		"asterisk":                  {"OPTIONS * HTTP/1.1", "Host: good.test"},
		"user information":          {"GET http://good.test@evil.test/ HTTP/1.1", "Host: good.test"},
		"user information in Host":  {"GET / HTTP/1.1", "Host: x@good.test"},
		"host with path":            {"GET / HTTP/1.1", "Host: good.test/x"},
		"numeric host":              {"GET / HTTP/1.1", "Host: 0x7f.1"},
		"fragment":                  {"GET /#x HTTP/1.1", "Host: good.test"},
		"header without name":       {"GET / HTTP/1.1", "Host: good.test", ": x"},
		"many headers":              append([]string{"GET / HTTP/1.1", "Host: good.test"}, strings.Split(strings.Repeat("X: y\n", 300), "\n")[:300]...),
		"long target":               {"GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1", "Host: good.test"},
		"head of 70 KiB":            {"GET / HTTP/1.1", "Host: good.test", "X: " + strings.Repeat("a", 70<<10)},
		"nested CONNECT, authority": {"CONNECT other.test:443 HTTP/1.1", "Host: other.test:443"},
	}
	origin := &seen{}
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin, rules: func(port int) []policy.Rule {
		return []policy.Rule{{Name: "good", Host: "good.test", Ports: []int{port, 80}, Methods: []string{"GET", "POST", "OPTIONS"}}}
	}})
	w.begin(sandbox.BuildScript)
	for name, head := range tests {
		t.Run(name, func(t *testing.T) {
			before := len(of[record.Block](w.rec))
			out, _, _ := w.inside(sandbox.Build, "send", "good.test:80", lines(head...))
			status := 0
			_, _ = fmt.Sscanf(out, "HTTP/1.1 %d", &status)
			if status != 400 && status != 431 && status != 403 {
				t.Errorf("answer: %q", out)
			}
			if len(statusLine.FindAllString(out, -1)) != 1 {
				t.Errorf("more than one answer: %q", out)
			}
			if before == len(of[record.Block](w.rec)) && status != 400 {
				t.Error("not recorded")
			}
		})
	}
	if origin.hits.Load() != 0 {
		t.Error("the origin was asked")
	}
	w.wantNoFetch()
}

func TestWhatTheOriginGets(t *testing.T) {
	origin := &seen{}
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin})
	w.begin(sandbox.BuildScript)
	out, errs, _ := w.curl("-i", "-H", "Authorization: Basic eA==", "-H", "Cookie: a=b", "-H", "Upgrade: websocket", "-H", "Connection: Upgrade, X-Y",
		"-H", "X-Forwarded-For: 1.2.3.4", "-H", "X-Original-URL: /api/v4/jobs", "-H", "X-Http-Method-Override: DELETE", "-H", "Range: bytes=1-2", "-H", "If-None-Match: x",
		"-H", "Accept-Encoding: gzip", "-H", "Proxy-Authorization: Basic eA==", "-H", "User-Agent: "+strings.Repeat("x", 300), "-H", "Expect: 100-continue", w.url("/p%20q;r?b=%20&a"))
	if !strings.Contains(out, " 200 OK") {
		t.Fatalf("%s%s", out, errs)
	}
	want := http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"identity"}, "Authorization": {"Basic eA=="}}
	if diff := cmp.Diff(want, origin.header); diff != "" {
		t.Error(diff)
	}
	if origin.uri != "/p%20q;r?b=%20&a" {
		t.Errorf("target %s", origin.uri)
	}
}

func TestWhatTheClientGets(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{"Set-Cookie": "a=b", "Alt-Svc": `h3=":443"`, "X-Hallmark-Rule": "fake", "Keep-Alive": "timeout=5", "Etag": "e", "Www-Authenticate": "Basic", "X-Odd": "a\tb"} {
			w.Header().Set(name, value)
		}
		_, _ = io.WriteString(w, "x")
	})})
	w.begin(sandbox.BuildScript)
	out, _, _ := w.curl("-i", w.url("/"))
	for _, bad := range []string{"Set-Cookie", "Alt-Svc", "X-Hallmark-Rule", "Keep-Alive"} {
		if strings.Contains(out, bad) {
			t.Errorf("the client got %s", bad)
		}
	}
	for _, good := range []string{"Etag: e", "Www-Authenticate: Basic", "Content-Length: 1"} {
		if !strings.Contains(out, good) {
			t.Errorf("the client did not get %s: %s", good, out)
		}
	}
}

func TestExplicitProxy(t *testing.T) {
	for name, tt := range map[string]struct {
		head   []string
		status int
		rule   string
	}{
		"CONNECT without port":        {[]string{"CONNECT good.test HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"CONNECT with user":           {[]string{"CONNECT a@good.test:443 HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"CONNECT to numbers":          {[]string{"CONNECT 2130706433:443 HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"CONNECT with body":           {[]string{"CONNECT good.test:443 HTTP/1.1", "Host: good.test:443", "Content-Length: 1", "", "x"}, 400, "malformed"},
		"https in absolute form":      {[]string{"GET https://good.test/ HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"origin form":                 {[]string{"GET / HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"absolute form, not allowed":  {[]string{"GET http://evil.test/ HTTP/1.1", "Host: evil.test"}, 403, "default-deny"},
		"absolute form, private":      {[]string{"GET http://10.0.0.1/ HTTP/1.1", "Host: 10.0.0.1"}, 403, "private-address"},
		"absolute form, v4 in v6":     {[]string{"GET http://[::ffff:169.254.169.254]/ HTTP/1.1", "Host: 169.254.169.254"}, 403, "private-address"},
		"absolute form, dots":         {[]string{"GET http://good.test/a/../b HTTP/1.1", "Host: good.test"}, 403, "path"},
		"a file":                      {[]string{"GET file:///etc/passwd HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"GET of an authority":         {[]string{"GET good.test:443 HTTP/1.1", "Host: good.test"}, 400, "malformed"},
		"CONNECT inside, then SSH":    {[]string{"CONNECT good.test:22 HTTP/1.1", "Host: good.test:22", "", "SSH-2.0-x"}, 200, "not-http"},
		"CONNECT inside CONNECT":      {[]string{"CONNECT good.test:80 HTTP/1.1", "Host: good.test:80", "", "CONNECT evil.test:443 HTTP/1.1", "Host: evil.test:443"}, 200, "nested-connect"},
		"CONNECT to metadata":         {[]string{"CONNECT 169.254.169.254:80 HTTP/1.1", "Host: 169.254.169.254:80", "", "GET / HTTP/1.1", "Host: 169.254.169.254"}, 200, "private-address"},
		"CONNECT, then another host":  {[]string{"CONNECT good.test:80 HTTP/1.1", "Host: good.test:80", "", "GET / HTTP/1.1", "Host: evil.test"}, 200, "name-mismatch"},
		"CONNECT, then absolute form": {[]string{"CONNECT good.test:80 HTTP/1.1", "Host: good.test:80", "", "GET http://evil.test/ HTTP/1.1", "Host: good.test"}, 200, "name-mismatch"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled})
			w.begin(sandbox.BuildScript)
			out, _, _ := w.inside(sandbox.Build, "send", "127.0.0.1:3128", lines(tt.head...))
			status := 0
			_, _ = fmt.Sscanf(out, "HTTP/1.1 %d", &status)
			if status != tt.status {
				t.Errorf("answer: %q", out)
			}
			w.wantBlock(tt.rule, "")
			w.wantNoFetch()
		})
	}
}

func TestPolicyOverTheWire(t *testing.T) {
	rules := func(port int) []policy.Rule {
		return []policy.Rule{
			{Name: "good", Host: "good.test", Ports: []int{port}, Paths: []string{"/pub"}},
		}
	}
	for name, tt := range map[string]struct {
		args func(w *world) []string
		rule string
	}{
		"host":       {func(w *world) []string { return []string{"https://evil.test/"} }, "default-deny"},
		"port":       {func(w *world) []string { return []string{"https://good.test/pub"} }, "default-deny"},
		"method":     {func(w *world) []string { return []string{"-d", "x", w.url("/pub")} }, "default-deny"},
		"path":       {func(w *world) []string { return []string{w.url("/private")} }, "default-deny"},
		"dots":       {func(w *world) []string { return []string{"--path-as-is", w.url("/pub/../private")} }, "path"},
		"encoded":    {func(w *world) []string { return []string{w.url("/pub/%2e%2e/private")} }, "path"},
		"runner api": {func(w *world) []string { return []string{w.gitlabURL("/api/v4/jobs/42/artifacts")} }, "gitlab-runner-api"},
		"runner api, PUT": {func(w *world) []string {
			return []string{"-X", "PUT", "-d", "state=success", w.gitlabURL("/api/v4/jobs/42")}
		}, "gitlab-runner-api"},
		"gitlab itself": {func(w *world) []string { return []string{w.gitlabURL("/")} }, "default-deny"},
		"private":       {func(w *world) []string { return []string{"http://192.168.0.1/"} }, "private-address"},
		"fake address":  {func(w *world) []string { return []string{"http://198.18.77.77/"} }, "private-address"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled, rules: rules})
			w.begin(sandbox.BuildScript)
			out, errs, _ := w.curl(append([]string{"-i"}, tt.args(w)...)...)
			if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: "+tt.rule) {
				t.Errorf("answer: %s%s", out, errs)
			}
			w.wantBlock(tt.rule, "")
			w.wantNoFetch()
		})
	}
}

// An allowed name that leads to an address inside is refused at the dial.
func TestPrivateAddressesAreNotDialled(t *testing.T) {
	for _, addr := range []string{"10.0.0.1", "127.0.0.2", "169.254.169.254", "192.168.3.4", "100.64.1.1", "198.18.0.1", "::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "0.0.0.0", "224.0.0.1"} {
		t.Run(addr, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled})
			w.names.set("good.test", addr)
			w.begin(sandbox.BuildScript)
			out, errs, _ := w.curl("-i", w.url("/"))
			if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: private-address") {
				t.Errorf("answer: %s%s", out, errs)
			}
			w.wantBlock("private-address", w.url("/"))
			w.wantNoFetch()
		})
	}
}

func TestDialable(t *testing.T) {
	for _, s := range []string{"127.0.0.1", "10.1.1.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"} {
		if dialable(netip.MustParseAddr(s)) == "" {
			t.Errorf("%s may be dialled", s)
		}
	}
	if why := dialable(netip.MustParseAddr("93.184.216.34")); why != "" {
		t.Errorf("a public address may not be dialled: %s", why)
	}
}

// A name that changes its mind gains nothing: what is dialled is what was checked.
func TestRebinding(t *testing.T) {
	origin := &seen{}
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin})
	w.names.set("good.test", "127.0.0.1", "10.0.0.1")
	w.begin(sandbox.BuildScript)
	if out, errs, _ := w.curl(w.url("/")); out != "good" {
		t.Fatalf("first: %s%s", out, errs)
	}
	w.b.up.closeIdle()
	out, _, _ := w.curl("-i", w.url("/"))
	if !strings.Contains(out, "private-address") {
		t.Errorf("second: %s", out)
	}
	if origin.hits.Load() != 1 {
		t.Errorf("%d requests at the origin", origin.hits.Load())
	}
}

func TestClientThatDoesNotTrustUs(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	w.begin(sandbox.BuildScript)
	if _, _, code := w.run(sandbox.Build, "curl", "-sS", "--noproxy", "*", w.url("/")); code != 60 {
		t.Errorf("exit %d", code)
	}
	w.end(sandbox.Build)
	b := w.wantBlock("tls-handshake", fmt.Sprintf("good.test:%d", w.port))
	if !strings.Contains(b.Reason, "authority") {
		t.Errorf("reason %q", b.Reason)
	}
}

func TestOriginThatCannotBeTrusted(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled, change: func(c *Config) { c.UpstreamRoots = nil }})
	w.begin(sandbox.BuildScript)
	out, _, _ := w.curl("-i", w.url("/"))
	if !strings.Contains(out, "HTTP/1.1 502 ") || !strings.Contains(out, "hint: ask the runner's admin to set upstream_ca") {
		t.Errorf("answer: %s", out)
	}
	f := of[record.Fetch](w.rec)
	if len(f) != 1 || f[0].Incomplete == "" {
		t.Errorf("fetched: %+v", f)
	}
}

func TestOriginThatIsDown(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	w.origin.Close()
	w.begin(sandbox.BuildScript)
	if out, _, _ := w.curl("-i", w.url("/")); !strings.Contains(out, "HTTP/1.1 502 ") {
		t.Errorf("answer: %s", out)
	}
	w.names.set("good.test")
	if out, _, _ := w.curl("-i", w.url("/")); !strings.Contains(out, "HTTP/1.1 502 ") || !strings.Contains(out, "does not exist") {
		t.Errorf("answer: %s", out)
	}
}

// Redirects come back to the client: its next request is another decision.
func TestRedirectsAreTheClients(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://evil.test/x", http.StatusFound)
	})})
	w.begin(sandbox.BuildScript)
	out, _, _ := w.curl("-iL", w.url("/"))
	if !strings.Contains(out, "HTTP/1.1 302 ") || !strings.Contains(out, "HTTP/1.1 403 ") {
		t.Errorf("answer: %s", out)
	}
	w.wantBlock("default-deny", "https://evil.test/x")
	if f := of[record.Fetch](w.rec); len(f) != 1 || f[0].Status != 302 {
		t.Errorf("fetched: %+v", f)
	}
}

// An answer that breaks off is seen as broken by the client, and recorded so.
func TestAnswerThatBreaksOff(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(make([]byte, 300_000))
			panic(http.ErrAbortHandler)
		},
		"chunked": func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(make([]byte, 300_000))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		for _, version := range []string{"--http1.1", "--http1.0"} {
			t.Run(name+version, func(t *testing.T) {
				w := newWorld(t, options{profile: sandbox.Firewalled, origin: h})
				w.begin(sandbox.BuildScript)
				if _, errs, code := w.curl(version, "-o", "/dev/null", w.url("/")); code == 0 {
					t.Errorf("curl took it for whole: %s", errs)
				}
				w.end(sandbox.Build)
				f := of[record.Fetch](w.rec)
				if len(f) != 1 || f[0].Incomplete == "" || f[0].Bytes != 300_000 {
					t.Errorf("fetched: %+v", f)
				}
			})
		}
	}
}

func TestClientThatGoesAway(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: chunked(make([]byte, 64<<20))})
	w.begin(sandbox.BuildScript)
	out, _, _ := w.run(sandbox.Build, "sh", "-c", fmt.Sprintf("curl -sS --noproxy '*' --cacert %s %s | head -c 1000 | wc -c", w.caFile, w.url("/")))
	if strings.TrimSpace(out) != "1000" {
		t.Errorf("%s", out)
	}
	w.end(sandbox.Build)
	f := of[record.Fetch](w.rec)
	if len(f) != 1 || f[0].Incomplete == "" {
		t.Errorf("fetched: %+v", f)
	}
}

// The last byte is held back until the fetch is durable.
func TestRecordStandsBeforeTheLastByte(t *testing.T) {
	data := make([]byte, 300_000)
	for name, h := range map[string]http.Handler{"length": fixed(data), "chunked": chunked(data), "one byte": fixed(data[:1]), "empty": fixed(nil)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled, origin: h})
			w.begin(sandbox.BuildScript)
			waiting, release := make(chan struct{}), make(chan struct{})
			w.rec.hook(func(k record.Kind, _ any) error {
				if k == record.Fetched {
					close(waiting)
					<-release
				}
				return nil
			})
			done := make(chan string, 1)
			go func() {
				out, _, code := w.curl("-w", "%{size_download}", "-o", "/dev/null", w.url("/"))
				done <- fmt.Sprint(code, " ", out)
			}()
			<-waiting
			select {
			case out := <-done:
				t.Errorf("the client had it all before it was recorded: %s", out)
			case <-time.After(300 * time.Millisecond):
			}
			close(release)
			if out := <-done; !strings.HasPrefix(out, "0 ") {
				t.Errorf("curl: %s", out)
			}
		})
	}
}

// What cannot be recorded does not happen, and nothing happens after it.
func TestRecordThatFails(t *testing.T) {
	data := make([]byte, 300_000)
	for name, h := range map[string]http.Handler{"length": fixed(data), "chunked": chunked(data), "one byte": fixed(data[:1]), "empty": fixed(nil)} {
		t.Run(name, func(t *testing.T) {
			origin := &seen{}
			w := newWorld(t, options{profile: sandbox.Firewalled, origin: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				origin.hits.Add(1)
				h.ServeHTTP(rw, r)
			})})
			w.begin(sandbox.BuildScript)
			w.rec.hook(func(record.Kind, any) error { return fmt.Errorf("disk full") })
			if out, _, code := w.curl("-w", "%{size_download}", "-o", "/dev/null", w.url("/")); code == 0 {
				t.Errorf("curl took it for whole: %s", out)
			}
			w.rec.hook(nil) // the record must not be tried again
			out, _, _ := w.curl("-i", w.url("/"))
			if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "record-failed") {
				t.Errorf("answer: %s", out)
			}
			if origin.hits.Load() != 1 {
				t.Error("the origin was asked after the record had failed")
			}
			if err := w.b.End(sandbox.Build); err == nil || !strings.Contains(err.Error(), "disk full") {
				t.Errorf("end: %v", err)
			}
		})
	}
}

// What cannot be recorded as refused is refused all the same.
func TestRefusalThatCannotBeRecorded(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	w.rec.hook(func(record.Kind, any) error { return fmt.Errorf("disk full") })
	if out, _, _ := w.curl("-i", w.url("/")); !strings.Contains(out, "HTTP/1.1 403 ") {
		t.Errorf("answer: %s", out)
	}
	if err := w.b.End(sandbox.Build); err == nil {
		t.Error("end: no error")
	}
}

// A connection never sees another stage's permission.
func TestBetweenStages(t *testing.T) {
	origin := &seen{}
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: origin})
	w.netns(sandbox.Build)
	out, _, _ := w.curl("-i", w.url("/"))
	if !strings.Contains(out, "X-Hallmark-Rule: stage") {
		t.Errorf("before any stage: %s", out)
	}
	w.begin(sandbox.BuildScript)
	if out, _, _ := w.curl(w.url("/")); out != "good" {
		t.Errorf("in the stage: %s", out)
	}
	w.end(sandbox.Build)
	out, _, _ = w.curl("-i", w.url("/"))
	if !strings.Contains(out, "X-Hallmark-Rule: stage") {
		t.Errorf("after the stage: %s", out)
	}
	// A connection that was opened between stages ends when one begins.
	done := make(chan string, 1)
	go func() {
		out, _, _ := w.inside(sandbox.Build, "talk", "good.test:80", "GET / HT", "", "", "", "", "", "", "", "", "", "", "TP/1.1\r\nHost: good.test\r\n\r\n")
		done <- out
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		p := w.b.side(sandbox.Build).current()
		p.mu.Lock()
		n := len(p.conns)
		p.mu.Unlock()
		if n > 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	w.begin(sandbox.BuildScript)
	if out := <-done; strings.Contains(out, " 200 ") {
		t.Errorf("an old connection got the new permission: %q", out)
	}
	if origin.hits.Load() != 1 {
		t.Errorf("%d requests at the origin, want 1", origin.hits.Load())
	}
}

// End waits for what is under way, and ends it.
func TestEndCutsWhatIsUnderWay(t *testing.T) {
	started := make(chan struct{})
	w := newWorld(t, options{profile: sandbox.Firewalled, origin: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(make([]byte, 200_000))
		w.(http.Flusher).Flush()
		close(started)
		<-r.Context().Done()
	})})
	w.begin(sandbox.BuildScript)
	done := make(chan int, 1)
	go func() { _, _, code := w.curl("-o", "/dev/null", w.url("/")); done <- code }()
	<-started
	w.end(sandbox.Build)
	if f := of[record.Fetch](w.rec); len(f) != 1 || f[0].Incomplete != "the stage ended" {
		t.Errorf("fetched: %+v", f)
	}
	if code := <-done; code == 0 {
		t.Error("curl took it for whole")
	}
}

func TestBlocksAreBounded(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	p := w.b.side(sandbox.Build).current()
	for i := range maxDistinct + 50 {
		if err := p.block(record.Block{Protocol: "tcp", Target: fmt.Sprint(i), Rule: "x", Reason: "\x1b[31mred\r\n"}); err != nil {
			t.Fatal(err)
		}
	}
	w.end(sandbox.Build)
	blocks := of[record.Block](w.rec)
	if len(blocks) != maxDistinct+2 || blocks[len(blocks)-1].Count != 49 || blocks[len(blocks)-1].Target != "others" {
		t.Errorf("%d refusals, the last %+v", len(blocks), blocks[len(blocks)-1])
	}
	if strings.ContainsAny(blocks[0].Reason, "\x1b\r\n") {
		t.Errorf("reason %q", blocks[0].Reason)
	}
}

func TestTooManyConnections(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	out, errs, _ := w.run(sandbox.Build, "python3", "-c", fmt.Sprintf(`
import socket, time
held = []
for i in range(%d):
    s = socket.socket(); s.connect(("93.184.216.34", 80)); s.sendall(b"GET / HTTP/1.1\r\n"); held.append(s)
time.sleep(0.5)
s = socket.socket(); s.settimeout(5)
try:
    s.connect(("93.184.216.34", 80)); s.sendall(b"GET / HTTP/1.1\r\n\r\n"); print(repr(s.recv(100)))
except OSError as e:
    print("refused", e)
`, maxConnections))
	if !strings.Contains(out, "refused") {
		t.Errorf("%s%s", out, errs)
	}
	w.end(sandbox.Build)
	found := false
	for _, b := range of[record.Block](w.rec) {
		found = found || b.Rule == "capacity"
	}
	if !found {
		t.Error("not recorded")
	}
}
