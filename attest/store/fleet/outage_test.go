package fleet_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
)

// load has many open, append to, sign and close attempts until it is told to
// stop, whatever happens to the servers. It keeps what was acknowledged.
type load struct {
	stores []*fleet.Store
	stop   atomic.Bool
	wg     sync.WaitGroup
	next   atomic.Int64
	done   atomic.Int64 // attempts that were closed

	mu           sync.Mutex
	acknowledged map[int]store.State
}

func startLoad(t *testing.T, o fleet.Options) *load {
	l := &load{acknowledged: map[int]store.State{}}
	for range 2 {
		l.stores = append(l.stores, open(t, o))
	}
	for w := range 4 {
		l.wg.Go(func() {
			for !l.stop.Load() {
				n := int(l.next.Add(1))
				if l.attempt(l.stores[w%2], n) != nil { // what is there tells the rest
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	return l
}

func (l *load) attempt(s *fleet.Store, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a := storetest.Attempt(n, int64(n))
	for _, step := range []struct {
		do   func() error
		then store.State
	}{
		{func() error { return s.Begin(ctx, a) }, store.StateOpen},
		{func() error { return s.AppendRecord(ctx, a.ID, 0, [][]byte{[]byte("line")}) }, store.StateOpen},
		{func() error { return s.Sign(ctx, a.ID, storetest.Drafts(n, 2), "group/project", true) }, store.StateSigned},
		{func() error { return s.Decide(ctx, a.ID, storetest.Decision(n, 2)) }, store.StateClosed},
	} {
		if err := step.do(); err != nil {
			return err
		}
		l.mu.Lock()
		l.acknowledged[n] = step.then
		l.mu.Unlock()
	}
	l.done.Add(1)
	return nil
}

// progress waits until so many more attempts were closed.
func (l *load) progress(t *testing.T, more int64) {
	t.Helper()
	for want, end := l.done.Load()+more, time.Now().Add(time.Minute); l.done.Load() < want; {
		if time.Now().After(end) {
			t.Fatal("nothing goes on")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// verify looks for all that was acknowledged, then finishes what was left.
func (l *load) verify(t *testing.T) {
	t.Helper()
	l.stop.Store(true)
	l.wg.Wait()
	ctx, s := t.Context(), l.stores[0]
	rank := map[store.State]int{store.StateOpen: 1, store.StateSigned: 2, store.StateClosed: 3}
	for n, state := range l.acknowledged {
		a, err := s.Attempt(ctx, storetest.Attempt(n, 0).ID)
		if err != nil || rank[a.State] < rank[state] {
			t.Errorf("attempt %d was acknowledged as %s, is %s, %v", n, state, a.State, err)
		}
		if state == store.StateClosed {
			if bs, err := storetest.Bundles(ctx, s, a.ID); err != nil || len(bs) != 2 {
				t.Errorf("attempt %d: %d bundles, %v", n, len(bs), err)
			}
		}
	}
	left, err := s.Signed(ctx, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range left {
		if err := s.Decide(ctx, a.ID, storetest.Decision(int(a.Job.ID), 2)); err != nil {
			t.Errorf("attempt %d cannot be finished: %v", a.Job.ID, err)
		}
	}
	if err := s.Sweep(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	check(t, s)
	t.Logf("%d attempts, %d of them finished later", len(l.acknowledged), len(left))
}

func TestPostgresRestartsUnderLoad(t *testing.T) {
	l := startLoad(t, running.Fresh(t))
	for range 2 {
		l.progress(t, 10)
		running.KillPostgres()
		if err := running.StartPostgres(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.progress(t, 10)
	l.verify(t)
}

func TestS3RestartsUnderLoad(t *testing.T) {
	l := startLoad(t, running.Fresh(t))
	for range 3 {
		l.progress(t, 10)
		running.StopS3()
		if err := running.StartS3(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	l.progress(t, 10)
	l.verify(t)
}

// TestWithoutS3 does all that is possible while the bucket is out of reach.
func TestWithoutS3(t *testing.T) {
	o := running.Fresh(t)
	s := open(t, o)
	ctx, a := t.Context(), storetest.Attempt(1, 1)
	running.StopS3()
	err := errors.Join(
		s.Ready(ctx), s.Begin(ctx, a), s.AppendRecord(ctx, a.ID, 0, [][]byte{[]byte("line")}),
		s.Sign(ctx, a.ID, storetest.Drafts(1, 2), "group/project", true))
	if err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.Decide(short, a.ID, storetest.Decision(1, 2)); err == nil || errors.Is(err, store.ErrDecided) {
		t.Errorf("closed without a bucket: %v", err)
	}
	if found, err := s.ByJob(ctx, 1, 10); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	if err := running.StartS3(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Decide(ctx, a.ID, storetest.Decision(1, 2)); err != nil {
		t.Error(err)
	}
	check(t, s)
}

// TestSweep puts bundles in the bucket that nobody decides, and decides while
// they are swept.
func TestSweep(t *testing.T) {
	o := running.Fresh(t)
	s := open(t, o)
	ctx := t.Context()
	if err := s.Begin(ctx, storetest.Attempt(1, 1)); err != nil {
		t.Fatal(err)
	}
	twice := storetest.Decision(1, 2) // fails once its bundles are there: the index takes each subject once
	twice.Bundles[1].Subjects[1] = twice.Bundles[1].Subjects[0]
	if err := s.Decide(ctx, storetest.Attempt(1, 1).ID, twice); err == nil {
		t.Fatal("decided")
	}
	digest := attesttest.SHA256(string(twice.Bundles[0].JSON))
	if err := s.Sweep(ctx, time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Content(ctx, digest); err != nil {
		t.Errorf("swept too soon: %v", err)
	}
	if err := s.Sweep(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Content(ctx, digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("not swept: %v", err)
	}
	check(t, s)
	decideWhileSwept(t, s)
	check(t, s)
}

// decideWhileSwept makes decisions while everything undecided is swept, however
// new: some fail for it, and succeed when tried again in peace.
func decideWhileSwept(t *testing.T, s *fleet.Store) {
	ctx := t.Context()
	var wg sync.WaitGroup
	sweep := make(chan struct{})
	defer wg.Wait()
	defer close(sweep)
	wg.Go(func() {
		for range sweep {
			if err := s.Sweep(ctx, time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
		}
	})
	for n := 2; n < 20; n++ {
		a := storetest.Attempt(n, int64(n))
		if err := s.Begin(ctx, a); err != nil {
			t.Fatal(err)
		}
		err := errors.New("not tried")
		for try := 0; err != nil && try < 100; try++ {
			if try%2 == 0 {
				select {
				case sweep <- struct{}{}:
				default: // is still at it
				}
			}
			err = s.Decide(ctx, a.ID, storetest.Decision(n, 2))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
