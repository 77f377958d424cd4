package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// What the job is to blame for fails at once, as script_failure, and says what
// to do. What the platform is to blame for is tried three times.

func TestImagesThatCannotRunAreTheJobsFault(t *testing.T) {
	for _, c := range []struct {
		name, image string
		says        []string
	}{
		{"missing", world.RegistryName + ":5000/ci/nothing:1", []string{"ci/nothing", "hint:"}},
		{"missing tag", theWorld.Images[images.Shell] + "9", []string{"ci/shell", "hint:"}},
		{"not allowed", world.RegistryName + ":5000/other/image:1", []string{"other/image", "hint:"}},
		{"not allowed host", "docker.io/library/alpine", []string{"alpine", "hint:"}},
		{"not a name", "Not An Image", []string{"hint:"}},
		{"none", "", []string{"no image", "hint:"}},
		{"without a shell", theWorld.Images[images.NoShell], []string{"shell", "hint:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := hermetic("echo not reached")
			job.Image.Name = c.image
			r := run(t, job)
			expect(t, r, coordinator.Failed, "script_failure")
			mention(t, r, c.says...)
			never(t, r, "\nnot reached", "Will be retried")
			unattested(t, r)
		})
	}
}

func TestOversizedVariableFailsTheJobAndLeavesNothing(t *testing.T) {
	job := hermetic("echo not reached")
	job.Variables = []coordinator.Variable{{Key: "HUGE", Value: strings.Repeat("x", 200<<10)}}
	r := run(t, job)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "argument list too long")

	// It grows beyond the limit only after config: its name is expanded with a
	// directory that config chose.
	job = hermetic("echo not reached")
	job.Variables = []coordinator.Variable{{Key: "GROWS", Value: strings.Repeat("$CI_PROJECT_DIR", 7000)}}
	r = run(t, job)
	expect(t, r, coordinator.Failed, "runner_system_failure")
}

func TestOddVariableNamesDoNoHarm(t *testing.T) {
	job := hermetic("echo done")
	job.Variables = []coordinator.Variable{
		{Key: "A=B", Value: "x"}, {Key: "LINE\nCUSTOM_ENV_CI_JOB_ID", Value: "1"}, {Key: "ü", Value: "y"}, {Key: "WITH SPACE", Value: "w"},
		{Key: "HALLMARK_SESSION", Value: strings.Repeat("0", 32)}, {Key: "JOB_RESPONSE_FILE", Value: "/etc/passwd"},
	}
	// Bash refuses to export such names, so the runner's own script fails, as it
	// does under every executor. What matters is that nothing else happens.
	r := run(t, job)
	if r.FailureReason == "runner_system_failure" {
		t.Errorf("job %d: a variable's name became the platform's failure", r.ID)
	}
	unattested(t, r)
}

// drive calls the driver as the runner does, for a job that is running.
func drive(t *testing.T, change func(map[string]any), call ...string) (output string, code int) {
	t.Helper()
	job := hermetic("true")
	job.Held = true
	job.Name = "driven"
	a, err := theWorld.GitLab.AddJob(job)
	if err != nil {
		t.Fatal(err)
	}
	a.Start()
	var payload map[string]any
	if err := json.Unmarshal(a.Payload(), &payload); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(payload)
	}
	text, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	return harness.Drive(t, text, call...)
}

