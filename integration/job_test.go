package integration

import (
	"archive/zip"
	"bytes"
	"fmt"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

func TestJobRunsAndItsArtifactsArriveAttested(t *testing.T) {
	job := hermetic("sh src/main.sh > out.txt", "echo it ran")
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "it ran", "Job succeeded")
	if got := archive(t, r)["out.txt"]; got != "built from hello\n" {
		t.Errorf("out.txt holds %q", got)
	}
	a := attested(t, r)
	names := map[string]bool{}
	for _, s := range a.Statement.Subject {
		names[s.Name] = true
	}
	if !names["out.zip"] || !names["out.txt"] {
		t.Errorf("subjects %v, want the archive and the file in it", names)
	}
}

func TestAuditorVerifiesArtifactsAndSeesThroughTampering(t *testing.T) {
	job := hermetic("sh src/main.sh > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	art, _ := r.Artifact("archive")
	a := attested(t, r)
	root, policy := trustedRoot(t), auditPolicy(t, "hermetic")
	bundle := keep(t, "out.sigstore.json", a.Bundle)

	zipFile := keep(t, "out.zip", art.Data)
	inner := keep(t, "out.txt", []byte(archive(t, r)["out.txt"]))
	flipped := bytes.Clone(art.Data)
	flipped[len(flipped)/2] ^= 1
	flippedFile := keep(t, "out.zip", flipped)
	payload := bytes.Replace(a.Bundle, []byte(`"payload":"e`), []byte(`"payload":"f`), 1)
	if bytes.Equal(payload, a.Bundle) {
		payload = bytes.Replace(a.Bundle, []byte(`"payload": "e`), []byte(`"payload": "f`), 1)
	}
	for _, c := range []struct {
		name, file, bundle string
		ok                 bool
	}{
		{"the archive", zipFile, bundle, true},
		{"a file of it", inner, bundle, true},
		{"one bit of the archive changed", flippedFile, bundle, false},
		{"one byte of the statement changed", zipFile, keep(t, "b.json", payload), false},
		{"an empty bundle", zipFile, keep(t, "b.json", nil), false},
		{"half a bundle", zipFile, keep(t, "b.json", a.Bundle[:len(a.Bundle)/2]), false},
		{"another file", policy, bundle, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, code := cosign(t, "hermetic", c.bundle, root, c.file)
			if (code == 0) != c.ok {
				t.Errorf("cosign: exit %d\n%s", code, out)
			}
			out, code = program(t, "hallmark", "verify", c.file, "--bundle", c.bundle, "--policy", policy, "--trusted-root", root)
			if (code == 0) != c.ok {
				t.Errorf("hallmark verify: exit %d\n%s", code, out)
			}
		})
	}
	if out, code := cosign(t, "firewalled", bundle, root, zipFile); code == 0 {
		t.Errorf("cosign took a hermetic builder for a firewalled one\n%s", out)
	}
	if out, code := program(t, "hallmark", "verify", zipFile, "--from", world.AttestdURL, "--policy", policy, "--trusted-root", root); code != 0 {
		t.Errorf("hallmark verify --from: exit %d\n%s", code, out)
	}
}

func TestExitCodeReachesGitLab(t *testing.T) {
	for _, code := range []int{42, 1, 255} {
		r := run(t, hermetic("echo before", fmt.Sprintf("exit %d", code), "echo not reached"))
		expect(t, r, coordinator.Failed, "script_failure")
		if exitCode(r.ExitCode) != fmt.Sprint(code) {
			t.Errorf("exit code %s, want %d", exitCode(r.ExitCode), code)
		}
		mention(t, r, fmt.Sprintf("exit status %d", code))
		never(t, r, "\nnot reached")
		unattested(t, r)
	}
}

func TestAfterScriptRunsAndCannotChangeTheResult(t *testing.T) {
	job := hermetic("echo script", "echo data > kept.txt")
	job.AfterScript = []string{"echo after $CI_JOB_STATUS", "cat kept.txt", "exit 9"}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "after success", "\ndata")

	job = hermetic("exit 3")
	job.AfterScript = []string{"echo after $CI_JOB_STATUS"}
	r = run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	mention(t, r, "after failed")
	if exitCode(r.ExitCode) != "3" {
		t.Errorf("exit code %s, want the script's 3", exitCode(r.ExitCode))
	}
}

