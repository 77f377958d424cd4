package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/cache"
	"hallmark.build/sandbox/record"
	"hallmark.build/sandbox/workspace"
)

const depsName = "b1e5ad6a4f0b5c50ef1cb3a5ca5e34b7fd54b1f9a7ef7c1f5a8f0c1f0b4e2a91"

// asking answers questions about origins.
type asking struct {
	fakeAuthority
	origins []Origin
	err     error
	asked   string
}

func (a *asking) Provenance(_ context.Context, _, sha256 string, _ int64) ([]Origin, error) {
	a.asked = sha256
	return a.origins, a.err
}

// cacheWorld is a host with a job of project 77 and its /cache.
type cacheWorld struct {
	*Host
	authority *asking
	j         *job
	dir       *os.Root // the job's /cache
	said      *bytes.Buffer
}

func newCacheWorld(t *testing.T, mode string) *cacheWorld {
	t.Helper()
	state := t.TempDir()
	w := &cacheWorld{authority: &asking{}, said: &bytes.Buffer{}}
	gitlab, _ := url.Parse("https://gitlab.example.com")
	w.Host = &Host{cfg: Config{StateDir: state, GitLab: gitlab, Caches: Caches{
		Modes:  map[sandbox.Profile]string{sandbox.Hermetic: mode},
		Limits: cache.Limits{Archive: 1 << 20, Total: 1 << 20, Age: time.Hour},
	}}, authority: w.authority, log: slog.New(slog.DiscardHandler)}
	if err := w.openCaches(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.caches.Close() })
	w.j = &job{profile: sandbox.Hermetic, payload: &executor.Job{
		Info: executor.JobInfo{ProjectID: 77, ProjectFullPath: "group/project"}, Caches: []executor.Cache{{Key: "deps"}},
	}, opened: Opened{Attempt: "a", InvocationID: "https://ci.example.com/mine"}}
	w.j.caches.given = map[string]string{}
	w.j.pump = &pump{} // no patience
	w.j.ids.First = uint32(os.Getuid())
	var err error
	if w.j.record, err = record.Create(filepath.Join(state, "record"), time.Now); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.j.record.Close() })
	if _, err := w.j.record.Append(record.JobOpened, record.Opened{}); err != nil {
		t.Fatal(err)
	}
	if w.dir, err = os.OpenRoot(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.dir.Close() })
	return w
}

var depsFile = cacheFile{path: "group/project/" + depsName + "/cache.zip", name: depsName, key: "deps"}

