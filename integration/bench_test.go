package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// The benchmarks of this package compare: each measures both of its sides in
// turns, on the same machine in the same minutes, and reports medians and their
// ratio. They judge nothing, and what one of them says is worth as much as the
// machine was idle; each logs the load average beside its table.
//
//	go test -v -run '^$' -bench . ./integration -args -pairs 9
//
// Without -v their tables are cut off.

var pairs = flag.Int("pairs", 5, "how often each side of a benchmark is measured, at least")

// benchTime is longer than any single job of a benchmark takes.
const benchTime = 10 * time.Minute

// prepareBenchmarks does, where the real network is, what they need of it.
func prepareBenchmarks(root string) error {
	flag.Parse()
	if f := flag.Lookup("test.bench"); f == nil || f.Value.String() == "" {
		return nil
	}
	return fetchCompiled(root)
}

// series are the timings of both sides of a comparison, by what was timed.
type series struct {
	names []string // in the order of their first timing
	sides map[string]map[string][]time.Duration
}

func (s *series) add(side, name string, d time.Duration) {
	if s.sides == nil {
		s.sides = map[string]map[string][]time.Duration{}
	}
	if s.sides[side] == nil {
		s.sides[side] = map[string][]time.Duration{}
	}
	if !slices.Contains(s.names, name) {
		s.names = append(s.names, name)
	}
	s.sides[side][name] = append(s.sides[side][name], d)
}

func (s *series) median(side, name string) time.Duration { return median(s.sides[side][name]) }

func median(of []time.Duration) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// ratio is that of two medians, 0 where one of them is missing.
func (s *series) ratio(name, side, to string) float64 {
	if base := s.median(to, name); base > 0 {
		return float64(s.median(side, name)) / float64(base)
	}
	return 0
}

// table shows medians side by side.
func (s *series) table(b *testing.B, side, to string) {
	b.Helper()
	var t strings.Builder
	fmt.Fprintf(&t, "milliseconds, medians of %d (least…most), load average %s\n", len(s.sides[side][s.names[0]]), loadAverage())
	fmt.Fprintf(&t, "%-32s %29s %29s %7s\n", "", side, to, "ratio")
	for _, name := range s.names {
		ratio := "-"
		if r := s.ratio(name, side, to); r > 0 {
			ratio = fmt.Sprintf("%.3f", r)
		}
		fmt.Fprintf(&t, "%-32s %29s %29s %7s\n", name, s.cell(side, name), s.cell(to, name), ratio)
	}
	b.Log(t.String())
}

func (s *series) cell(side, name string) string {
	of := s.sides[side][name]
	if len(of) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s…%s)", ms(median(of)), ms(slices.Min(of)), ms(slices.Max(of)))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", milliseconds(d)) }

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// report gives one timing's medians and ratio to the benchmark's result.
func (s *series) report(b *testing.B, name, unit, side, to string) {
	b.ReportMetric(milliseconds(s.median(side, name)), side+"-"+unit+"-ms")
	b.ReportMetric(milliseconds(s.median(to, name)), to+"-"+unit+"-ms")
	b.ReportMetric(s.ratio(name, side, to), unit+"-ratio")
}

func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

// inTurns calls both sides as often as was asked for, another one first every
// time. An iteration's own time means nothing, so it is left out of the result.
func inTurns(b *testing.B, one, other func()) {
	b.ReportMetric(0, "ns/op")
	for i := range max(b.N, *pairs) {
		if i%2 == 0 {
			one()
			other()
		} else {
			other()
			one()
		}
	}
}

// A timedJob is a job with the moments at which GitLab handed it out and was
// told its end.
type timedJob struct {
	coordinator.Result
	began, ended time.Time
}

func (j timedJob) took() time.Duration { return j.ended.Sub(j.began) }

// timeJob runs a job, which must succeed.
func timeJob(b *testing.B, job coordinator.Job) timedJob {
	b.Helper()
	a := addJob(b, job)
	return awaitJob(b, a, handedOut(b, a))
}

