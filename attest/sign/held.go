package sign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hallmark.build/attest/sign/key"
)

// reopenEvery is how long a key that could not be opened is left alone.
const reopenEvery = 5 * time.Second

// A heldKey is a generation's key, opened when it is to sign first and held
// until the signer is closed.
type heldKey struct {
	turn chan struct{} // full while somebody looks at what follows
	key  key.Key
	err  error // why it could not be opened last
	next time.Time
}

var errNone = errors.New("nothing signs")

// signing is the generation of a role that signs now: the newest one. While two
// may, the older one signs if the key of the newer is out of reach.
func (s *Signer) signing(ctx context.Context, r *ring, role Role) (Generation, key.Key, error) {
	now := s.now()
	var failed error
	for i := len(r.generations) - 1; i >= 0; i-- {
		g := r.generations[i]
		if g.Role != role || !g.usable(now) {
			continue
		}
		k, err := s.held(g).open(ctx, s.o.Dir, g, now)
		if err == nil {
			return g, k, nil
		}
		if failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return Generation{}, nil, failed
	}
	return Generation{}, nil, fmt.Errorf("%w: no %s key may at %s: `hallmark-attestd keys rotate %s` makes one", errNone, role, now.Format(time.RFC3339), role)
}

func (s *Signer) held(g Generation) *heldKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.keys[g.ID]
	if h == nil {
		h = &heldKey{turn: make(chan struct{}, 1)}
		s.keys[g.ID] = h
	}
	return h
}

// open keeps nobody waiting but those who want this very key.
func (h *heldKey) open(ctx context.Context, dir string, g Generation, now time.Time) (key.Key, error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if h.key != nil {
		return h.key, nil
	}
	if h.err != nil && now.Before(h.next) {
		return nil, h.err
	}
	k, err := openKey(ctx, dir, g)
	if err != nil {
		if ctx.Err() == nil { // it is not the caller who gave up
			h.err, h.next = err, now.Add(reopenEvery)
		}
		return nil, err
	}
	h.key, h.err = k, nil
	return k, nil
}
