package forgery

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// subjects are the digests that a job's statements name.
func subjects(t *testing.T, r coordinator.Result) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, a := range harness.Attestations(t, r.ID) {
		for _, s := range a.Statement.Subject {
			out[s.Name] = s.Digest["sha256"]
		}
	}
	return out
}

// exactly requires that GitLab's archive and the subjects are the same files.
func exactly(t *testing.T, r coordinator.Result) map[string]string {
	t.Helper()
	files, signed := harness.Archive(t, r), subjects(t, r)
	for name, content := range files {
		if signed[name] != digestOf(content) {
			t.Errorf("job %d: %s: GitLab has %s, signed is %q", r.ID, name, digestOf(content), signed[name])
		}
	}
	if len(signed) != len(files)+1 {
		t.Errorf("job %d: %d subjects for %d files and their archive", r.ID, len(signed), len(files))
	}
	return files
}

// Case 19. What hides among many: no output is dropped where one statement is
// full, and each part proves its own.
func TestHideAnOutputAmongMany(t *testing.T) {
	t.Parallel()
	r := begin(t, keeps(harness.Hermetic("mkdir out", "i=0; while [ $i -lt 1500 ]; do echo $i > out/$i; i=$((i+1)); done"), "out/"))
	succeeded(t, r)
	exactly(t, r)
	list := harness.Attestations(t, r.ID)
	ids := map[string]bool{}
	for _, a := range list {
		if n := len(a.Statement.Subject); n > 1024 {
			t.Errorf("a statement of %d subjects", n)
		}
		ids[predicate(t, a).RunDetails.Metadata.InvocationID] = true
	}
	if len(list) != 2 || len(ids) != 1 {
		t.Errorf("%d statements of %d invocations, want 2 of one", len(list), len(ids))
	}
}

// Case 20. Everything that keeps a hand on the file after the script has ended:
// descriptor, mapping, rename, hard link, a process of each stage, a hook's
// process in the helper, and GitLab's own upload script, turned by a planted
// program. What GitLab has is what was signed.
func TestSwapTheArtifactAfterItWasHashed(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic(
		"for f in fd map link name still; do echo honest $f > $f.txt; done", "sleep 0.3",
		"grep -q honest still.txt || echo 'process of a hook: ESCAPE: it lives on'",
		"ln link.txt ../swapper.tmp/hand; ln link.txt ../hand || true",
		"probe tamper $PWD/fd.txt", "probe tamper $PWD/map.txt",
		"(setsid sh -c 'trap \"\" TERM; while true; do echo swapped > .n && mv .n name.txt; done' >/dev/null 2>&1 &)",
		"mount --bind README link.txt 2>/dev/null && echo 'bind mount: ESCAPE: it worked'; unshare -m true 2>/dev/null && echo 'unshare: ESCAPE: it worked'",
		"chmod +x evil/gitlab-runner", `echo "PATH=$PWD/evil:$PATH" >> "$GITLAB_ENV"`,
		"sleep 1"), "*.txt")
	job.Project, job.ProjectID = "group/swapper", 79
	job.AfterScript = []string{"probe tamper $PWD/fd.txt", "(setsid sh -c 'while true; do echo swapped >> link.txt; done' >/dev/null 2>&1 &)"}
	job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{
		"(setsid bash -c 'trap \"\" TERM; while :; do [ -e still.txt ] && for f in *.txt; do echo swapped > $f; done; done' >/dev/null 2>&1 &)",
	}}}
	r := begin(t, job)
	noEscape(t, r)
	harness.Mention(t, r, "tampering from process")
	if r.State != coordinator.Success { // seen and stopped: then nothing is signed, nothing uploaded
		harness.Unattested(t, r)
		if len(r.Artifacts) != 0 {
			t.Error("GitLab has an archive that nobody signed")
		}
		return
	}
	exactly(t, r)
}

