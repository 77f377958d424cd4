package parity

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/gitlabci"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
)

// notAlike says, by project, what no two runs of it have alike.
var notAlike = map[string]exemption{
	"cpp-cmake":   {Files: regexp.MustCompile(`\.log$`)},
	"c-autotools": {Files: regexp.MustCompile(`\.log$`)},
}

// fails are the jobs that are meant to: those of projects that show what
// becomes of a failed one.
var fails = []string{"checks", "shellcheck", "use", "no compiler needed"}

// TestRealWorldJobs runs the pipelines of testdata/jobs under both executors,
// unchanged but for the runner that takes them, and wants the same of each job.
func TestRealWorldJobs(t *testing.T) {
	files, err := filepath.Glob("testdata/jobs/*/.gitlab-ci.yml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("%d projects, want twenty", len(files))
	}
	for i, file := range files {
		dir, err := filepath.Abs(filepath.Dir(file))
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(dir)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPipeline(t, dir, int64(1000+i))
			p.run(t, notAlike[name])
			if p.keepsCaches() { // which the next pipeline finds
				p.run(t, notAlike[name])
			}
		})
	}
}

// A pipeline is the jobs of one project, and what became of them.
type pipeline struct {
	jobs []gitlabci.Job
	done map[string]pair
}

// A pair is one job under both executors.
type pair struct{ docker, hallmark coordinator.Result }

// newPipeline pushes a directory as a project.
func newPipeline(t *testing.T, dir string, id int64) *pipeline {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, ".gitlab-ci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	p := &pipeline{}
	if p.jobs, err = gitlabci.Parse(text); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	project := "samples/" + filepath.Base(dir)
	if _, err := theWorld.PublishDir(project, "main", dir); err != nil {
		t.Fatal(err)
	}
	for i := range p.jobs {
		p.jobs[i].Project, p.jobs[i].ProjectID = project, id
	}
	return p
}

// run carries the jobs out, at the same time where none waits for another, and
// compares each.
func (p *pipeline) run(t *testing.T, e exemption) {
	t.Helper()
	p.done = map[string]pair{}
	left := p.jobs
	for len(left) > 0 {
		var later []gitlabci.Job
		started := map[string][2]*coordinator.Attempt{}
		for _, j := range left {
			needed := p.needed(j)
			switch {
			case p.waits(needed, left):
				later = append(later, j)
			case p.due(j, needed):
				started[j.Name] = p.start(t, j, needed)
			}
		}
		if len(later) == len(left) {
			t.Fatal("jobs wait for each other")
		}
		for name, a := range started {
			both := pair{harness.Wait(t, a[0]), harness.Wait(t, a[1])}
			p.done[name] = both
			t.Run(name, func(t *testing.T) {
				if failed := both.docker.State == coordinator.Failed; failed != slices.Contains(fails, name) {
					t.Errorf("%s under docker's executor", both.docker.State)
				}
				compare(t, both.docker, both.hallmark, e)
			})
		}
		if t.Failed() {
			t.FailNow()
		}
		left = later
	}
	if len(p.done) == 0 {
		t.Error("no job ran")
	}
}

func (p *pipeline) keepsCaches() bool {
	return slices.ContainsFunc(p.jobs, func(j gitlabci.Job) bool { return len(j.Caches) > 0 })
}

// waits reports whether one of the needed jobs is still to be looked at.
func (p *pipeline) waits(needed []neededJob, left []gitlabci.Job) bool {
	return slices.ContainsFunc(needed, func(n neededJob) bool {
		return slices.ContainsFunc(left, func(j gitlabci.Job) bool { return j.Name == n.job.Name })
	})
}

// start adds a job for each executor, with what its needed jobs left for it.
func (p *pipeline) start(t *testing.T, j gitlabci.Job, needed []neededJob) [2]*coordinator.Attempt {
	t.Helper()
	docker, hallmark := j.Job, j.Job
	docker.Runner, hallmark.Runner = world.Docker, world.Hermetic
	docker.Variables, hallmark.Variables = slices.Clone(j.Variables), slices.Clone(j.Variables)
	for _, n := range needed {
		if n.artifacts {
			hand(t, &docker, p.done[n.job.Name].docker)
			hand(t, &hallmark, p.done[n.job.Name].hallmark)
		}
	}
	return [2]*coordinator.Attempt{harness.Begin(t, docker), harness.Begin(t, hallmark)}
}

// neededJob is a job that another one waits for.
type neededJob struct {
	job       gitlabci.Job
	artifacts bool
}

func (p *pipeline) needed(j gitlabci.Job) []neededJob {
	var out []neededJob
	for _, other := range p.jobs {
		if j.Needs == nil {
			if other.Before(j) {
				out = append(out, neededJob{other, true})
			}
			continue
		}
		for _, n := range j.Needs {
			if n.Job == other.Name {
				out = append(out, neededJob{other, n.Artifacts == nil || *n.Artifacts})
			}
		}
	}
	return out
}

// due reports whether GitLab would run a job after what it waits for.
func (p *pipeline) due(j gitlabci.Job, after []neededJob) bool {
	failed := false
	for _, n := range after {
		r, ran := p.done[n.job.Name]
		failed = failed || (ran && r.docker.State == coordinator.Failed && !n.job.MayFail)
	}
	switch j.When {
	case "always":
		return true
	case "on_failure":
		return failed
	}
	return !failed
}

// hand gives a job what an earlier one left for it, as GitLab does: its archive
// to download, and the variables of its dotenv report.
func hand(t *testing.T, j *coordinator.Job, from coordinator.Result) {
	t.Helper()
	if _, ok := from.Artifact("archive"); ok {
		j.Dependencies = append(j.Dependencies, from.ID)
	}
	report, ok := from.Artifact("dotenv")
	if !ok {
		return
	}
	z, err := gzip.NewReader(bytes.NewReader(report.Data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			j.Variables = append(j.Variables, coordinator.Variable{Key: key, Value: value, Public: true})
		}
	}
}
