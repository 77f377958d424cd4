package containerd

import (
	"os"
	"slices"
	"testing"
	"time"

	"hallmark.build/sandbox"
)

// laps reports the fastest and the middle one beside the mean: on a busy
// machine they say more.
type laps struct {
	b   *testing.B
	all []time.Duration
}

func (l *laps) time(f func()) {
	began := time.Now()
	f()
	l.all = append(l.all, time.Since(began))
}

func (l *laps) report() {
	slices.Sort(l.all)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	l.b.ReportMetric(ms(l.all[0]), "min-ms")
	l.b.ReportMetric(ms(l.all[len(l.all)/2]), "median-ms")
}

// BenchmarkCreate is a sandbox from nothing to ready; the way back is not
// counted.
func BenchmarkCreate(b *testing.B) {
	bench := start(b)
	netns := hostNetNS(b)
	s := bench.spec("base")
	s.NetNS, s.CA = netns, authority("bench")
	l := laps{b: b}
	b.ResetTimer()
	for range b.N {
		s.Session = freshSession()
		var c *Container
		var err error
		l.time(func() { c, err = bench.runtime.Create(b.Context(), s) })
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	l.report()
}

// BenchmarkStage is one stage that does next to nothing.
func BenchmarkStage(b *testing.B) {
	bench := start(b)
	c := bench.create(b, bench.spec("base"))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	p := sandbox.Process{Shell: true, Env: []string{"PATH=/bin"}, User: "1000:1000", Stdin: null, Stdout: null, Stderr: null}
	l := laps{b: b}
	b.ResetTimer()
	for range b.N {
		l.time(func() {
			if exit, err := c.Run(b.Context(), p); err != nil || exit.Code != 0 {
				b.Fatalf("%+v, %v", exit, err)
			}
		})
	}
	l.report()
}

// BenchmarkJob is a sandbox, eight stages and the way back.
func BenchmarkJob(b *testing.B) {
	bench := start(b)
	netns := hostNetNS(b)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	s := bench.spec("base")
	s.NetNS, s.CA = netns, authority("bench")
	p := sandbox.Process{Shell: true, Env: []string{"PATH=/bin"}, Stdin: null, Stdout: null, Stderr: null}
	l := laps{b: b}
	b.ResetTimer()
	for range b.N {
		s.Session = freshSession()
		l.time(func() {
			c, err := bench.runtime.Create(b.Context(), s)
			if err != nil {
				b.Fatal(err)
			}
			for range 8 {
				if exit, err := c.Run(b.Context(), p); err != nil || exit.Code != 0 {
					b.Fatalf("%+v, %v", exit, err)
				}
			}
			if err := c.Delete(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
	l.report()
}

// BenchmarkKill is from the call until everything is dead.
func BenchmarkKill(b *testing.B) {
	bench := start(b)
	l := laps{b: b}
	for range b.N {
		b.StopTimer()
		c, err := bench.runtime.Create(b.Context(), bench.spec("base"))
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		l.time(func() { err = c.Kill(b.Context()) })
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	l.report()
}
