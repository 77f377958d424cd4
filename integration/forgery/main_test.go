package forgery

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// What jobs could reach, were it not for the border.
const (
	api         = "https://" + world.GitLabName + "/api/v4"
	canary      = "1.2.3.50"
	hostAddress = "1.2.4.2"
	hostIPv6    = "2a00:db8:0:1::2"
)

// theWorld is what every test stands in. It is set once, before the first.
var theWorld *world.World

// TestMain lets tests run beside each other: a job waits more than it works.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	var w *world.World
	code := harness.Main(m, world.Options{Images: []string{images.Helper, images.Shell}}, func(made *world.World) error {
		w, theWorld = made, made
		return publish(made)
	})
	if w != nil {
		// Sigstore's programs, which a test runs beside the jobs, look for settings
		// of localhost.
		visits := slices.DeleteFunc(w.Canary.Visits(), func(v string) bool { return strings.HasSuffix(v, ".localhost.") })
		if len(visits) > 0 {
			fmt.Fprintf(os.Stderr, "canaries were reached:\n%s\n", harness.Lines(visits))
			code = max(code, 1)
		}
	}
	os.Exit(code)
}

// publish makes the projects of attackers.
func publish(w *world.World) error {
	for project, files := range projects {
		if _, err := w.Publish(project, "main", files); err != nil {
			return err
		}
	}
	return nil
}

// planted takes the place of the program that GitLab's scripts upload with. It
// runs an attack first.
func planted(attack string) string {
	return "#!/bin/bash\nif [ \"$1\" = artifacts-uploader ]; then\n" + attack + "\nfi\nexec /usr/local/bin/gitlab-runner \"$@\"\n"
}

var projects = map[string]map[string]string{
	"group/other": {"secret": "of another project\n"},
	"group/swapper": {
		"README":             "x\n",
		"evil/gitlab-runner": planted("for h in /builds/group/project.tmp/hand /builds/group/swapper.tmp/hand /builds/group/hand; do echo swapped >> $h; done 2>/dev/null\necho swapped >> link.txt; mount -o remount,rw /builds; echo swapped > fd.txt"),
	},
	"group/tokens": {
		"README": "x\n",
		"evil/gitlab-runner": planted(strings.Join([]string{
			"call() { evil/probe http \"$@\" JOB-TOKEN=$CI_JOB_TOKEN; }",
			"call PUT " + api + "/jobs/$CI_JOB_ID Content-Type=application/json 'body={\"state\":\"success\"}'",
			"call PATCH " + api + "/jobs/$CI_JOB_ID/trace Content-Range=0-5 body=forged",
			"call GET " + api + "/job",
			"call POST " + api + "/jobs/request body={}",
			"call GET " + api + "/jobs/4001/artifacts",
			"call PUT " + api + "/projects/81/packages/generic/forged/1/out.txt body=forged",
			"call POST '" + api + "/jobs/'$((CI_JOB_ID+1))'/artifacts?artifact_type=archive&artifact_format=zip' body=forged",
		}, "\n")),
	},
	"group/zipper": {
		"README":             "x\n",
		"evil/gitlab-runner": planted("evil/probe upload " + api + " $CI_JOB_ID $CI_JOB_TOKEN out.txt"),
	},
}

// begin hands a job to the runner beside those of other tests.
func begin(t *testing.T, job coordinator.Job) coordinator.Result {
	t.Helper()
	return harness.Wait(t, harness.Begin(t, job))
}

// keeps lets a job have an archive of some paths.
func keeps(job coordinator.Job, paths ...string) coordinator.Job {
	job.Artifacts = coordinator.Archive(paths...)
	return job
}

// succeeded requires that a job ended well and said a text at its end.
func succeeded(t *testing.T, r coordinator.Result, texts ...string) {
	t.Helper()
	harness.Expect(t, r, coordinator.Success, "")
	harness.Mention(t, r, texts...)
}

// noEscape requires that a job found no way.
func noEscape(t *testing.T, r coordinator.Result) {
	t.Helper()
	for line := range strings.Lines(harness.Plain(r.Trace)) {
		if strings.Contains(line, ": ESCAPE: ") && !strings.HasPrefix(line, "$ ") {
			t.Errorf("escaped: %s", line)
		}
	}
}
