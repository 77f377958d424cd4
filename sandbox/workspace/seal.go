package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// The runner's scratch directory stands beside the project's and has to stay
// writable: later scripts write file variables there.
const scratchSuffix = ".tmp"

// Bounds of the scratch directory that replaces the job's at the seal.
const (
	scratchBytes   = 64 << 20 // of the new file system
	scratchInodes  = 8192
	maxCopyBytes   = 32 << 20 // taken over from the old one
	maxCopyEntries = 4096
	maxCopyDepth   = 16
)

// How long writers that are just being torn down may take.
const (
	busyFor  = 2 * time.Second
	busyWait = 5 * time.Millisecond
)

// Seal makes everything below /builds unchangeable, for every container and
// by every name, and gives the runner's scripts a new scratch directory at
// projectDir.tmp. The caller has killed every process of the attempt's
// containers but their inits. If a descriptor or a mapping that can write is
// still held anywhere, the kernel tells, and Seal returns a
// *sandbox.SecurityError. A second call for the same directory does nothing.
func (w *Workspace) Seal(ctx context.Context, projectDir string) (record.Seal, error) {
	rel, err := sub(projectDir)
	if err != nil {
		return record.Seal{}, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.builds == nil:
		return record.Seal{}, errClosed
	case w.sealed == rel:
		return record.Seal{Directory: projectDir}, nil
	case w.sealed != "":
		return record.Seal{}, fmt.Errorf("workspace: seal: %s/%s is sealed already", buildsTarget, w.sealed)
	}
	if err := w.seal(ctx, rel); err != nil {
		return record.Seal{}, err
	}
	w.sealed = rel
	return record.Seal{Directory: projectDir}, nil
}

func (w *Workspace) seal(ctx context.Context, rel string) error {
	builds := int(w.builds.Fd())
	scratch, err := w.openScratch(builds, rel+scratchSuffix)
	if err != nil {
		return err
	}
	defer scratch.Close()
	if err := freeze(ctx, builds); err != nil {
		return err
	}
	if err := mountScratch(ctx, scratch); err != nil {
		return fmt.Errorf("workspace: seal: scratch directory: %w", err)
	}
	return nil
}

