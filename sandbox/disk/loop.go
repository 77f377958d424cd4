package disk

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	loopMajor   = 7
	// maxRaces is how often another may take the free device first.
	maxRaces = 1000
)

// attach makes a block device of a file. The device is gone when the last who
// has it open or mounted is. It carries a name, for the file has none.
func attach(f *os.File, name string) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf(`loop device: %w: load the kernel module "loop", or set limits.disk to "0B"`, err)
	}
	defer control.Close()
	for range maxRaces {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		loop, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		err = configure(loop, f, name)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device: %w", err)
		}
	}
	return nil, errors.New("loop device: none stays free")
}

func configure(loop, f *os.File, name string) error {
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Size: blockSize}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
	return unix.IoctlLoopConfigure(int(loop.Fd()), &config)
}

// openLoop opens a device, and makes its node where nobody else does.
func openLoop(n int) (*os.File, error) {
	name := "/dev/loop" + strconv.Itoa(n)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(loopMajor, uint32(n))))
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("loop device: make %s: %w", name, err)
		}
		f, err = os.OpenFile(name, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("loop device: %w", err)
	}
	return f, nil
}

// ext4Flags: nothing on such a disk outlives a crash, so nothing is made to last;
// and tables that are holes stay holes.
var ext4Flags = []string{"nobarrier", "noinit_itable"}

func mountExt4(device, at string) (*os.File, error) {
	fs, err := unix.Fsopen("ext4", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", device); err != nil {
		return nil, fmt.Errorf("ext4: source: %w", err)
	}
	for _, flag := range ext4Flags {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return nil, fmt.Errorf("ext4: %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	mount := os.NewFile(uintptr(fd), at)
	defer mount.Close()
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("mount at %s: %w", at, err)
	}
	root, err := os.Open(at)
	if err != nil {
		return nil, errors.Join(err, unmount(at))
	}
	return root, nil
}

// shutDown makes the file system forget what it has not written. Where that is
// not allowed, unmounting writes it.
func shutDown(root *os.File) {
	const (
		request    = 0x8004587d // EXT4_IOC_SHUTDOWN
		noLogFlush = 2
	)
	_ = unix.IoctlSetPointerInt(int(root.Fd()), request, noLogFlush)
}

// unmount ends a mount; one that is still busy is detached, and ends with its
// last user. A directory on which nothing is mounted is no error.
func unmount(at string) error {
	err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// mountsBelow lists what is mounted below a directory, the youngest first.
func mountsBelow(root string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var points []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		if p := strings.Fields(s.Text()); len(p) > 4 && strings.HasPrefix(p[4], root+"/") {
			points = append(points, p[4])
		}
	}
	slices.Reverse(points)
	return points, s.Err()
}
