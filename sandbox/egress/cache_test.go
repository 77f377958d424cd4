package egress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// keeper decides over caches as a test says, and notes what it is told.
type keeper struct {
	mu      sync.Mutex
	refuse  bool
	fail    error
	before  func()
	said    []string // what became of each, in order
	matched []byte
}

func (k *keeper) note(what string, a CacheArchive) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.said = append(k.said, fmt.Sprintf("%s %s %s %.8s %d", what, a.Stage, a.Object, a.SHA256, a.Bytes))
}

func (k *keeper) Restore(_ context.Context, a CacheArchive) (bool, error) {
	if k.before != nil {
		k.before()
	}
	if k.refuse {
		return false, k.Refused(a, errors.New("no"))
	}
	k.note("restored", a)
	return true, k.fail
}

func (k *keeper) Match(_ context.Context, a CacheArchive, f *os.File) (bool, error) {
	if k.before != nil {
		k.before()
	}
	k.matched, _ = io.ReadAll(f)
	if k.refuse {
		return false, k.Refused(a, errors.New("no"))
	}
	return true, nil
}

func (k *keeper) Stored(a CacheArchive) error { k.note("stored", a); return k.fail }

func (k *keeper) Refused(a CacheArchive, why error) error {
	k.note("refused", a)
	return k.fail
}

// bucket is an object storage that keeps what it is sent.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	asked   []*http.Request
	answer  http.HandlerFunc // instead, if set
}

func (s *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r)
	if s.answer != nil {
		s.answer(w, r)
		return
	}
	if r.Method == http.MethodPut {
		data, _ := io.ReadAll(r.Body)
		s.objects[r.URL.Path] = data
		w.Header().Set("ETag", `"evil"`)
		_, _ = io.WriteString(w, "evil words")
		return
	}
	data, ok := s.objects[r.URL.Path]
	if !ok {
		http.Error(w, "<Error><Code>NoSuchKey</Code><Message>evil words</Message></Error>", http.StatusNotFound)
		return
	}
	w.Header().Set("X-Amz-Meta-Cachekey", "evil words")
	http.ServeContent(w, r, "", lastModified, bytes.NewReader(data))
}

func (s *bucket) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

var lastModified = time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC)

const (
	objectPath = "/ci/project/77/ab/deps"
	signature  = "?X-Amz-SignedHeaders=host%3Bx-amz-meta-cachekey&X-Amz-Credential=very-secret&X-Amz-Signature=very-secret"
	maxCache   = 1 << 20
)

// cacheWorld is a border whose origin is an object storage at a private address.
func cacheWorld(t *testing.T, s *bucket, k *keeper, stage sandbox.Stage, before ...func(*Border)) *world {
	t.Helper()
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	return storageWorld(t, s, k, "/ci", maxCache, stage, before...)
}

// storageWorld is one with any object storage, and the place there that caches lie in.
func storageWorld(t *testing.T, s http.Handler, k *keeper, place string, limit int64, stage sandbox.Stage, before ...func(*Border)) *world {
	t.Helper()
	w := newWorld(t, options{profile: sandbox.Hermetic, origin: s, change: func(cfg *Config) {
		cfg.Caches, cfg.CacheBytes = k, limit
		cfg.Policy.Job.Project = 77
	}})
	// Its port is known only now.
	w.b.cfg.Policy.Caches = []*url.URL{{Scheme: "https", Host: fmt.Sprintf("good.test:%d", w.port), Path: place}}
	up, err := newUpstream(w.b.cfg, dialable)
	if err != nil {
		t.Fatal(err)
	}
	w.b.up = up
	for _, f := range before {
		f(w.b)
	}
	w.begin(stage)
	return w
}

func (w *world) spoolIsEmpty() {
	w.t.Helper()
	if left, err := os.ReadDir(w.b.cfg.SpoolDir); err != nil || len(left) > 0 || len(w.b.spooling) > 0 || w.b.held != nil || w.b.staging != nil {
		w.t.Errorf("%d files in the spool, %v", len(left), err)
	}
}

