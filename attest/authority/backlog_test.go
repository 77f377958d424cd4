package authority

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
)

// attemptsOf are n attempts of a host.
func attemptsOf(host string, n int) []store.Attempt {
	all := make([]store.Attempt, n)
	for i := range all {
		all[i] = store.Attempt{ID: fmt.Sprintf("%s%d", host, i), Host: host}
	}
	return all
}

// tried goes one round and returns whom it came to.
func tried(b *backlog, all []store.Attempt, fails func(id string) error) (ids []string, err error) {
	var mu sync.Mutex
	err = b.round(all, func(at *store.Attempt) error {
		mu.Lock()
		defer mu.Unlock()
		ids = append(ids, at.ID)
		return fails(at.ID)
	})
	return ids, err
}

func TestBacklogTakesHostsInTurns(t *testing.T) {
	b := &backlog{atOnce: 1, now: time.Now}
	all := append(attemptsOf("a", 3), attemptsOf("b", 1)...)
	ids, err := tried(b, all, func(string) error { return nil })
	if want := []string{"a0", "b0", "a1", "a2"}; err != nil || !slices.Equal(ids, want) {
		t.Errorf("%q, %v", ids, err)
	}
}

// TestBacklogReachesEverybody has many attempts that fail for ever, each in one
// way, before one that would not.
func TestBacklogReachesEverybody(t *testing.T) {
	for name, failure := range map[string]func() error{
		"no answer": func() error { return errors.New("connection refused") },
		"hidden":    func() error { return fmt.Errorf("%w: 404 Not Found", gitlab.ErrHidden) },
		"no token":  func() error { return gitlab.ErrNoToken },
		"panic":     func() error { panic("index out of range") },
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			b := &backlog{atOnce: 4, now: func() time.Time { return now }}
			all := append(attemptsOf("bad", 300), store.Attempt{ID: "good", Host: "bad"})
			asked := 0
			for range 100 {
				ids, err := tried(b, all, func(id string) error {
					if strings.HasPrefix(id, "bad") {
						return failure()
					}
					return nil
				})
				if name == "no token" && err != nil {
					t.Fatal(err)
				}
				if asked += len(ids); slices.Contains(ids, "good") {
					return
				}
				now = now.Add(resumeEvery)
			}
			t.Errorf("after %d questions not asked about the one that is well", asked)
		})
	}
}

// TestBacklogLeavesFailuresAlone holds that each failure in a row doubles the
// pause, up to a bound, and that success ends it.
func TestBacklogLeavesFailuresAlone(t *testing.T) {
	now := time.Now()
	b := &backlog{atOnce: 1, now: func() time.Time { return now }}
	all, down := attemptsOf("a", 1), errors.New("down")
	for _, pause := range []time.Duration{0, resumeEvery, 3 * resumeEvery, 7 * resumeEvery, longestPause, longestPause} {
		if ids, err := tried(b, all, func(string) error { return down }); len(ids) != 1 || !errors.Is(err, down) {
			t.Fatalf("%q, %v", ids, err)
		}
		if now = now.Add(pause - 1); pause > 0 && len(b.due(all)) != 0 {
			t.Errorf("due before %v", pause)
		}
		now = now.Add(1)
	}
	b.note("a0", nil)
	if len(b.due(all)) != 1 || len(b.failed) != 0 {
		t.Error("a success leaves a pause")
	}
	b.note("a0", down)
	if b.due(nil); len(b.failed) != 0 {
		t.Error("decided attempts are remembered")
	}
}

// TestBacklogEndsARoundWithoutAnswers holds that what is away is not asked for
// each attempt, while refusals of single jobs end no round.
func TestBacklogEndsARoundWithoutAnswers(t *testing.T) {
	for _, c := range []struct {
		err  error
		most int
	}{{errors.New("connection refused"), 12}, {gitlab.ErrHidden, 100}} {
		b := &backlog{atOnce: 4, now: time.Now}
		ids, err := tried(b, attemptsOf("a", 100), func(string) error { return c.err })
		if len(ids) > c.most || c.most == 100 && len(ids) != 100 || !errors.Is(err, c.err) {
			t.Errorf("%d questions, %v", len(ids), err)
		}
	}
}