func TestFurtherStepsRunInTheBuild(t *testing.T) {
	job := hermetic("echo first > state")
	job.MoreSteps = []coordinator.Step{{Name: "release", Script: []string{"echo released with $(cat state)"}, Timeout: 60, When: "on_success"}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "released with first")
}

func TestArtifactsOfAFailedJobAreUploadedWhenAskedFor(t *testing.T) {
	job := hermetic("echo partial > out.txt", "exit 7")
	job.Artifacts = coordinator.Archive("out.txt")
	job.Artifacts[0].When = "always"
	r := run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	if got := archive(t, r)["out.txt"]; got != "partial\n" {
		t.Errorf("out.txt holds %q", got)
	}
	entries := evidence(t, r)
	closing := dataOf[record.Closing](t, entries, record.Closed)
	if len(closing) != 1 || closing[0].Result != "failed" || closing[0].ExitCode != 7 {
		t.Errorf("the record ends in %+v, want failed with 7", closing)
	}

	job = hermetic("echo partial > out.txt", "exit 7")
	job.Artifacts = coordinator.Archive("out.txt") // when: on_success
	r = run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	if len(r.Artifacts) != 0 {
		t.Errorf("%d artifacts, want none", len(r.Artifacts))
	}
}

func TestReportsAreUploadedBesideTheArchive(t *testing.T) {
	job := hermetic("echo out > out.txt", "echo '<testsuite/>' > junit.xml", "echo A=B > build.env")
	job.Artifacts = append(coordinator.Archive("out.txt"),
		coordinator.ArtifactRule{Name: "junit.xml", Paths: []string{"junit.xml"}, When: "always", Type: "junit", Format: "gzip"},
		coordinator.ArtifactRule{Name: ".env", Paths: []string{"build.env"}, When: "on_success", Type: "dotenv", Format: "gzip"})
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	if len(r.Artifacts) != 3 {
		t.Errorf("%d artifacts, want 3", len(r.Artifacts))
	}
	attested(t, r)
}

func TestDependencysArtifactsAreThere(t *testing.T) {
	job := hermetic("echo from the first job > first.txt")
	job.Artifacts = coordinator.Archive("first.txt")
	first := run(t, job)
	expect(t, first, coordinator.Success, "")

	job = hermetic("cat first.txt", "cp first.txt second.txt")
	job.Dependencies = []int64{first.ID}
	job.Artifacts = coordinator.Archive("second.txt")
	second := run(t, job)
	expect(t, second, coordinator.Success, "")
	mention(t, second, "\nfrom the first job")
	attested(t, second)
}

func TestVariablesOfAllKindsReachTheScript(t *testing.T) {
	job := hermetic(
		`echo "plain=$PLAIN expanded=$EXPANDED raw=$RAW"`, `cat "$FILE"`, `echo "multi=$MULTI"`, `echo "masked=$SECRET"`, `echo "quoted=$QUOTED"`)
	job.Variables = []coordinator.Variable{
		{Key: "PLAIN", Value: "a b"}, {Key: "EXPANDED", Value: "<$PLAIN>"}, {Key: "RAW", Value: "$PLAIN", Raw: true},
		{Key: "FILE", Value: "in a file\n", File: true}, {Key: "MULTI", Value: "one\ntwo"},
		{Key: "SECRET", Value: "hunter2-hunter2", Masked: true}, {Key: "QUOTED", Value: "a\"b'c `id` $(id) \\ ü", Raw: true},
	}
	job.Artifacts = coordinator.Archive("README")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "plain=a b expanded=<a b> raw=$PLAIN", "in a file", "multi=one\ntwo", "masked=[MASKED]", "quoted=a\"b'c `id` $(id) \\ ü")
	never(t, r, "hunter2")
	if a := attested(t, r); strings.Contains(a.Statement.Raw, "hunter2") {
		t.Error("the statement gives a masked variable away")
	}
	for _, e := range evidence(t, r) {
		if bytes.Contains(e.Line, []byte("hunter2")) {
			t.Errorf("the record gives a masked variable away: %s", e.Line)
		}
	}
}

