package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"hallmark.build/config/tomlfile"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/disk"
)

// leastRoom is what this host's disk must have left for jobs to run. Jobs' disks
// are made of what they use; when the host's own is full, what they wrote is lost.
const leastRoom = 256 << 20

// A noRoomError is a failure of the host's: the job did no more than it may.
type noRoomError struct {
	dir  string
	free int64
}

func (e *noRoomError) Error() string {
	return fmt.Sprintf("the runner host's disk is full: %s are left at %s", approximately(e.free), e.dir)
}

// room tells whether the host has some left.
func (h *Host) room() error {
	free, _, err := disk.Room(h.cfg.StateDir)
	if err != nil {
		return err
	}
	if free < leastRoom {
		return &hintedError{&noRoomError{h.cfg.StateDir, free}, "the runner's admin should make room, or lower limits.disk or the runner's concurrent"}
	}
	return nil
}

// prepareDisks makes what disks of each size have in common, so that a host that
// cannot have any is found out before a job is.
func (h *Host) prepareDisks(ctx context.Context) error {
	sizes := []int64{h.cfg.Limits.DiskBytes}
	for _, p := range h.cfg.Projects {
		sizes = append(sizes, p.DiskBytes)
	}
	for _, size := range sizes {
		if size == 0 {
			continue
		}
		if err := h.disks.Prepare(ctx, size); err != nil {
			return err
		}
	}
	return nil
}

// furnish gives the job its directory, on a disk of its own where its use is
// bounded.
func (h *Host) furnish(ctx context.Context, j *job) error {
	if err := os.MkdirAll(j.dir, 0o711); err != nil {
		return err
	}
	if j.limits.DiskBytes == 0 {
		return nil
	}
	var err error
	if j.disk, err = h.disks.Mount(ctx, j.dir, j.limits.DiskBytes); err != nil {
		return err
	}
	return os.Chmod(j.dir, 0o711)
}

// scratch is where a container's own files go: to the job's disk, if it has one.
func (j *job) scratch(role sandbox.Role) string {
	if j.disk == nil {
		return ""
	}
	return filepath.Join(j.dir, "scratch-"+string(role))
}

// clearDisk ends the job's disk with all that is on it. Nothing of it need be
// removed one by one.
func (j *job) clearDisk() error {
	if j.space != nil {
		if err := j.space.Unmount(); err != nil {
			return err
		}
	}
	if err := j.disk.Close(); err != nil {
		return err
	}
	err := os.Remove(j.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// approximately writes a number of bytes for people.
func approximately(n int64) string {
	const unit = 1 << 10
	for _, name := range []string{"B", "KiB", "MiB"} {
		if n < 10*unit {
			return fmt.Sprintf("%d%s", n, name)
		}
		n /= unit
	}
	return tomlfile.FormatSize(n << 30)
}
