package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// rootFS has a container write to spec.Scratch. The snapshot is there all the
// same: it holds the image's layers, which the mount stands on.
func (r *Runtime) rootFS(ctx context.Context, spec sandbox.Spec, b box) ([]client.NewTaskOpts, error) {
	if spec.Scratch == "" {
		return nil, nil
	}
	mounts, err := r.client.SnapshotService(snapshotter).Mounts(ctx, b.id)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	upper, work := filepath.Join(spec.Scratch, "upper"), filepath.Join(spec.Scratch, "work")
	for _, dir := range []string{spec.Scratch, upper, work} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, fmt.Errorf("scratch: %w", err)
		}
	}
	// The root directory is the container's root user's, as that of a snapshot.
	if err := errors.Join(os.Lchown(upper, int(spec.IDs.First), int(spec.IDs.First)), os.Chmod(upper, 0o755)); err != nil {
		return nil, fmt.Errorf("scratch: %w", err)
	}
	if mounts, err = redirected(mounts, upper, work); err != nil {
		return nil, err
	}
	return []client.NewTaskOpts{client.WithRootFS(mounts)}, nil
}

// redirected gives the overlay of a snapshot another upper layer. volatile: what
// a container writes does not outlive a crash, and need not reach the disk.
func redirected(mounts []mount.Mount, upper, work string) ([]mount.Mount, error) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return nil, errors.New("snapshot: not one overlay")
	}
	m := mounts[0]
	var options []string
	for _, o := range m.Options {
		if !strings.HasPrefix(o, "upperdir=") && !strings.HasPrefix(o, "workdir=") {
			options = append(options, o)
		}
	}
	m.Options = append(options, "upperdir="+upper, "workdir="+work, "volatile")
	return []mount.Mount{m}, nil
}

// A gauge is a file system of a container that can get full.
type gauge struct {
	path string
	root *os.File // O_PATH: nothing can be read or written through it
}

// gauges opens what a container has of tmpfs, while init is its only process:
// later, a path would be the tenant's to change. Symbolic links of the image's
// are followed inside its root, as they were when it was mounted.
func gauges(pid int, l sandbox.Limits) ([]gauge, error) {
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root of the container: %w", err)
	}
	defer unix.Close(root)
	paths := []string{"/dev/shm"}
	for _, t := range l.Tmpfs {
		paths = append(paths, t.Path)
	}
	var list []gauge
	for _, p := range paths {
		fd, err := unix.Openat2(root, p, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			closeGauges(list)
			return nil, fmt.Errorf("%s of the container: %w", p, err)
		}
		list = append(list, gauge{p, os.NewFile(uintptr(fd), p)})
	}
	return list, nil
}

func closeGauges(list []gauge) {
	for _, g := range list {
		g.root.Close()
	}
}

// full returns how much of the file system is in use, and whether that is all.
func (g gauge) full() (used, size int64, full bool) {
	var st unix.Statfs_t
	if unix.Fstatfs(int(g.root.Fd()), &st) != nil || st.Type != unix.TMPFS_MAGIC || st.Blocks == 0 {
		return 0, 0, false
	}
	block := int64(st.Bsize)
	return int64(st.Blocks-st.Bfree) * block, int64(st.Blocks) * block, st.Bfree == 0 || st.Files > 0 && st.Ffree == 0
}
