package egress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// hello is a real ClientHello.
func hello(t testing.TB) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		c := tls.Client(client, &tls.Config{ServerName: "example.com"})
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_ = c.Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := server.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	client.Close()
	return buf[:n]
}

func TestSniff(t *testing.T) {
	for in, want := range map[string]kind{
		"": undecided, "G": undecided, "GET": undecided, "GET ": isHTTP, "GET / HTTP/1.1": isHTTP, "CONNECT a:1 HTTP/1.1": isHTTP, "PROPFIND /": isHTTP,
		"P": undecided, "PRI": undecided, "PRI * HTTP/2.0\r": undecided, "PRI * HTTP/2.0\r\n": isHTTP2, "PRI * HTTP/1.1\r\n": isHTTP, "PRI x": isHTTP,
		" GET / HTTP/1.1": isOther, "get ": isOther, "SSH-2.0-x": isOther, "\r\n": isOther, "220 mail": isOther, strings.Repeat("A", 21): isOther,
		"\x16": undecided, "\x16\x03\x01\x02\x00": undecided, "\x16\x03\x01\x02\x00\x01": isTLS, "\x16\x03\x01\x02\x00\x02": isOther, "\x16\x02": isOther, "\x16\x03\x05": isOther, "\x16\x03\x01\xff\xff": isOther,
		"\x17\x03\x03": isOther, "\x80\x2e\x01\x03\x01": isOther, "\x00": isOther,
	} {
		if got := sniff([]byte(in)); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
	if got := sniff(hello(t)); got != isTLS {
		t.Errorf("a real hello: %v", got)
	}
}

func FuzzSniff(f *testing.F) {
	f.Add(hello(f))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte(http2Hello))
	f.Add([]byte("SSH-2.0-OpenSSH"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is decided stays decided, and is decided soon.
		last := undecided
		for i := range b {
			k := sniff(b[:i+1])
			if last != undecided && k != last {
				t.Fatalf("%v became %v at byte %d", last, k, i)
			}
			last = k
		}
		if len(b) > sniffEnough && last == undecided {
			t.Fatalf("%d bytes are not enough", len(b))
		}
	})
}

// FuzzHead checks that net/http reads an accepted head as it was checked.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(b), maxHead)
		head, err := readHead(r)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, errHeadTooLarge) {
				t.Fatal(err)
			}
			return
		}
		kept, err := checkHead(head)
		if err != nil {
			return
		}
		uri := requestURI(head)
		end := len(head)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.RequestURI != uri {
			t.Fatalf("target %q, net/http reads %q", uri, req.RequestURI)
		}
		if at := len(b) - r.Buffered(); req.ContentLength <= 0 && len(req.TransferEncoding) == 0 && len(b) <= maxHead && at != end {
			t.Fatalf("the head ends at %d, net/http stopped at %d", end, at)
		}
		if !strings.Contains(uri, "://") && req.Method != http.MethodConnect && req.Host != kept.host && strings.HasPrefix(uri, "/") && !strings.HasPrefix(uri, "//") {
			t.Fatalf("host %q, net/http reads %q", kept.host, req.Host)
		}
		if len(req.TransferEncoding) > 0 && req.ContentLength >= 0 {
			t.Fatal("two lengths")
		}
		target, err := parseTarget(uri)
		if err != nil {
			return
		}
		if !strings.HasPrefix(target.path, "/") || strings.ContainsAny(target.path, "?#") || strings.ContainsAny(target.host, "@/") {
			t.Fatalf("target %+v", target)
		}
		for name, values := range forwardHeader(req.Header) {
			for _, v := range values {
				if strings.ContainsAny(v, "\r\n\x00") || len(v) > maxHeaderValue {
					t.Fatalf("header %s is forwarded as %q", name, v)
				}
			}
		}
	})
}

func TestRedactURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:pw@h/p": "https://h/p",
		"https://h/p?a=1&b=2": "https://h/p?a=1&b=2",
		"https://h/p#frag":    "https://h/p",
		"https://h/p?X-Amz-Signature=abc&x-amz-credential=d&v=1": "https://h/p?X-Amz-Signature=REDACTED&x-amz-credential=REDACTED&v=1",
		"https://h/p?sig=abc&se=2026&sp=r":                       "https://h/p?sig=REDACTED&se=REDACTED&sp=REDACTED",
		"https://h/p?private_token=x&job_token=y&access_token=z": "https://h/p?private_token=REDACTED&job_token=REDACTED&access_token=REDACTED",
		"https://h/p?%74oken=x":                                  "https://h/p?%74oken=REDACTED",
		"https://h/p?TOKEN=x;sig=y":                              "https://h/p?TOKEN=REDACTED&sig=REDACTED",
		"https://h/p?jwt=x":                                      "https://h/p?jwt=REDACTED",
		"https://h/p?x=eyJhbGciOi.eyJz.c2ln":                     "https://h/p?x=REDACTED",
		"https://h/p?x=glcbt-64_abcdefgh":                        "https://h/p?x=REDACTED",
		"https://h/p?glpat-abcdefghijk":                          "https://h/p?REDACTED",
		"https://h/eyJhbGciOi.eyJz.c2ln/p":                       "https://h/REDACTED/p",
		"https://h/p?x=%zz":                                      "https://h/p?x=REDACTED",
		"https://h/p?x=" + strings.Repeat("Zb3", 20):             "https://h/p?x=REDACTED",
		"https://h/p?sha=" + strings.Repeat("ab", 32):            "https://h/p?sha=" + strings.Repeat("ab", 32),
		"https://h/p?q=some+ordinary+words+that+are+quite+long":  "https://h/p?q=some+ordinary+words+that+are+quite+long",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := redactURL(u, nil); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestRedactURLHidesWhatTheJobHides(t *testing.T) {
	known := newSecrets([]string{"hunter2/hunter2", "pass word", "short"})
	for in, want := range map[string]string{
		"https://h/a/hunter2%2Fhunter2/b":     "https://h/REDACTED",
		"https://h/a/hunter2/hunter2/b":       "https://h/REDACTED",
		"https://h/a/xpass%20wordx/b":         "https://h/REDACTED",
		"https://h/p?q=1&x=hunter2%2Fhunter2": "https://h/p?REDACTED",
		"https://h/p?pass+word":               "https://h/p?REDACTED",
		"https://h/short?q=short":             "https://h/short?q=short",
		"https://h/p?x=%zz":                   "https://h/p?x=REDACTED",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := redactURL(u, known); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func FuzzRedactURL(f *testing.F) {
	f.Add("https://u:p@h/p?token=hunter2hunter2&x=1")
	f.Add("https://h/?sig=%68unter2hunter2")
	f.Add("https://h/glpat-abcdefghijklmnop")
	f.Add("https://u@h/u@?token=hunter2hunter2&x=hunter2hunter2")
	f.Fuzz(func(t *testing.T, in string) {
		u, err := url.Parse(in)
		if err != nil {
			return
		}
		out := redactURL(u, nil)
		if printable(out) != out {
			t.Fatalf("%q is not printable", out)
		}
		// What is hidden in one place may be there openly in another: each is
		// looked at by itself.
		rest := strings.TrimPrefix(out, printable(u.Scheme+":"))
		if u.User != nil && u.Host != "" && !strings.HasPrefix(rest, printable("//"+u.Host)) {
			t.Fatalf("%q keeps user information", out)
		}
		query := redactQuery(u.RawQuery, nil)
		if !strings.HasSuffix(out, printable(query)) {
			t.Fatalf("%q does not end with %q", out, query)
		}
		split := func(r rune) bool { return r == '&' || r == ';' }
		said := strings.FieldsFunc(query, split)
		for i, part := range strings.FieldsFunc(u.RawQuery, split) {
			name, _, ok := strings.Cut(part, "=")
			plain, err := url.QueryUnescape(name)
			if ok && err == nil && secretName(plain) && said[i] != name+"="+redacted {
				t.Fatalf("%q keeps the value of %q", out, plain)
			}
		}
	})
}
