package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"

	"hallmark.build/attest/store"
)

// AppendRecord adds lines to an open attempt's record, if it has at bytes.
func (s *Store) AppendRecord(ctx context.Context, attempt string, at int64, lines [][]byte) error {
	all := bytes.Join(append(lines[:len(lines):len(lines)], nil), []byte{'\n'})
	err := s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "UPDATE attempts SET record_size = $1 WHERE id = $2 AND record_size = $3 AND state = 'open'",
			at+int64(len(all)), attempt, at)
		if err := one(tag, err, errRefused); err != nil || len(all) == 0 {
			return err
		}
		_, err = tx.Exec(ctx, "INSERT INTO record_lines (attempt, at, lines) VALUES ($1, $2, $3)", attempt, at, all)
		return err
	})
	if errors.Is(err, errRefused) {
		return s.whyRefused(ctx, attempt, at)
	}
	return err
}

var errRefused = errors.New("not appended")

func (s *Store) whyRefused(ctx context.Context, attempt string, at int64) error {
	a, err := s.Attempt(ctx, attempt)
	if err != nil {
		return err
	}
	if a.State != store.StateOpen {
		return store.ErrDecided
	}
	return fmt.Errorf("%w: record %s has not %d bytes", store.ErrConflict, attempt, at)
}

// RecordSize is the length of the attempt's record.
func (s *Store) RecordSize(ctx context.Context, attempt string) (int64, error) {
	size, err := get(ctx, s, pgx.RowTo[int64], "SELECT record_size FROM attempts WHERE id = $1", attempt)
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil
	}
	return size, err
}

// A part of a record is what one call appended.
type part struct {
	At    int64
	Lines []byte
}

// Record returns the attempt's record. It is empty where nothing was appended
// yet.
func (s *Store) Record(ctx context.Context, attempt string) ([]byte, error) {
	parts, err := list(ctx, s, pgx.RowToStructByPos[part], "SELECT at, lines FROM record_lines WHERE attempt = $1 ORDER BY at", attempt)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, p := range parts {
		size += len(p.Lines)
	}
	data := make([]byte, 0, size)
	for _, p := range parts {
		if p.At != int64(len(data)) {
			return nil, fmt.Errorf("store: record %s: broken at byte %d", attempt, len(data))
		}
		data = append(data, p.Lines...)
	}
	return data, nil
}

// OpenRecord opens the attempt's record for reading. It is read part by part,
// so that readers do not fill the memory.
func (s *Store) OpenRecord(ctx context.Context, attempt string) (io.ReadSeekCloser, error) {
	size, err := s.RecordSize(ctx, attempt)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, store.ErrNotFound
	}
	r := &recordReader{fetch: func(at int64) (part, error) {
		return get(ctx, s, pgx.RowToStructByPos[part],
			"SELECT at, lines FROM record_lines WHERE attempt = $1 AND at <= $2 ORDER BY at DESC LIMIT 1", attempt, at)
	}}
	return struct {
		*io.SectionReader
		io.Closer
	}{io.NewSectionReader(r, 0, size), io.NopCloser(nil)}, nil
}

// A recordReader reads a record where its reader is, and keeps the part around.
type recordReader struct {
	fetch func(at int64) (part, error)
	part  part
}

// ReadAt reads all of p, as its contract asks.
func (r *recordReader) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		n, err := r.readPart(p[total:], off+int64(total))
		if err != nil {
			return total, err
		}
		total += n
	}
	return total, nil
}

func (r *recordReader) readPart(p []byte, off int64) (int, error) {
	if off < r.part.At || off >= r.part.At+int64(len(r.part.Lines)) {
		next, err := r.fetch(off)
		if err != nil {
			return 0, err
		}
		if off >= next.At+int64(len(next.Lines)) {
			return 0, fmt.Errorf("store: record: broken at byte %d", off)
		}
		r.part = next
	}
	return copy(p, r.part.Lines[off-r.part.At:]), nil
}
