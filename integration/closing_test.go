package integration

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
)

// How a job ends when what the authority needs is away, or when GitLab has
// another story by then.

// withConfig adds text to the ends of the authority's and the sandbox daemon's
// configuration.
func withConfig(t *testing.T, attestd, sandboxd string) {
	t.Helper()
	add := func(more string) func(string) string { return func(have string) string { return have + more } }
	reconfigure(t, theWorld.Attestd, "/etc/hallmark/attestd.toml", add(attestd))
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", add(sandboxd))
}

// output is a job that has one, and takes a while before: the runner sends what
// the job has said every three seconds.
func output() coordinator.Job {
	job := hermetic("echo started", "echo out > out.txt", "i=0; while [ $i -lt 70 ]; do sleep 0.1; i=$((i+1)); done")
	job.Artifacts = coordinator.Archive("out.txt")
	return job
}

// attestedLater waits for the one bundle of a job that has ended.
func attestedLater(t *testing.T, r coordinator.Result) harness.Attestation {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); len(attestations(t, r.ID)) == 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("job %d is not attested; %s", r.ID, statusOf(t, r))
		}
	}
	return attested(t, r)
}

// statusOf is what the authority tells of a job's attempt.
func statusOf(t *testing.T, r coordinator.Result) string {
	t.Helper()
	_, body := harness.Get(t, "/v1/attempts/"+harness.AttemptOf(r))
	return string(body)
}

func TestJobOutlivesTheAuthorityAndIsAttestedLater(t *testing.T) {
	withConfig(t, "", "\n[authority]\nunavailable = \"spool\"\n")
	defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: "/api/v4/jobs/*/artifacts", Status: 503, Times: 1, ReadBody: true, Delay: 6 * time.Second})()
	a := start(t, output())
	waitTrace(t, a, "Uploading artifacts")
	if err := theWorld.Attestd.Kill(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "kept", "not attested yet", "the record is kept on this host")
	// Another daemon closes what the first one kept.
	if err := theWorld.Sandboxd.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*world.Daemon{theWorld.Attestd, theWorld.Sandboxd} {
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
	}
	attestedLater(t, r)
}

func TestGitLabAwayAtTheEndIsWaitedFor(t *testing.T) {
	withConfig(t, "gitlab_unavailable = \"spool\"\n", "")
	a := start(t, output())
	waitTrace(t, a, "started")
	back := theWorld.GitLab.Inject(coordinator.Fault{Method: "GET", Path: "/api/v4/job", Status: 502})
	defer back()
	r := wait(t, a)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "pending", "not attested yet: closed; GitLab does not answer")
	unattested(t, r)
	if s := statusOf(t, r); !strings.Contains(s, `"state":"waiting"`) {
		t.Errorf("%s", s)
	}
	back()
	attestedLater(t, r) // under the authority's own token
}

func TestGitLabAwayAtTheEndFailsTheJob(t *testing.T) {
	a := start(t, output())
	waitTrace(t, a, "started")
	defer theWorld.GitLab.Inject(coordinator.Fault{Method: "GET", Path: "/api/v4/job", Status: 502})()
	r := wait(t, a)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	unattested(t, r)
}

func TestLogProofFollowsWhereTheProfileDoesNotWait(t *testing.T) {
	withConfig(t, "[log]\nbackground = [\"hermetic\"]\n", "")
	r := run(t, output())
	expect(t, r, coordinator.Success, "")
	mention(t, r, "not attested yet: signed; its log proof follows", "it will be at "+world.AttestdURL+"/v1/attempts/")
	if at := attestedLater(t, r); !strings.Contains(string(at.Bundle), "inclusionProof") {
		t.Error("the bundle has no proof")
	}
}

func TestJobThatAnotherRunnerHasByThenIsNotAttested(t *testing.T) {
	a := start(t, output())
	waitTrace(t, a, "started")
	a.MoveTo(8, "s_another")
	r := wait(t, a)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "runner")
	unattested(t, r)
	if s := statusOf(t, r); !strings.Contains(s, `"state":"refused"`) {
		t.Errorf("%s", s)
	}
}

func TestJobThatWasErasedIsNotAttested(t *testing.T) {
	defer theWorld.GitLab.Inject(coordinator.Fault{Method: "POST", Path: "/api/v4/jobs/*/artifacts", Status: 503, Times: 1, ReadBody: true, Delay: 5 * time.Second})()
	a := start(t, output())
	waitTrace(t, a, "Uploading artifacts")
	a.Erase()
	r := wait(t, a)
	unattested(t, r)
	if s := statusOf(t, r); !strings.Contains(s, `"state":"refused"`) {
		t.Errorf("%s", s)
	}
}

func TestIDTokenOfTheJobIsEvidence(t *testing.T) {
	job := output()
	job.IDTokens = map[string]string{"HALLMARK_ID_TOKEN": world.BuilderURI}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	attested(t, r)
	var s struct {
		IDToken struct {
			Issuer    string `json:"issuer"`
			ConfigURI string `json:"ci_config_ref_uri"`
		} `json:"id_token"`
	}
	if err := json.Unmarshal([]byte(statusOf(t, r)), &s); err != nil || s.IDToken.Issuer != "https://"+world.GitLabName || !strings.Contains(s.IDToken.ConfigURI, ".gitlab-ci.yml") {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestIDTokenForSomebodyElseIsRefused(t *testing.T) {
	job := hermetic("echo not reached")
	job.IDTokens = map[string]string{"HALLMARK_ID_TOKEN": "sigstore"}
	r := run(t, job)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "id token's audience")
	never(t, r, "\nnot reached")
	unattested(t, r)
}

// TestReportsOfAFailedJobAreSubjects has several types of artifacts that are
// uploaded although the script failed, and say so.
func TestReportsOfAFailedJobAreSubjects(t *testing.T) {
	job := hermetic("echo '<testsuites/>' > junit.xml", "echo A=1 > build.env", "echo out > out.txt", "exit 3")
	job.Artifacts = []coordinator.ArtifactRule{
		{Name: "out", Paths: []string{"out.txt"}, When: "always"},
		{Name: "junit.xml", Paths: []string{"junit.xml"}, When: "always", Type: "junit", Format: "gzip"},
		{Name: "build.env", Paths: []string{"build.env"}, When: "always", Type: "dotenv", Format: "gzip"},
	}
	r := run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	at := attested(t, r)
	for _, kind := range []string{"archive", "junit", "dotenv"} {
		art, ok := r.Artifact(kind)
		if !ok {
			t.Errorf("no %s was uploaded", kind)
			continue
		}
		if !strings.Contains(at.Statement.Raw, fmt.Sprintf("%x", sha256.Sum256(art.Data))) {
			t.Errorf("the %s is no subject", kind)
		}
	}
	if !strings.Contains(at.Statement.Raw, `"result":"failed"`) {
		t.Errorf("the statement does not say that the job failed: %s", at.Statement.Raw)
	}
	if status, _ := harness.Get(t, "/log/checkpoint"); status != http.StatusOK {
		t.Errorf("checkpoint: %d", status)
	}
}
