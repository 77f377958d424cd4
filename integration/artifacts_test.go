package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/sandbox/record"
)

// fetchedFrom is what a job took of another's artifacts.
func fetchedFrom(t *testing.T, r coordinator.Result, job int64) []record.Fetch {
	t.Helper()
	var out []record.Fetch
	for _, f := range dataOf[record.Fetch](t, evidence(t, r), record.Fetched) {
		if strings.Contains(f.URL, fmt.Sprintf("/api/v4/jobs/%d/artifacts", job)) {
			out = append(out, f)
		}
	}
	return out
}

// TestArtifactsOfEarlierJobsAreWhatTheyMade: a job is given what earlier jobs
// were attested to have made, and its statement says so. What was put in its place
// on GitLab it never sees.
func TestArtifactsOfEarlierJobsAreWhatTheyMade(t *testing.T) {
	job := hermetic("echo honest > first.txt")
	job.Name, job.Artifacts = "compile", coordinator.Archive("first.txt")
	attempt := start(t, job)
	first := wait(t, attempt)
	expect(t, first, coordinator.Success, "")
	made := attested(t, first)

	next := func() coordinator.Job {
		job := hermetic("cat first.txt", "cp first.txt second.txt")
		job.Dependencies, job.Artifacts = []int64{first.ID}, coordinator.Archive("second.txt")
		return job
	}
	second := run(t, next())
	expect(t, second, coordinator.Success, "")
	mention(t, second, "\nhonest", fmt.Sprintf("artifacts of compile (job %d): attested by ", first.ID))
	fetched := fetchedFrom(t, second, first.ID)
	if len(fetched) != 1 || fetched[0].Attestation == "" || !strings.Contains(made.Statement.Raw, fmt.Sprintf("%q", fetched[0].Invocation)) {
		t.Errorf("fetched %+v", fetched)
	}
	if raw := attested(t, second).Statement.Raw; !strings.Contains(raw, "sha256:"+fetched[0].Attestation) {
		t.Errorf("the statement does not name the attestation: %s", raw)
	}

	attempt.Replace("archive", zipOf(t, "first.txt", "evil\n"))
	third := run(t, next())
	if third.State != coordinator.Failed {
		t.Errorf("state %s, want failed", third.State)
	}
	mention(t, third, fmt.Sprintf("artifacts of compile (job %d): GitLab hands out sha256:", first.ID))
	never(t, third, "\nevil", "attested by")
	unattested(t, third)
	if v := dataOf[record.Violation](t, evidence(t, third), record.Violated); len(v) != 1 {
		t.Errorf("%d violations on record, want 1", len(v))
	}
	if fetched := fetchedFrom(t, third, first.ID); len(fetched) != 0 {
		t.Errorf("it was given %+v", fetched)
	}
}

// TestArtifactsThatNobodyVouchesFor are given to jobs, which say so, unless the
// admin wants none of them.
func TestArtifactsThatNobodyVouchesFor(t *testing.T) {
	elsewhere, err := theWorld.GitLab.AddJob(coordinator.Job{Name: "elsewhere", Held: true})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.Put(coordinator.Artifact{Type: "archive", Format: "zip", FileName: "out.zip", Data: zipOf(t, "first.txt", "from elsewhere\n")})
	next := func() coordinator.Result {
		job := hermetic("cat first.txt", "cp first.txt second.txt")
		job.Dependencies, job.Artifacts = []int64{elsewhere.Job.ID}, coordinator.Archive("second.txt")
		return run(t, job)
	}
	r := next()
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nfrom elsewhere", fmt.Sprintf("artifacts of elsewhere (job %d): not attested", elsewhere.Job.ID))
	if fetched := fetchedFrom(t, r, elsewhere.Job.ID); len(fetched) != 1 || fetched[0].Attestation != "" {
		t.Errorf("fetched %+v", fetched)
	}
	attested(t, r)

	restore, err := theWorld.ConfigureSandboxd(func(config string) string { return "unattested_artifacts = \"refuse\"\n" + config })
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := restore(); err != nil {
			t.Error(err)
		}
	}()
	r = next()
	if r.State != coordinator.Failed {
		t.Errorf("state %s, want failed", r.State)
	}
	mention(t, r, "rule artifact-origin: artifacts of elsewhere")
	never(t, r, "\nfrom elsewhere")
}