func addJob(b *testing.B, job coordinator.Job) *coordinator.Attempt {
	b.Helper()
	a, err := theWorld.GitLab.AddJob(job)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

// handedOut is the moment at which a runner got the job.
func handedOut(b *testing.B, a *coordinator.Attempt) time.Time {
	b.Helper()
	deadline := time.Now().Add(benchTime)
	for a.State() == coordinator.Pending {
		if time.Now().After(deadline) {
			b.Fatalf("job %d: no runner took it\n%s", a.Job.ID, theWorld.Logs())
		}
		time.Sleep(500 * time.Microsecond)
	}
	return time.Now()
}

func awaitJob(b *testing.B, a *coordinator.Attempt, began time.Time) timedJob {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), benchTime)
	defer cancel()
	r, err := a.Wait(ctx)
	ended := time.Now()
	if err != nil {
		b.Fatalf("%v\n%s", err, theWorld.Logs())
	}
	if r.State != coordinator.Success {
		b.Fatalf("job %d: %s %s\n%s\n%s", r.ID, r.State, r.FailureReason, plain(r.Trace), theWorld.Logs())
	}
	return timedJob{r, began, ended}
}

// fullJob goes through every stage that the runner has and does nothing in them.
func fullJob(runner string, dependency int64) coordinator.Job {
	return coordinator.Job{
		Project: "group/project", Runner: runner, Image: coordinator.Image{Name: theWorld.Images[images.Shell]},
		Script: []string{"true"}, AfterScript: []string{"true"},
		Artifacts:    coordinator.Archive("README"),
		Caches:       []coordinator.CacheRule{{Key: "bench", Paths: []string{"src/"}}},
		Dependencies: []int64{dependency},
		// The shell executor would find its last work tree again.
		Variables: []coordinator.Variable{{Key: "GIT_STRATEGY", Value: "clone", Public: true}},
	}
}

// firstJob makes the artifact that the others depend on, and warms a runner up.
func firstJob(b *testing.B, runner string) int64 {
	b.Helper()
	job := hermetic("echo from the first job > first.txt")
	job.Runner, job.Artifacts = runner, coordinator.Archive("first.txt")
	return timeJob(b, job).ID
}

// Both sides of the comparisons with the shell executor.
const (
	ours   = "hallmark"
	shells = "shell"
)

var runners = map[string]string{ours: world.Hermetic, shells: world.Shell}

// A moment is a line of a trace with the time that the runner saw its begin.
type moment struct {
	at   time.Time
	text string
}

const stampFormat = "2006-01-02T15:04:05.000000Z"

func moments(log string) []moment {
	var out []moment
	for line := range strings.Lines(log) {
		if len(line) < len(stampFormat) {
			continue
		}
		if at, err := time.Parse(stampFormat, line[:len(stampFormat)]); err == nil {
			out = append(out, moment{at, line})
		}
	}
	return out
}

// A stageSpan is one section of a trace.
type stageSpan struct {
	name         string
	began, ended time.Time
}

var sectionMark = regexp.MustCompile(`section_(start|end):\d+:([A-Za-z0-9_]+)`)

// stages are the sections that the runner itself makes, one a stage. Their marks
// count whole seconds; the stamps of the marks' lines are finer.
func stages(log string) []stageSpan {
	var out []stageSpan
	for _, m := range moments(log) {
		for _, mark := range sectionMark.FindAllStringSubmatch(m.text, -1) {
			name := mark[2]
			if strings.HasPrefix(name, "hallmark_") {
				continue
			}
			if mark[1] == "start" {
				out = append(out, stageSpan{name: name, began: m.at})
			} else if i := len(out) - 1; i >= 0 && out[i].name == name {
				out[i].ended = m.at
			}
		}
	}
	return slices.DeleteFunc(out, func(s stageSpan) bool { return s.ended.IsZero() })
}
