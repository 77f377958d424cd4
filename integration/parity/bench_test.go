package parity

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// The benchmarks measure both executors in turns, in the same minutes, and
// report medians and their ratio. They judge nothing.
//
//	go test -v -run '^$' -bench . ./integration/parity -args -pairs 9

var pairs = flag.Int("pairs", 5, "how often each side of a benchmark is measured, at least")

// crowd is how many jobs run at once where many do.
const crowd = 20

// trivial does nothing: its time is the executor's overhead alone.
func trivial() coordinator.Job {
	return coordinator.Job{
		Project: "group/project", Image: coordinator.Image{Name: theWorld.Images[images.Shell]}, Script: []string{"true"},
	}
}

// building is a job of the usual shape: it checks out, compiles, tests, uploads.
func building(b *testing.B) coordinator.Job {
	b.Helper()
	dir, err := filepath.Abs("testdata/jobs/c-autotools")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := theWorld.PublishDir("samples/bench", "main", dir); err != nil {
		b.Fatal(err)
	}
	j := trivial()
	j.Project, j.Image.Name = "samples/bench", theWorld.Images[images.C]
	j.Script = []string{"gcc -O2 -o roman roman.c", "./check.sh"}
	j.Artifacts = coordinator.Archive("roman")
	return j
}

func BenchmarkTrivialJob(b *testing.B) {
	one(b, func(int) coordinator.Job { return trivial() })
}

func BenchmarkBuildingJob(b *testing.B) {
	j := building(b)
	one(b, func(int) coordinator.Job { return j })
}

// BenchmarkService is the trivial job with a server of Redis beside it.
func BenchmarkService(b *testing.B) {
	j := trivial()
	j.Services = []coordinator.Image{{Name: theWorld.Images[images.Redis], Alias: "redis"}}
	one(b, func(int) coordinator.Job { return j })
}

// BenchmarkColdImage gives each turn an image that nobody has: the Go toolchain
// in layers that were not there before.
func BenchmarkColdImage(b *testing.B) {
	fresh := make([]string, max(b.N, *pairs))
	for i := range fresh {
		name, err := theWorld.PushFresh(images.Go, fmt.Sprintf("cold-%d", i))
		if err != nil {
			b.Fatal(err)
		}
		fresh[i] = name
	}
	one(b, func(turn int) coordinator.Job {
		j := trivial()
		j.Image.Name = fresh[turn]
		return j
	})
}

// BenchmarkCrowd is many trivial jobs at once, from the first one's being handed
// out to the last one's end.
func BenchmarkCrowd(b *testing.B) {
	before, err := theWorld.Concurrent(crowd)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if _, err := theWorld.Concurrent(before); err != nil {
			b.Error(err)
		}
	})
	inTurns(b, func(_ int, runner string) time.Duration {
		var list []*coordinator.Attempt
		for range crowd {
			list = append(list, add(b, trivial(), runner))
		}
		began := handedOut(b, list[0])
		for _, a := range list {
			await(b, a)
		}
		return time.Since(began)
	})
}

// one measures single jobs, after one of each executor to warm up.
func one(b *testing.B, job func(turn int) coordinator.Job) {
	for _, s := range sides {
		await(b, add(b, trivial(), s.runner))
	}
	inTurns(b, func(turn int, runner string) time.Duration {
		a := add(b, job(turn), runner)
		began := handedOut(b, a)
		await(b, a)
		return time.Since(began)
	})
}

var sides = []struct{ name, runner string }{{"hallmark", world.Hermetic}, {"docker", world.Docker}}

// inTurns measures both sides as often as was asked for, another one first
// every time, and reports. An iteration's own time means nothing.
func inTurns(b *testing.B, measure func(turn int, runner string) time.Duration) {
	b.ReportMetric(0, "ns/op")
	took := [2][]time.Duration{}
	for turn := range max(b.N, *pairs) {
		for i := range sides {
			i = (i + turn) % len(sides)
			took[i] = append(took[i], measure(turn, sides[i].runner))
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	b.Logf("load average %s", strings.TrimSpace(string(load)))
	for i, s := range sides {
		b.Logf("%-8s median %6.2f s (%.2f…%.2f)", s.name, median(took[i]).Seconds(), slices.Min(took[i]).Seconds(), slices.Max(took[i]).Seconds())
		b.ReportMetric(median(took[i]).Seconds(), s.name+"-s")
	}
	b.ReportMetric(float64(median(took[0]))/float64(median(took[1])), "ratio")
}

func median(of []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

func add(b *testing.B, j coordinator.Job, runner string) *coordinator.Attempt {
	b.Helper()
	j.Runner = runner
	a, err := theWorld.GitLab.AddJob(j)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// handedOut is the moment at which a runner got the job.
func handedOut(b *testing.B, a *coordinator.Attempt) time.Time {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); a.State() == coordinator.Pending; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("job %d: no runner took it\n%s", a.Job.ID, theWorld.Logs())
		}
	}
	return time.Now()
}

func await(b *testing.B, a *coordinator.Attempt) {
	b.Helper()
	r, err := a.Wait(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if r.State != coordinator.Success {
		b.Fatalf("job %d: %s %s\n%s\n%s", r.ID, r.State, r.FailureReason, harness.Plain(r.Trace), theWorld.Logs())
	}
}