// keep stores an archive as an earlier job's.
func (w *cacheWorld) keep(t *testing.T, content string) cache.Entry {
	t.Helper()
	o, err := w.caches.Put(t.Context(), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	e := cache.Entry{Key: "deps", SHA256: o.SHA256, Bytes: o.Bytes, Invocation: "https://ci.example.com/earlier", Stored: time.Now().UTC().Truncate(time.Second)}
	if err := w.caches.Point(w.cacheScope(w.j), depsName, e); err != nil {
		t.Fatal(err)
	}
	w.caches.Release(o.SHA256)
	return e
}

func (w *cacheWorld) restore(t *testing.T) record.Cache {
	t.Helper()
	if err := w.restoreCache(t.Context(), w.j, w.dir, depsFile, joblog.New(w.said)); err != nil {
		t.Fatal(err)
	}
	lines, err := w.j.record.Lines(w.j.record.Head().Entries-1, 1)
	if err != nil {
		t.Fatal(err)
	}
	var c record.Cache
	_, after, _ := bytes.Cut(lines[0], []byte(`"data":`))
	if err := record.DecodeStrict(bytes.TrimSuffix(after, []byte("}")), &c); err != nil {
		return record.Cache{}
	}
	return c
}

func vouching() Origin {
	return Origin{Bundle: strings.Repeat("b", 64), Invocation: "https://ci.example.com/earlier", Project: "group/project",
		Job: 7, Result: "success", Builder: "https://ci.example.com/hallmark/hermetic"}
}

// TestWhoVouches: only what an attested job of the same project, protection and
// profile made is restored, unless the admin lets in what nobody vouches for.
func TestWhoVouches(t *testing.T) {
	change := func(f func(*Origin)) []Origin { o := vouching(); f(&o); return []Origin{o} }
	for name, c := range map[string]struct {
		origins   []Origin
		err       error
		own, full string // what becomes of it, and "+" if somebody vouches
	}{
		"attested":            {[]Origin{vouching()}, nil, "restored+", "restored+"},
		"another attempt too": {change(func(o *Origin) { o.Invocation = "x" }), nil, "restored+", "restored+"},
		"unknown":             {nil, nil, "refused", "restored"},
		"another project":     {change(func(o *Origin) { o.Project = "group/other" }), nil, "refused", "restored"},
		"protected ref":       {change(func(o *Origin) { o.Protected = true }), nil, "refused", "restored"},
		"another profile":     {change(func(o *Origin) { o.Builder = "https://ci.example.com/hallmark/firewalled" }), nil, "refused", "restored"},
		"no answer":           {nil, &UnavailableError{errors.New("nobody there")}, "refused", "restored"},
	} {
		for mode, want := range map[string]string{cachesOwn: c.own, cachesFull: c.full} {
			t.Run(name+" "+mode, func(t *testing.T) {
				w := newCacheWorld(t, mode)
				e := w.keep(t, "an archive")
				w.authority.origins, w.authority.err = c.origins, c.err
				used := w.restore(t)
				have := used.Action
				if used.Attestation != "" && used.Invocation != "" {
					have += "+"
				}
				if have != want || used.SHA256 != e.SHA256 || w.authority.asked != e.SHA256 {
					t.Errorf("%+v, want %s", used, want)
				}
				data, err := w.dir.ReadFile(depsFile.path)
				if there := err == nil; there != strings.HasPrefix(want, "restored") || there && string(data) != "an archive" {
					t.Errorf("in /cache: %q, %v", data, err)
				}
			})
		}
	}
}

func TestChangedArchiveIsRefused(t *testing.T) {
	w := newCacheWorld(t, cachesOwn)
	w.authority.origins = []Origin{vouching()}
	e := w.keep(t, "an archive")
	if err := os.WriteFile(filepath.Join(w.cacheDir(), "objects", e.SHA256), []byte("en archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if used := w.restore(t); used.Action != "refused" || used.Attestation != "" {
		t.Errorf("%+v", used)
	}
	if _, err := w.dir.Stat(depsFile.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it lies in /cache: %v", err)
	}
	if !strings.Contains(w.said.String(), "refused") {
		t.Errorf("the job's log says %q", w.said)
	}
}

// TestCopiesAreTheJobs: what the job does to its copy does nothing to what is kept.
func TestCopiesAreTheJobs(t *testing.T) {
	w := newCacheWorld(t, cachesOwn)
	w.authority.origins = []Origin{vouching()}
	e := w.keep(t, "an archive")
	if used := w.restore(t); used.Action != "restored" {
		t.Fatalf("%+v", used)
	}
	info, err := w.dir.Stat(depsFile.path)
	if err != nil || !info.ModTime().Equal(e.Stored) || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", info, err)
	}
	f, err := w.dir.OpenFile(depsFile.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("evil")
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := workspace.Empty(t.Context(), w.dir); err != nil {
		t.Fatal(err)
	}
	if used := w.restore(t); used.Action != "restored" {
		t.Errorf("the next one: %+v", used)
	}
}

// TestPlantedNamesLeadNowhere: links in /cache do not lead the host's copies out.
func TestPlantedNamesLeadNowhere(t *testing.T) {
	w := newCacheWorld(t, cachesOwn)
	w.authority.origins = []Origin{vouching()}
	w.keep(t, "an archive")
	out := t.TempDir()
	if err := w.dir.Symlink(out, "group"); err != nil {
		t.Fatal(err)
	}
	if used := w.restore(t); used.Action != "refused" {
		t.Errorf("%+v", used)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("%d files outside, %v", len(left), err)
	}
	if err := workspace.Empty(t.Context(), w.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := w.dir.Lstat("group"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is still there: %v", err)
	}
	if _, err := os.Stat(out); err != nil {
		t.Errorf("what it led to is not: %v", err)
	}
}

// TestDeepCachesTakeNoDescriptors: what a job nests in /cache costs this daemon,
// and so other jobs, nothing.
func TestDeepCachesTakeNoDescriptors(t *testing.T) {
	w := newCacheWorld(t, cachesOwn)
	at, err := w.dir.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(int(at.Fd()), "deeper", 0o777); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(int(at.Fd()), "deeper", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		at.Close()
		if err != nil {
			t.Fatal(err)
		}
		at = os.NewFile(uintptr(fd), "deeper")
	}
	at.Close()
	var usual unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &usual); err != nil {
		t.Fatal(err)
	}
	few := usual
	few.Cur = 1024
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	err = workspace.Empty(t.Context(), w.dir)
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &usual)); err != nil {
		t.Fatal(err)
	}
	if left, err := fs.ReadDir(w.dir.FS(), "."); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
}

