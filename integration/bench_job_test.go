package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// BenchmarkWholeJob is a job of all stages with empty scripts, from the moment
// GitLab hands it out to the runner's last word, under Hallmark and under the
// same runner's shell executor.
func BenchmarkWholeJob(b *testing.B) {
	var times series
	measure := func(side string) func() {
		first := firstJob(b, runners[side])
		return func() {
			j := timeJob(b, fullJob(runners[side], first))
			times.add(side, "whole job", j.took())
			addStages(&times, side, j)
			if side == ours {
				addPhases(b, &times, j)
			}
		}
	}
	inTurns(b, measure(ours), measure(shells))
	times.table(b, ours, shells)
	times.report(b, "whole job", "job", ours, shells)
	for _, name := range times.names {
		if !strings.HasPrefix(name, " ") && name != "whole job" {
			b.ReportMetric(milliseconds(times.median(ours, name)), ours+"-"+name+"-ms")
			b.ReportMetric(milliseconds(times.median(shells, name)), shells+"-"+name+"-ms")
		}
	}
}

// addStages adds a job's stages, and what is before and after them.
func addStages(times *series, side string, j timedJob) {
	list := stages(j.Trace)
	if len(list) == 0 {
		return
	}
	times.add(side, "before", list[0].began.Sub(j.began))
	for _, s := range list {
		times.add(side, s.name, s.ended.Sub(s.began))
	}
	times.add(side, "after", j.ended.Sub(list[len(list)-1].ended))
}

// addPhases adds what the record tells of a stage's inside: its process alone,
// and the parts of preparing.
func addPhases(b *testing.B, times *series, j timedJob) {
	entries := recordOf(b, j.Result)
	lines := moments(j.Trace)
	at := func(text string) time.Time {
		for _, m := range lines {
			if strings.Contains(plain(m.text), text) {
				return m.at
			}
		}
		b.Fatalf("job %d: its trace does not say %q", j.ID, text)
		return time.Time{}
	}
	begin, resolving, ready := at("Preparing the sandbox"), at(": pull policy"), at("image   ")
	var opened, resolved time.Time
	for _, e := range entries {
		switch e.Kind {
		case record.JobOpened:
			opened = e.Time
		case record.ImageResolved:
			var image record.Image
			if err := e.Decode(&image); err != nil {
				b.Fatal(err)
			}
			if image.Role == string(sandbox.Build) {
				resolved = e.Time
			}
		}
	}
	times.add(ours, " config, driver, payload", begin.Sub(j.began))
	times.add(ours, " open with the authority", opened.Sub(begin))
	times.add(ours, " first entry durable", resolving.Sub(opened))
	times.add(ours, " resolve the job's image", resolved.Sub(resolving))
	times.add(ours, " until ready", ready.Sub(resolved))
	for _, s := range dataOfB[record.Ended](b, entries, record.StageEnded) {
		times.add(ours, " process of "+s.Stage, time.Duration(s.DurationMS)*time.Millisecond)
	}
}

// recordOf is the record that the authority holds of a job.
func recordOf(b *testing.B, r coordinator.Result) []record.Entry {
	b.Helper()
	attempt := harness.AttemptOf(r)
	if attempt == "" {
		b.Fatalf("job %d: its log names no attempt", r.ID)
	}
	resp, err := http.Get(world.AttestdURL + "/v1/attempts/" + attempt + "/record")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("job %d: record: %s %v", r.ID, resp.Status, err)
	}
	entries, _, err := record.Read(bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	return entries
}

func dataOfB[T any](b *testing.B, entries []record.Entry, kind record.Kind) []T {
	b.Helper()
	var out []T
	for _, e := range entries {
		if e.Kind != kind {
			continue
		}
		var v T
		if err := e.Decode(&v); err != nil {
			b.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// BenchmarkTenJobs is ten jobs of all stages at once, from the first one's being
// handed out to the last one's end.
func BenchmarkTenJobs(b *testing.B) {
	concurrent(b, crowd)
	var times series
	measure := func(side string) func() {
		first := firstJob(b, runners[side])
		return func() {
			var list []*coordinator.Attempt
			for range crowd {
				list = append(list, addJob(b, fullJob(runners[side], first)))
			}
			began := handedOut(b, list[0])
			var last, out time.Time
			for _, a := range list {
				out = handedOut(b, a)
			}
			var sum time.Duration
			for _, a := range list {
				j := awaitJob(b, a, began)
				last = j.ended
				for _, s := range stages(j.Trace) {
					sum += s.ended.Sub(s.began)
				}
			}
			times.add(side, "ten jobs", last.Sub(began))
			times.add(side, "until all are handed out", out.Sub(began))
			times.add(side, "a job's stages, mean", sum/crowd)
		}
	}
	inTurns(b, measure(ours), measure(shells))
	times.table(b, ours, shells)
	times.report(b, "ten jobs", "all", ours, shells)
	for _, side := range []string{ours, shells} {
		b.ReportMetric(crowd/times.median(side, "ten jobs").Minutes(), side+"-jobs/min")
	}
}

// crowd is how many jobs run at once where many do.
const crowd = 10

// concurrent lets the runner run n jobs at once until the benchmark ends.
func concurrent(b *testing.B, n int) {
	b.Helper()
	before, err := theWorld.Concurrent(n)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if _, err := theWorld.Concurrent(before); err != nil {
			b.Error(fmt.Errorf("put back: %w", err))
		}
	})
}
