package harness

import (
	"archive/zip"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/trace"
	"hallmark.build/integration/world"
)

var showTraces = flag.Bool("traces", false, "print the trace of every job")

// jobTime is longer than any job here takes; it only keeps a broken test from
// hanging.
const jobTime = 6 * time.Minute

// Hermetic is a job of the profile of that name, in the smallest image.
func Hermetic(script ...string) coordinator.Job {
	return coordinator.Job{
		Project: "group/project", Runner: world.Hermetic, Script: script,
		Image: coordinator.Image{Name: World.Images[images.Shell]},
	}
}

// Firewalled is the same for the other profile.
func Firewalled(script ...string) coordinator.Job {
	j := Hermetic(script...)
	j.Runner = world.Firewalled
	return j
}

// Begin adds a job, for tests that run beside others.
func Begin(t *testing.T, job coordinator.Job) *coordinator.Attempt {
	t.Helper()
	if job.Name == "" {
		job.Name = strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
	}
	a, err := World.GitLab.AddJob(job)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() || *showTraces {
			t.Logf("trace of job %d:\n%s", a.Job.ID, Plain(string(a.TraceBytes())))
		}
		if t.Failed() {
			t.Logf("programs:\n%s", World.Logs())
		}
	})
	return a
}

// Start is Begin for a test that runs alone: when it ends it checks that
// nothing is left of the job.
func Start(t *testing.T, job coordinator.Job) *coordinator.Attempt {
	t.Helper()
	a := Begin(t, job)
	t.Cleanup(func() {
		if leaks := World.Leaks(); len(leaks) > 0 {
			t.Errorf("left behind:\n%s", Lines(leaks))
		}
	})
	return a
}

// Run is Start, and waits for the result.
func Run(t *testing.T, job coordinator.Job) coordinator.Result {
	t.Helper()
	return Wait(t, Start(t, job))
}

// Wait returns how a job ended.
func Wait(t *testing.T, a *coordinator.Attempt) coordinator.Result {
	t.Helper()
	r, err := a.Wait(Within(t, jobTime))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Within is the test's context with a limit.
func Within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// WaitTrace waits until a job's log has a text.
func WaitTrace(t *testing.T, a *coordinator.Attempt, text string) {
	t.Helper()
	if err := a.WaitTrace(Within(t, jobTime), text); err != nil {
		t.Fatal(err)
	}
}

// Expect compares how a job ended.
func Expect(t *testing.T, r coordinator.Result, state coordinator.State, reason string) {
	t.Helper()
	if r.State != state || r.FailureReason != reason {
		t.Errorf("job %d: %s %q, want %s %q", r.ID, r.State, r.FailureReason, state, reason)
	}
}

// Mention requires each text in the trace.
func Mention(t *testing.T, r coordinator.Result, texts ...string) {
	t.Helper()
	log := Plain(r.Trace)
	for _, text := range texts {
		if !strings.Contains(log, text) {
			t.Errorf("job %d: trace does not say %q", r.ID, text)
		}
	}
}

// Never requires each text to be missing from the trace.
func Never(t *testing.T, r coordinator.Result, texts ...string) {
	t.Helper()
	log := Plain(r.Trace)
	for _, text := range texts {
		if i := strings.Index(log, text); i >= 0 {
			t.Errorf("job %d: trace says %q: %q", r.ID, text, log[max(0, i-100):min(len(log), i+200)])
		}
	}
}

// Archive reads the job's zip of artifacts.
func Archive(t *testing.T, r coordinator.Result) map[string]string {
	t.Helper()
	art, ok := r.Artifact("archive")
	if !ok {
		t.Fatalf("job %d: no archive was uploaded", r.ID)
	}
	z, err := zip.NewReader(bytes.NewReader(art.Data), int64(len(art.Data)))
	if err != nil {
		t.Fatalf("job %d: archive: %v", r.ID, err)
	}
	out := map[string]string{}
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		rc, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(rc)
		rc.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name] = string(data)
	}
	return out
}

// Plain is a trace without the runner's timestamps, colours and section marks.
func Plain(log string) string { return trace.Plain(log) }

// Lines shows a list, one a line.
func Lines(list []string) string { return "  " + strings.Join(list, "\n  ") }

// ExitCode renders an optional one.
func ExitCode(p *int) string {
	if p == nil {
		return "none"
	}
	return fmt.Sprint(*p)
}
