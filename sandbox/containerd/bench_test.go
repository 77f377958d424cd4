package containerd

import (
	"os"
	"testing"

	"hallmark.build/sandbox"
)

// BenchmarkCreate is a sandbox from nothing to ready; the way back is not
// counted.
func BenchmarkCreate(b *testing.B) {
	bench := start(b)
	netns := hostNetNS(b)
	s := bench.spec("base")
	s.NetNS, s.CA = netns, authority("bench")
	b.ResetTimer()
	for range b.N {
		s.Session = freshSession()
		c, err := bench.runtime.Create(b.Context(), s)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
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
	b.ResetTimer()
	for range b.N {
		if exit, err := c.Run(b.Context(), p); err != nil || exit.Code != 0 {
			b.Fatalf("%+v, %v", exit, err)
		}
	}
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
	b.ResetTimer()
	for range b.N {
		s.Session = freshSession()
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
	}
}

// BenchmarkKill is from the call until everything is dead.
func BenchmarkKill(b *testing.B) {
	bench := start(b)
	for range b.N {
		b.StopTimer()
		c, err := bench.runtime.Create(b.Context(), bench.spec("base"))
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := c.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
