package parity

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/trace"
	"hallmark.build/integration/world"
)

// begin adds a job for each executor: docker's, and the hermetic one of ours.
func begin(t *testing.T, job coordinator.Job) [2]*coordinator.Attempt {
	t.Helper()
	other := job
	job.Runner, other.Runner = world.Hermetic, world.Docker
	return [2]*coordinator.Attempt{harness.Begin(t, other), harness.Begin(t, job)}
}

// both runs a job under each executor, at the same time, and returns how it
// ended under docker's and under ours.
func both(t *testing.T, job coordinator.Job) (docker, hallmark coordinator.Result) {
	t.Helper()
	a := begin(t, job)
	return harness.Wait(t, a[0]), harness.Wait(t, a[1])
}

// An outcome is what a project sees of a job that has ended.
type outcome struct {
	State, Reason, ExitCode string
	Output                  []string // of the job's scripts
	Artifacts               []artifact
}

type artifact struct {
	Type, Format, FileName, ExpireIn string
	Files                            []string // with mode and size, or what the file itself says
}

// An exemption says what may differ from one run of a job to the next.
type exemption struct {
	// Lines of output are compared without what this finds in them.
	Lines *regexp.Regexp
	// Files whose names match have contents that no two runs make alike.
	Files *regexp.Regexp
}

// durations are in the output of every test framework, and in reports.
var durations = regexp.MustCompile(`\d+(\.\d+)? ?(ms|s|sec|secs|seconds|wallclock secs)\b|\b\d+\.\d{2,}\b|(?:job_id: |job )\d+`)

func outcomeOf(t *testing.T, r coordinator.Result, e exemption) outcome {
	t.Helper()
	o := outcome{State: string(r.State), Reason: r.FailureReason, ExitCode: harness.ExitCode(r.ExitCode), Output: scriptOutput(r.Trace)}
	for i, line := range o.Output {
		line = durations.ReplaceAllString(line, "#")
		if e.Lines != nil {
			line = e.Lines.ReplaceAllString(line, "#")
		}
		o.Output[i] = line
	}
	for _, a := range r.Artifacts {
		if a.Type == "trace" || a.Type == "metadata" {
			continue
		}
		o.Artifacts = append(o.Artifacts, artifact{a.Type, a.Format, a.FileName, a.ExpireIn, contents(t, a, e)})
	}
	slices.SortFunc(o.Artifacts, func(a, b artifact) int { return strings.Compare(a.Type+a.FileName, b.Type+b.FileName) })
	return o
}

// contents lists a zip's entries, sorted: the runner packs several at once.
func contents(t *testing.T, a coordinator.Artifact, e exemption) []string {
	t.Helper()
	if a.Format != "zip" {
		return members(t, a)
	}
	z, err := zip.NewReader(bytes.NewReader(a.Data), int64(len(a.Data)))
	if err != nil {
		t.Fatalf("%s: %v", a.FileName, err)
	}
	var out []string
	for _, f := range z.File {
		line := fmt.Sprintf("%s %s", f.Mode(), f.Name)
		if f.Mode().IsRegular() && (e.Files == nil || !e.Files.MatchString(f.Name)) {
			rc, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			rc.Close()
			if err != nil {
				t.Fatal(err)
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(data))
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// members are the files of a report: their names, and how many lines each has,
// for some tell times.
func members(t *testing.T, a coordinator.Artifact) []string {
	t.Helper()
	r := bytes.NewReader(a.Data)
	z, err := gzip.NewReader(r)
	var out []string
	for ; err == nil; err = z.Reset(r) {
		z.Multistream(false)
		text, err := io.ReadAll(z)
		if err != nil {
			t.Fatalf("%s: %v", a.FileName, err)
		}
		out = append(out, fmt.Sprintf("%s: %d lines", z.Name, bytes.Count(text, []byte("\n"))))
	}
	if !errors.Is(err, io.EOF) {
		t.Fatalf("%s: %v", a.FileName, err)
	}
	return out
}

// own begins the lines that executors add to the sections of a job's scripts.
var own = regexp.MustCompile(`^(Using effective pull policy|Using docker image|Pulling docker image|Running after script|waiting for \d+ services|services ready after|WARNING: Starting with version 17\.0)`)

// scriptOutput is what the job's own scripts said. It is sorted, for docker's
// executor carries the two streams apart, and a line of one may overtake some of
// the other.
func scriptOutput(log string) []string {
	var out []string
	for _, p := range trace.Parse(log).Parts {
		if p.Section == nil || !slices.Contains([]string{"step_script", "build_script", "after_script"}, p.Section.Name) {
			continue
		}
		for _, line := range ownLines(p.Section) {
			if !own.MatchString(line) && line != "" {
				out = append(out, line)
			}
		}
	}
	slices.Sort(out)
	return out
}

func ownLines(s *trace.Section) []string {
	var out []string
	for _, p := range s.Parts {
		if p.Section == nil {
			out = append(out, harness.Plain(p.Line))
		}
	}
	return out
}

// compare requires the same outcome of both.
func compare(t *testing.T, docker, hallmark coordinator.Result, e exemption) {
	t.Helper()
	if d := cmp.Diff(outcomeOf(t, docker, e), outcomeOf(t, hallmark, e)); d != "" {
		t.Errorf("under docker's executor (-) and under Hallmark (+):\n%s", d)
	}
}

func TestExitCodesAndOutput(t *testing.T) {
	for name, script := range map[string][]string{
		"success":    {"echo hello", "cat README", "printf 'no newline'"},
		"failure":    {"echo before", "exit 3", "echo never"},
		"not found":  {"no-such-program"},
		"pipeline":   {"false | true", "echo still here"},
		"signal":     {"sh -c 'kill -9 $$'"},
		"stderr":     {"echo out", "echo err >&2"},
		"multi line": {"if true; then\n  echo inside\nfi", "echo after"},
		"unicode":    {`printf 'gr\303\274n \342\234\223\n'`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			docker, hallmark := both(t, harness.Hermetic(script...))
			compare(t, docker, hallmark, exemption{})
			if len(scriptOutput(docker.Trace)) == 0 {
				t.Error("nothing was compared: the script said nothing")
			}
		})
	}
}

// TestComparisonSeesDifferences keeps the comparison honest.
func TestComparisonSeesDifferences(t *testing.T) {
	one, _ := both(t, artifactJob("echo one > out.txt"))
	_, other := both(t, artifactJob("echo two > out.txt"))
	a, b := outcomeOf(t, one, exemption{}), outcomeOf(t, other, exemption{})
	if cmp.Equal(a.Output, b.Output) || cmp.Equal(a.Artifacts, b.Artifacts) || len(a.Artifacts) != 1 {
		t.Errorf("two jobs that differ look alike: %+v, %+v", a, b)
	}
	free := exemption{Files: regexp.MustCompile(`out\.txt`), Lines: regexp.MustCompile("one|two")}
	compare(t, one, other, free)
}

func artifactJob(script ...string) coordinator.Job {
	j := harness.Hermetic(script...)
	j.Artifacts = coordinator.Archive("out.txt")
	return j
}
