package authority

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestTurns holds that hosts take turns however many calls one of them has
// waiting, and that one host's calls keep their order.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurns(1, 1)
		mine, err := s.enter(t.Context(), "first", 1)
		if err != nil {
			t.Fatal(err)
		}
		var (
			order []string
			wg    sync.WaitGroup
		)
		for _, host := range []string{"greedy", "greedy", "greedy", "greedy", "modest", "third", "modest"} {
			wg.Go(func() {
				mine, err := s.enter(t.Context(), host, 1)
				if err != nil {
					t.Error(err)
					return
				}
				order = append(order, host) // one at a time has the turn
				mine.leave()
			})
			synctest.Wait()
		}
		if used, waiting := s.state(); used != 1 || waiting != 7 {
			t.Errorf("%d used, %d waiting", used, waiting)
		}
		mine.leave()
		wg.Wait()
		want := []string{"greedy", "modest", "third", "greedy", "modest", "greedy", "greedy"}
		if !slices.Equal(order, want) {
			t.Errorf("%v, want %v", order, want)
		}
		if used, waiting := s.state(); used != 0 || waiting != 0 || len(s.hosts) != 0 {
			t.Errorf("left behind: %d used, %d waiting, %d hosts", used, waiting, len(s.hosts))
		}
	})
}

// TestTurnsPerHost holds that a host at its own bound holds up nobody else.
func TestTurnsPerHost(t *testing.T) {
	s := newTurns(100, 2)
	for range 2 {
		if _, err := s.enter(t.Context(), "greedy", 1); err != nil {
			t.Fatal(err)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.enter(gone, "greedy", 1); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	mine, err := s.enter(t.Context(), "other", 1)
	if err != nil {
		t.Fatal(err)
	}
	mine.leave()
	mine.leave() // is once alone
	if used, waiting := s.state(); used != 2 || waiting != 0 {
		t.Errorf("%d used, %d waiting", used, waiting)
	}
}

// TestTurnsLarge holds that a large weight gets its turn among many small ones,
// and one above all bounds gets the bound.
func TestTurnsLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurns(10, 10)
		small, err := s.enter(t.Context(), "a", 1)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan string, 3)
		for i, host := range []string{"large", "b", "c"} {
			go func() {
				mine, err := s.enter(t.Context(), host, []int64{1000, 1, 1}[i])
				if err != nil {
					t.Error(err)
					return
				}
				done <- host
				mine.leave()
			}()
			synctest.Wait()
		}
		small.leave()
		if first := <-done; first != "large" {
			t.Errorf("%s went first", first)
		}
		<-done
		<-done
	})
}

// TestTurnsShrink holds that a part that is given back lets the next in.
func TestTurnsShrink(t *testing.T) {
	s := newTurns(10, 10)
	first, err := s.enter(t.Context(), "a", 10)
	if err != nil {
		t.Fatal(err)
	}
	first.shrink(20) // is no growth
	first.shrink(4)
	second, err := s.enter(t.Context(), "a", 6)
	if err != nil {
		t.Fatal(err)
	}
	if used, _ := s.state(); used != 10 {
		t.Errorf("%d used", used)
	}
	first.leave()
	second.leave()
	if used, _ := s.state(); used != 0 || len(s.hosts) != 0 {
		t.Errorf("%d used", used)
	}
}

// TestTurnsGiveUp has callers that go away in any order; nothing may be lost.
func TestTurnsGiveUp(t *testing.T) {
	s := newTurns(3, 2)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				go cancel()
			}
			if mine, err := s.enter(ctx, fmt.Sprint(i%5), int64(1+i%2)); err == nil {
				mine.leave()
			}
		})
	}
	wg.Wait()
	if used, waiting := s.state(); used != 0 || waiting != 0 || len(s.hosts) != 0 || len(s.ring) != 0 {
		t.Errorf("left behind: %d used, %d waiting, %d hosts", used, waiting, len(s.hosts))
	}
}
