package authority

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
)

// longestPause is the longest that an attempt is left alone after a failure.
const longestPause = time.Minute

// A backlog goes on with attempts that nobody waits for. None keeps another
// from its turn: hosts take turns, one that failed is left alone for a while,
// and where nothing answers a round ends early.
type backlog struct {
	atOnce int
	now    func() time.Time

	mu     sync.Mutex
	failed map[string]setback // by attempt
}

// A setback is how often an attempt failed in a row, and until when it is left
// alone. The first time costs it nothing.
type setback struct {
	times int
	until time.Time
}

// round takes a step with those of all that are due. It returns the first error.
func (b *backlog) round(all []store.Attempt, step func(*store.Attempt) error) error {
	var (
		g      errgroup.Group
		silent atomic.Int64 // failures in a row
	)
	g.SetLimit(b.atOnce)
	for _, at := range b.due(all) {
		if silent.Load() >= int64(2*b.atOnce) {
			break
		}
		g.Go(func() error {
			err := sheltered(func() error { return step(&at) })
			b.note(at.ID, err)
			switch {
			case err == nil:
				silent.Store(0)
			case errors.Is(err, gitlab.ErrNoToken): // another replica may have the job's token
				return nil
			case !errors.Is(err, gitlab.ErrHidden): // else GitLab answers, if only this
				silent.Add(1)
			}
			return err
		})
	}
	return g.Wait()
}

// due returns those whose pause is over: those that never failed first, then
// whoever waited longest, and one of each host after the other. What is
// remembered of attempts that are not among all is forgotten.
func (b *backlog) due(all []store.Attempt) []store.Attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, left := b.now(), map[string]setback{}
	var due []store.Attempt
	for _, at := range all {
		s, failed := b.failed[at.ID]
		if failed {
			left[at.ID] = s
		}
		if !now.Before(s.until) {
			due = append(due, at)
		}
	}
	b.failed = left
	slices.SortStableFunc(due, func(x, y store.Attempt) int { return left[x.ID].until.Compare(left[y.ID].until) })
	return inTurns(due)
}

// inTurns puts attempts of different hosts one after the other.
func inTurns(all []store.Attempt) []store.Attempt {
	seen := map[string]int{} // by host
	var rounds [][]store.Attempt
	for _, at := range all {
		n := seen[at.Host]
		if seen[at.Host]++; n == len(rounds) {
			rounds = append(rounds, nil)
		}
		rounds[n] = append(rounds[n], at)
	}
	return slices.Concat(rounds...)
}

// note remembers how a step ended.
func (b *backlog) note(attempt string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.failed, attempt)
		return
	}
	s := b.failed[attempt]
	pause := min(longestPause, resumeEvery*(1<<min(s.times, 16)-1))
	b.failed[attempt] = setback{times: s.times + 1, until: b.now().Add(pause)}
}

// sheltered has a step that panics fail, alone.
func sheltered(step func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return step()
}
