// Package cache keeps archives of jobs' caches out of every tenant's reach.
//
// # Layout
//
//	objects/<sha256>              an archive, by the digest of its bytes
//	index/<scope>/<name>.json     which archive a key stands for
//	tmp/                          what is being written
//
// A scope is the GitLab instance, the project, whether the ref is protected, and
// the profile: jobs share what is kept with jobs of the same scope and with no
// others. It is hashed into a directory's name and stands in each entry in full,
// so that an entry which lies elsewhere is none. A name is the hash of a cache's
// key, as GitLab Runner makes it.
//
// # Trust
//
// Only root can write here, and no directory of it is ever mounted into a
// sandbox: jobs get copies. Still nothing that is read is believed. An archive
// is hashed while it is copied, and one that is not what its name says is
// removed. Whether anybody vouches for a digest is not this package's to know: the
// authority is asked.
//
// # Crashes
//
// An archive is there whole before an entry names it, and both are durable before
// their methods return. What a crash leaves in between nobody names, and the next
// collection removes it.
package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// maxIndexEntry bounds the text of one entry, in bytes.
const maxIndexEntry = 64 << 10

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("cache: not found")
	ErrTooLarge = errors.New("cache: the archive is larger than one may be")
	// ErrChanged says that stored bytes are not those that were stored.
	ErrChanged = errors.New("cache: the stored archive is not what it was")
)

// A Scope is what jobs have in common that share caches.
type Scope struct {
	GitLab    string `json:"gitlab"`
	Project   int64  `json:"project"`
	Protected bool   `json:"protected"`
	Profile   string `json:"profile"`
}

func (s Scope) dir() string {
	text, _ := json.Marshal(s) // of strings and numbers: never fails
	sum := sha256.Sum256(text)
	return path.Join("index", hex.EncodeToString(sum[:]))
}

// An Entry says what a name stands for.
type Entry struct {
	Key        string    `json:"key"`
	SHA256     string    `json:"sha256"`
	Bytes      int64     `json:"bytes"`
	Invocation string    `json:"invocation"` // of the attempt that made it
	Stored     time.Time `json:"stored"`
}

// indexed is an entry as it lies on the disk.
type indexed struct {
	Scope Scope  `json:"scope"`
	Name  string `json:"name"`
	Entry Entry  `json:"entry"`
}

// Limits bound what is kept.
type Limits struct {
	Archive int64         // bytes of one
	Total   int64         // bytes of all
	Age     time.Duration // since an entry was used last
}

// A Store is a directory of archives. It is safe for concurrent use, by one
// process at a time.
type Store struct {
	root   *os.Root
	limits Limits

	mu   sync.Mutex
	pins map[string]int // objects that a job works with, by digest
}

// Open opens the store in dir, which it makes if it is missing.
func Open(dir string, limits Limits) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	s := &Store{root: root, limits: limits, pins: map[string]int{}}
	if err := s.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("cache: %w", err), root.Close())
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := s.root.RemoveAll("tmp"); err != nil { // nobody is writing yet
		return err
	}
	for _, dir := range []string{"objects", "index", "tmp"} {
		if err := s.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return s.sync(".")
}

// Close ends the use of the store.
func (s *Store) Close() error { return s.root.Close() }

// Find looks up a name.
func (s *Store) Find(scope Scope, name string) (Entry, error) {
	file, err := indexFile(scope, name)
	if err != nil {
		return Entry{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.read(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Entry{}, ErrNotFound
	case err != nil:
		return Entry{}, fmt.Errorf("cache: entry %s: %w", name, err)
	case e.Scope != scope || e.Name != name:
		return Entry{}, fmt.Errorf("cache: entry %s: it is of another project, or of another key: %w", name, ErrChanged)
	}
	return e.Entry, nil
}

// Point makes a name stand for an archive that Put returned and that was not
// released since.
func (s *Store) Point(scope Scope, name string, e Entry) error {
	file, err := indexFile(scope, name)
	if err != nil {
		return err
	}
	text, err := json.Marshal(indexed{scope, name, e})
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if _, err := readIndexed(text); err != nil {
		return fmt.Errorf("cache: entry %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.makeScope(scope); err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if err := s.write(file, bytes.NewReader(text)); err != nil {
		return fmt.Errorf("cache: entry %s: %w", name, err)
	}
	return nil
}

// makeScope makes a scope's directory, durably: a crash must not take it from
// under an entry.
func (s *Store) makeScope(scope Scope) error {
	switch err := s.root.Mkdir(scope.dir(), 0o700); {
	case err == nil:
		return s.sync("index")
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	return nil
}

// Used notes that an entry was of use just now: others are dropped before it.
func (s *Store) Used(scope Scope, name string, now time.Time) error {
	file, err := indexFile(scope, name)
	if err != nil {
		return err
	}
	return s.root.Chtimes(file, now, now)
}

// Drop forgets a name.
func (s *Store) Drop(scope Scope, name string) error {
	file, err := indexFile(scope, name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(file)
}

// remove is durable, and no error where there is nothing.
func (s *Store) remove(file string) error {
	err := s.root.Remove(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, s.sync(path.Dir(file)))
}

func indexFile(scope Scope, name string) (string, error) {
	if !isSHA256(name) {
		return "", fmt.Errorf("cache: name %q: want 64 hex digits", name)
	}
	return path.Join(scope.dir(), name+".json"), nil
}

func (s *Store) read(file string) (indexed, error) {
	f, err := openRegular(s.root, file)
	if err != nil {
		return indexed{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxIndexEntry+1))
	if err != nil {
		return indexed{}, err
	}
	return readIndexed(text)
}

// readIndexed reads an entry's text. Nothing in it is taken for granted.
func readIndexed(text []byte) (indexed, error) {
	var e indexed
	if len(text) > maxIndexEntry {
		return indexed{}, fmt.Errorf("more than %d bytes", maxIndexEntry)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return indexed{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return indexed{}, errors.New("more than one value")
	}
	switch {
	case e.Scope.GitLab == "" || e.Scope.Project <= 0 || e.Scope.Profile == "":
		return indexed{}, errors.New("its scope is not whole")
	case !isSHA256(e.Name) || !isSHA256(e.Entry.SHA256):
		return indexed{}, errors.New("name or digest: want 64 hex digits")
	case e.Entry.Bytes < 0 || e.Entry.Key == "" || e.Entry.Stored.IsZero():
		return indexed{}, errors.New("size, key or time is missing")
	}
	return e, nil
}

// openRegular opens a plain file for reading, and nothing that can block or lead
// elsewhere.
func openRegular(root *os.Root, name string) (*os.File, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: is no plain file", name)
	}
	return root.Open(name)
}

// write puts a file in its place, whole and durably.
func (s *Store) write(file string, content io.Reader) error {
	tmp, err := s.temporary()
	if err != nil {
		return err
	}
	defer tmp.discard()
	if _, err := io.Copy(tmp.f, content); err != nil {
		return err
	}
	return tmp.become(file)
}

// sync makes a directory's names durable.
func (s *Store) sync(dir string) error {
	d, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func isSHA256(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}
