package workspace

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// isolate makes dir a private mount of itself, so that what is mounted below
// it stays in this mount namespace and in the containers that follow it.
func isolate(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dir, err)
	}
	return nil
}

// overlayOptions settle what a host's module parameters could change. volatile:
// a workspace does not outlive a crash, so nothing of it need reach the disk.
// The overlay's own attributes are trusted.*, which no user namespace but the
// host's can write.
var overlayOptions = [][2]string{
	{"index", "off"}, {"metacopy", "off"}, {"redirect_dir", "nofollow"}, {"nfs_export", "off"},
}

// mountOverlay gives the job a superblock of its own at target, as a shared
// mount, and returns its root.
func mountOverlay(target, lower, upper, work string) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	defer unix.Close(fs)
	options := append([][2]string{{"lowerdir", lower}, {"upperdir", upper}, {"workdir", work}}, overlayOptions...)
	for _, o := range options {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return nil, fmt.Errorf("overlay: %s=%s: %w", o[0], o[1], err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return nil, fmt.Errorf("overlay: volatile: %w", err)
	}
	root, err := create(fs, "overlay")
	if err != nil {
		return nil, err
	}
	if err := move(root, unix.AT_FDCWD, target, unix.MS_SHARED); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// create makes the configured file system, mounted nowhere yet: nosuid, nodev.
func create(fs int, kind string) (*os.File, error) {
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%s: %w%s", kind, err, explain(fs))
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("%s: fsmount: %w", kind, err)
	}
	return os.NewFile(uintptr(mount), kind), nil
}

// move puts a new mount in its place: target relative to dir, or dir itself
// where target is empty.
func move(mount *os.File, dir int, target string, propagation uint64) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if target == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	if err := unix.MoveMount(int(mount.Fd()), "", dir, target, flags); err != nil {
		return fmt.Errorf("move mount: %w", err)
	}
	attr := &unix.MountAttr{Propagation: propagation}
	if err := unix.MountSetattr(int(mount.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("mount propagation: %w", err)
	}
	return nil
}

// explain returns what the kernel says about a refused configuration.
func explain(fs int) string {
	var out strings.Builder
	buf := make([]byte, 1024)
	for range 8 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		fmt.Fprintf(&out, ": %s", strings.TrimSpace(string(buf[:n])))
	}
	return out.String()
}

// unmountBelow ends every mount at or below dir, the youngest first. A mount
// that is still busy is detached: its last user ends it.
func unmountBelow(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		// Ended with the mount above it, or by another sweep.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", point, err)
		}
	}
	return nil
}

// mountsBelow lists mount points at and below dir, in the order of mounting.
func mountsBelow(dir string) ([]string, error) {
	// Of this thread: the leader's may have been given another namespace.
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			out = append(out, point)
		}
	}
	return out, lines.Err()
}

// unescapeMount undoes mountinfo's octal escapes of space, tab, newline and
// backslash.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`, `\043`, "#").Replace(s)
}
