package egress

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/integration/azurite"
	"hallmark.build/integration/servers"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// A storage is a real object storage, to which the real helper speaks by the kit of
// its vendor.
type storage struct {
	handler http.Handler
	// object reads what lies there under objectPath; nil is nothing.
	object func(t *testing.T) []byte
	// url and env are the helper's, for one of reading and writing.
	url, env func(w *world, write bool) string

	mu    sync.Mutex
	steps []string // methods and queries of what came, without signatures
}

func (s *storage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var step []string
	for _, name := range []string{"comp", "uploads", "partNumber", "uploadId"} {
		if query.Has(name) {
			step = append(step, name)
		}
	}
	s.mu.Lock()
	s.steps = append(s.steps, strings.TrimSpace(r.Method+" "+strings.Join(step, " ")))
	s.mu.Unlock()
	s.handler.ServeHTTP(w, r)
}

func (s *storage) seen() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.steps, ", ")
}

const objectName = "project/77/ab/deps"

func azureStorage(t *testing.T) *storage {
	t.Helper()
	server, err := azurite.Start(context.Background(), "../..", t.TempDir(), "good")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := server.MakeContainer(context.Background(), "caches"); err != nil {
		t.Fatal(err)
	}
	return &storage{
		handler: server.Handler(),
		object: func(t *testing.T) []byte {
			data, err := server.Blob(context.Background(), "caches", objectName)
			if err != nil {
				t.Fatal(err)
			}
			return data
		},
		url: func(*world, bool) string { return "azblob://caches/" + objectName },
		env: func(w *world, write bool) string {
			permissions := map[bool]string{true: "w", false: "r"}[write]
			return fmt.Sprintf("AZURE_STORAGE_ACCOUNT=good\nAZURE_STORAGE_DOMAIN=test:%d\nAZURE_STORAGE_SAS_TOKEN=%s\n", w.port, server.Token("caches", objectName, permissions))
		},
	}
}

func s3Storage(t *testing.T) *storage {
	t.Helper()
	server, err := servers.StartStorage(context.Background(), "caches", "key", "secret")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	file := filepath.Join(server.BucketDir("caches"), filepath.FromSlash(objectName))
	return &storage{
		handler: server.Proxy(),
		object: func(t *testing.T) []byte {
			data, err := os.ReadFile(file)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			return data
		},
		url: func(w *world, _ bool) string {
			return "s3://caches/" + objectName + "?awssdk=v2&hostname_immutable=true&region=us-east-1&use_path_style=true&endpoint=" + url.QueryEscape(w.url(""))
		},
		env: func(*world, bool) string { return "AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=secret\n" },
	}
}

// kit runs one of the real helper's commands for caches in the helper's namespace.
func (w *world) kit(s *storage, dir string, parallel bool, command string, args ...string) (said string, code int) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "env")
	if err := os.WriteFile(file, []byte(s.env(w, command == "cache-archiver")), 0o600); err != nil {
		w.t.Fatal(err)
	}
	runner := os.Getenv("GITLAB_RUNNER")
	if runner == "" {
		var err error
		if runner, err = filepath.Abs("../../.cache/bin/gitlab-runner"); err != nil {
			w.t.Fatal(err)
		}
	}
	args = append([]string{"env", "-i", "-C", dir, "SSL_CERT_FILE=" + w.caFile, "HOME=" + dir, fmt.Sprint("FF_USE_PARALLEL_CACHE_TRANSFER=", parallel),
		runner, command, "--file", filepath.Join(dir, "cache.zip"), "--gocloud-url", s.url(w, command == "cache-archiver"), "--env-file", file, "--timeout", "1"}, args...)
	out, errs, code := w.run(sandbox.Helper, args...)
	return out + errs, code
}

