package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	formatter = "mkfs.ext4"
	// maxImage bounds what an empty file system may occupy in memory.
	maxImage = 256 << 20
	// bytesPerInode is mkfs's own ratio for ordinary disks: one of 20 GiB has
	// room for 1.3 million files.
	bytesPerInode = 16384
	blockSize     = 4096
	// features are all that the file system has, whatever this host's mke2fs.conf
	// would add: no journal, no room to grow.
	features = "none,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"
)

// An image is an empty file system, without its holes.
type image struct {
	size  int64
	parts []part
}

type part struct {
	offset int64
	data   []byte
}

// format makes an empty file system in a file without a name.
func format(ctx context.Context, dir string, size int64) (*image, error) {
	program, err := exec.LookPath(formatter)
	if err != nil {
		// The daemon's own PATH need not have the places of root's programs.
		if program, err = exec.LookPath(filepath.Join("/sbin", formatter)); err != nil {
			return nil, fmt.Errorf(`%s is not there: install e2fsprogs, or set limits.disk to "0B"`, formatter)
		}
	}
	f, err := blank(dir, size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, program, "-q", "-F", "-b", strconv.Itoa(blockSize), "-I", "256", "-i", strconv.Itoa(bytesPerInode), "-m", "0",
		"-G", "64", "-O", features, "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = []string{"MKE2FS_CONFIG=/dev/null", "LC_ALL=C"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", formatter, err, strings.TrimSpace(string(out)))
	}
	return read(f, size)
}

// blank makes a file that is all hole.
func blank(dir string, size int64) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("file in %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "disk")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read takes what is in a file between its holes.
func read(f *os.File, size int64) (*image, error) {
	i := &image{size: size}
	total := int64(0)
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return i, nil
		}
		if err != nil {
			return nil, err
		}
		if at, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		if total += at - start; total > maxImage {
			return nil, errors.New("an empty file system of that size is too large")
		}
		p := part{offset: start, data: make([]byte, at-start)}
		if _, err := f.ReadAt(p.data, start); err != nil {
			return nil, err
		}
		i.parts = append(i.parts, p)
	}
}

// mount writes the image to a new file and mounts that.
func (i *image) mount(dir, at string) (*os.File, error) {
	f, err := blank(dir, i.size)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, p := range i.parts {
		if _, err := f.WriteAt(p.data, p.offset); err != nil {
			return nil, err
		}
	}
	loop, err := attach(f, filepath.Base(at))
	if err != nil {
		return nil, err
	}
	// From here on the mount holds the device; without one, this was its last user.
	defer loop.Close()
	return mountExt4(loop.Name(), at)
}
