package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hallmark.build/sandbox/record"
)

// Records that are to be closed late lie in a directory of their own. A record
// comes there whole, ended by its closed entry, in one rename before the job is
// told that it may end. A daemon that dies before leaves it among the records of
// jobs that failed, which are never attested.

const (
	// lateEvery is how often an authority that did not answer is asked again.
	lateEvery = 10 * time.Second
	// latePatience is how long each step of a job that may end without the
	// authority waits for it.
	latePatience = 10 * time.Second
	// lateInRow is how many that get no answer one after the other end a round.
	lateInRow = 3
	// lateUntil is how long after the job's end a record is kept for an answer.
	lateUntil = 24 * time.Hour
)

// postpone keeps a closed record, durably, for an authority that answers.
func (h *Host) postpone(j *job, why error) error {
	path := filepath.Join(h.late(), filepath.Base(j.recordPath))
	if err := move(j.recordPath, path); err != nil {
		return errors.Join(why, fmt.Errorf("keep the record: %w", err))
	}
	j.recordPath, j.late = path, why
	j.logger(h.log).Warn("record kept, to be closed late", "attempt", j.opened.Attempt, "error", why)
	return nil
}

// move renames a file so that it stays renamed. Both ends are synced.
func move(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(to)), syncDir(filepath.Dir(from)))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// wakeLate has late records looked at soon.
func (h *Host) wakeLate() {
	select {
	case h.postponed <- struct{}{}:
	default:
	}
}

// closeLate closes late records, those of earlier daemons too, until ctx ends.
func (h *Host) closeLate(ctx context.Context) {
	tick := time.NewTicker(lateEvery)
	defer tick.Stop()
	for {
		h.closeLateOnes(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-h.postponed:
		}
	}
}

// closeLateOnes tries each late record whose job is gone. Some that get no answer
// one after the other end the round, and the next begins behind them: no record
// keeps others from being closed.
func (h *Host) closeLateOnes(ctx context.Context) {
	files, err := os.ReadDir(h.late())
	if err != nil {
		h.log.Error("late records", "error", err)
		return
	}
	next := max(0, slices.IndexFunc(files, func(f os.DirEntry) bool { return f.Name() > h.lastLate }))
	silent := 0
	for _, f := range slices.Concat(files[next:], files[:next]) {
		if h.has(strings.TrimSuffix(f.Name(), ".jsonl")) {
			continue
		}
		if silent == lateInRow || ctx.Err() != nil {
			return
		}
		h.lastLate = f.Name()
		if silent++; h.tryLate(ctx, f) {
			silent = 0
		}
	}
}

// tryLate reports whether a late record is one no longer: closed, or among the
// records that nobody took, where it stays as evidence.
func (h *Host) tryLate(ctx context.Context, f os.DirEntry) bool {
	log := h.log.With("record", f.Name())
	path := filepath.Join(h.late(), f.Name())
	err := h.closeLateOne(ctx, path)
	if err == nil {
		return true
	}
	if ctx.Err() != nil || undecided(err) {
		log.Warn("late record not closed yet", "error", err)
		return false
	}
	log.Error("late record refused", "error", err)
	if err := move(path, filepath.Join(h.records(), f.Name())); err != nil {
		log.Error("late record", "error", err)
		return false
	}
	return true
}

// undecided reports whether the authority has not said what becomes of a record.
func undecided(err error) bool {
	_, ok := errors.AsType[*UndecidedError](err)
	return ok || unavailable(err)
}

func (h *Host) has(session string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.jobs[session]
	return ok
}

// closeLateOne gives the authority what it lacks of a record and has it judged.
// After a day without a decision the record is given up.
func (h *Host) closeLateOne(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	l, err := record.Resume(path, time.Now)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if !l.Closed() {
		return errors.New("the record is not whole")
	}
	err = h.judgeLate(ctx, l)
	switch {
	case err == nil:
		return os.Remove(path)
	case undecided(err) && time.Since(lastTime(l)) > lateUntil:
		return fmt.Errorf("given up after %s: %s", lateUntil, err)
	}
	return err
}

// judgeLate is judge without the job: its token has ended with it.
func (h *Host) judgeLate(ctx context.Context, l *record.Log) error {
	lines, err := l.Lines(0, 1)
	if err != nil {
		return err
	}
	attempt, err := attemptOf(lines[0])
	if err != nil {
		return err
	}
	if err := deliver(ctx, l, h.authority, attempt, 0); err != nil {
		return err
	}
	closed, err := h.authority.Close(ctx, attempt, l.Head(), "")
	if err != nil {
		return err
	}
	h.log.Info("record closed late", "attempt", attempt, "attestations", len(closed.Attestations), "pending", closed.Pending, "reason", closed.Reason)
	return nil
}

// lastTime is when the last entry of a record was written, or now if nobody
// can tell.
func lastTime(l *record.Log) time.Time {
	var last struct{ Time time.Time }
	lines, err := l.Lines(l.Head().Entries-1, 1)
	if err != nil || json.Unmarshal(lines[0], &last) != nil {
		return time.Now()
	}
	return last.Time
}