// TestPublishedOnceAttested: what an attempt keeps is found by others when it is
// attested, and not before or without.
func TestPublishedOnceAttested(t *testing.T) {
	for name, c := range map[string]struct {
		closed Closed
		late   error
		found  bool
	}{
		"attested":     {Closed{Attestations: []Attestation{{}}}, nil, true},
		"signed":       {Closed{Pending: true}, nil, true},
		"not attested": {Closed{Reason: "no"}, nil, false},
		"late":         {Closed{}, errors.New("no answer"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCacheWorld(t, cachesOwn)
			o, err := w.caches.Put(t.Context(), strings.NewReader("an archive"))
			if err != nil {
				t.Fatal(err)
			}
			w.j.caches.kept = []keptCache{{depsName, cache.Entry{Key: "deps", SHA256: o.SHA256, Bytes: o.Bytes, Stored: time.Now()}}}
			if _, err := w.caches.Find(w.cacheScope(w.j), depsName); !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("before: %v", err)
			}
			w.j.closed, w.j.late = c.closed, c.late
			w.publishCaches(w.j)
			if _, err := w.caches.Find(w.cacheScope(w.j), depsName); (err == nil) != c.found {
				t.Errorf("after: %v", err)
			}
			w.releaseCaches(w.j)
			if n, err := w.caches.Collect(time.Now()); err != nil || (n == 0) != c.found {
				t.Errorf("%d collected, %v", n, err)
			}
		})
	}
}

// TestCachesOff: nothing is touched, and who asked is told.
func TestCachesOff(t *testing.T) {
	for _, mode := range []string{cachesOff, ""} {
		w := newCacheWorld(t, mode)
		before := w.j.record.Head()
		out := joblog.New(w.said)
		if err := w.restoreCaches(t.Context(), w.j, []byte("/cache/"+depsFile.path), out); err != nil {
			t.Error(err)
		}
		if err := w.keepCaches(t.Context(), w.j, sandbox.ArchiveCache, []byte("/cache/"+depsFile.path), out); err != nil {
			t.Error(err)
		}
		if w.j.record.Head() != before || !strings.Contains(w.said.String(), "caches are off") {
			t.Errorf("the log says %q", w.said)
		}
	}
}

func TestCacheFiles(t *testing.T) {
	hash := "9a6a2a8f8c8b3a0f3f5c0a1b2c3d4e5f60718293a4b5c6d7e8f9012345678901"
	j := &job{payload: &executor.Job{Caches: []executor.Cache{{Key: "deps"}}}}
	deps := fmt.Sprintf("%x", sha256Of("deps"))
	for name, c := range map[string]struct {
		script string
		want   []cacheFile
	}{
		"none":        {"echo cache", nil},
		"by its key":  {`"--file" "../../../cache/group/project/` + deps + `/cache.zip" "--timeout"`, []cacheFile{{"group/project/" + deps + "/cache.zip", deps, "deps"}}},
		"unknown key": {`--file ../../cache/g/` + hash + `/cache.zip`, []cacheFile{{"g/" + hash + "/cache.zip", hash, hash}}},
		"twice":       {strings.Repeat(`/cache/g/`+hash+`/cache.zip `, 2), []cacheFile{{"g/" + hash + "/cache.zip", hash, hash}}},
		"not hashed":  {`--file ../../../cache/group/project/deps/cache.zip`, nil},
		"upwards":     {`/cache/../etc/` + hash + `/cache.zip /cache/a/../../` + hash + `/cache.zip /cache/./` + hash + `/cache.zip`, nil},
	} {
		if diff := cmp.Diff(c.want, j.cacheFiles([]byte(c.script)), cmp.AllowUnexported(cacheFile{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	var many strings.Builder
	for i := range 2 * maxArchives {
		fmt.Fprintf(&many, "/cache/g/%064x/cache.zip\n", i)
	}
	if n := len(j.cacheFiles([]byte(many.String()))); n != maxArchives {
		t.Errorf("%d of many", n)
	}
}

func FuzzCacheFiles(f *testing.F) {
	f.Add([]byte("--file ../../../cache/group/project/" + depsName + "/cache.zip"))
	f.Add([]byte("/cache/../" + depsName + "/cache.zip"))
	f.Fuzz(func(t *testing.T, script []byte) {
		j := &job{payload: &executor.Job{}}
		for _, c := range j.cacheFiles(script) {
			if !filepath.IsLocal(c.path) || filepath.Clean(c.path) != c.path || len(c.name) != 64 {
				t.Errorf("%+v", c)
			}
		}
	})
}

func sha256Of(text string) [32]byte { return sha256.Sum256([]byte(text)) }
