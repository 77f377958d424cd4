package integration

import (
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
)

// TestScriptMayOpenItsOutputAgain has what scripts do every day. Reading the
// log's pipe is another matter: nobody but the runner does.
func TestScriptMayOpenItsOutputAgain(t *testing.T) {
	for _, image := range []string{images.Shell, images.User} {
		t.Run(image, func(t *testing.T) {
			job := hermetic(
				"echo to-err >/dev/stderr", "echo to-out >/dev/stdout", "echo tee-d | tee /dev/stderr >/dev/null",
				"if (: </proc/self/fd/1) 2>/dev/null; then echo can read; else echo cannot read; fi",
			)
			job.Image.Name = theWorld.Images[image]
			r := run(t, job)
			expect(t, r, coordinator.Success, "")
			mention(t, r, "\nto-err", "\nto-out", "\ntee-d", "\ncannot read")
		})
	}
}
