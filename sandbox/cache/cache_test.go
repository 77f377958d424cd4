package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 26, 15, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string, limits Limits) *Store {
	t.Helper()
	s, err := Open(dir, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func roomy() Limits { return Limits{Archive: 1 << 20, Total: 1 << 30, Age: 24 * time.Hour} }

func scope() Scope {
	return Scope{GitLab: "https://gitlab.example.com", Project: 77, Protected: true, Profile: "hermetic"}
}

func name(c byte) string { return strings.Repeat(string(c), 64) }

// keep stores content under a name, as if a job had been attested.
func keep(t *testing.T, s *Store, sc Scope, name, content string, at time.Time) Entry {
	t.Helper()
	o, err := s.Put(t.Context(), strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	e := Entry{Key: "deps", SHA256: o.SHA256, Bytes: o.Bytes, Invocation: "https://ci.example.com/x", Stored: at}
	if err := s.Point(sc, name, e); err != nil {
		t.Fatal(err)
	}
	s.Release(o.SHA256)
	if err := s.Used(sc, name, at); err != nil {
		t.Fatal(err)
	}
	return e
}

func content(s *Store, e Entry) (string, error) {
	var b bytes.Buffer
	err := s.Copy(context.Background(), e, &b)
	return b.String(), err
}

func TestKeepAndFind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	s := open(t, dir, roomy())
	want := keep(t, s, scope(), name('a'), "an archive", start)
	_ = s.Close()
	s = open(t, dir, roomy()) // by a later daemon
	e, err := s.Find(scope(), name('a'))
	if err != nil || e != want {
		t.Fatalf("%+v, %v", e, err)
	}
	if have, err := content(s, e); have != "an archive" || err != nil {
		t.Errorf("%q, %v", have, err)
	}
}

// TestScopesShareNothing: each part of a scope keeps entries apart.
func TestScopesShareNothing(t *testing.T) {
	s := open(t, t.TempDir(), roomy())
	keep(t, s, scope(), name('a'), "an archive", start)
	for what, other := range map[string]func(*Scope){
		"instance":   func(sc *Scope) { sc.GitLab = "https://other.example.com" },
		"project":    func(sc *Scope) { sc.Project = 78 },
		"protection": func(sc *Scope) { sc.Protected = false },
		"profile":    func(sc *Scope) { sc.Profile = "firewalled" },
	} {
		sc := scope()
		other(&sc)
		if _, err := s.Find(sc, name('a')); !errors.Is(err, ErrNotFound) {
			t.Errorf("another %s finds it: %v", what, err)
		}
	}
	if _, err := s.Find(scope(), name('b')); !errors.Is(err, ErrNotFound) {
		t.Errorf("another key finds it: %v", err)
	}
	if _, err := s.Find(scope(), "../../"+name('a')); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("a path is a name: %v", err)
	}
}

// TestMovedEntryIsNone: an entry that lies where another project's would is refused.
func TestMovedEntryIsNone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy())
	keep(t, s, scope(), name('a'), "of the one", start)
	other := scope()
	other.Project = 78
	keep(t, s, other, name('a'), "of the other", start)
	copyFile(t, filepath.Join(dir, other.dir(), name('a')+".json"), filepath.Join(dir, scope().dir(), name('a')+".json"))
	if e, err := s.Find(scope(), name('a')); !errors.Is(err, ErrChanged) {
		t.Errorf("%+v, %v", e, err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPoisonedArchiveIsRefused: whatever becomes of the stored bytes, nobody is
// given others.
func TestPoisonedArchiveIsRefused(t *testing.T) {
	for what, poison := range map[string]func(file string) error{
		"other bytes": func(file string) error { return os.WriteFile(file, []byte("en archive"), 0o600) },
		"fewer":       func(file string) error { return os.Truncate(file, 3) },
		"more": func(file string) error {
			return os.WriteFile(file, []byte("an archive and more"), 0o600)
		},
		"none": func(file string) error { return os.Truncate(file, 0) },
	} {
		dir := t.TempDir()
		s := open(t, dir, roomy())
		e := keep(t, s, scope(), name('a'), "an archive", start)
		if err := poison(filepath.Join(dir, object(e.SHA256))); err != nil {
			t.Fatal(err)
		}
		if _, err := content(s, e); !errors.Is(err, ErrChanged) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := content(s, e); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: it is still there: %v", what, err)
		}
		keep(t, s, scope(), name('a'), "an archive", start) // heals it
		if have, err := content(s, e); have != "an archive" || err != nil {
			t.Errorf("%s: after it was stored again: %q, %v", what, have, err)
		}
	}
}

// TestPlantedFilesAreNotFollowed: in the place of an archive or an entry only a
// plain file is read.
func TestPlantedFilesAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy())
	e := keep(t, s, scope(), name('a'), "an archive", start)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("an archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, object(e.SHA256))
	for what, plant := range map[string]func() error{
		"symlink":   func() error { return os.Symlink(secret, file) },
		"directory": func() error { return os.Mkdir(file, 0o700) },
	} {
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		if have, err := content(s, e); err == nil {
			t.Errorf("%s: %q", what, have)
		}
	}
}

// TestReplacedWhileItIsCopied: what is copied is what is hashed.
func TestReplacedWhileItIsCopied(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy())
	e := keep(t, s, scope(), name('a'), strings.Repeat("good", 1<<16), start)
	file := filepath.Join(dir, object(e.SHA256))
	w := &onFirstWrite{do: func() {
		if err := os.WriteFile(file, []byte(strings.Repeat("evil", 1<<16)), 0o600); err != nil {
			t.Error(err)
		}
	}}
	if err := s.Copy(t.Context(), e, w); !errors.Is(err, ErrChanged) {
		t.Errorf("%v, after %d bytes", err, w.n)
	}
}