func TestCacheIsGivenOnceItIsVouchedFor(t *testing.T) {
	data := bytes.Repeat([]byte("archive!"), 50_000)
	for name, args := range map[string][]string{
		"whole": nil, "a part": {"-H", "Range: bytes=0-0"}, "if newer": {"-H", "If-Modified-Since: " + lastModified.Add(time.Hour).Format(http.TimeFormat)},
		"if none match": {"-H", `If-None-Match: *`}, "packed": {"-H", "Accept-Encoding: gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := &bucket{objects: map[string][]byte{objectPath: data}}, &keeper{}
			w := cacheWorld(t, s, k, sandbox.RestoreCache)
			k.before = func() {
				if f := of[record.Fetch](w.rec); len(f) > 0 {
					t.Errorf("it was on its way before it was looked up: %+v", f)
				}
			}
			file := filepath.Join(t.TempDir(), "cache.zip")
			head, errs, _ := w.helperCurl(append(args, "-D", "-", "-o", file, w.url(objectPath+signature))...)
			got, _ := os.ReadFile(file)
			if !strings.HasPrefix(head, "HTTP/1.1 200 OK") || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: %s%s", len(got), head, errs)
			}
			if !strings.Contains(head, "Last-Modified: "+lastModified.Format(http.TimeFormat)) || strings.Contains(head, "evil") || strings.Contains(strings.ToLower(head), "accept-ranges") {
				t.Errorf("head: %s", head)
			}
			// Who asks again, because it did not wait, has the same.
			again, _, _ := w.helperCurl(w.url(objectPath + signature))
			if again != string(data) || len(s.requests()) != 1 {
				t.Errorf("the second time: %d bytes, %d requests", len(again), len(s.requests()))
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
			if diff := cmp.Diff([]string{fmt.Sprintf("restored restore_cache ab/deps %.8s 400000", digest(data))}, k.said); diff != "" {
				t.Error(diff)
			}
			want := []record.Fetch{{
				Stage: "restore_cache", Role: "helper", Method: "GET", Status: 200, SHA256: digest(data), Bytes: int64(len(data)), Rule: policy.RuleCacheRead,
				URL: w.url(objectPath + "?X-Amz-SignedHeaders=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED"),
			}}
			if diff := cmp.Diff(want, of[record.Fetch](w.rec)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCacheThatMayNotBeGiven: not a byte of it comes across, and the helper takes it
// for one that is not there.
func TestCacheThatMayNotBeGiven(t *testing.T) {
	evil := []byte(strings.Repeat("evil words ", 1000))
	answer := func(status int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			_, _ = w.Write(evil)
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		refuse bool
		want   string // the answer's beginning
		said   string
		fails  bool
	}{
		"refused":      {nil, true, "HTTP/1.1 404 ", "refused restore_cache ab/deps " + digest(evil)[:8] + " 11000", false},
		"a part":       {answer(206, "Content-Range", "bytes 0-1/2"), false, "HTTP/1.1 403 ", "", false},
		"200 and part": {answer(200, "Content-Range", "bytes 0-1/2"), false, "HTTP/1.1 404 ", "refused restore_cache ab/deps  0", false},
		"packed":       {answer(200, "Content-Encoding", "gzip"), false, "HTTP/1.1 404 ", "refused restore_cache ab/deps  0", false},
		"not there":    {answer(404), false, "HTTP/1.1 404 ", "", false},
		"forbidden":    {answer(403), false, "HTTP/1.1 403 ", "", false},
		"overloaded":   {answer(503), false, "HTTP/1.1 503 ", "", false},
		"redirect":     {answer(307, "Location", "https://good.test/ci/project/77/other"), false, "HTTP/1.1 403 ", "", false},
		"cut off":      {answer(200, "Content-Length", "20000"), false, "HTTP/1.1 502 ", "", false},
		"too large": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("evil words"), maxCache))
		}, false, "HTTP/1.1 404 ", "refused restore_cache ab/deps  0", false},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := &bucket{objects: map[string][]byte{objectPath: evil}, answer: c.answer}, &keeper{refuse: c.refuse}
			w := cacheWorld(t, s, k, sandbox.RestoreCache)
			out, errs, _ := w.helperCurl("-i", w.url(objectPath+signature))
			if !strings.HasPrefix(out, c.want) || strings.Contains(out, "evil") || strings.Contains(strings.ToLower(out), "location:") {
				t.Errorf("answer: %.500s%s", out, errs)
			}
			if said := strings.Join(k.said, "\n"); said != c.said {
				t.Errorf("said %q, want %q", said, c.said)
			}
			for _, f := range of[record.Fetch](w.rec) {
				if f.Bytes > 0 {
					t.Errorf("fetched %+v", f)
				}
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
		})
	}
}

