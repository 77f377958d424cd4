package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"hallmark.build/attest/internal/durable"
)

func (s *Store) recordPath(attempt string) (string, error) {
	if attempt == "" || filepath.Base(attempt) != attempt || attempt[0] == '.' {
		return "", ErrNotFound
	}
	return filepath.Join(s.dir, "records", attempt+".jsonl"), nil
}

// Record returns the attempt's record: whole lines alone. It is empty where
// nothing was appended yet.
func (s *Store) Record(attempt string) ([]byte, error) {
	name, err := s.recordPath(attempt)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: record: %w", err)
	}
	return data[:bytes.LastIndexByte(data, '\n')+1], nil
}

// OpenRecord opens the attempt's record for reading, as it stands in the file.
func (s *Store) OpenRecord(attempt string) (*os.File, error) {
	name, err := s.recordPath(attempt)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: record: %w", err)
	}
	return f, nil
}

// AppendRecord adds lines to the attempt's record, at the offset where its
// whole lines end. When it returns the lines are durable. One caller at a time
// may append to an attempt; after an error the caller must read the record
// again to learn what it holds.
func (s *Store) AppendRecord(attempt string, at int64, lines [][]byte) error {
	name, err := s.recordPath(attempt)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("store: record: %w", err)
	}
	err = appendAt(f, at, lines)
	if err == nil && at == 0 {
		err = durable.SyncDir(filepath.Dir(name))
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("store: record %s: %w", attempt, err)
	}
	return nil
}

func appendAt(f *os.File, at int64, lines [][]byte) error {
	if err := cutTorn(f, at); err != nil {
		return err
	}
	size := 0
	for _, l := range lines {
		size += len(l) + 1
	}
	all := make([]byte, 0, size)
	for _, l := range lines {
		all = append(append(all, l...), '\n')
	}
	if _, err := f.WriteAt(all, at); err != nil {
		return err
	}
	return f.Sync()
}

// cutTorn removes a line that a crash left without its newline. It never
// removes a whole line, nor appends behind what is missing.
func cutTorn(f *os.File, at int64) error {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	switch {
	case size == at:
		return nil
	case size < at:
		return fmt.Errorf("holds %d bytes, not %d", size, at)
	}
	rest := make([]byte, size-at)
	if _, err := f.ReadAt(rest, at); err != nil {
		return err
	}
	if bytes.IndexByte(rest, '\n') >= 0 {
		return fmt.Errorf("holds whole lines behind byte %d", at)
	}
	return f.Truncate(at)
}
