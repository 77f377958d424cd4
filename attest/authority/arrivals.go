package authority

import (
	"context"
	"sync"
)

// arrivals bounds the bytes of requests that have come, in part or whole, and
// wait for their turn: of all hosts together, as each host's own bound says
// little where hosts are many. Where there are too many, a request has to go of
// whoever has the most. So one that comes slowly takes its room from nobody.
type arrivals struct {
	most int64

	mu   sync.Mutex
	used int64
	in   map[*request]struct{}
}

// A request is one of them.
type request struct {
	all    *arrivals
	peer   string
	bytes  int64
	cancel context.CancelFunc
	out    bool // it had to go
}

func newArrivals(most int64) *arrivals {
	return &arrivals{most: most, in: map[*request]struct{}{}}
}

// enter counts a request of a peer, which has nothing yet. cancel is called when
// it has to go.
func (a *arrivals) enter(peer string, cancel context.CancelFunc) *request {
	a.mu.Lock()
	defer a.mu.Unlock()
	one := &request{all: a, peer: peer, cancel: cancel}
	a.in[one] = struct{}{}
	return one
}

// grow counts more bytes of a request. It reports whether it may stay.
func (r *request) grow(n int64) bool {
	a := r.all
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.out {
		return false
	}
	r.bytes += n
	a.used += n
	for a.used > a.most {
		last := a.largest(a.greediest())
		last.out = true
		a.remove(last)
		last.cancel()
	}
	return !r.out
}

// leave ends the count of a request. It reports whether it had to go.
func (r *request) leave() bool {
	r.all.mu.Lock()
	defer r.all.mu.Unlock()
	r.all.remove(r)
	return r.out
}

func (a *arrivals) remove(r *request) {
	if _, ok := a.in[r]; ok {
		delete(a.in, r)
		a.used -= r.bytes
	}
}

// greediest is the peer with the most bytes.
func (a *arrivals) greediest() (most string) {
	of := map[string]int64{}
	for r := range a.in {
		if of[r.peer] += r.bytes; of[r.peer] > of[most] {
			most = r.peer
		}
	}
	return most
}

// largest is the largest request of a peer.
func (a *arrivals) largest(peer string) (out *request) {
	for r := range a.in {
		if r.peer == peer && (out == nil || r.bytes > out.bytes) {
			out = r
		}
	}
	return out
}

// state is how many bytes are there.
func (a *arrivals) state() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used
}