// TestCacheThatTakesLong: the answer begins before the archive is there, and is cut
// off where it may not be given after all. Whoever asks again hears that it is not
// there, and nobody is asked for it again.
func TestCacheThatTakesLong(t *testing.T) {
	data := bytes.Repeat([]byte("archive!"), 50_000)
	for name, c := range map[string]struct {
		refuse bool
		answer http.HandlerFunc
		again  string
		asked  int
	}{
		"given":   {false, nil, "HTTP/1.1 200 ", 1},
		"refused": {true, nil, "HTTP/1.1 404 ", 1},
		"cut off": {false, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "500000")
			_, _ = w.Write(data)
		}, "HTTP/1.1 200 ", 2},
		"too large": {false, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(maxCache+1))
			_, _ = w.Write(make([]byte, maxCache+1))
		}, "HTTP/1.1 404 ", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := &bucket{objects: map[string][]byte{objectPath: data}, answer: c.answer}, &keeper{refuse: c.refuse}
			w := cacheWorld(t, s, k, sandbox.RestoreCache, func(b *Border) { b.patience.answer = 0 })
			file := filepath.Join(t.TempDir(), "cache.zip")
			head, _, code := w.helperCurl("-D", "-", "-o", file, w.url(objectPath+signature))
			got, _ := os.ReadFile(file)
			given := name == "given"
			if !strings.HasPrefix(head, "HTTP/1.1 200 OK") || strings.Contains(head, "evil") || (code == 0) != given || given && !bytes.Equal(got, data) || !given && len(got) > 0 {
				t.Errorf("curl ended with %d, %d bytes: %s", code, len(got), head)
			}
			again, _, _ := w.helperCurl("-i", w.url(objectPath+signature))
			if !strings.HasPrefix(again, c.again) || len(s.requests()) != c.asked {
				t.Errorf("the second time: %d requests, %.200s", len(s.requests()), again)
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
			w.begin(sandbox.RestoreCache) // knows nothing of it
			if _, _, _ = w.helperCurl("-i", w.url(objectPath+signature)); len(s.requests()) != c.asked+1 {
				t.Errorf("the next stage: %d requests", len(s.requests()))
			}
			w.end(sandbox.Helper)
		})
	}
}

func TestCacheWithoutARecordIsNotGiven(t *testing.T) {
	s, k := &bucket{objects: map[string][]byte{objectPath: []byte("archive")}}, &keeper{fail: errors.New("disk full")}
	w := cacheWorld(t, s, k, sandbox.RestoreCache)
	if out, _, _ := w.helperCurl("-i", w.url(objectPath+signature)); strings.Contains(out, "archive") {
		t.Errorf("answer: %s", out)
	}
	if err := w.b.End(sandbox.Helper); err == nil {
		t.Error("end: no error")
	}
}

func TestLookingForACache(t *testing.T) {
	s, k := &bucket{objects: map[string][]byte{objectPath: []byte("archive")}}, &keeper{}
	w := cacheWorld(t, s, k, sandbox.ArchiveCache)
	out, _, _ := w.helperCurl("-I", w.url(objectPath+signature))
	if !strings.HasPrefix(out, "HTTP/1.1 200 OK") || !strings.Contains(out, "Content-Length: 7") || !strings.Contains(out, "Last-Modified: ") || strings.Contains(out, "evil") {
		t.Errorf("answer: %s", out)
	}
	if out, _, _ = w.helperCurl("-I", w.url(objectPath+"x"+signature)); !strings.HasPrefix(out, "HTTP/1.1 404 ") {
		t.Errorf("answer: %s", out)
	}
	for _, f := range of[record.Fetch](w.rec) {
		if f.Method != "HEAD" || f.Bytes != 0 {
			t.Errorf("fetched %+v", f)
		}
	}
	w.end(sandbox.Helper)
}