// TestArtifactsOfAllKinds has one job leave what jobs leave.
func TestArtifactsOfAllKinds(t *testing.T) {
	job := hermetic(
		"mkdir -p out/deep/er out/secret dir/empty", "echo a > out/a.txt", "echo b > out/deep/er/b.txt", "echo c > out/deep/c.log",
		"echo key > out/secret/key.txt", "ln -s ../out/a.txt dir/link", "echo ü > 'dir/ünï cödé'", "echo new > untracked.txt",
		"echo shut > dir/shut && chmod 000 dir/shut", "echo '<testsuite/>' > junit-1.xml", "echo '<testsuite/>' > junit-2.xml",
		"echo '[]' > quality.json", "echo A=B > build.env",
		"mkdir many && cd many && i=0 && while [ $i -lt 10000 ]; do : > f$i; i=$((i+1)); done")
	job.Variables = []coordinator.Variable{{Key: "ARTIFACT_COMPRESSION_LEVEL", Value: "fastest"}, {Key: "FLAVOUR", Value: "sweet"}}
	job.Artifacts = []coordinator.ArtifactRule{
		{Name: "$CI_JOB_NAME-$FLAVOUR", Paths: []string{"out/**/*.txt", "dir", "many/"}, Exclude: []string{"out/secret/**/*"}, ExpireIn: "3 days 4 hours", Untracked: false},
		{Name: "junit.xml", Paths: []string{"junit-*.xml"}, When: "always", Type: "junit", Format: "gzip"},
		{Name: ".env", Paths: []string{"build.env"}, Type: "dotenv", Format: "gzip"},
		{Name: "gl-code-quality-report.json", Paths: []string{"quality.json"}, Type: "codequality", Format: "raw"},
		{Name: "metrics.txt", Paths: []string{"no-such-file"}, Type: "metrics", Format: "gzip"},
		{Name: "onfail", Paths: []string{"untracked.txt"}, Type: "sast", Format: "raw", When: "on_failure"},
	}
	job.Name = "all kinds"
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "ERROR: No files to upload")
	var statements strings.Builder // several, for so many files
	for _, a := range attestations(t, r.ID) {
		statements.WriteString(a.Statement.Raw)
	}
	art, _ := r.Artifact("archive")
	if art.FileName != "all kinds-sweet.zip" || art.ExpireIn != "3 days 4 hours" {
		t.Errorf("the archive is %q and expires in %q", art.FileName, art.ExpireIn)
	}
	got := archive(t, r)
	for name, want := range map[string]string{"out/a.txt": "a\n", "out/deep/er/b.txt": "b\n", "dir/link": "../out/a.txt", "dir/ünï cödé": "ü\n", "dir/shut": "shut\n", "many/f9999": ""} {
		if have, ok := got[name]; !ok || have != want {
			t.Errorf("%s holds %q, want %q", name, have, want)
		}
	}
	for _, name := range []string{"out/secret/key.txt", "out/deep/c.log", "untracked.txt"} {
		if _, ok := got[name]; ok {
			t.Errorf("%s is in the archive", name)
		}
	}
	for kind, want := range map[string]string{"junit": "<testsuite/>\n<testsuite/>\n", "dotenv": "A=B\n", "codequality": "[]\n"} {
		report, ok := r.Artifact(kind)
		if !ok {
			t.Errorf("no %s", kind)
			continue
		}
		if have := unpacked(t, report); have != want {
			t.Errorf("%s: %q", kind, have)
		}
		if !strings.Contains(statements.String(), digestOf(string(report.Data))) {
			t.Errorf("%s is no subject", kind)
		}
	}
	for _, kind := range []string{"metrics", "sast"} {
		if _, ok := r.Artifact(kind); ok {
			t.Errorf("a %s was uploaded", kind)
		}
	}
}

func unpacked(t *testing.T, a coordinator.Artifact) string {
	t.Helper()
	if a.Format != "gzip" {
		return string(a.Data)
	}
	z, err := gzip.NewReader(bytes.NewReader(a.Data))
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestUntrackedArtifacts are what git does not know, and nothing else.
func TestUntrackedArtifacts(t *testing.T) {
	job := hermetic("mkdir new && echo n > new/n", "echo x > x")
	job.Artifacts = []coordinator.ArtifactRule{{Name: "out", Untracked: true, Exclude: []string{"x"}}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	got := archive(t, r)
	if len(got) != 1 || got["new/n"] != "n\n" {
		t.Errorf("the archive holds %q", got)
	}
	attested(t, r)
}
