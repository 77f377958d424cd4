package integration

import (
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/sandbox/record"
)

// endless never ends by itself; chatty says so, and so the runner soon hears
// from GitLab.
const (
	endless = "while true; do sleep 0.1; done"
	chatty  = "while true; do echo .; sleep 0.2; done"
)

// kept is a job that sends what there is, however it ends.
func kept(job coordinator.Job, paths ...string) coordinator.Job {
	job.Artifacts = coordinator.Archive(paths...)
	job.Artifacts[0].When = "always"
	return job
}

// closes requires that the record of a job ends in a result.
func closes(t *testing.T, r coordinator.Result, want string, code int) {
	t.Helper()
	closing := dataOf[record.Closing](t, evidence(t, r), record.Closed)
	if len(closing) != 1 || closing[0].Result != want || closing[0].ExitCode != code {
		t.Errorf("job %d: the record ends in %+v, want %s with %d", r.ID, closing, want, code)
	}
}

// TestCancelGivesTheWholeTreeTimeToEnd has a program in the foreground, one in
// the background, and one in a session of its own put their work away. The
// script's own shell ends before them.
func TestCancelGivesTheWholeTreeTimeToEnd(t *testing.T) {
	tidy := func(name string) string {
		return "trap 'sleep 0.5; echo " + name + " >> saved.txt; exit' TERM; while :; do sleep 0.1; done"
	}
	job := kept(hermetic(
		"("+tidy("background")+") &", `setsid sh -c "`+tidy("session")+`" &`,
		"(trap '' TERM; "+endless+") &", // which is killed when time is up
		"(trap 'sleep 0.5; echo foreground >> saved.txt; exit' TERM; echo begun; while :; do sleep 0.1; done)",
	), "saved.txt")
	job.AfterScript = []string{"sort saved.txt", "echo status $CI_JOB_STATUS"}
	a := start(t, job)
	a.CancelOn("begun", coordinator.Canceling)
	r := wait(t, a)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	mention(t, r, "\nbackground\nforeground\nsession\n", "status canceled", "Job failed: canceled")
	if got := archive(t, r)["saved.txt"]; len(got) != len("background\nforeground\nsession\n") {
		t.Errorf("saved.txt holds %q", got)
	}
	closes(t, r, "canceled", 1)
	attested(t, r)
}

// TestTimeLimitsOfScripts are the runner's; the record says what they did.
func TestTimeLimitsOfScripts(t *testing.T) {
	with := func(key, value string, job coordinator.Job) coordinator.Job {
		job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: value})
		return job
	}
	afterwards := func(script ...string) coordinator.Job {
		job := kept(hermetic("echo out > out.txt"), "out.txt")
		job.AfterScript = script
		return job
	}
	slow := kept(hermetic("echo partial > out.txt", endless), "out.txt")
	slow.AfterScript = []string{"echo status $CI_JOB_STATUS"}
	together(t, map[string]coordinator.Job{
		"script":                      with("RUNNER_SCRIPT_TIMEOUT", "2s", slow),
		"longer than the job":         with("RUNNER_SCRIPT_TIMEOUT", "20m", afterwards("true")),
		"after_script":                with("RUNNER_AFTER_SCRIPT_TIMEOUT", "2s", afterwards("echo after begun", endless)),
		"after_script is not ignored": with("AFTER_SCRIPT_IGNORE_ERRORS", "false", afterwards("exit 7")),
	}, func(t *testing.T, name string, r coordinator.Result) {
		switch name {
		case "script":
			expect(t, r, coordinator.Failed, "job_execution_timeout")
			mention(t, r, "status timedout")
			closes(t, r, "canceled", 1)
		case "longer than the job":
			expect(t, r, coordinator.Success, "")
			mention(t, r, "RUNNER_SCRIPT_TIMEOUT")
			closes(t, r, "success", 0)
		case "after_script":
			expect(t, r, coordinator.Success, "")
			mention(t, r, "after begun", "job will continue unaffected")
			closes(t, r, "success", 0)
		case "after_script is not ignored":
			expect(t, r, coordinator.Failed, "script_failure")
			if exitCode(r.ExitCode) != "7" {
				t.Errorf("exit code %s, want after_script's 7", exitCode(r.ExitCode))
			}
			closes(t, r, "failed", 7)
		}
		attested(t, r) // for what it is
	})
}

func TestCancelAtOtherTimes(t *testing.T) {
	for name, c := range map[string]struct {
		on string
		to coordinator.State
	}{
		"while the sandbox is made":          {"Preparing the sandbox", coordinator.Canceling},
		"while the sandbox is made, at once": {"Preparing the sandbox", coordinator.Canceled},
		"while sources come":                 {"Getting source", coordinator.Canceling},
		"while sources come, at once":        {"Getting source", coordinator.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, hermetic(chatty))
			a.CancelOn(c.on, c.to)
			waitTrace(t, a, c.on)
			gone(t)
			unattestedID(t, a)
		})
	}
	t.Run("again, at once", func(t *testing.T) {
		job := hermetic("echo begun", chatty)
		job.AfterScript = []string{"echo after begun", chatty}
		a := start(t, job)
		a.CancelOn("begun", coordinator.Canceling)
		waitTrace(t, a, "O after begun")
		a.ForceCancel()
		gone(t)
		unattestedID(t, a)
	})
}

// TestRetriesAreAttemptsOfTheirOwn has GitLab's retry, which is a new job, and
// the runner's own of a download.
func TestRetriesAreAttemptsOfTheirOwn(t *testing.T) {
	first := run(t, kept(hermetic("echo one > out.txt", "exit 1"), "out.txt"))
	expect(t, first, coordinator.Failed, "script_failure")
	again := run(t, kept(hermetic("echo one > out.txt"), "out.txt"))
	expect(t, again, coordinator.Success, "")
	closes(t, first, "failed", 1)
	closes(t, again, "success", 0)
	if a, b := attested(t, first), attested(t, again); a.Attempt == b.Attempt {
		t.Errorf("both are attempt %s", a.Attempt)
	}
	defer theWorld.GitLab.Inject(coordinator.Fault{Method: "GET", Path: "/api/v4/jobs/*/artifacts", Status: 404, Times: 1})()
	job := hermetic("cat out.txt")
	job.Dependencies = []int64{again.ID}
	job.Variables = []coordinator.Variable{{Key: "ARTIFACT_DOWNLOAD_ATTEMPTS", Value: "2"}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "not found", "Retrying", "\none")
}