// put has a file of these bytes sent as a cache.
func (w *world) put(data []byte, args ...string) (stdout, stderr string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "cache.zip")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		w.t.Fatal(err)
	}
	out, errs, _ := w.helperCurl(append([]string{"-i", "-T", file}, args...)...)
	return out, errs
}

func TestCacheIsStoredOnceItMatches(t *testing.T) {
	data := bytes.Repeat([]byte("archive!"), 50_000)
	for name, extra := range map[string][]string{"length": nil, "chunked": {"-H", "Transfer-Encoding: chunked"}, "expected": {"-H", "Expect: 100-continue"}} {
		t.Run(name, func(t *testing.T) {
			s, k := &bucket{}, &keeper{}
			w := cacheWorld(t, s, k, sandbox.ArchiveCache)
			k.before = func() {
				if n := len(s.requests()); n > 0 {
					t.Errorf("the storage was asked %d times before", n)
				}
			}
			args := append(extra, "-H", "Content-Type: application/octet-stream", "-H", "x-amz-meta-cachekey: deps", "-H", "x-amz-meta-more: stolen", "-H", "x-amz-copy-source: /ci/project/78/deps",
				"-H", "Authorization: stolen", "-H", "Cookie: stolen", "-H", "Last-Modified: stolen", "-H", "X-Anything: stolen", "-A", "stolen", w.url(objectPath+signature))
			out, errs := w.put(data, args...)
			if !strings.Contains(out, "HTTP/1.1 200 OK") || strings.Contains(out, "evil") {
				t.Fatalf("answer: %s%s", out, errs)
			}
			if !bytes.Equal(s.objects[objectPath], data) || !bytes.Equal(k.matched, data) {
				t.Errorf("stored %d bytes, matched %d", len(s.objects[objectPath]), len(k.matched))
			}
			r := s.requests()[0]
			want := http.Header{"Content-Type": {"application/octet-stream"}, "X-Amz-Meta-Cachekey": {"deps"}, "Accept-Encoding": {"identity"}, "Content-Length": {strconv.Itoa(len(data))}}
			if diff := cmp.Diff(want, r.Header); diff != "" {
				t.Error(diff)
			}
			// Who asks again, because it did not wait, need not have it stored again.
			if out, _ := w.put(data, args...); !strings.Contains(out, "HTTP/1.1 200 OK") || len(s.requests()) != 1 {
				t.Errorf("the second time: %d requests, %s", len(s.requests()), out)
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
			if diff := cmp.Diff([]string{fmt.Sprintf("stored archive_cache ab/deps %.8s 400000", digest(data))}, k.said); diff != "" {
				t.Error(diff)
			}
			f := of[record.Fetch](w.rec)
			if len(f) != 1 || f[0].Method != "PUT" || f[0].RequestSHA256 != digest(data) || f[0].RequestBytes != int64(len(data)) || f[0].Bytes != 0 || strings.Contains(f[0].URL, "very-secret") {
				t.Errorf("fetched %+v", f)
			}
		})
	}
}

// TestCacheThatIsNotStored: the storage has not a byte of what does not match, and
// what it does not take is not said to be stored.
func TestCacheThatIsNotStored(t *testing.T) {
	for name, c := range map[string]struct {
		refuse bool
		answer http.HandlerFunc
		size   int
		args   []string
		want   string
		asked  int
		said   string
	}{
		"no match":         {true, nil, 4000, nil, "HTTP/1.1 403 ", 0, "refused archive_cache ab/deps %s 4000"},
		"too large":        {false, nil, maxCache + 1, nil, "HTTP/1.1 403 ", 0, "refused archive_cache ab/deps  0"},
		"too large, later": {false, nil, maxCache + 1, []string{"-H", "Transfer-Encoding: chunked"}, "HTTP/1.1 403 ", 0, "refused archive_cache ab/deps  0"},
		"packed":           {false, nil, 4000, []string{"-H", "Content-Encoding: aws-chunked"}, "HTTP/1.1 403 ", 0, ""},
		"forbidden": {false, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Error(w, "<Code>SignatureDoesNotMatch</Code>evil", http.StatusForbidden)
		}, 4000, nil, "HTTP/1.1 403 ", 1, "refused archive_cache ab/deps %s 4000"},
		"redirect": {false, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			http.Redirect(w, r, "https://good.test/ci/project/77/other", http.StatusTemporaryRedirect)
		}, 4000, nil, "HTTP/1.1 403 ", 1, "refused archive_cache ab/deps %s 4000"},
	} {
		t.Run(name, func(t *testing.T) {
			s, k := &bucket{answer: c.answer}, &keeper{refuse: c.refuse}
			w := cacheWorld(t, s, k, sandbox.ArchiveCache)
			data := bytes.Repeat([]byte{'a'}, c.size)
			out, errs := w.put(data, append(c.args, w.url(objectPath+signature))...)
			if !strings.Contains(out, c.want) || strings.Contains(out, "evil") || strings.Contains(strings.ToLower(out), "location:") {
				t.Errorf("answer: %s%s", out, errs)
			}
			want := c.said
			if strings.Contains(want, "%s") {
				want = fmt.Sprintf(want, digest(data)[:8])
			}
			if said := strings.Join(k.said, "\n"); said != want {
				t.Errorf("said %q, want %q", said, want)
			}
			if n := len(s.requests()); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
		})
	}
}

