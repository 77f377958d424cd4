package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// closeLateOnes tries each late record whose job is gone. The first that gets
// no answer ends the round.
func (h *Host) closeLateOnes(ctx context.Context) {
	files, err := os.ReadDir(h.late())
	if err != nil {
		h.log.Error("late records", "error", err)
		return
	}
	for _, f := range files {
		if h.has(strings.TrimSuffix(f.Name(), ".jsonl")) {
			continue
		}
		log := h.log.With("record", f.Name())
		err := h.closeLateOne(ctx, filepath.Join(h.late(), f.Name()))
		switch {
		case unavailable(err) || ctx.Err() != nil:
			return
		case err != nil:
			// It stays, among the records that nobody took.
			log.Error("late record refused", "error", err)
			if err := move(filepath.Join(h.late(), f.Name()), filepath.Join(h.records(), f.Name())); err != nil {
				log.Error("late record", "error", err)
			}
		}
	}
}

func (h *Host) has(session string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.jobs[session]
	return ok
}

// closeLateOne gives the authority what it lacks of a record and has it judged.
// The job's token has ended with the job.
func (h *Host) closeLateOne(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	l, err := record.Resume(path, time.Now)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	lines, err := l.Lines(0, 1)
	if err != nil {
		return err
	}
	if len(lines) == 0 || !l.Closed() {
		return errors.New("the record is not whole")
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
	return os.Remove(path)
}
