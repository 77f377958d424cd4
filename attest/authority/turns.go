package authority

import (
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// turns shares a capacity among hosts so that none can starve the others: each
// host has a bound of its own, waiting calls of one host keep their order, and
// hosts take turns. The unit is the user's: calls, bytes.
type turns struct {
	capacity int64
	perHost  int64

	mu    sync.Mutex
	used  int64
	hosts map[string]*line
	ring  []*line // those with somebody waiting; the first is next
}

// A line is one host's share and who waits for it.
type line struct {
	host    string
	used    int64
	waiting []*waiter
}

type waiter struct {
	weight int64
	admit  chan struct{} // closed when it is the waiter's turn
}

func newTurns(capacity, perHost int64) *turns {
	return &turns{capacity: capacity, perHost: perHost, hosts: map[string]*line{}}
}

// A share is what a call holds until it leaves.
type share struct {
	turns  *turns
	line   *line
	weight int64
}

// enter waits for weight units. A weight above a bound counts as the bound.
func (t *turns) enter(ctx context.Context, host string, weight int64) (*share, error) {
	weight = min(weight, t.perHost, t.capacity)
	t.mu.Lock()
	l := t.hosts[host]
	if l == nil {
		l = &line{host: host}
		t.hosts[host] = l
	}
	w := &waiter{weight: weight, admit: make(chan struct{})}
	if l.waiting = append(l.waiting, w); len(l.waiting) == 1 {
		t.ring = append(t.ring, l)
	}
	t.advance()
	t.mu.Unlock()
	select {
	case <-w.admit:
		return &share{turns: t, line: l, weight: weight}, nil
	case <-ctx.Done():
		t.giveUp(l, w)
		return nil, turnError(ctx)
	}
}

// turnError is what a call is told that waited in vain.
func turnError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return status.Error(codes.Canceled, "canceled while it waited for its turn")
	}
	return status.Error(codes.DeadlineExceeded, "the deadline passed while it waited for its turn")
}

// leave gives the share back, if there is one. It may be called again.
func (s *share) leave() {
	if s != nil {
		s.shrink(0)
	}
}

// shrink gives back all but weight.
func (s *share) shrink(weight int64) {
	s.turns.mu.Lock()
	defer s.turns.mu.Unlock()
	rest := max(0, s.weight-weight)
	s.weight -= rest
	s.turns.giveBack(s.line, rest)
}

// advance admits whoever's turn it is. A host at its own bound is passed over;
// one that only lacks common capacity holds up those behind it, or large
// weights would never get it.
func (t *turns) advance() {
	for passed := 0; passed < len(t.ring); {
		l := t.ring[0]
		w := l.waiting[0]
		if l.used+w.weight <= t.perHost {
			if t.used+w.weight > t.capacity {
				return
			}
			l.used += w.weight
			t.used += w.weight
			l.waiting = l.waiting[1:]
			close(w.admit)
			passed = -1 // the ring has changed: look at all of it again
		}
		t.ring = t.ring[1:]
		if len(l.waiting) > 0 {
			t.ring = append(t.ring, l)
		}
		passed++
	}
}

// giveUp takes a waiter out, or gives back what it got in the same moment.
func (t *turns) giveUp(l *line, w *waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(l.waiting, w)
	if i < 0 {
		t.giveBack(l, w.weight)
		return
	}
	if l.waiting = slices.Delete(l.waiting, i, i+1); len(l.waiting) == 0 {
		t.ring = slices.DeleteFunc(t.ring, func(r *line) bool { return r == l })
	}
	t.giveBack(l, 0)
}

// giveBack returns units and lets others have them.
func (t *turns) giveBack(l *line, weight int64) {
	l.used -= weight
	t.used -= weight
	t.advance()
	if l.used == 0 && len(l.waiting) == 0 && t.hosts[l.host] == l {
		delete(t.hosts, l.host)
	}
}

// state is what is in use, and how many wait.
func (t *turns) state() (used int64, waiting int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.ring {
		waiting += len(l.waiting)
	}
	return t.used, waiting
}