// TestStorageIsReachedByCachesAlone: that its address may be dialled is for caches,
// whatever rules and redirects say.
func TestStorageIsReachedByCachesAlone(t *testing.T) {
	s, k := &bucket{objects: map[string][]byte{objectPath: []byte("archive")}}, &keeper{}
	w := cacheWorld(t, s, k, sandbox.BuildScript)
	w.b.cfg.Policy.Profile = sandbox.Firewalled
	if out, _, _ := w.curl("-i", w.url(objectPath+signature)); !strings.HasPrefix(out, "HTTP/1.1 403 ") || strings.Contains(out, "archive") {
		t.Errorf("a rule that names it: %s", out)
	}
	w.begin(sandbox.RestoreCache)
	for _, path := range []string{"/ci/project/78/ab/deps", "/other/project/77/ab/deps", "/ci/project/77/ab/deps?acl"} {
		if out, _, _ := w.helperCurl("-i", w.url(path)); !strings.HasPrefix(out, "HTTP/1.1 403 ") {
			t.Errorf("%s: %s", path, out)
		}
	}
	if n := len(s.requests()); n > 0 {
		t.Errorf("it was asked %d times", n)
	}
	w.b.cfg.Caches = nil
	if out, _, _ := w.helperCurl("-i", w.url(objectPath+signature)); !strings.HasPrefix(out, "HTTP/1.1 403 ") || len(s.requests()) > 0 {
		t.Errorf("a job without caches: %s", out)
	}
	w.end(sandbox.Helper)
}

func FuzzStorageHeader(f *testing.F) {
	f.Add("X-Amz-Meta-Cachekey", "deps", "X-Amz-SignedHeaders=host%3Bx-amz-meta-cachekey")
	f.Add("Authorization", "x", "X-Amz-SignedHeaders=authorization")
	f.Add("X-Forwarded-Host", "x", "X-Amz-SignedHeaders=x-forwarded-host")
	f.Add("X-Goog-Copy-Source", "x", "Signature=a")
	f.Add("Range", "bytes=0-1", "X-Goog-SignedHeaders=range%3Bhost")
	f.Fuzz(func(t *testing.T, name, value, query string) {
		in := http.Header{}
		in.Set(name, value)
		for have := range storageHeader(in, query) {
			lower := strings.ToLower(have)
			switch lower {
			case "accept-encoding", "user-agent", "content-type", "x-ms-blob-type", "x-ms-version":
				continue
			}
			plain := strings.ToLower(query)
			vendor := strings.HasPrefix(lower, "x-amz-") || strings.HasPrefix(lower, "x-goog-")
			if !strings.Contains(plain, lower) && !(vendor && strings.Contains(plain, "signature")) {
				t.Fatalf("%q goes out, which nobody signed in %q", have, query)
			}
			if unsent[lower] || !vendor && lower != "content-md5" || strings.Contains(lower, "copy-source") {
				t.Fatalf("%q goes out", have)
			}
		}
	})
}
