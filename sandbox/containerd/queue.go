package containerd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
)

// A queue lets a number of pulls in at a time. Who waits is let in by turns: of
// all customers the one with the fewest pulls inside is next, of those the one
// whose last turn is longest ago, and of its pulls the first. So a project
// with a dozen jobs or services holds nobody up for more than one of them.
type queue struct {
	most int

	mu      sync.Mutex
	inside  map[string]int // by customer
	total   int
	turns   int            // that there have been
	last    map[string]int // turn, by customer that is inside or waits
	waiting []*ticket      // in order of arrival
}

type ticket struct {
	customer string
	admitted chan struct{} // closed when it may go in
}

// enter waits for a place. The caller calls leave when it is done.
func (q *queue) enter(ctx context.Context, customer string, say func(string)) (leave func(), err error) {
	t := &ticket{customer: customer, admitted: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, t)
	q.admit()
	inside, waiting := q.total, len(q.waiting)
	q.mu.Unlock()
	leave = func() { q.leave(customer) }
	select {
	case <-t.admitted:
		return leave, nil
	default:
		say(fmt.Sprintf("waiting: this host pulls %d images now, and %d are in the queue", inside, waiting))
	}
	select {
	case <-t.admitted:
		return leave, nil
	case <-ctx.Done():
		if !q.withdraw(t) { // it was let in at the same moment
			leave()
		}
		return nil, context.Cause(ctx)
	}
}

func (q *queue) leave(customer string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.inside[customer]--; q.inside[customer] == 0 {
		delete(q.inside, customer)
	}
	q.total--
	q.admit()
	q.forget(customer)
}

// forget drops the last turn of a customer that has no pulls left. The caller
// holds q.mu.
func (q *queue) forget(customer string) {
	if q.inside[customer] == 0 && !slices.ContainsFunc(q.waiting, func(t *ticket) bool { return t.customer == customer }) {
		delete(q.last, customer)
	}
}

// withdraw reports whether the ticket was still waiting.
func (q *queue) withdraw(t *ticket) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, w := range q.waiting {
		if w == t {
			q.waiting = slices.Delete(q.waiting, i, i+1)
			q.forget(t.customer)
			return true
		}
	}
	return false
}

// admit lets in whom there is room for. The caller holds q.mu.
func (q *queue) admit() {
	if q.inside == nil {
		q.inside, q.last = map[string]int{}, map[string]int{}
	}
	for q.total < max(q.most, 1) && len(q.waiting) > 0 {
		next := 0
		for i, t := range q.waiting {
			a, b := t.customer, q.waiting[next].customer
			if cmp.Or(cmp.Compare(q.inside[a], q.inside[b]), cmp.Compare(q.last[a], q.last[b])) < 0 {
				next = i
			}
		}
		t := q.waiting[next]
		q.waiting = slices.Delete(q.waiting, next, next+1)
		q.inside[t.customer]++
		q.total++
		q.turns++
		q.last[t.customer] = q.turns
		close(t.admitted)
	}
}

// locks makes several pulls do one thing once. It is containerd's client that
// asks for them, by the digest of a blob or of a chain of layers.
type locks struct {
	mu   sync.Mutex
	open map[string]*lockOf
}

type lockOf struct {
	turn  chan struct{} // holds a token while the lock is taken
	users int
}

func (l *locks) lock(ctx context.Context, key string) error {
	l.mu.Lock()
	if l.open == nil {
		l.open = map[string]*lockOf{}
	}
	k := l.open[key]
	if k == nil {
		k = &lockOf{turn: make(chan struct{}, 1)}
		l.open[key] = k
	}
	k.users++
	l.mu.Unlock()
	select {
	case k.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		l.done(key)
		return context.Cause(ctx)
	}
}

func (l *locks) unlock(key string) {
	l.mu.Lock()
	k := l.open[key]
	l.mu.Unlock()
	<-k.turn
	l.done(key)
}

func (l *locks) done(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[key].users--; l.open[key].users == 0 {
		delete(l.open, key)
	}
}

// registryLocks are the locks among the pulls from one registry. A registry can
// be a tenant's own: were the locks everyone's, it could hold up everyone who
// wants a layer by giving it out a byte a minute.
type registryLocks struct {
	locks    *locks
	registry string
}

func (r registryLocks) Lock(ctx context.Context, key string) error {
	return r.locks.lock(ctx, r.registry+" "+key)
}

func (r registryLocks) Unlock(key string) { r.locks.unlock(r.registry + " " + key) }
