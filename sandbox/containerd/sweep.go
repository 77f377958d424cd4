package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// Sweep removes what sessions that keep does not name have left behind,
// whether this Runtime made it or one that was killed: tasks and their shims,
// containers, snapshots, mounts, cgroups, directories. It returns how many
// containers it removed. No container is made while it looks.
func (r *Runtime) Sweep(ctx context.Context, keep func(session string) bool) (removed int, err error) {
	r.quiet.Lock()
	defer r.quiet.Unlock()
	left, err := r.leftovers(ctx)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, b := range left {
		session, _, _ := strings.Cut(b.id, "-")
		if keep(session) {
			continue
		}
		if err := r.sweepBox(ctx, b); err != nil {
			errs = append(errs, err)
			continue
		}
		removed++
	}
	errs = append(errs, r.sweepCgroups(ctx, keep))
	return removed, errors.Join(errs...)
}

// leftovers collects containers from every place that may know one.
func (r *Runtime) leftovers(ctx context.Context) ([]box, error) {
	var ids []string
	add := func(id string) {
		session, role, ok := strings.Cut(id, "-")
		if ok && sessionForm.MatchString(session) && roleForm.MatchString(role) && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	list, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("sweep: containers: %w", err)
	}
	for _, c := range list {
		add(c.ID)
	}
	err = r.client.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		add(i.Name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("sweep: snapshots: %w", err)
	}
	for _, dir := range []string{r.layout.boxes, filepath.Join(r.layout.runc, r.cfg.Namespace), r.layout.bundles} {
		if dir == "" {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		for _, e := range entries {
			add(e.Name())
		}
	}
	var boxes []box
	for _, id := range ids {
		session, role, _ := strings.Cut(id, "-")
		boxes = append(boxes, r.newBox(session, role))
	}
	return boxes, nil
}

func (r *Runtime) sweepBox(ctx context.Context, b box) error {
	if err := r.killTask(ctx, b.id); err != nil {
		r.log.Warn("sweep", "container", b.id, "error", err)
	}
	err := r.remove(ctx, b)
	if err == nil {
		return r.sweepShim(b)
	}
	// containerd does not get on with it: end by hand what runs, and try again.
	r.log.Warn("sweep", "container", b.id, "error", err)
	if err := r.cgroups.remove(ctx, b.cgroup); err != nil {
		return err
	}
	if err := r.sweepShim(b); err != nil {
		return err
	}
	return r.remove(ctx, b)
}

// sweepShim ends what containerd itself no longer knows of: the private
// instance's shim for the container, runc's state and the bundle's mounts.
func (r *Runtime) sweepShim(b box) error {
	if r.daemon == nil {
		return nil
	}
	if err := r.killShims(b.id); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(r.layout.runc, r.cfg.Namespace, b.id)); err == nil {
		out, err := exec.Command(r.bin("runc"), "--root", filepath.Join(r.layout.runc, r.cfg.Namespace), "delete", "--force", b.id).CombinedOutput()
		if err != nil {
			r.log.Warn("sweep", "container", b.id, "error", err, "runc", string(out))
		}
	}
	bundle := filepath.Join(r.layout.bundles, b.id)
	if err := unmountBelow(bundle); err != nil {
		return err
	}
	if _, err := os.Stat(bundle); err == nil {
		if err := os.RemoveAll(bundle); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	return nil
}

// killShims kills the shim processes of a container of this instance. A shim
// is known by its binary and arguments, both of which only root can set.
func (r *Runtime) killShims(id string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		// The number is the process's as long as the descriptor answers.
		if r.isShim(pid, id) {
			unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
	}
	return nil
}

func (r *Runtime) isShim(pid int, id string) bool {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(string(raw), "\x00")
	has := func(flag, value string) bool {
		i := slices.Index(args, flag)
		return i >= 0 && i+1 < len(args) && args[i+1] == value
	}
	return args[0] == r.bin("containerd-shim-runc-v2") &&
		has("-namespace", r.cfg.Namespace) && has("-id", id) && has("-address", r.layout.socket)
}

// unmountBelow unmounts everything at and below dir.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	defer f.Close()
	var at []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if p := strings.Fields(s.Text()); len(p) > 4 && (p[4] == dir || strings.HasPrefix(p[4], dir+"/")) {
			at = append(at, p[4])
		}
	}
	for _, p := range slices.Backward(at) {
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("sweep: unmount %s: %w", p, err)
		}
	}
	return nil
}

// sweepCgroups removes cgroups without a container, and containerd's forgotten
// temporary mounts: nobody is making one now.
func (r *Runtime) sweepCgroups(ctx context.Context, keep func(string) bool) error {
	var errs []error
	for _, session := range r.cgroups.sessions() {
		r.held.mu.Lock()
		used := r.held.count[session] > 0
		r.held.mu.Unlock()
		if used || keep(session) {
			continue
		}
		errs = append(errs, r.cgroups.remove(ctx, r.cgroups.path(session, "")))
	}
	r.held.mu.Lock()
	if len(r.held.count) == 0 {
		r.cgroups.prune("/" + r.cgroups.parent)
	}
	r.held.mu.Unlock()
	errs = append(errs, unmountBelow(r.layout.tmp))
	entries, err := os.ReadDir(r.layout.tmp)
	errs = append(errs, err)
	for _, e := range entries {
		errs = append(errs, unix.Rmdir(filepath.Join(r.layout.tmp, e.Name())))
	}
	return errors.Join(errs...)
}
