package integration

import (
	"syscall"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
)

// long is a script that says when it has begun, and does not end by itself.
var long = []string{"echo begun", "while true; do sleep 0.1; done"}

func TestCancelEndsTheScriptAndRunsTheRest(t *testing.T) {
	job := hermetic(append([]string{"echo partial > out.txt"}, long...)...)
	job.AfterScript = []string{"echo after was run"}
	job.Artifacts = coordinator.Archive("out.txt")
	job.Artifacts[0].When = "always"
	a := start(t, job)
	a.CancelOn("begun", coordinator.Canceling)
	r := wait(t, a)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	mention(t, r, "after was run", "canceled")
	if got := archive(t, r)["out.txt"]; got != "partial\n" {
		t.Errorf("out.txt holds %q", got)
	}
}

func TestForcedCancelEndsEverythingAtOnce(t *testing.T) {
	job := hermetic(long...)
	job.AfterScript = []string{"echo after was run"}
	a := start(t, job)
	a.CancelOn("begun", coordinator.Canceled)
	waitTrace(t, a, "begun")
	gone(t)
	if trace := string(a.TraceBytes()); contains(trace, "after was run") {
		t.Errorf("after_script ran:\n%s", plain(trace))
	}
	unattestedID(t, a)
}

// gone waits until nothing of any job is left.
func gone(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		leaks := theWorld.Leaks()
		if len(leaks) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there:\n%s", lines(leaks))
		}
		time.Sleep(100 * time.Millisecond) // a look costs much
	}
}

func TestScriptThatIgnoresSIGTERMIsKilled(t *testing.T) {
	a := start(t, hermetic("trap '' TERM INT HUP", "(trap '' TERM; while true; do sleep 0.1; done) &", "echo begun", "while true; do sleep 0.1; done"))
	a.CancelOn("begun", coordinator.Canceling)
	r := wait(t, a)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
}

func TestJobTimeoutEndsTheJob(t *testing.T) {
	job := hermetic(long...)
	job.Timeout = 8 * time.Second
	r := run(t, job)
	expect(t, r, coordinator.Failed, "job_execution_timeout")
	unattested(t, r)
}

func TestScriptTimeoutLeavesTimeForTheRest(t *testing.T) {
	job := hermetic(long...)
	job.AfterScript = []string{"echo after was run"}
	job.Variables = []coordinator.Variable{{Key: "RUNNER_SCRIPT_TIMEOUT", Value: "3s"}}
	r := run(t, job)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	mention(t, r, "after was run")
}

func TestDaemonThatKeepsThePipesDoesNotHoldTheJob(t *testing.T) {
	r := run(t, hermetic("setsid sh -c 'while true; do sleep 1; done' &", "nohup sh -c 'while true; do sleep 1; done' > /dev/null 2>&1 &", "echo script ends"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "script ends")
}

func TestRunnerStoppedInOrderEndsItsJobs(t *testing.T) {
	a := start(t, hermetic(long...))
	waitTrace(t, a, "begun")
	if err := theWorld.Runner.Stop(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := theWorld.Runner.Start(); err != nil {
			t.Error(err)
		}
	})
	gone(t)
	unattestedID(t, a)
}

func TestRunnerToldToFinishLetsItsJobsEnd(t *testing.T) {
	job := hermetic("echo begun", "i=0; while [ $i -lt 20 ]; do sleep 0.1; i=$((i+1)); done", "echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	a := start(t, job)
	waitTrace(t, a, "begun")
	if err := theWorld.Runner.Signal(syscall.SIGQUIT); err != nil {
		t.Error(err)
	}
	r := wait(t, a)
	if err := theWorld.Runner.Wait(within(t, 3*time.Minute)); err != nil {
		t.Error(err)
	}
	if err := theWorld.Runner.Start(); err != nil {
		t.Fatal(err)
	}
	expect(t, r, coordinator.Success, "")
	attested(t, r)
}

func TestRunnerKilledLeavesNothingToTheReaper(t *testing.T) {
	a := start(t, hermetic(long...))
	waitTrace(t, a, "begun")
	if err := theWorld.Runner.Kill(); err != nil {
		t.Error(err)
	}
	t.Cleanup(func() {
		if err := theWorld.Runner.Start(); err != nil {
			t.Error(err)
		}
	})
	gone(t)
	unattestedID(t, a)
}

func TestSandboxdKilledSweepsWhenItIsBack(t *testing.T) {
	job := hermetic(append([]string{"echo x > out.txt"}, long...)...)
	job.Artifacts = coordinator.Archive("out.txt")
	a := start(t, job)
	waitTrace(t, a, "begun")
	if err := theWorld.Sandboxd.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	if err := theWorld.Sandboxd.Wait(within(t, 3*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := theWorld.Sandboxd.Start(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	unattested(t, r)
	gone(t)

	again := run(t, hermetic("echo works again"))
	expect(t, again, coordinator.Success, "")
}

func TestSandboxdStoppedInOrderEndsItsJobs(t *testing.T) {
	a := start(t, hermetic(long...))
	waitTrace(t, a, "begun")
	if err := theWorld.Sandboxd.Stop(); err != nil {
		t.Error(err)
	}
	if err := theWorld.Sandboxd.Start(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	unattested(t, r)
}
