package cache

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"
)

// A used entry is one that lies in the index.
type usedEntry struct {
	file   string
	sha256 string
	bytes  int64
	used   time.Time
}

// Collect drops entries that were not used for too long, or that cannot be read,
// then those used longest ago until the rest fits, and every archive that nobody
// names or works with. It returns how many archives went.
func (s *Store) Collect(now time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := s.entries()
	if err != nil {
		return 0, fmt.Errorf("cache: collect: %w", err)
	}
	kept, dropped := s.choose(entries, now)
	for _, e := range dropped {
		if err := s.remove(e.file); err != nil {
			return 0, fmt.Errorf("cache: collect: %w", err)
		}
	}
	n, err := s.sweep(kept)
	if err != nil {
		return n, fmt.Errorf("cache: collect: %w", err)
	}
	return n, nil
}

// entries lists the index. One that cannot be read has no digest, and was never used.
func (s *Store) entries() ([]usedEntry, error) {
	scopes, err := fs.ReadDir(s.root.FS(), "index")
	if err != nil {
		return nil, err
	}
	var out []usedEntry
	for _, scope := range scopes {
		dir := path.Join("index", scope.Name())
		files, err := fs.ReadDir(s.root.FS(), dir)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			e := usedEntry{file: path.Join(dir, f.Name())}
			if read, err := s.read(e.file); err == nil {
				info, err := f.Info()
				if err != nil {
					return nil, err
				}
				e.sha256, e.bytes, e.used = read.Entry.SHA256, read.Entry.Bytes, info.ModTime()
			}
			out = append(out, e)
		}
	}
	return out, nil
}

// choose keeps what was used last, as long as it fits. An archive that several
// entries name counts once.
func (s *Store) choose(entries []usedEntry, now time.Time) (kept map[string]bool, dropped []usedEntry) {
	slices.SortFunc(entries, func(a, b usedEntry) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.file, b.file)) })
	kept = map[string]bool{}
	var total int64
	for _, e := range entries {
		add := e.bytes
		if kept[e.sha256] {
			add = 0
		}
		if e.sha256 == "" || now.Sub(e.used) > s.limits.Age || total+add > s.limits.Total {
			dropped = append(dropped, e)
			continue
		}
		kept[e.sha256] = true
		total += add
	}
	return kept, dropped
}

// sweep removes archives that are not kept and that no job works with.
func (s *Store) sweep(kept map[string]bool) (int, error) {
	objects, err := fs.ReadDir(s.root.FS(), "objects")
	if err != nil {
		return 0, err
	}
	n := 0
	var errs []error
	for _, o := range objects {
		if kept[o.Name()] || s.pins[o.Name()] > 0 {
			continue
		}
		if err := s.root.Remove(path.Join("objects", o.Name())); err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errors.Join(append(errs, s.sync("objects"))...)
}
