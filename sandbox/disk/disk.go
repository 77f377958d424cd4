// Package disk gives a job a file system of bounded size, which is gone with it.
//
// # Why an image
//
// A job's files need a bound that programs see as what it is: "no space left on
// device". Project quotas of ext4 and xfs would give it, but many kernels are
// built without them, and those that have them need a file system that was made
// and mounted for it. A loop device over a sparse file needs neither. It bounds
// inodes as well, shares no lock or free list with other jobs, and its removal
// costs the same whatever the job has nested in it.
//
// # How
//
// The file never has a name (O_TMPFILE), the loop device clears itself with its
// last user (LO_FLAGS_AUTOCLEAR). So whenever this program is killed, all that
// can stay is a mount, and once [Sweep] has ended that, the kernel gives back
// the rest. The file system is ext4 without a journal: what does not outlive a
// crash needs none. It is made once for each size, by mkfs.ext4 in a sparse
// file; the few hundred kilobytes which that writes are kept in memory and
// written again for each job. Tables of inodes are left as they are, holes,
// which the kernel is told not to fill (noinit_itable).
//
// What is written goes through the host's page cache, and so may be kept twice for
// a while. Direct I/O would avoid it, but the kernel has the image on the host's
// disk before it lets a device begin with that, which takes longer than all the
// rest; and most jobs end before any of their pages is written. When a disk is closed, its file system is shut down first: what is
// not written by then never will be.
//
// # What it cannot do
//
// Images are sparse: together they may promise more than the host has. See
// [Room].
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of a disk's size, in bytes.
const (
	Min = 64 << 20
	Max = 16 << 40
)

// A Maker makes disks whose bytes lie in one directory. It is safe for
// concurrent use.
type Maker struct {
	dir string

	mu     sync.Mutex
	images map[int64]*image // by size
}

// New returns a maker of disks that are kept in the file system of dir.
func New(dir string) *Maker { return &Maker{dir: dir, images: map[int64]*image{}} }

// Prepare makes what is common to all disks of a size, and tells whether this
// host can have them.
func (m *Maker) Prepare(ctx context.Context, size int64) error {
	_, err := m.image(ctx, size)
	return err
}

// image returns the empty file system of a size.
func (m *Maker) image(ctx context.Context, size int64) (*image, error) {
	if size < Min || size > Max {
		return nil, fmt.Errorf("disk: %d bytes: want %d to %d", size, int64(Min), int64(Max))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.images[size]; i != nil {
		return i, nil
	}
	i, err := format(ctx, m.dir, size)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	m.images[size] = i
	return i, nil
}

// A Disk is one mounted file system.
type Disk struct {
	at   string
	root *os.File

	mu     sync.Mutex
	closed bool
}

// Mount makes an empty file system of a size and mounts it on the directory at,
// which must exist: nosuid, nodev, private.
func (m *Maker) Mount(ctx context.Context, at string, size int64) (*Disk, error) {
	img, err := m.image(ctx, size)
	if err != nil {
		return nil, err
	}
	root, err := img.mount(m.dir, at)
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return &Disk{at: at, root: root}, nil
}

// Usage is how full a disk is, or was.
type Usage struct {
	Bytes, MaxBytes int64
	Files, MaxFiles int64
	Full            bool // no room for a byte more
	Crowded         bool // no room for a file more
}

// slack is what a full disk may still have, in blocks. The kernel takes room for
// a whole folio at once, megabytes of it, and keeps some for its own tables.
const slack = 1024

// Usage asks the kernel.
func (d *Disk) Usage() (Usage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return Usage{}, os.ErrClosed
	}
	return UsageOf(int(d.root.Fd()))
}

// UsageOf is the use of the file system that a descriptor belongs to.
func UsageOf(fd int) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return Usage{}, err
	}
	block := int64(st.Frsize)
	room := uint64(0)
	if st.Type == unix.EXT4_SUPER_MAGIC {
		room = slack
	}
	return Usage{
		Bytes: int64(st.Blocks-st.Bfree) * block, MaxBytes: int64(st.Blocks) * block,
		Files: int64(st.Files - st.Ffree), MaxFiles: int64(st.Files),
		Full:    st.Blocks > 0 && st.Bavail <= room,
		Crowded: st.Files > 0 && st.Ffree == 0,
	}, nil
}

// Close ends the disk. No process may use it any more: one that does gets errors
// from now on. It may be called again.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		shutDown(d.root)
		if err := d.root.Close(); err != nil {
			return fmt.Errorf("disk: %w", err)
		}
		d.closed = true
	}
	if err := unmount(d.at); err != nil {
		return fmt.Errorf("disk: unmount %s: %w", d.at, err)
	}
	return nil
}

// Room is what is left for everybody on the file system of a directory, and how
// much there is in all.
func Room(dir string) (free, all int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("disk: %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Frsize), int64(st.Blocks) * int64(st.Frsize), nil
}

// Sweep ends the disks that a killed program left mounted on root's children,
// and what is mounted inside them.
func Sweep(root string) error {
	points, err := mountsBelow(root)
	if err != nil {
		return fmt.Errorf("disk: sweep: %w", err)
	}
	var failed []error
	for _, point := range points {
		if err := unmount(point); err != nil {
			failed = append(failed, fmt.Errorf("disk: sweep: unmount %s: %w", point, err))
		}
	}
	return errors.Join(failed...)
}
