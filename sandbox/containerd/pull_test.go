package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd/initproto"
	"hallmark.build/sandbox/image/auth"
)

func TestImageConfig(t *testing.T) {
	b := start(t)
	got, err := b.runtime.ImageConfig(t.Context(), b.images["base"])
	if err != nil {
		t.Fatal(err)
	}
	want := ImageConfig{Env: []string{"PATH=/bin", "LANG=C"}, Entrypoint: []string{"/bin/env"}, Cmd: []string{"sh"}, User: "dev", WorkingDir: "/root"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if _, err := b.runtime.ImageConfig(t.Context(), "example.com/nope@sha256:"+strings.Repeat("0", 64)); err == nil {
		t.Error("configuration of an image that is not here")
	}
}

func TestMalformedImageIsTheJobsFault(t *testing.T) {
	b := start(t)
	ref, err := b.push("malformed", []entry{{name: "f", mode: 0o644, data: "x"}}, v1.Config{Env: []string{"NOVALUE"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.runtime.Pull(t.Context(), Order{Reference: ref}); err != nil {
		t.Fatal(err)
	}
	_, err = b.runtime.ImageConfig(t.Context(), ref)
	if _, user := errors.AsType[*sandbox.UserError](err); !user {
		t.Errorf("configuration without sense: %v, want a UserError", err)
	}
	for name, m := range map[string]initproto.Start{
		"empty command":      {Seq: 1, Args: []string{"", "sh"}, Dir: "/"},
		"NUL in an argument": {Seq: 1, Args: []string{"sh", "a\x00b"}, Dir: "/"},
		"NUL in the user":    {Seq: 1, Shell: true, Dir: "/", User: "a\x00b"},
		"too long":           {Seq: 1, Args: []string{strings.Repeat("x", initproto.MaxMessage)}, Dir: "/"},
	} {
		err := checkStart(inPackets(m))
		if _, user := errors.AsType[*sandbox.UserError](err); !user {
			t.Errorf("%s: %v, want a UserError", name, err)
		}
	}
}

func TestParseConfigRefuses(t *testing.T) {
	var ports []string
	for i := range maxConfigList + 1 {
		ports = append(ports, fmt.Sprintf(`"%d":{}`, i))
	}
	for name, raw := range map[string]string{
		"not JSON":      "{",
		"another type":  `{"config":{"Env":"A=1"}}`,
		"no name":       `{"config":{"Env":["=x"]}}`,
		"no equals":     `{"config":{"Env":["x"]}}`,
		"NUL":           `{"config":{"Cmd":["a\u0000b"]}}`,
		"NUL in user":   `{"config":{"User":"a\u0000b"}}`,
		"too long":      `{"config":{"Env":["A=` + strings.Repeat("x", maxConfigEnv) + `"]}}`,
		"too many":      `{"config":{"Cmd":[` + strings.Repeat(`"",`, maxConfigList) + `""]}}`,
		"many ports":    `{"config":{"ExposedPorts":{` + strings.Join(ports, ",") + `}}}`,
		"list of lists": `{"config":{"Entrypoint":[["sh"]]}}`,
	} {
		if got, err := parseConfig([]byte(raw)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"config":{"Env":["A=1"],"User":"x","WorkingDir":"w","Volumes":{"/v/../w":{}},"Cmd":["a"],"Entrypoint":["b"],"Labels":{"x":"y"}}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := parseConfig(raw)
		if err != nil {
			return
		}
		for _, d := range append(c.Volumes, c.WorkingDir) {
			if d != "" && (d[0] != '/' || path.Clean(d) != d) {
				t.Fatalf("%q", d)
			}
		}
		for _, e := range c.Env {
			if strings.IndexByte(e, '=') < 1 || strings.ContainsRune(e, 0) {
				t.Fatalf("%q", e)
			}
		}
	})
}

// guarded is a registry in front of the shelf that wants a password, counts
// blobs, and waits for a sign before it gives the first.
func guarded(t *testing.T, b *bench, blobs *atomic.Int32, gate chan struct{}) (host string) {
	t.Helper()
	behind, err := url.Parse(b.shelf.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(behind)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, p, ok := r.BasicAuth(); !ok || p != "right" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			blobs.Add(1)
			<-gate
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// Pulls of one image at once are one pull; every one of them hears of it; bad
// credentials spoil it for nobody else.
func TestPull(t *testing.T) {
	b := start(t)
	ref, err := b.push("pulled", []entry{{name: "only-here", mode: 0o644, data: strings.Repeat("x", 1000)}}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var blobs atomic.Int32
	gate := make(chan struct{})
	host := guarded(t, b, &blobs, gate)
	_, rest, _ := strings.Cut(ref, "/")
	ref = host + "/" + rest
	b.runtime.cfg.PlainHTTP = append(b.runtime.cfg.PlainHTTP, host)

	login := func(password string) auth.Login { return auth.Login{User: "ci", Password: password} }
	for name, c := range map[string]auth.Login{"none": {}, "wrong": login("wrong")} {
		if err := b.runtime.Pull(t.Context(), Order{Reference: ref, Login: c}); err == nil {
			t.Errorf("credentials %s: pulled", name)
		}
	}
	var wg sync.WaitGroup
	var lines [3]atomic.Int32
	for i := range lines {
		wg.Go(func() {
			err := b.runtime.Pull(t.Context(), Order{Reference: ref, Login: login("right"), Progress: func(line string) {
				if !strings.HasPrefix(line, "layer 1 of 1: ") {
					t.Errorf("%q", line)
				}
				lines[i].Add(1)
			}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool {
		b.runtime.pulls.mu.Lock()
		defer b.runtime.pulls.mu.Unlock()
		for k, f := range b.runtime.pulls.open {
			if strings.HasPrefix(k, ref) && f.waiting == len(lines) {
				return true
			}
		}
		return false
	})
	close(gate)
	wg.Wait()
	for i := range lines {
		if n := lines[i].Load(); n != 1 {
			t.Errorf("caller %d heard %d lines", i, n)
		}
	}
	if n := blobs.Load(); n != 2 { // configuration and layer
		t.Errorf("%d blobs were fetched", n)
	}
	// What is here is not asked for again.
	if err := b.runtime.Pull(t.Context(), Order{Reference: ref, Progress: func(line string) { t.Errorf("said %q", line) }}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{host + "/test/pulled:latest", "", "a@sha256:00", host + "/test/pulled@sha256:" + strings.Repeat("0", 64)} {
		if err := b.runtime.Pull(t.Context(), Order{Reference: bad, Login: login("right")}); err == nil {
			t.Errorf("pulled %q", bad)
		}
	}
	if err := b.runtime.Pull(t.Context(), Order{Reference: ref, Platform: "no/such/platform/at/all"}); err == nil {
		t.Error("pulled for no platform")
	}
}

// A registry that gives other bytes than the digest says is not believed, and
// addresses of the host are out of reach.
func TestPullDistrusts(t *testing.T) {
	b := start(t)
	ref, err := b.push("forged", []entry{{name: "f", mode: 0o644, data: "forged"}}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	behind := must(url.Parse(b.shelf.URL))
	proxy := httputil.NewSingleHostReverseProxy(behind)
	proxy.ModifyResponse = func(r *http.Response) error {
		if strings.Contains(r.Request.URL.Path, "/blobs/") && r.Request.Method == http.MethodGet {
			raw, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			raw[len(raw)/2] ^= 1
			r.Body = io.NopCloser(strings.NewReader(string(raw)))
		}
		return nil
	}
	srv := httptest.NewServer(proxy)
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	_, rest, _ := strings.Cut(ref, "/")
	if err := b.runtime.Pull(t.Context(), Order{Reference: host + "/" + rest}); err == nil || !strings.Contains(err.Error(), "host or its link") {
		t.Errorf("an address of the host that nobody allowed: %v", err)
	}
	b.runtime.cfg.PlainHTTP = append(b.runtime.cfg.PlainHTTP, host)
	if err := b.runtime.Pull(t.Context(), Order{Reference: host + "/" + rest}); err == nil {
		t.Error("pulled forged bytes")
	}
	if _, err := b.runtime.ImageConfig(t.Context(), host+"/"+rest); err == nil {
		t.Error("the forged image is here")
	}
}

// Docker makes the directories that an image names and does not have. Where
// others than the image put something it makes none.
func TestDirectoriesThatAnImageNames(t *testing.T) {
	b := start(t)
	s := b.spec("base")
	shared := t.TempDir()
	s.Mounts = []sandbox.Mount{{Source: shared, Target: "/shared"}}
	s.Dirs = []string{"/data/deep", "/etc", "/etc/passwd/x", "/shared/x", "/dev/x", "/proc/x"}
	got := run(t, b.create(t, s), shell("ls -d /data/deep /shared/x /dev/x; touch /data/deep/file && echo mine"))
	if !strings.Contains(got.out, "/data/deep\nmine\n") || strings.Contains(got.out, "/x") {
		t.Errorf("%+v", got)
	}
	if left := existing(shared + "/*"); len(left) > 0 {
		t.Errorf("in the mount there is now %v", left)
	}
	s.Dirs = []string{"data/../x"}
	if _, err := b.runtime.Create(t.Context(), s); err == nil {
		t.Error("a path that is not clean was taken")
	}
}

// Layers are unpacked side by side; what an upper one removes, replaces or hides
// of a lower one is gone all the same.
func TestLayersLieAboveEachOther(t *testing.T) {
	b := start(t)
	ref, err := b.push("layered", []entry{
		{name: "bin/", mode: 0o755}, {name: "bin/busybox", mode: 0o755, from: "/bin/busybox"}, {name: "bin/sh", data: "->busybox", mode: 0o777},
		{name: "bin/find", data: "->busybox", mode: 0o777}, {name: "bin/cat", data: "->busybox", mode: 0o777},
		{name: "d/", mode: 0o755}, {name: "d/stays", mode: 0o644, data: "1"}, {name: "d/goes", mode: 0o644, data: "1"},
		{name: "hidden/", mode: 0o755}, {name: "hidden/below", mode: 0o644, data: "1"}, {name: "becomes", mode: 0o644, data: "a file"},
	}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	img := must(remote.Image(must(name.ParseReference(ref))))
	for _, entries := range [][]entry{
		{{name: "d/", mode: 0o755}, {name: "d/.wh.goes", mode: 0o644}, {name: "d/comes", mode: 0o644, data: "2"}},
		{{name: "hidden/", mode: 0o755}, {name: "hidden/.wh..wh..opq", mode: 0o644}, {name: "hidden/above", mode: 0o644, data: "3"}},
		{{name: "becomes/", mode: 0o755}, {name: "becomes/directory", mode: 0o644, data: "4"}, {name: "d/", mode: 0o755}, {name: "d/stays", mode: 0o644, data: "4"}},
	} {
		img = must(mutate.AppendLayers(img, must(layer(entries))))
	}
	to := must(name.ParseReference(strings.TrimPrefix(b.shelf.URL, "http://") + "/test/layered:all"))
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
	s := b.spec("base")
	s.Image = to.Context().Name() + "@" + must(img.Digest()).String()
	if err := b.runtime.Pull(t.Context(), Order{Reference: s.Image}); err != nil {
		t.Fatal(err)
	}
	got := run(t, b.create(t, s), shell("find /d /hidden /becomes -type f; cat /d/stays"))
	files := strings.Fields(got.out)
	slices.Sort(files)
	if d := cmp.Diff([]string{"/becomes/directory", "/d/comes", "/d/stays", "/hidden/above", "4"}, files); d != "" {
		t.Errorf("%s%s", d, got.err)
	}
}

func TestFlights(t *testing.T) {
	var fs flights
	var runs atomic.Int32
	release := make(chan struct{})
	work := func(ctx context.Context, say func(string)) error {
		runs.Add(1)
		select {
		case <-release:
			return errors.New("landed")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	gone, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := fs.do(gone, "k", func(string) {}, work); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that left: %v", err)
		}
	})
	waiting := func(n int) func() bool {
		return func() bool {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			f := fs.open["k"]
			return f != nil && f.waiting == n
		}
	}
	waitFor(t, waiting(1))
	wg.Go(func() {
		if joined, err := fs.do(t.Context(), "k", func(string) {}, work); !joined || fmt.Sprint(err) != "landed" {
			t.Errorf("the one that stayed: %v, %v", joined, err)
		}
	})
	waitFor(t, waiting(2))
	leave() // does not take the other's flight away
	waitFor(t, waiting(1))
	close(release)
	wg.Wait()
	if runs.Load() != 1 || len(fs.open) != 0 {
		t.Errorf("%d runs, %d open", runs.Load(), len(fs.open))
	}
	// When everyone has gone, the work is given up, and the next one starts anew.
	release = make(chan struct{})
	gone, leave = context.WithCancel(t.Context())
	wg.Go(func() {
		if _, err := fs.do(gone, "k", func(string) {}, work); !errors.Is(err, context.Canceled) {
			t.Errorf("the last: %v", err)
		}
	})
	waitFor(t, waiting(1))
	leave()
	wg.Wait()
	if runs.Load() != 2 || len(fs.open) != 0 {
		t.Errorf("%d runs, %d open", runs.Load(), len(fs.open))
	}
}
