package image_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/image/auth"
)

// shelf is a registry over plain HTTP with the images that the tests ask for.
type shelf struct {
	host string
	amd  v1.Image
	arm  v1.Image
	idx  v1.ImageIndex
}

func platformed(t *testing.T, os, arch, variant string) v1.Image {
	t.Helper()
	img, err := random.Image(64, 2)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Variant = os, arch, variant
	img, err = mutate.ConfigFile(img, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func newShelf(t *testing.T, wrap func(http.Handler) http.Handler) shelf {
	t.Helper()
	var h http.Handler = registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	plain := httptest.NewServer(h)
	t.Cleanup(plain.Close)
	s := shelf{
		host: strings.TrimPrefix(plain.URL, "http://"),
		amd:  platformed(t, "linux", "amd64", ""),
		arm:  platformed(t, "linux", "arm64", "v8"),
	}
	add := func(img v1.Image, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	attestation := mutate.IndexAddendum{Add: platformed(t, "unknown", "unknown", ""), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}}
	liar := mutate.IndexAddendum{Add: s.amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}}
	s.idx = mutate.AppendManifests(empty.Index, attestation, add(s.arm, "arm64"), add(s.amd, "amd64"), liar)
	push := func(where string, do func(name.Reference) error) {
		ref, err := name.ParseReference(s.host + "/" + where)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(ref); err != nil {
			t.Fatal(err)
		}
	}
	push("team/app:multi", func(r name.Reference) error { return remote.WriteIndex(r, s.idx) })
	push("team/app:amd", func(r name.Reference) error { return remote.Write(r, s.amd) })
	push("team/app:arm", func(r name.Reference) error { return remote.Write(r, s.arm) })
	if wrap != nil {
		front := httptest.NewServer(wrap(h))
		t.Cleanup(front.Close)
		s.host = strings.TrimPrefix(front.URL, "http://")
	}
	return s
}

func digest(t *testing.T, d interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := d.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestResolve(t *testing.T) {
	s := newShelf(t, nil)
	config, err := s.amd.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := s.amd.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, l := range manifest.Layers {
		size += l.Size
	}
	base := image.Image{
		Reference: s.host + "/team/app@" + digest(t, s.amd), Manifest: digest(t, s.amd),
		Config: config.String(), Platform: "linux/amd64", Layers: 2, Bytes: size,
	}
	with := func(name, index string) image.Image {
		i := base
		i.Name, i.Index = name, index
		return i
	}
	r := image.New(image.Policy{PlainHTTP: []string{s.host}})
	for _, c := range []struct {
		ask, platform string
		want          image.Image
	}{
		{"/team/app:multi", "linux/amd64", with(s.host+"/team/app:multi", digest(t, s.idx))},
		{"/team/app:amd", "linux/amd64", with(s.host+"/team/app:amd", "")},
		{"/team/app@" + digest(t, s.amd), "linux/amd64", with(s.host+"/team/app@"+digest(t, s.amd), "")},
		{"/team/app:tag@" + digest(t, s.idx), "linux/amd64", with(s.host+"/team/app@"+digest(t, s.idx), digest(t, s.idx))},
	} {
		got, err := r.Resolve(t.Context(), s.host+c.ask, c.platform, auth.Login{})
		if err != nil {
			t.Errorf("%s: %v", c.ask, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.ask, d)
		}
	}
	got, err := r.Resolve(t.Context(), s.host+"/team/app:multi", "linux/arm64", auth.Login{})
	if err != nil || got.Manifest != digest(t, s.arm) {
		t.Errorf("arm64: %+v, %v", got, err)
	}
}

func TestResolveRefusals(t *testing.T) {
	s := newShelf(t, nil)
	deny := newShelf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"sesame"}]}`)
		})
	})
	trouble := newShelf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(http.StatusInsufficientStorage)
				fmt.Fprint(w, "sesame")
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	huge := newShelf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			junk := strings.Repeat(" ", 1<<20)
			for range 8 {
				io.WriteString(w, junk)
			}
		})
	})
	metadata := newShelf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		})
	})
	all := []string{s.host, deny.host, trouble.host, huge.host, metadata.host}
	for _, c := range []struct {
		name            string
		policy          image.Policy
		image, platform string
		user            bool
		say             string
	}{
		{"unknown tag", image.Policy{PlainHTTP: all}, s.host + "/team/app:nope", "", true, "404"},
		{"unknown repository", image.Policy{PlainHTTP: all}, s.host + "/team/nope", "", true, "404"},
		{"no such platform", image.Policy{PlainHTTP: all}, s.host + "/team/app:multi", "linux/s390x", true, "s390x"},
		{"platform of a single manifest", image.Policy{PlainHTTP: all}, s.host + "/team/app:arm", "linux/amd64", true, "linux/amd64"},
		{"index lies about the platform", image.Policy{PlainHTTP: all}, s.host + "/team/app:multi", "linux/riscv64", true, "riscv64"},
		{"not a platform", image.Policy{PlainHTTP: all}, s.host + "/team/app:amd", "windows/amd64", true, "platform"},
		{"not allowed", image.Policy{PlainHTTP: all, Allowed: []string{"docker.io/**", s.host + "/team/other:*"}}, s.host + "/team/app:amd", "", true, "allow-list"},
		{"star does not cross a slash", image.Policy{PlainHTTP: all, Allowed: []string{s.host + "/*"}}, s.host + "/team/app:amd", "", true, "allow-list"},
		{"bad pattern", image.Policy{PlainHTTP: all, Allowed: []string{"["}}, s.host + "/team/app:amd", "", false, "pattern"},
		{"bad name", image.Policy{PlainHTTP: all}, "UPPER/x y", "", true, "not a valid name"},
		{"denied", image.Policy{PlainHTTP: all}, deny.host + "/team/app:amd", "", true, "403"},
		{"server trouble", image.Policy{PlainHTTP: all}, trouble.host + "/team/app:amd", "", false, "507"},
		{"oversized manifest", image.Policy{PlainHTTP: all}, huge.host + "/team/app:amd", "", false, "larger than"},
		{"plain HTTP that nobody allowed", image.Policy{}, s.host + "/team/app:amd", "", false, "without TLS"},
		{"loopback in another spelling", image.Policy{PlainHTTP: all}, strings.Replace(s.host, "127.0.0.1", "127.0.0.2", 1) + "/team/app:amd", "", false, "host or its link"},
		{"metadata service", image.Policy{}, "169.254.169.254/latest/meta-data", "", false, "host or its link"},
		{"redirect to metadata service", image.Policy{PlainHTTP: all}, metadata.host + "/team/app:amd", "", false, ""},
		{"missing CA file", image.Policy{PlainHTTP: all, CAFile: "/nonexistent"}, s.host + "/team/app:amd", "", false, "ca:"},
		{"CA file without certificate", image.Policy{PlainHTTP: all, CAFile: os.DevNull}, s.host + "/team/app:amd", "", false, "no certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := image.New(c.policy).Resolve(t.Context(), c.image, c.platform, auth.Login{})
			if err == nil {
				t.Fatalf("resolved to %+v", got)
			}
			if got != (image.Image{}) {
				t.Errorf("an error with an image: %+v", got)
			}
			var user *sandbox.UserError
			if errors.As(err, &user) != c.user {
				t.Errorf("blames the user: %v: %v", !c.user, err)
			}
			if c.user && user != nil && user.Hint == "" {
				t.Errorf("no hint: %v", err)
			}
			if !strings.Contains(err.Error(), c.say) {
				t.Errorf("%q does not say %q", err, c.say)
			}
			if strings.Contains(err.Error(), "sesame") {
				t.Errorf("quotes the response: %v", err)
			}
		})
	}
}

func TestResolveCanceled(t *testing.T) {
	s := newShelf(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := image.New(image.Policy{PlainHTTP: []string{s.host}}).Resolve(ctx, s.host+"/team/app:amd", "", auth.Login{})
	var user *sandbox.UserError
	if err == nil || errors.As(err, &user) {
		t.Errorf("got %v", err)
	}
}

// Credentials go to the registry that they are for, and make the difference.
func TestCredentials(t *testing.T) {
	s := newShelf(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != "ci" || p != "pw" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	r := image.New(image.Policy{PlainHTTP: []string{s.host}})
	right := auth.Login{User: "ci", Password: "pw"}
	img, err := r.Resolve(t.Context(), s.host+"/team/app:amd", "linux/amd64", right)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Confirm(t.Context(), img, right); err != nil {
		t.Errorf("what was resolved is not confirmed: %v", err)
	}
	for name, c := range map[string]auth.Login{
		"none":  {},
		"wrong": {User: "ci", Password: "wrong"},
	} {
		_, err := r.Resolve(t.Context(), s.host+"/team/app:amd", "linux/amd64", c)
		var user *sandbox.UserError
		if !errors.As(err, &user) || !strings.Contains(user.Hint, "DOCKER_AUTH_CONFIG") {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Confirm(t.Context(), img, c); !errors.As(err, &user) {
			t.Errorf("%s: confirmed: %v", name, err)
		}
	}
}

func TestOwnCA(t *testing.T) {
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "https://")
	ref, err := name.ParseReference(host + "/a/b:c")
	if err != nil {
		t.Fatal(err)
	}
	trust := http.DefaultTransport.(*http.Transport).Clone()
	trust.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	if err := remote.Write(ref, platformed(t, "linux", "amd64", ""), remote.WithTransport(trust)); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	// Listing the host lifts the rule on addresses; TLS is still spoken first.
	for _, c := range []struct {
		ca string
		ok bool
	}{{ca, true}, {"", false}} {
		_, err := image.New(image.Policy{PlainHTTP: []string{host}, CAFile: c.ca}).Resolve(t.Context(), host+"/a/b:c", "linux/amd64", auth.Login{})
		if (err == nil) != c.ok {
			t.Errorf("ca %q: %v", c.ca, err)
		}
	}
}