// Case 21. Archives that readers would take apart differently, and such as hold
// more, less or other than what was built, sent from the helper as GitLab's own
// program would send them. None arrives.
func TestUploadACraftedArchive(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo honest > out.txt", "cp /usr/bin/probe evil/probe", "chmod +x evil/*", `echo "PATH=$PWD/evil:$PATH" >> "$GITLAB_ENV"`), "out.txt")
	job.Project, job.ProjectID = "group/zipper", 80
	r := begin(t, job)
	if !strings.Contains(r.Trace, "upload: ") {
		t.Error("the attack did not run")
	}
	noEscape(t, r)
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	harness.Unattested(t, r)
	if len(r.Artifacts) != 0 {
		t.Errorf("GitLab has %d artifacts", len(r.Artifacts))
	}
	if v := harness.DataOf[record.Violation](t, harness.Evidence(t, r), record.Violated); len(v) == 0 {
		t.Error("no violation is on record")
	}
}

// Case 22. The job token opens the runner's API. Wherever code of a job runs,
// in whatever stage, nothing is uploaded, ended or pushed with it.
func TestUploadWithTheJobToken(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo honest > out.txt", "cp /usr/bin/probe evil/probe", "chmod +x evil/*", `echo "PATH=$PWD/evil:$PATH" >> "$GITLAB_ENV"`), "out.txt")
	job.Project, job.ProjectID = "group/tokens", 81
	job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{
		"git -c user.name=x -c user.email=x@x commit -q --allow-empty -m forged",
		"git push https://gitlab-ci-token:$CI_JOB_TOKEN@" + world.GitLabName + "/group/tokens.git HEAD:refs/heads/forged || true",
		"git push https://gitlab-ci-token:$CI_JOB_TOKEN@" + world.GitLabName + "/group/other.git HEAD:refs/heads/forged || true",
		"git fetch https://gitlab-ci-token:$CI_JOB_TOKEN@" + world.GitLabName + "/group/other.git main && echo 'fetch: ESCAPE: of another project' || true",
		"git reset -q --hard HEAD^",
	}}}
	r := begin(t, job)
	noEscape(t, r)
	harness.Never(t, r, "status 200", "status 201", "status 202")
	if !strings.Contains(r.Trace, "status 403") {
		t.Error("the attack did not run")
	}
	for _, q := range theWorld.GitLab.Requests() {
		if strings.Contains(q.Path, "git-receive-pack") || strings.Contains(q.Query, "git-receive-pack") {
			t.Errorf("%s %s?%s passed the border", q.Method, q.Path, q.Query)
		}
		// A submodule could lie there, so it may ask; GitLab gives it nothing.
		if q.JobID == r.ID && strings.HasPrefix(q.Path, "/group/other") && q.Status < 400 {
			t.Errorf("%s %s passed the border, and was answered with %d", q.Method, q.Path, q.Status)
		}
	}
	if r.State == coordinator.Success {
		exactly(t, r)
	} else {
		harness.Unattested(t, r)
	}
}

// Case 23. What after_script and further steps do to the outputs is done before
// the seal: signed is what they left.
func TestChangeTheOutputAfterTheScript(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo script > out.txt"), "out.txt")
	job.MoreSteps = []coordinator.Step{{Name: "release", Script: []string{"echo step >> out.txt"}, Timeout: 60, When: "on_success"}}
	job.AfterScript = []string{"echo after >> out.txt"}
	r := begin(t, job)
	succeeded(t, r)
	if got := exactly(t, r)["out.txt"]; got != "script\nstep\nafter\n" {
		t.Errorf("out.txt holds %q", got)
	}
}

// Case 24. Two runs of one job, at once and with all identifiers that variables
// can spoof alike: each statement stands for its own outputs alone.
func TestPassOffTheOutputOfAnotherRun(t *testing.T) {
	t.Parallel()
	var attempts []*coordinator.Attempt
	for i := range 2 {
		job := keeps(harness.Hermetic(fmt.Sprintf("echo run %d > out.txt", i)), "out.txt")
		job.Name, job.PipelineID = "build 1/2", 777
		for _, key := range []string{"CI_JOB_ID", "CI_CONCURRENT_ID", "CI_CONCURRENT_PROJECT_ID", "CI_NODE_INDEX"} {
			job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: "1", Public: true})
		}
		attempts = append(attempts, harness.Begin(t, job))
	}
	var results []coordinator.Result
	for _, a := range attempts {
		r := harness.Wait(t, a)
		succeeded(t, r)
		exactly(t, r)
		results = append(results, r)
	}
	one, other := harness.Attested(t, results[0]), harness.Attested(t, results[1])
	if predicate(t, one).RunDetails.Metadata.InvocationID == predicate(t, other).RunDetails.Metadata.InvocationID {
		t.Error("both have one invocation id")
	}
	root, policy := harness.TrustedRoot(t), harness.AuditPolicy(t, "hermetic")
	file := harness.Keep(t, "out.txt", []byte(harness.Archive(t, results[0])["out.txt"]))
	for i, a := range []harness.Attestation{one, other} {
		out, code := harness.Program(t, "hallmark", "verify", file, "--bundle", harness.Keep(t, "b.json", a.Bundle), "--policy", policy, "--trusted-root", root)
		if (code == 0) != (i == 0) {
			t.Errorf("bundle of run %d: exit %d\n%s", i, code, out)
		}
	}
}

// Case 39. Artifacts of a job that failed, was canceled or timed out.
func TestPassOffTheArtifactsOfAFailedJob(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script []string
		change func(*coordinator.Job)
		cancel bool
	}{
		"failed":   {script: []string{"echo partial > out.txt", "exit 7"}},
		"canceled": {script: []string{"echo partial > out.txt", "echo begun", "while true; do sleep 0.1; done"}, cancel: true},
		"timed out": {script: []string{"echo partial > out.txt", "while true; do sleep 0.1; done"}, change: func(j *coordinator.Job) {
			j.Variables = []coordinator.Variable{{Key: "RUNNER_SCRIPT_TIMEOUT", Value: "2s", Public: true}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := keeps(harness.Hermetic(c.script...), "out.txt")
			job.Artifacts[0].When = "always"
			if c.change != nil {
				c.change(&job)
			}
			attempt := harness.Begin(t, job)
			if c.cancel {
				attempt.CancelOn("begun", coordinator.Canceling)
			}
			r := harness.Wait(t, attempt)
			if r.State != coordinator.Failed {
				t.Errorf("state %s, want failed", r.State)
			}
			list := harness.Attestations(t, r.ID)
			if len(list) == 0 {
				return
			}
			if got := predicate(t, list[0]).Result.Result; got == "success" || got == "" {
				t.Errorf("the statement says %q", got)
			}
			file := harness.Keep(t, "out.txt", []byte(harness.Archive(t, r)["out.txt"]))
			out, code := harness.Program(t, "hallmark", "verify", file, "--bundle", harness.Keep(t, "b.json", list[0].Bundle), "--policy", harness.AuditPolicy(t, "hermetic"), "--trusted-root", harness.TrustedRoot(t))
			if code == 0 || !strings.Contains(out, "ended as") {
				t.Errorf("hallmark verify: exit %d\n%s", code, out)
			}
		})
	}
}

// Case 39, too: the job is canceled for good while GitLab takes its artifact in.
// Whatever that race ends in, nothing is signed that says success.
func TestCancelWhileTheArtifactIsSent(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo out > out.txt"), "out.txt")
	job.Held = true
	attempt := harness.Begin(t, job)
	path := fmt.Sprintf("/api/v4/jobs/%d/artifacts", attempt.Job.ID)
	defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: path, Delay: 4 * time.Second, Status: 503, ReadBody: true})()
	attempt.Release()
	harness.WaitTrace(t, attempt, "Uploading artifacts")
	attempt.ForceCancel()
	deadline := time.Now().Add(3 * time.Minute)
	for !strings.Contains(theWorld.Sandboxd.Log(), fmt.Sprintf("msg=\"sandbox removed\" job=%d ", attempt.Job.ID)) {
		if time.Now().After(deadline) {
			t.Fatal("the job's sandbox is still there")
		}
		time.Sleep(100 * time.Millisecond)
	}
	harness.Unattested(t, coordinator.Result{ID: attempt.Job.ID})
}

// Case 20, by another way: variables that say where the project is. The archive
// is made of the sealed tree, or nothing is.
func TestMoveTheProjectDirectory(t *testing.T) {
	t.Parallel()
	const elsewhere = "/builds/group/project.tmp/elsewhere"
	for _, key := range []string{"CI_PROJECT_DIR", "CI_BUILDS_DIR", "RUNNER_TEMP_PROJECT_DIR"} {
		t.Run(key, func(t *testing.T) {
			t.Parallel()
			job := keeps(harness.Hermetic("echo honest > out.txt", "mkdir -p "+elsewhere, "echo moved > "+elsewhere+"/out.txt",
				`echo "`+key+`=`+elsewhere+`" >> "$GITLAB_ENV"`, `echo "cd `+elsewhere+`" > `+elsewhere+`/env.sh`, `echo "BASH_ENV=`+elsewhere+`/env.sh" >> "$GITLAB_ENV"`), "out.txt")
			job.Variables = []coordinator.Variable{{Key: key, Value: elsewhere, Public: true}, {Key: "CDPATH", Value: elsewhere, Public: true}}
			r := begin(t, job)
			if r.State != coordinator.Success {
				harness.Unattested(t, r)
				return
			}
			if got := exactly(t, r)["out.txt"]; got != "honest\n" {
				t.Errorf("out.txt holds %q", got)
			}
		})
	}
}
