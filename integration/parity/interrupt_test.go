package parity

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/sandbox/record"
)

// TestNewerPipelineInterruptsTheOlder has GitLab cancel jobs because their branch
// moved on: those that say interruptible, and no others. after_script runs. What
// a job has by then is sent and attested, as of a job that was canceled; one that
// has nothing to send leaves nothing to attest.
func TestNewerPipelineInterruptsTheOlder(t *testing.T) {
	const (
		older    = 50001
		waits    = "while :; do echo .; sleep 0.2; done" // and so the runner soon hears from GitLab
		goesOn   = "for i in 1 2 3 4 5 6 7 8 9; do echo .; sleep 0.5; done"
		tellsEnd = "echo status $CI_JOB_STATUS"
	)
	for name, c := range map[string]struct {
		interruptible, sends bool
		script, result       string
	}{
		"sends what there is": {true, true, waits, "canceled"},
		"has nothing to send": {true, false, waits, "canceled"},
		"not interruptible":   {false, true, goesOn, "success"},
	} {
		t.Run(name, func(t *testing.T) {
			job := harness.Hermetic("echo partial > out.txt", "echo begun", c.script)
			job.AfterScript = []string{tellsEnd, "cat out.txt"}
			job.PipelineID, job.Interruptible = older, c.interruptible
			if c.sends {
				job.Artifacts = coordinator.Archive("out.txt")
				job.Artifacts[0].When = "always"
			}
			running := begin(t, job)
			for _, a := range running {
				harness.WaitTrace(t, a, "O begun")
			}
			newer := harness.Hermetic("echo newer")
			newer.PipelineID = older + 1
			latest := harness.Begin(t, newer)
			docker, hallmark := harness.Wait(t, running[0]), harness.Wait(t, running[1])
			harness.Expect(t, harness.Wait(t, latest), coordinator.Success, "")

			if d := cmp.Diff(withoutDots(t, docker), withoutDots(t, hallmark)); d != "" {
				t.Errorf("under docker's executor (-) and under Hallmark (+):\n%s", d)
			}
			harness.Mention(t, hallmark, "\nstatus "+c.result+"\n", "\npartial\n")
			closing := harness.DataOf[record.Closing](t, harness.Evidence(t, hallmark), record.Closed)
			if len(closing) != 1 || closing[0].Result != c.result {
				t.Errorf("the record ends in %+v, want %s", closing, c.result)
			}
			if !c.sends {
				harness.Unattested(t, hallmark)
				return
			}
			if got := harness.Attested(t, hallmark).Statement.Raw; !strings.Contains(got, `"result":"`+c.result+`"`) {
				t.Errorf("the statement does not say %q: %s", c.result, got)
			}
		})
	}
}

// withoutDots is the outcome of a job that prints them until it is stopped.
func withoutDots(t *testing.T, r coordinator.Result) outcome {
	t.Helper()
	o := outcomeOf(t, r, exemption{})
	o.Output = slices.DeleteFunc(o.Output, func(line string) bool { return line == "." })
	return o
}