func TestPayloadsThatCannotBeTrustedAreRefused(t *testing.T) {
	t.Cleanup(func() {
		if leaks := theWorld.Leaks(); len(leaks) > 0 {
			t.Errorf("left behind:\n%s", lines(leaks))
		}
	})
	for _, c := range []struct {
		name   string
		change func(map[string]any)
		says   string
	}{
		{"unknown field", func(p map[string]any) { p["self_destruct"] = true }, "self_destruct"},
		{"unknown field deep inside", func(p map[string]any) { p["git_info"].(map[string]any)["mirror"] = "x" }, "mirror"},
		{"another GitLab", func(p map[string]any) {
			p["git_info"].(map[string]any)["repo_url"] = "https://gitlab-ci-token:x@elsewhere.example.test/group/project.git"
		}, "elsewhere"},
		{"another commit than GitLab knows", func(p map[string]any) { p["git_info"].(map[string]any)["sha"] = strings.Repeat("a", 40) }, ""},
		{"another project than GitLab knows", func(p map[string]any) { p["job_info"].(map[string]any)["project_id"] = 1 }, ""},
		{"another job than the token's", func(p map[string]any) { p["id"] = 4001 }, ""},
		{"a token that GitLab does not know", func(p map[string]any) { p["token"] = "glcbt-64_wrong" }, ""},
		{"no id", func(p map[string]any) { delete(p, "id") }, "id"},
		{"a path as project", func(p map[string]any) {
			p["git_info"].(map[string]any)["repo_url"] = "https://gitlab-ci-token:x@" + world.GitLabName + "/../../etc.git"
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := drive(t, c.change, "-profile", "hermetic", "prepare")
			if code != 1 && code != 2 {
				t.Errorf("exit %d, want 1 or 2\n%s", code, out)
			}
			if !strings.Contains(out, c.says) {
				t.Errorf("the log does not say %q:\n%s", c.says, out)
			}
			if strings.Contains(out, "glcbt-64_") {
				t.Errorf("the log gives a token away:\n%s", out)
			}
			if _, code := drive(t, c.change, "cleanup"); code != 0 {
				t.Errorf("cleanup: exit %d", code)
			}
		})
	}
	for _, c := range []struct {
		name    string
		payload []byte
	}{
		{"empty", nil},
		{"not JSON", []byte("{")},
		{"beyond the limit", []byte(`{"id":1,"token":"x","pad":"` + strings.Repeat("x", 17<<20) + `"}`)},
		{"deep", []byte(strings.Repeat(`{"a":`, 100000))},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, call := range [][]string{{"config"}, {"prepare"}} {
				if out, code := harness.Drive(t, c.payload, call...); code != 1 && code != 2 || len(out) > 4096 {
					t.Errorf("%s: exit %d, %d bytes of log", call, code, len(out))
				}
			}
		})
	}
}

func TestUnknownStageNeverReachesTheBuild(t *testing.T) {
	out, code := drive(t, nil, "run", "/etc/hostname", "surprise_stage")
	if code != 2 || !contains(out, `stage "surprise_stage" is not one`) {
		t.Errorf("exit %d, want 2 because of the stage\n%s", code, out)
	}
}

func TestAuthorityDownFailsTheJobBeforeTenantCode(t *testing.T) {
	if err := theWorld.Attestd.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := theWorld.Attestd.Start(); err != nil {
			t.Error(err)
		}
	})
	r := run(t, hermetic("echo not reached"))
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "authority")
	never(t, r, "\nnot reached")
}

func TestAuthorityRestartedDuringTheJobLosesNothing(t *testing.T) {
	job := hermetic("echo started", "i=0; while [ $i -lt 80 ]; do sleep 0.1; i=$((i+1)); done", "echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	a := start(t, job)
	waitTrace(t, a, "started")
	if err := theWorld.Attestd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := theWorld.Attestd.Start(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	expect(t, r, coordinator.Success, "")
	attested(t, r)
}

func TestAuthorityGoneAtTheEndNeverSignsLess(t *testing.T) {
	job := hermetic("echo out > out.txt", "echo started", "i=0; while [ $i -lt 30 ]; do sleep 0.1; i=$((i+1)); done")
	job.Artifacts = coordinator.Archive("out.txt")
	a := start(t, job)
	waitTrace(t, a, "started")
	if err := theWorld.Attestd.Kill(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	if err := theWorld.Attestd.Start(); err != nil {
		t.Fatal(err)
	}
	if r.State != coordinator.Failed {
		t.Errorf("a job whose evidence nobody holds ended in %s", r.State)
	}
	unattested(t, r)
}

func TestSandboxdDownIsTheSystemsFault(t *testing.T) {
	if err := theWorld.Sandboxd.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := theWorld.Sandboxd.Start(); err != nil {
			t.Error(err)
		}
	})
	r := run(t, hermetic("echo not reached"))
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "sandboxd", "hint:")
	never(t, r, "\nnot reached")
}