// project is a directory with one file of random bytes, which is what an archive
// of it is as large as.
func project(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	data := make([]byte, size)
	rand.Read(data)
	if err := os.WriteFile(filepath.Join(dir, "deps"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

const (
	kitLimit = 64 << 20
	kitBlock = "5242880" // the smallest that S3 lets a part be
	small    = 1 << 20
	large    = 20 << 20
)

var kits = map[string]struct {
	start        func(*testing.T) *storage
	whole, parts string // the steps of writing
	ranges       bool   // whether parts of an archive can be read
}{
	"azure": {azureStorage, "PUT", "PUT comp, PUT comp, PUT comp, PUT comp, PUT comp, PUT comp", true},
	"s3":    {s3Storage, "PUT", "POST uploads, PUT partNumber uploadId, PUT partNumber uploadId, PUT partNumber uploadId, PUT partNumber uploadId, PUT partNumber uploadId, POST uploadId", false},
}

// TestKits: what the vendors' kits write is what was matched, and what they read is
// what was written.
func TestKits(t *testing.T) {
	for name, c := range kits {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := c.start(t)
			storeNothing(t, s)
			for size, steps := range map[int]string{small: c.whole, large: c.parts} {
				k := &keeper{}
				w := storageWorld(t, s, k, "/caches", kitLimit, sandbox.ArchiveCache)
				before := s.object(t)
				k.before = func() {
					if now := s.object(t); !bytes.Equal(now, before) {
						t.Errorf("%d bytes are there before they were matched", len(now))
					}
				}
				s.steps = nil
				if said, code := w.kit(s, project(t, size), size == large, "cache-archiver", "--path", "deps", "--chunk-size", kitBlock); code != 0 {
					t.Fatalf("%s", said)
				}
				stored := s.object(t)
				if len(stored) < size || !bytes.Equal(stored, k.matched) || s.seen() != steps {
					t.Errorf("%d bytes stored, %d matched, by %s", len(stored), len(k.matched), s.seen())
				}
				w.end(sandbox.Helper)
				w.spoolIsEmpty()
				if want := fmt.Sprintf("stored archive_cache ab/deps %.8s %d", digest(stored), len(stored)); len(k.said) != 1 || k.said[0] != want {
					t.Errorf("said %q, want %q", k.said, want)
				}
				k.before = nil
				w.restores(s, k, size == large && c.ranges, stored)
				for _, f := range of[record.Fetch](w.rec) {
					if f.Bytes > 0 && f.Rule != policy.RuleCacheRead || strings.Contains(f.URL, "sig=") && !strings.Contains(f.URL, "sig=REDACTED") {
						t.Errorf("fetched %+v", f)
					}
				}
			}
		})
	}
}

// restores has the helper read what was stored.
func (w *world) restores(s *storage, k *keeper, parallel bool, want []byte) {
	w.t.Helper()
	w.begin(sandbox.RestoreCache)
	dir := w.t.TempDir()
	said, code := w.kit(s, dir, parallel, "cache-extractor")
	got, _ := os.ReadFile(filepath.Join(dir, "cache.zip"))
	if code != 0 || !bytes.Equal(got, want) {
		w.t.Errorf("%d bytes restored: %s", len(got), said)
	}
	if _, err := os.Stat(filepath.Join(dir, "deps")); err != nil {
		w.t.Error(err)
	}
	if want := fmt.Sprintf("restored restore_cache ab/deps %.8s %d", digest(want), len(want)); k.said[len(k.said)-1] != want {
		w.t.Errorf("said %q, want %q", k.said, want)
	}
	w.end(sandbox.Helper)
}

// storeNothing has archives sent that do not match: the blocks of them lie where nobody
// sees them.
func storeNothing(t *testing.T, s *storage) {
	t.Helper()
	for _, size := range []int{small, large} {
		k := &keeper{refuse: true}
		w := storageWorld(t, s, k, "/caches", kitLimit, sandbox.ArchiveCache)
		said, code := w.kit(s, project(t, size), false, "cache-archiver", "--path", "deps", "--chunk-size", kitBlock)
		if code == 0 || !strings.Contains(said, "403") {
			t.Errorf("exit %d: %s", code, said)
		}
		if stored := s.object(t); stored != nil {
			t.Errorf("%d bytes stored", len(stored))
		}
		for _, said := range k.said {
			if !strings.HasPrefix(said, "refused archive_cache ab/deps ") {
				t.Errorf("said %q", said)
			}
		}
		if len(k.said) == 0 || len(k.matched) < size {
			t.Errorf("said %q, matched %d bytes", k.said, len(k.matched))
		}
		w.end(sandbox.Helper)
		w.spoolIsEmpty()
	}
}

func TestSignedHeader(t *testing.T) {
	in := http.Header{
		"Accept-Encoding": {"gzip"}, "User-Agent": {"kit"}, "X-Amz-Date": {"20261127T010906Z"}, "X-Amz-Security-Token": {"session"},
		"X-Amz-Meta-Cachekey": {"deps"}, "X-Amz-Checksum-Crc32": {"AAAAAA=="}, "X-Amz-Acl": {"public-read"}, "Cookie": {"a"},
	}
	signature := strings.TrimPrefix(fmt.Sprintf(signed, ";accept-encoding;x-amz-checksum-crc32;x-amz-date;x-amz-meta-cachekey;x-amz-security-token"), "Authorization: ")
	got, err := signedHeader(in, signature)
	want := http.Header{
		"Authorization": {signature}, "Accept-Encoding": {"identity"}, "User-Agent": nil, "X-Amz-Date": {"20261127T010906Z"}, "X-Amz-Security-Token": {"session"},
		"X-Amz-Meta-Cachekey": {"deps"}, "X-Amz-Checksum-Crc32": {"AAAAAA=="},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
	if _, err := signedHeader(in, strings.Replace(signature, "host;", "host;range;", 1)); err == nil || !strings.Contains(err.Error(), "parts of a cache") {
		t.Errorf("range: %v", err)
	}
}