func TestImagesEntrypointAndUserAreHonoured(t *testing.T) {
	job := hermetic("echo i am $(id -u)", "touch mine && echo can write")
	job.Image.Name = theWorld.Images[images.User]
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "entrypoint was here", "i am 1000", "can write")

	job = hermetic("echo i am $(id -u)")
	job.Image = coordinator.Image{Name: theWorld.Images[images.User], Entrypoint: []string{""}, User: "0"}
	r = run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "i am 0")
	never(t, r, "entrypoint was here")
}

func TestTwoJobsAtOnceWithTheSameSpoofedIDStayApart(t *testing.T) {
	spoofed := []coordinator.Variable{{Key: "CI_JOB_ID", Value: "999"}, {Key: "CI_CONCURRENT_ID", Value: "0"}, {Key: "CI_CONCURRENT_PROJECT_ID", Value: "0"}}
	make := func(name string) coordinator.Job {
		job := hermetic("echo "+name+" > who.txt", "echo started "+name, "while [ ! -e /tmp/go ]; do sleep 0.1; n=$((n+1)); [ $n -gt 30 ] && break; done", "cat who.txt", "ls /builds/*")
		job.Variables = spoofed
		job.Artifacts = coordinator.Archive("who.txt")
		return job
	}
	a, b := start(t, make("alpha")), start(t, make("beta"))
	waitTrace(t, a, "O started alpha")
	waitTrace(t, b, "O started beta")
	ra, rb := wait(t, a), wait(t, b)
	for _, c := range []struct {
		r           coordinator.Result
		own, others string
	}{{ra, "alpha", "beta"}, {rb, "beta", "alpha"}} {
		expect(t, c.r, coordinator.Success, "")
		never(t, c.r, c.others)
		if got := archive(t, c.r)["who.txt"]; got != c.own+"\n" {
			t.Errorf("job %d uploaded %q, want %q", c.r.ID, got, c.own)
		}
		s := attested(t, c.r).Statement
		if !strings.Contains(s.Raw, fmt.Sprintf("%d", c.r.ID)) {
			t.Errorf("the statement of job %d does not name it", c.r.ID)
		}
	}
}

func TestGetSourcesIsTriedAgain(t *testing.T) {
	remove := theWorld.GitLab.Inject(coordinator.Fault{Path: "/group/project.git/info/refs", Status: 503, Times: 1})
	defer remove()
	job := hermetic("cat README")
	job.Variables = []coordinator.Variable{{Key: "GET_SOURCES_ATTEMPTS", Value: "3"}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nhello")
}

func TestArchiveHoldsWhatIsOnDisk(t *testing.T) {
	job := hermetic("mkdir -p out/deep/er", "echo a > out/a", "echo b > out/deep/er/b", "ln -s a out/link", "ln -s /etc/shadow out/shadow", "chmod 755 out/a", "printf '' > out/empty", "printf x > 'out/ü n'")
	job.Artifacts = coordinator.Archive("out/")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	got := archive(t, r)
	for name, want := range map[string]string{"out/a": "a\n", "out/deep/er/b": "b\n", "out/empty": "", "out/link": "a", "out/shadow": "/etc/shadow", "out/ü n": "x"} {
		if got[name] != want {
			t.Errorf("%s holds %q, want %q", name, got[name], want)
		}
	}
	art, _ := r.Artifact("archive")
	z, err := zip.NewReader(bytes.NewReader(art.Data), int64(len(art.Data)))
	if err != nil {
		t.Fatal(err)
	}
	uploads := dataOf[record.Upload](t, evidence(t, r), record.Uploaded)
	if len(uploads) != 1 || len(uploads[0].Entries) != len(z.File) {
		t.Errorf("the record has %d uploads, want one with %d entries", len(uploads), len(z.File))
	}
}

func TestJobLogIsReadable(t *testing.T) {
	r := run(t, hermetic("true"))
	mention(t, r, "Using Custom executor with driver hallmark", "Evidence: ")
	if strings.Contains(plain(r.Trace), "panic") {
		t.Error("the trace speaks of a panic")
	}
	// Every section that is opened is closed.
	open := strings.Count(r.Trace, "section_start:")
	if closed := strings.Count(r.Trace, "section_end:"); open != closed {
		t.Errorf("%d sections opened, %d closed", open, closed)
	}
}
