package integration

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/trace"
	"hallmark.build/integration/world"
)

// TestLogsAsDevelopersReadThem takes whole logs through what GitLab makes of
// them, and looks for what a developer needs where a developer looks.
func TestLogsAsDevelopersReadThem(t *testing.T) {
	missing := hermetic("true")
	missing.Image.Name = world.RegistryName + ":5000/ci/nothing:1"
	canceled := hermetic("echo begun", "while true; do echo .; sleep 0.1; done")
	canceled.Artifacts = coordinator.Archive("README")
	jobs := map[string]coordinator.Job{
		"attested": kept(firewalled("probe http GET https://"+world.CanaryName+"/x", "echo out > out.txt"), "out.txt"),
		"hermetic": hermetic("echo installing", "wget -q -O - http://"+world.PackagesName+"/a", "echo not reached"),
		"messy":    firewalled("probe http GET https://"+world.CanaryName+"/x > /dev/null", `printf '50 %%\r\033[31mred \376 \033[3'`),
		"killed":   hermetic("kill -9 $$"),
		"missing":  missing, "canceled": canceled,
	}
	attempts := map[string]*coordinator.Attempt{}
	for name, job := range jobs {
		attempts[name] = start(t, job)
	}
	attempts["canceled"].CancelOn("begun", coordinator.Canceling)
	for name, want := range map[string][]string{
		// section, then a line of it that a pattern matches; in this order
		"attested": {
			"prepare-executor", `^Preparing the "custom" executor$`,
			"hallmark-prepare-*", `^Preparing the sandbox \(profile firewalled\)$`,
			"hallmark-prepare-*", `^image   registry\.example\.test:5000/ci/shell@sha256:[0-9a-f]{64}$`,
			"hallmark-prepare-*", `^network the job's scripts can reach what 1 rule allows, recorded$`,
			"step-script", `^blocked  GET https://canary\.example\.test/x  rule default-deny: no rule allows canary\.example\.test$`,
			"step-script", `^hint: ask the runner's admin to add the host to the allow-list`,
			"hallmark-evidence-*", `^Evidence: \d+ inputs, 1 blocked, 1 output$`,
			"hallmark-evidence-*", `^attested     out\.zip sha256:[0-9a-f]{64}$`,
			"hallmark-evidence-*", `^bundle       ` + regexp.QuoteMeta(world.AttestdURL) + `/v1/bundles/sha256:[0-9a-f]{64}$`,
			"", `^Job succeeded$`,
		},
		"hermetic": {
			"step-script", `^installing$`,
			"step-script", `^blocked  GET http://packages\.example\.test/a  rule hermetic: `,
			"step-script", `^hint: vendor the dependency, put it into the image, or pick the firewalled profile`,
			"hallmark-evidence-*", `^not attested: the job uploaded nothing$`,
			"", `^ERROR: Job failed: exit status 1$`,
		},
		"messy": {
			"step-script", `^red `,
			"step-script", `^blocked  GET https://canary`,
			"", `^Job succeeded$`,
		},
		"killed": {
			"step-script", `^error: the script's shell was ended by signal 9 \(SIGKILL\)$`,
			"", `^ERROR: Job failed: exit status 137$`,
		},
		"missing": {
			"prepare-executor", `^error: .*ci/nothing`,
			"prepare-executor", `^hint: `,
			"", `^ERROR: Job failed`,
		},
		"canceled": {
			"step-script", `^begun$`,
			"hallmark-evidence-*", `^Evidence: `,
			"", `^ERROR: Job failed: canceled$`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := wait(t, attempts[name])
			for _, c := range trace.Complaints(r.Trace) {
				t.Error(c)
			}
			inOrder(t, trace.Convert(r.Trace), want)
			mostlyFolded(t, r)
		})
	}
}

// inOrder looks for pairs of a section and a pattern, each behind the one before.
func inOrder(t *testing.T, shown []trace.Shown, want []string) {
	t.Helper()
	for i := 0; i < len(want); i += 2 {
		section, pattern := want[i], regexp.MustCompile(want[i+1])
		at := slices.IndexFunc(shown, func(l trace.Shown) bool {
			name, any := strings.CutSuffix(section, "*")
			return (l.Section == section || any && strings.HasPrefix(l.Section, name)) && pattern.MatchString(l.Text)
		})
		if at < 0 {
			t.Errorf("no line %q in section %q, or not behind those before", want[i+1], section)
			continue
		}
		shown = shown[at+1:]
	}
}

// mostlyFolded requires that what we add to a log is folded but for the summary.
func mostlyFolded(t *testing.T, r coordinator.Result) {
	t.Helper()
	open := 0
	for _, l := range trace.Convert(r.Trace) {
		if !strings.HasPrefix(l.Section, "hallmark-") {
			continue
		}
		if l.Header && !strings.Contains(l.Options, "collapsed=true") {
			open++
		}
	}
	if open > 1 {
		t.Errorf("%d sections of ours are open", open)
	}
}
