package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Bounds of a removal's own use of the host, whatever a job nested.
const (
	maxOpenDepth = 64   // directories held open at once; what lies deeper is moved up first
	removeBatch  = 1024 // names read from a directory at once
)

// removeAt removes name in the directory parent and all that is in it. It
// follows nothing: each step is relative to a descriptor and takes one name. A
// name that is not there is no error.
func removeAt(parent int, name string) error {
	err := unlink(parent, name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	top, err := openPlain(parent, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer top.Close()
	r := remover{top: top, canceled: func() error { return nil }}
	for {
		if err := r.empty(top, 0); err != nil {
			return err
		}
		// Deep parts may have been moved up while the directory was read.
		if err := unlink(parent, name); !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
}

// Empty removes all that is in a directory that a job writes to. Unlike RemoveAll of
// os it holds few directories open, however deep they are nested, and ends with ctx:
// a service may go on filling what is emptied.
func Empty(ctx context.Context, dir *os.Root) error {
	top, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer top.Close()
	r := remover{top: top, canceled: ctx.Err}
	for {
		before := r.moved
		if err := r.empty(top, 0); err != nil || r.moved == before {
			return err
		}
	}
}

type remover struct {
	top      *os.File // the tree's root, where deep parts are moved
	moved    int
	canceled func() error
}

// empty removes all entries of dir that it can see.
func (r *remover) empty(dir *os.File, depth int) error {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return err
	}
	for {
		names, err := dir.Readdirnames(removeBatch)
		for _, name := range names {
			if err := r.canceled(); err != nil {
				return err
			}
			if err := r.remove(dir, name, depth); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	err := unlink(int(dir.Fd()), name)
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if depth >= maxOpenDepth {
		return r.moveUp(dir, name)
	}
	child, err := openPlain(int(dir.Fd()), name)
	if err != nil {
		return err
	}
	defer child.Close()
	for {
		if err := r.empty(child, depth+1); err != nil {
			return err
		}
		if err := unlink(int(dir.Fd()), name); !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
}

// moveUp makes a directory a child of the tree's root, under a new name.
func (r *remover) moveUp(dir *os.File, name string) error {
	for {
		r.moved++
		to := "deep-" + strconv.Itoa(r.moved)
		err := unix.Renameat2(int(dir.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// unlink removes a file or an empty directory; ENOTEMPTY says that the
// directory is not empty. Flags that make a name immovable are cleared first.
func unlink(dir int, name string) error {
	err := unlinkOnce(dir, name)
	if errors.Is(err, unix.EPERM) {
		clearFlags(dir, ".")
		clearFlags(dir, name)
		err = unlinkOnce(dir, name)
	}
	return err
}

func unlinkOnce(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EEXIST):
		return unix.ENOTEMPTY
	}
	return err
}

// The inode flags that forbid removal (FS_IMMUTABLE_FL, FS_APPEND_FL).
const immovable = 0x10 | 0x20

// clearFlags does what it can: the caller's next attempt tells whether it did.
func clearFlags(dir int, name string) {
	fd, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immovable == 0 {
		return
	}
	unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags&^immovable)
}

func openPlain(dir int, name string) (*os.File, error) {
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
