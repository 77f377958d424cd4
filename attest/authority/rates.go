package authority

import (
	"sync"
	"time"
)

// maxRates bounds the keys that are remembered; those at rest are forgotten first.
const maxRates = 4096

// rates bound how often something may be done under each key: a bucket of
// tokens that fills again with time.
type rates struct {
	every time.Duration // for one token
	burst int           // in a full bucket
	now   func() time.Time

	mu   sync.Mutex
	full map[string]time.Time // when the key's bucket will be full
}

func newRates(perMinute, burst int, now func() time.Time) *rates {
	return &rates{every: time.Minute / time.Duration(perMinute), burst: burst, now: now, full: map[string]time.Time{}}
}

// take takes a token, or says how long to wait for one.
func (r *rates) take(key string) (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	full := r.full[key]
	if full.Before(now) {
		full = now
	}
	if missing := full.Sub(now) + r.every; missing > time.Duration(r.burst)*r.every {
		return missing - time.Duration(r.burst)*r.every, false
	}
	if len(r.full) >= maxRates {
		r.forget(now)
	}
	r.full[key] = full.Add(r.every)
	return 0, true
}

// ready reports whether a token is there, without taking it.
func (r *rates) ready(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.full[key].Sub(r.now())+r.every <= time.Duration(r.burst)*r.every
}

// forget lets go of full buckets, and of all if there is none: a flood of keys
// must not fill the memory.
func (r *rates) forget(now time.Time) {
	for key, full := range r.full {
		if full.Before(now) {
			delete(r.full, key)
		}
	}
	if len(r.full) >= maxRates {
		clear(r.full)
	}
}
