package storetest

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"hallmark.build/attest/store"
)

// Benchmark measures what a host waits for: one append under its job's lock,
// and the whole end of an attempt, by one host and by many.
func Benchmark(b *testing.B, open func(b *testing.B) store.Store) {
	line := bytes.Repeat([]byte("x"), 500)
	for _, hosts := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("append/hosts=%d", hosts), func(b *testing.B) {
			s := open(b)
			sizes := make([]int64, hosts)
			for h := range hosts {
				mustBench(b, s.Begin(b.Context(), Attempt(h, int64(h))))
			}
			share(b, hosts, func(h, _ int) error {
				ctx, unlock, err := s.Lock(b.Context(), int64(h))
				if err != nil {
					return err
				}
				defer unlock()
				err = s.AppendRecord(ctx, Attempt(h, 0).ID, sizes[h], [][]byte{line})
				sizes[h] += int64(len(line)) + 1
				return err
			})
		})
		b.Run(fmt.Sprintf("attest/hosts=%d", hosts), func(b *testing.B) {
			s := open(b)
			share(b, hosts, func(_, n int) error { return attestOne(b.Context(), s, n) })
		})
	}
}

// attestOne begins, signs and closes an attempt, under its job's lock.
func attestOne(ctx context.Context, s store.Store, n int) error {
	ctx, unlock, err := s.Lock(ctx, int64(n))
	if err != nil {
		return err
	}
	defer unlock()
	a := Attempt(n, int64(n))
	if err := s.Begin(ctx, a); err != nil {
		return err
	}
	if err := s.Sign(ctx, a.ID, Drafts(n, 1), "group/project", true); err != nil {
		return err
	}
	return s.Decide(ctx, a.ID, Decision(n, 1))
}

// share has many hosts do b.N things in all.
func share(b *testing.B, hosts int, do func(host, n int) error) {
	var (
		next atomic.Int64
		wg   sync.WaitGroup
	)
	b.ResetTimer()
	for h := range hosts {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := do(h, int(n)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "per_s")
}

func mustBench(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
