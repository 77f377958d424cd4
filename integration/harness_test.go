package integration

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

// project is the repository of most jobs.
var project = map[string]string{
	"README":      "hello\n",
	"src/main.sh": "#!/bin/sh\necho built from $(cat README)\n",
}

var showTraces = flag.Bool("traces", false, "print the trace of every job")

// jobTime is longer than any job here takes; it only keeps a broken test from
// hanging.
const jobTime = 3 * time.Minute

// hermetic is a job of the profile of that name, in the smallest image.
func hermetic(script ...string) coordinator.Job {
	return coordinator.Job{
		Project: "group/project", Runner: world.Hermetic, Script: script,
		Image: coordinator.Image{Name: theWorld.Images[images.Shell]},
	}
}

// firewalled is the same for the other profile.
func firewalled(script ...string) coordinator.Job {
	j := hermetic(script...)
	j.Runner = world.Firewalled
	return j
}

// start adds a job. When the test ends it checks that nothing is left of it.
func start(t *testing.T, job coordinator.Job) *coordinator.Attempt {
	t.Helper()
	if job.Name == "" {
		job.Name = strings.ToLower(strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()))
	}
	a, err := theWorld.GitLab.AddJob(job)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() || *showTraces {
			t.Logf("trace of job %d:\n%s", a.Job.ID, plain(string(a.TraceBytes())))
		}
		if t.Failed() {
			t.Logf("programs:\n%s", theWorld.Logs())
		}
		if leaks := theWorld.Leaks(); len(leaks) > 0 {
			t.Errorf("left behind:\n%s", lines(leaks))
		}
	})
	return a
}

// run is start, and waits for the result.
func run(t *testing.T, job coordinator.Job) coordinator.Result {
	t.Helper()
	return wait(t, start(t, job))
}

func wait(t *testing.T, a *coordinator.Attempt) coordinator.Result {
	t.Helper()
	r, err := a.Wait(within(t, jobTime))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// waitTrace waits until a job's log has a text.
func waitTrace(t *testing.T, a *coordinator.Attempt, text string) {
	t.Helper()
	if err := a.WaitTrace(within(t, jobTime), text); err != nil {
		t.Fatal(err)
	}
}

// expect compares how a job ended.
func expect(t *testing.T, r coordinator.Result, state coordinator.State, reason string) {
	t.Helper()
	if r.State != state || r.FailureReason != reason {
		t.Errorf("job %d: %s %q, want %s %q", r.ID, r.State, r.FailureReason, state, reason)
	}
}

// mention requires each text in the trace.
func mention(t *testing.T, r coordinator.Result, texts ...string) {
	t.Helper()
	log := plain(r.Trace)
	for _, text := range texts {
		if !strings.Contains(log, text) {
			t.Errorf("job %d: trace does not say %q", r.ID, text)
		}
	}
}

// never requires each text to be missing from the trace.
func never(t *testing.T, r coordinator.Result, texts ...string) {
	t.Helper()
	log := plain(r.Trace)
	for _, text := range texts {
		if i := strings.Index(log, text); i >= 0 {
			t.Errorf("job %d: trace says %q: %q", r.ID, text, log[max(0, i-100):min(len(log), i+200)])
		}
	}
}

// archive reads the job's zip of artifacts.
func archive(t *testing.T, r coordinator.Result) map[string]string {
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

// plain is a trace without the runner's timestamps, colours and section marks.
func plain(log string) string { return trace.Plain(log) }

func lines(list []string) string { return "  " + strings.Join(list, "\n  ") }

// exitCode renders an optional one.
func exitCode(p *int) string {
	if p == nil {
		return "none"
	}
	return fmt.Sprint(*p)
}