type onFirstWrite struct {
	do func()
	n  int
}

func (w *onFirstWrite) Write(p []byte) (int, error) {
	if w.n == 0 {
		w.do()
	}
	w.n += len(p)
	return len(p), nil
}

func TestTooLarge(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Limits{Archive: 10, Total: 100, Age: time.Hour})
	if _, err := s.Put(t.Context(), strings.NewReader("0123456789a")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := s.Put(t.Context(), strings.NewReader("0123456789")); err != nil {
		t.Errorf("as large as one may be: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("%d files left, %v", len(left), err)
	}
}

func TestCollect(t *testing.T) {
	s := open(t, t.TempDir(), Limits{Archive: 10, Total: 10, Age: 24 * time.Hour})
	old := keep(t, s, scope(), name('a'), "aaaa", start.Add(-25*time.Hour))
	first := keep(t, s, scope(), name('b'), "bbbb", start.Add(-3*time.Hour))
	second := keep(t, s, scope(), name('c'), "cccc", start.Add(-2*time.Hour))
	third := keep(t, s, scope(), name('d'), "dddd", start.Add(-1*time.Hour))
	same := keep(t, s, scope(), name('e'), "dddd", start.Add(-1*time.Hour))
	worked, err := s.Put(t.Context(), strings.NewReader("ffff")) // a job has not ended
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Collect(start); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	for what, c := range map[string]struct {
		e    Entry
		kept bool
	}{
		"too old": {old, false}, "used longest ago": {first, false}, "second": {second, true}, "third": {third, true}, "same bytes": {same, true},
		"worked with": {Entry{SHA256: worked.SHA256, Bytes: worked.Bytes}, true},
	} {
		if _, err := content(s, c.e); (err == nil) != c.kept {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Find(scope(), name('b')); !errors.Is(err, ErrNotFound) {
		t.Errorf("an entry without its archive: %v", err)
	}
	s.Release(worked.SHA256)
	if n, err := s.Collect(start); n != 1 || err != nil {
		t.Errorf("%d, %v after the job's end", n, err)
	}
}

// TestAfterACrash: half-written files are nothing to anybody.
func TestAfterACrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, roomy())
	good := keep(t, s, scope(), name('a'), "an archive", start)
	if _, err := s.Put(t.Context(), strings.NewReader("nobody named it")); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		"tmp/half": "ha",
		scope().dir() + "/" + name('b') + ".json": `{"scope":{"gitlab":`,
		scope().dir() + "/strange":                "x",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_ = s.Close()
	s = open(t, dir, roomy())
	if _, err := s.Find(scope(), name('b')); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("half an entry: %v", err)
	}
	if _, err := s.Collect(start); err != nil {
		t.Fatal(err)
	}
	var left []string
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, filepath.Base(p))
		}
		return err
	})
	if err != nil || len(left) != 2 || left[0] != name('a')+".json" || left[1] != good.SHA256 {
		t.Errorf("left %q, %v", left, err)
	}
}

// TestManyAtOnce: jobs that keep and use the same few caches while others are
// collected find whole archives or none.
func TestManyAtOnce(t *testing.T) {
	s := open(t, t.TempDir(), Limits{Archive: 1 << 20, Total: 64 << 10, Age: time.Hour})
	var jobs sync.WaitGroup
	for job := range 8 {
		jobs.Go(func() {
			for i := range 20 {
				text := strings.Repeat(fmt.Sprint(job*i%5), 16<<10)
				n := name("abcde"[i%5])
				o, err := s.Put(t.Context(), strings.NewReader(text))
				if err != nil {
					t.Error(err)
					return
				}
				e := Entry{Key: "deps", SHA256: o.SHA256, Bytes: o.Bytes, Stored: time.Now()}
				if err := s.Point(scope(), n, e); err != nil {
					t.Error(err)
				}
				if have, err := content(s, e); err != nil || have != text {
					t.Errorf("its own, which is pinned: %d bytes, %v", len(have), err)
				}
				s.Release(o.SHA256)
				if _, err := s.Collect(time.Now()); err != nil {
					t.Error(err)
				}
				found, err := s.Find(scope(), n)
				if err == nil {
					_, err = content(s, found)
				}
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	jobs.Wait()
	if _, err := s.Collect(time.Now()); err != nil {
		t.Error(err)
	}
	for c := range "abcde" {
		if e, err := s.Find(scope(), name("abcde"[c])); err == nil {
			if _, err := content(s, e); err != nil {
				t.Errorf("an entry without its archive: %v", err)
			}
		}
	}
}

func TestDrop(t *testing.T) {
	s := open(t, t.TempDir(), roomy())
	keep(t, s, scope(), name('a'), "an archive", start)
	for range 2 { // dropping nothing is no error
		if err := s.Drop(scope(), name('a')); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Find(scope(), name('a')); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	s := open(t, dir, roomy())
	keep(t, s, scope(), name('a'), "an archive", start)
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v", p, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func FuzzReadIndexed(f *testing.F) {
	f.Add([]byte(`{"scope":{"gitlab":"https://gitlab.example.com","project":77,"protected":true,"profile":"hermetic"},"name":"` + name('a') +
		`","entry":{"key":"deps","sha256":"` + name('b') + `","bytes":10,"invocation":"x","stored":"2026-11-26T15:00:00Z"}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"scope":null}{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := readIndexed(text)
		if err != nil {
			return
		}
		if !isSHA256(e.Name) || !isSHA256(e.Entry.SHA256) || e.Entry.Bytes < 0 || e.Scope.Project <= 0 || e.Scope.GitLab == "" {
			t.Errorf("taken: %+v", e)
		}
	})
}