func TestGitLabAwayForAWhileLosesNothing(t *testing.T) {
	job := hermetic("echo started", "i=0; while [ $i -lt 50 ]; do sleep 0.1; i=$((i+1)); done", "echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	a := start(t, job)
	waitTrace(t, a, "started")
	theWorld.GitLab.SetDown(true)
	time.Sleep(2 * time.Second)
	theWorld.GitLab.SetDown(false)
	r := wait(t, a)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "started")
	attested(t, r)
}

func TestGitLabsAnswersToUploads(t *testing.T) {
	const path = "/api/v4/jobs/*/artifacts"
	upload := func() coordinator.Job {
		job := hermetic("echo out > out.txt")
		job.Artifacts = coordinator.Archive("out.txt")
		return job
	}
	t.Run("503 twice, then taken", func(t *testing.T) {
		defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: path, Status: 503, Times: 2, ReadBody: true})()
		r := run(t, upload())
		expect(t, r, coordinator.Success, "")
		attested(t, r)
	})
	t.Run("413", func(t *testing.T) {
		defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: path, Status: 413, ReadBody: true, Body: `{"message":"413 Request Entity Too Large"}`})()
		r := run(t, upload())
		expect(t, r, coordinator.Failed, "script_failure")
		unattested(t, r)
	})
	t.Run("redirected to another host", func(t *testing.T) {
		theWorld.Canary.Visits()
		defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: path, Status: 307, ReadBody: true, Header: http.Header{"Location": {"https://" + world.CanaryName + "/"}}})()
		r := run(t, upload())
		expect(t, r, coordinator.Failed, "script_failure")
		unattested(t, r)
		if v := theWorld.Canary.Visits(); len(v) > 0 {
			t.Errorf("the redirect was followed:\n%s", lines(v))
		}
	})
	t.Run("dependency redirected to another host", func(t *testing.T) {
		first := run(t, upload())
		expect(t, first, coordinator.Success, "")
		defer theWorld.GitLab.Inject(coordinator.Fault{Method: "GET", Path: path, Status: 302, Header: http.Header{"Location": {"https://" + world.CanaryName + "/out.zip"}}})()
		job := hermetic("echo not reached")
		job.Dependencies = []int64{first.ID}
		r := run(t, job)
		expect(t, r, coordinator.Failed, "script_failure")
		never(t, r, "\nnot reached", "CANARY")
		// GitLab may keep artifacts elsewhere, so the border goes there; but it
		// takes nothing from a host that cannot show who it is.
		theWorld.Canary.Visits()
	})
	t.Run("final update asked for again", func(t *testing.T) {
		job := hermetic("echo first", "i=0; while [ $i -lt 20 ]; do sleep 0.1; i=$((i+1)); done", "exit 5")
		a := start(t, job)
		waitTrace(t, a, "first")
		defer theWorld.GitLab.Inject(coordinator.Fault{Method: "PUT", Path: "/api/v4/jobs/*", Status: 412, Times: 1})()
		r := wait(t, a)
		expect(t, r, coordinator.Failed, "script_failure")
		if exitCode(r.ExitCode) != "5" {
			t.Errorf("exit code %s, want 5", exitCode(r.ExitCode))
		}
	})
	t.Run("trace asked for again", func(t *testing.T) {
		job := hermetic("echo first", "i=0; while [ $i -lt 30 ]; do sleep 0.1; i=$((i+1)); done", "echo second")
		a := start(t, job)
		waitTrace(t, a, "first")
		a.TruncateTrace(10)
		r := wait(t, a)
		expect(t, r, coordinator.Success, "")
		mention(t, r, "first", "second")
	})
}
