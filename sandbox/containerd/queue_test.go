package containerd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
)

// arrive has a customer wait in the queue; admitted tells when it is in.
func arrive(t *testing.T, q *queue, customer string, admitted chan<- string, leave <-chan struct{}) *sync.WaitGroup {
	t.Helper()
	there := func() int { q.mu.Lock(); defer q.mu.Unlock(); return len(q.waiting) + q.total }
	before := there()
	var wg sync.WaitGroup
	wg.Go(func() {
		out, err := q.enter(t.Context(), customer, func(string) {})
		if err != nil {
			return
		}
		admitted <- customer
		<-leave
		out()
	})
	waitFor(t, func() bool { return there() > before })
	return &wg
}

// A job with many images does not hold up a job with one.
func TestQueueIsFair(t *testing.T) {
	q := &queue{most: 2}
	admitted, leave := make(chan string), make(chan struct{})
	var all []*sync.WaitGroup
	for _, customer := range []string{"greedy", "greedy", "greedy", "greedy", "modest", "third"} {
		all = append(all, arrive(t, q, customer, admitted, leave))
	}
	var order []string
	for range 2 {
		order = append(order, <-admitted)
	}
	for range 4 {
		leave <- struct{}{}
		order = append(order, <-admitted)
	}
	close(leave)
	for _, wg := range all {
		wg.Wait()
	}
	if want := []string{"greedy", "greedy", "modest", "third", "greedy", "greedy"}; !slices.Equal(order, want) {
		t.Errorf("%v, want %v", order, want)
	}
	if q.total != 0 || len(q.inside)+len(q.waiting)+len(q.last) != 0 {
		t.Errorf("%+v is not empty", q)
	}
}

func TestQueueSaysThatItIsWaitedIn(t *testing.T) {
	q := &queue{most: 1}
	leave, err := q.enter(t.Context(), "a", func(line string) { t.Errorf("said %q at once", line) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	said := ""
	if _, err := q.enter(ctx, "b", func(line string) { said = line; cancel(gone) }); !errors.Is(err, gone) {
		t.Errorf("the one that went: %v", err)
	}
	if !strings.Contains(said, "pulls 1 images now, and 1 are in the queue") {
		t.Errorf("said %q", said)
	}
	leave()
	if leave, err = q.enter(t.Context(), "c", func(string) {}); err != nil {
		t.Fatal(err)
	}
	leave()
	if q.total+len(q.waiting)+len(q.last) != 0 {
		t.Errorf("%+v is not empty", q)
	}
}

func TestLocksOfOneRegistryHoldUpNoOther(t *testing.T) {
	var l locks
	stalling, good := registryLocks{&l, "stalling.example"}, registryLocks{&l, "good.example"}
	if err := stalling.Lock(t.Context(), "blob"); err != nil {
		t.Fatal(err)
	}
	if err := good.Lock(t.Context(), "blob"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := stalling.Lock(ctx, "blob"); err == nil {
		t.Error("taken twice")
	}
	took := make(chan error)
	go func() { took <- stalling.Lock(context.Background(), "blob") }()
	stalling.Unlock("blob")
	if err := <-took; err != nil {
		t.Error(err)
	}
	stalling.Unlock("blob")
	good.Unlock("blob")
	if len(l.open) != 0 {
		t.Errorf("%d locks left", len(l.open))
	}
}
