package image

import (
	"errors"
	"strings"
	"testing"

	"hallmark.build/sandbox"
)

const anyDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"alpine", "docker.io/library/alpine:latest"},
		{"alpine:3", "docker.io/library/alpine:3"},
		{"docker.io/alpine", "docker.io/library/alpine:latest"},
		{"index.docker.io/library/alpine", "docker.io/library/alpine:latest"},
		{"group/app", "docker.io/group/app:latest"},
		{"registry.example.com/group/app:1.2", "registry.example.com/group/app:1.2"},
		{"registry.example.com:5000/app", "registry.example.com:5000/app:latest"},
		{"localhost/app", "localhost/app:latest"},
		{"[::1]:5000/app:x", "[::1]:5000/app:x"},
		{"alpine@" + anyDigest, "docker.io/library/alpine@" + anyDigest},
		{"alpine:3@" + anyDigest, "docker.io/library/alpine@" + anyDigest},
	} {
		got, err := Parse(c.in)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %s, %v; want %s", c.in, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"", " ", "a b", "UPPER", "a:", "a@", "a@sha256:short", "a@sha512:" + strings.Repeat("a", 128),
		"a@" + strings.ToUpper(anyDigest), "user@host/a", "user:pw@host.example/a:b", "https://host/a", "host.example//a",
		"host.example/a/../b", "host.example/./a", "../a", "a\x00", "a\n", "ä", "a?b", "a#b", "host.example/a%2fb",
		strings.Repeat("a", 513), "Host.Example/a", ":5000/a", "host.example:99999999/a:b:c", "a@" + anyDigest + "@" + anyDigest,
	} {
		got, err := Parse(in)
		var user *sandbox.UserError
		if !errors.As(err, &user) || got != (Name{}) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"alpine", "a.b:5000/c/d:e", "a@" + anyDigest, "[::1]:5000/app:x", "a:b@" + anyDigest, "a/..", "u@h/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			if n != (Name{}) {
				t.Fatalf("an error with a name: %q: %+v", s, n)
			}
			return
		}
		if (n.Tag == "") == (n.Digest == "") {
			t.Fatalf("%q: %+v", s, n)
		}
		again, err := Parse(n.String())
		if err != nil || again != n {
			t.Fatalf("%q: not canonical: %+v, %+v, %v", s, n, again, err)
		}
		for _, plain := range []bool{false, true} {
			if got := n.ref(plain).Context().RepositoryStr(); got != n.Repository {
				t.Fatalf("%q: asks for %q, means %q", s, got, n.Repository)
			}
		}
	})
}

func TestRefuseLocal(t *testing.T) {
	for addr, ok := range map[string]bool{
		"1.2.3.4:443": true, "10.0.0.1:443": true, "[2001:db8::1]:443": true,
		"127.0.0.1:443": false, "127.9.9.9:443": false, "[::1]:443": false, "[::ffff:127.0.0.1]:443": false,
		"169.254.169.254:80": false, "[fe80::1%eth0]:80": false, "[::ffff:169.254.169.254]:80": false, "[fd00:ec2::254]:80": false,
		"0.0.0.0:80": false, "[::]:80": false, "224.0.0.1:80": false, "nonsense": false, "": false,
	} {
		if err := refuseLocal("tcp", addr, nil); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
