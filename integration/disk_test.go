package integration

import (
	"testing"

	"golang.org/x/sys/unix"

	"hallmark.build/integration/coordinator"
)

// runOnFull runs a job while a directory is a file system of so many bytes.
func runOnFull(t *testing.T, dir, size string, job coordinator.Job) coordinator.Result {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,size="+size); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	return run(t, job)
}

func TestFullDiskForTheRecordFailsTheJobBeforeTenantCode(t *testing.T) {
	r := runOnFull(t, "/var/lib/hallmark/sandboxd/records", "4k", hermetic("echo not reached"))
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "record", "no space left on device")
	never(t, r, "\nnot reached")
}

func TestFullDiskForTheSpoolStopsTheUploadAndFailsTheJob(t *testing.T) {
	job := hermetic("head -c 1000000 /dev/urandom > out.bin")
	job.Artifacts = coordinator.Archive("out.bin")
	r := runOnFull(t, "/var/lib/hallmark/sandboxd/spool", "64k", job)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "no space left on device")
	if _, sent := r.Artifact("archive"); sent {
		t.Error("GitLab has an artifact that nobody could match")
	}
	unattested(t, r)
}
