package integration

import (
	"testing"

	"hallmark.build/integration/coordinator"
)

func TestJobRunsAndItsArtifactsArrive(t *testing.T) {
	job := hermetic("sh src/main.sh > out.txt", "echo it ran")
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "it ran")
	if got := archive(t, r)["out.txt"]; got != "built from hello\n" {
		t.Errorf("out.txt holds %q", got)
	}
}
