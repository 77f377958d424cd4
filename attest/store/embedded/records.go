package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/store"
)

func (s *Store) recordPath(attempt string) (string, error) {
	if attempt == "" || filepath.Base(attempt) != attempt || attempt[0] == '.' {
		return "", store.ErrNotFound
	}
	return filepath.Join(s.dir, "records", attempt+".jsonl"), nil
}

// Record returns the attempt's record: whole lines alone. It is empty where
// nothing was appended yet.
func (s *Store) Record(_ context.Context, attempt string) ([]byte, error) {
	f, err := s.openRecord(attempt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("store: record: %w", err)
	}
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("store: record: %w", err)
	}
	return data[:bytes.LastIndexByte(data, '\n')+1], nil
}

func (s *Store) openRecord(attempt string) (*os.File, error) {
	name, err := s.recordPath(attempt)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("store: record: %w", err)
	}
	return f, nil
}

// RecordSize is the length of the record's whole lines.
func (s *Store) RecordSize(ctx context.Context, attempt string) (int64, error) {
	f, err := s.openRecord(attempt)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size == 0 {
		return 0, wrap(err)
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, size-1); err != nil {
		return 0, fmt.Errorf("store: record: %w", err)
	}
	if last[0] == '\n' {
		return size, nil
	}
	data, err := s.Record(ctx, attempt) // torn
	return int64(len(data)), err
}

// OpenRecord opens the attempt's record for reading, as it stands in the file.
func (s *Store) OpenRecord(_ context.Context, attempt string) (io.ReadSeekCloser, error) {
	f, err := s.openRecord(attempt)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, store.ErrNotFound
	}
	return f, err
}

// AppendRecord adds lines to the attempt's record, at the offset where its
// whole lines end. When it returns the lines are durable. One caller at a time
// may append to an attempt; after an error the caller must read the record
// again to learn what it holds.
func (s *Store) AppendRecord(ctx context.Context, attempt string, at int64, lines [][]byte) error {
	name, err := s.recordPath(attempt)
	if err != nil {
		return err
	}
	a, err := s.Attempt(ctx, attempt)
	if err != nil {
		return err
	}
	if a.State != store.StateOpen {
		return store.ErrDecided
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
		return fmt.Errorf("%w: holds %d bytes, not %d", store.ErrConflict, size, at)
	}
	rest := make([]byte, size-at)
	if _, err := f.ReadAt(rest, at); err != nil {
		return err
	}
	if bytes.IndexByte(rest, '\n') >= 0 {
		return fmt.Errorf("%w: holds whole lines behind byte %d", store.ErrConflict, at)
	}
	return f.Truncate(at)
}