// openScratch opens the scratch directory, which is made where it is missing:
// a mount needs a place.
func (w *Workspace) openScratch(builds int, rel string) (*os.File, error) {
	dir, err := openDir(builds, rel)
	if errors.Is(err, unix.ENOENT) {
		if err = w.makeDirs(builds, rel); err == nil {
			dir, err = openDir(builds, rel)
		}
	}
	if missing(err) {
		return nil, &sandbox.UserError{
			Err:  fmt.Errorf("workspace: seal: %s/%s is not a directory", buildsTarget, show(rel)),
			Hint: "the directory belongs to GitLab Runner: the job must not replace it or the directories above it",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("workspace: seal: scratch directory: %w", err)
	}
	return dir, nil
}

func (w *Workspace) makeDirs(builds int, rel string) error {
	at := ""
	for _, part := range strings.Split(rel, "/") {
		parent, err := openDir(builds, at)
		if err != nil {
			return err
		}
		err = w.makeDir(int(parent.Fd()), part)
		parent.Close()
		if err != nil {
			return err
		}
		at = path.Join(at, part)
	}
	return nil
}

func (w *Workspace) makeDir(parent int, name string) error {
	err := unix.Mkdirat(parent, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := openPlain(parent, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return own(dir, w.ids.First, w.ids.First, tenantMode)
}

// own sets the owner before the mode: a change of owner may clear bits.
func own(f *os.File, uid, gid, mode uint32) error {
	if err := unix.Fchown(int(f.Fd()), int(uid), int(gid)); err != nil {
		return err
	}
	return unix.Fchmod(int(f.Fd()), mode)
}

// freeze makes the overlay's superblock read-only. The kernel does so only
// when no open file, mapping or unlinked file of any of its mounts can write.
func freeze(ctx context.Context, root int) error {
	deadline := time.NewTimer(busyFor)
	defer deadline.Stop()
	for {
		err := readOnly(root)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("workspace: seal: read-only: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("workspace: seal: %w", ctx.Err())
		case <-deadline.C:
			return &sandbox.SecurityError{Err: fmt.Errorf("workspace: seal: a file below %s is still open for writing", buildsTarget)}
		case <-time.After(busyWait):
		}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return fmt.Errorf("workspace: seal: %w", err)
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return &sandbox.SecurityError{Err: fmt.Errorf("workspace: seal: %s is writable after it was made read-only", buildsTarget)}
	}
	return nil
}

func readOnly(root int) error {
	fs, err := unix.Fspick(root, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return err
	}
	return unix.FsconfigReconfigure(fs)
}

// mountScratch puts a small file system of its own over the old scratch
// directory, with a copy of the plain files that earlier stages left there.
// The containers see it at once and complete.
func mountScratch(ctx context.Context, old *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(old.Fd()), &st); err != nil {
		return err
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for _, o := range [][2]string{
		{"size", strconv.Itoa(scratchBytes)}, {"nr_inodes", strconv.Itoa(scratchInodes)}, {"mode", "0700"},
	} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return fmt.Errorf("%s=%s: %w", o[0], o[1], err)
		}
	}
	mount, err := create(fs, "tmpfs")
	if err != nil {
		return err
	}
	defer mount.Close()
	top, err := openDir(int(mount.Fd()), "")
	if err != nil {
		return err
	}
	defer top.Close()
	c := copier{bytes: maxCopyBytes, entries: maxCopyEntries}
	if err := c.copy(ctx, old, top, 0); err != nil {
		return err
	}
	if err := own(top, st.Uid, st.Gid, st.Mode&0o777); err != nil {
		return err
	}
	return move(mount, int(old.Fd()), "", unix.MS_PRIVATE)
}

// A copier takes over plain files and directories, within bounds. Links and
// everything else are left behind.
type copier struct {
	bytes   int64
	entries int
}

func (c *copier) copy(ctx context.Context, from, to *os.File, depth int) error {
	if depth > maxCopyDepth {
		return crowded("directories nested deeper than %d", maxCopyDepth)
	}
	for {
		names, err := from.Readdirnames(256)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if c.entries--; c.entries < 0 {
				return crowded("more than %d files", maxCopyEntries)
			}
			if err := c.one(ctx, from, to, name, depth); err != nil {
				return err
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

func (c *copier) one(ctx context.Context, from, to *os.File, name string, depth int) error {
	st, err := statAt(int(from.Fd()), name)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return c.directory(ctx, from, to, name, st, depth)
	case unix.S_IFREG:
		return c.file(from, to, name)
	}
	return nil
}

func (c *copier) directory(ctx context.Context, from, to *os.File, name string, st unix.Stat_t, depth int) error {
	src, err := openPlain(int(from.Fd()), name)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil {
		return err
	}
	dst, err := openPlain(int(to.Fd()), name)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := c.copy(ctx, src, dst, depth+1); err != nil {
		return err
	}
	return own(dst, st.Uid, st.Gid, st.Mode&0o777)
}

func (c *copier) file(from, to *os.File, name string) error {
	src, st, err := openRegular(int(from.Fd()), name)
	if err != nil {
		return err
	}
	defer src.Close()
	fd, err := unix.Openat(int(to.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(fd), name)
	defer dst.Close()
	n, err := io.Copy(dst, io.LimitReader(src, c.bytes+1))
	if err != nil {
		return err
	}
	if c.bytes -= n; c.bytes < 0 {
		return crowded("more than %d bytes", maxCopyBytes)
	}
	return own(dst, st.Uid, st.Gid, st.Mode&0o777)
}

func crowded(format string, args ...any) error {
	return &sandbox.UserError{
		Err:  fmt.Errorf(format, args...),
		Hint: "the directory is GitLab Runner's own: keep the job's files in the project directory or in /tmp",
	}
}
