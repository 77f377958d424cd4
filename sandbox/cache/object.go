package cache

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// An Object is an archive that is kept, but that no name stands for yet.
type Object struct {
	SHA256 string
	Bytes  int64
}

// Put keeps an archive under the digest of the bytes that were read. It stays
// until it is released, and then for as long as an entry names it.
func (s *Store) Put(ctx context.Context, r io.Reader) (Object, error) {
	tmp, err := s.temporary()
	if err != nil {
		return Object{}, fmt.Errorf("cache: %w", err)
	}
	defer tmp.discard()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp.f, sum), io.LimitReader(reader{ctx, r}, s.limits.Archive+1))
	switch {
	case err != nil:
		return Object{}, fmt.Errorf("cache: %w", err)
	case n > s.limits.Archive:
		return Object{}, ErrTooLarge
	}
	o := Object{hex.EncodeToString(sum.Sum(nil)), n}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := tmp.become(object(o.SHA256)); err != nil {
		return Object{}, fmt.Errorf("cache: %w", err)
	}
	s.pins[o.SHA256]++
	return o, nil
}

// Release gives up what Put kept.
func (s *Store) Release(sha256 string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[sha256]--; s.pins[sha256] <= 0 {
		delete(s.pins, sha256)
	}
}

// Open opens an archive that is pinned, to be read.
func (s *Store) Open(sha256 string) (*os.File, error) {
	f, err := openRegular(s.root, object(sha256))
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return f, nil
}

// Copy writes the archive that an entry names to w, and is ErrChanged if it is
// not that any more: what was written must then be thrown away. The archive is
// gone too, so that nobody meets it again.
func (s *Store) Copy(ctx context.Context, e Entry, w io.Writer) error {
	f, err := openRegular(s.root, object(e.SHA256))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	// One byte more tells whether there is more.
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(reader{ctx, f}, e.Bytes+1))
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if n == e.Bytes && hex.EncodeToString(sum.Sum(nil)) == e.SHA256 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(ErrChanged, s.remove(object(e.SHA256)))
}

func object(sha256 string) string { return path.Join("objects", sha256) }

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// A temporary is a file that has no place yet.
type temporary struct {
	s    *Store
	f    *os.File
	name string
}

func (s *Store) temporary() (*temporary, error) {
	name := path.Join("tmp", rand.Text())
	f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &temporary{s, f, name}, nil
}

// become puts the file in its place, durably.
func (t *temporary) become(name string) error {
	if err := t.f.Sync(); err != nil {
		return err
	}
	if err := t.s.root.Rename(t.name, name); err != nil {
		return err
	}
	t.name = ""
	return t.s.sync(path.Dir(name))
}

// discard closes the file, and removes it if it has no place.
func (t *temporary) discard() {
	t.f.Close()
	if t.name != "" {
		_ = t.s.root.Remove(t.name)
	}
}
