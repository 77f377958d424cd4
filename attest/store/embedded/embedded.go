// Package embedded is the store of one authority: SQLite and a directory.
//
// # Layout
//
//	index.db      SQLite: attempts, what was signed and is not closed yet,
//	              bundles, subjects, hosts. Write-ahead log, every commit synced
//	records/      one file an attempt, lines appended and synced
//	content/      bundles, each named by its SHA-256, never changed
//	staged/       bundles whose decision is being made
//	lock          held while a process has the store open
//
// All of it is for its owner alone.
//
// # Crashes
//
// A record's file is the truth about the record: lines are acknowledged once
// they are synced, and a line without its newline, left by a crash, was never
// acknowledged and is cut off by the next append. What was signed is in the
// index until it is closed. The decision about an attempt is one transaction.
// Bundles are staged before it and moved after it; opening the store finishes
// the move of those that were decided, and removes the others, which nobody
// ever saw. So a bundle is whole and decided, or absent.
//
// # Migrations
//
// The index carries the number of the last step in migrations that it took;
// opening the store takes the rest, each in a transaction of its own. An index
// that is further than the program is refused.
//
// # Backup
//
//	hallmark-attestd backup DIR
//
// copies the store, also while it is served: a snapshot of the index first,
// then the bundles and records that it speaks of. The copy has the layout
// above. To restore it, stop the authority, copy DIR to where the store was,
// as its user's, and run
//
//	hallmark-attestd restored
//	hallmark-attestd check
//
// A copy says in its index that it is one, and does not open before restored
// settled it: see package store. Keys, and the secret of commitments, are not
// in it; they do not change, and want a backup of their own.
package embedded

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/internal/turns"
)

// A Store is the embedded store. One process at a time has it.
type Store struct {
	dir  string
	db   *sql.DB
	lock *os.File

	jobs turns.Turns

	staging sync.RWMutex // held for reading by those who decide
}

var _ store.Store = (*Store)(nil)

// Open opens the store in dir, which it makes if it is not there, and finishes
// what a crash interrupted.
func Open(ctx context.Context, dir string) (*Store, error) {
	s, err := open(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err := s.mustNotBeCopy(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func open(ctx context.Context, dir string) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "records"), filepath.Join(dir, "content"), filepath.Join(dir, "staged")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lock: lock}
	if err := s.openIndex(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("store: %s: another process has the store open", name)
	}
	return f, nil
}

// Close releases the store.
func (s *Store) Close() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// Ready reports whether the index answers.
func (s *Store) Ready(ctx context.Context) error {
	var n int
	return wrap(s.db.QueryRowContext(ctx, "SELECT count(*) FROM attempts WHERE state = 'open'").Scan(&n))
}

// recover finishes or undoes decisions that a crash interrupted.
func (s *Store) recover(ctx context.Context) error {
	for _, d := range []string{"content", "staged"} {
		if err := removeUnfinished(filepath.Join(s.dir, d)); err != nil {
			return fmt.Errorf("store: recover: %w", err)
		}
	}
	staged, err := os.ReadDir(filepath.Join(s.dir, "staged"))
	if err != nil {
		return fmt.Errorf("store: recover: %w", err)
	}
	digests := make([]string, len(staged))
	for i, e := range staged {
		digests[i] = e.Name()
	}
	return s.settleAll(ctx, digests)
}

func removeUnfinished(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, durable.TempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			return err
		}
	}
	return nil
}

// Sweep removes what failed decisions left behind. No decision is being made
// while it runs, so the moment does not matter.
func (s *Store) Sweep(ctx context.Context, _ time.Time) error {
	s.staging.Lock()
	defer s.staging.Unlock()
	return s.recover(ctx)
}

// settle moves a staged bundle to its place if it was decided, and removes it
// if it was not.
func (s *Store) settle(ctx context.Context, digest string) error {
	decided, err := s.HasBundle(ctx, digest)
	if err != nil {
		return err
	}
	if decided {
		return s.publish(digest)
	}
	if err := os.Remove(s.stagedPath(digest)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Lock makes those who work on a job take turns. One process has the store, so
// nothing can take the lock away.
func (s *Store) Lock(ctx context.Context, job int64) (context.Context, func(), error) {
	leave, err := s.jobs.Take(ctx, job)
	if err != nil {
		return nil, nil, fmt.Errorf("store: lock of job %d: %w", job, err)
	}
	return ctx, leave, nil
}

func (s *Store) stagedPath(digest string) string  { return filepath.Join(s.dir, "staged", digest) }
func (s *Store) contentPath(digest string) string { return filepath.Join(s.dir, "content", digest) }

func (s *Store) stageAll(bundles []store.Bundle) ([]string, error) {
	digests := make([]string, len(bundles))
	for i, b := range bundles {
		var err error
		if digests[i], err = s.stage(b.JSON); err != nil {
			return nil, err
		}
	}
	return digests, nil
}

func (s *Store) settleAll(ctx context.Context, digests []string) error {
	for _, d := range digests {
		if err := s.settle(ctx, d); err != nil {
			return fmt.Errorf("store: bundle: %w", err)
		}
	}
	return nil
}

func (s *Store) stage(data []byte) (digest string, err error) {
	sum := sha256.Sum256(data)
	digest = hex.EncodeToString(sum[:])
	err = durable.Create(s.stagedPath(digest), data, 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return digest, err
}

// publish moves a decided bundle to its place, unless somebody did who brought
// the same bytes.
func (s *Store) publish(digest string) error {
	err := os.Rename(s.stagedPath(digest), s.contentPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(s.contentPath(digest))
	}
	if err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Join(s.dir, "content")), durable.SyncDir(filepath.Join(s.dir, "staged")))
}

// Content reads a bundle and checks that it is the one that was stored.
func (s *Store) Content(ctx context.Context, digest string) ([]byte, error) {
	if len(digest) != 2*sha256.Size || strings.ContainsAny(digest, "/.") {
		return nil, store.ErrNotFound
	}
	data, err := os.ReadFile(s.contentPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(s.stagedPath(digest)) // decided, about to be moved
	}
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(s.contentPath(digest)) // moved in between
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.missing(ctx, digest)
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("store: bundle %s: content was altered", digest)
	}
	return data, nil
}

// missing tells a bundle that was lost from one that never was.
func (s *Store) missing(ctx context.Context, digest string) error {
	decided, err := s.HasBundle(ctx, digest)
	if err != nil {
		return err
	}
	if decided {
		return fmt.Errorf("store: bundle %s: content was lost", digest)
	}
	return store.ErrNotFound
}
