package workspace

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// beneath makes the kernel refuse, not us: no component of a path that a job
// wrote is followed as a symbolic link, leads out of the directory that it is
// opened from, or crosses into another mount.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// maxChunk keeps a single call below the kernel's PATH_MAX.
const maxChunk = 3 << 10

// openAt opens name, which may have several components, beneath dir. Opening
// never blocks: a FIFO opens at once, a device is refused by the callers'
// look at what was opened.
func openAt(dir int, name string, flags int) (int, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY),
		Resolve: beneath,
	}
	if flags&unix.O_PATH != 0 {
		how.Flags &^= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	for {
		fd, err := unix.Openat2(dir, name, how)
		// EAGAIN: a rename happened elsewhere while the kernel looked.
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openDir opens the directory at rel beneath dir, however long rel is. The
// empty path is dir itself.
func openDir(dir int, rel string) (*os.File, error) {
	at, own := dir, -1
	defer func() {
		if own >= 0 {
			unix.Close(own)
		}
	}()
	for _, part := range chunks(rel) {
		fd, err := openAt(at, part, unix.O_RDONLY|unix.O_DIRECTORY)
		if own >= 0 {
			unix.Close(own)
		}
		own = -1
		if err != nil {
			return nil, fmt.Errorf("open directory: %w", err)
		}
		at, own = fd, fd
	}
	fd := own
	own = -1
	return os.NewFile(uintptr(fd), rel), nil
}

// chunks splits a path at slashes into pieces that one system call takes.
func chunks(rel string) []string {
	if rel == "" {
		return []string{"."}
	}
	var out []string
	for len(rel) > maxChunk {
		cut := strings.LastIndexByte(rel[:maxChunk], '/')
		if cut <= 0 {
			break // one component of more than NAME_MAX: the kernel refuses it
		}
		out = append(out, rel[:cut])
		rel = rel[cut+1:]
	}
	return append(out, rel)
}

// openRegular opens name in dir for reading and refuses all but regular files.
func openRegular(dir int, name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, st, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, st, errNotRegular
	}
	return os.NewFile(uintptr(fd), name), st, nil
}

var errNotRegular = errors.New("not a regular file")

// maxLink bounds what is read of a symbolic link; the kernel makes none longer.
const maxLink = 4 << 10

// readLink returns the target of the symbolic link name in dir.
func readLink(dir int, name string) (string, error) {
	buf := make([]byte, maxLink+1)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	if n > maxLink {
		return "", fmt.Errorf("target longer than %d bytes", maxLink)
	}
	return string(buf[:n]), nil
}

// statAt looks at name in dir without following it.
func statAt(dir int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

// split returns the directory part of a clean relative path, "" for none, and
// its last component.
func split(rel string) (dir, base string) {
	dir, base = path.Split(rel)
	return strings.TrimSuffix(dir, "/"), base
}

// sub checks that an in-container path lies in the builds directory and
// returns it relative to that.
func sub(p string) (string, error) {
	rel, ok := strings.CutPrefix(p, buildsTarget+"/")
	if !ok || rel == "" || path.Clean(p) != p || strings.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("workspace: project directory %q: want a clean path below %s", p, buildsTarget)
	}
	if len(p) > maxChunk {
		return "", fmt.Errorf("workspace: project directory: longer than %d bytes", maxChunk)
	}
	return rel, nil
}

// openPath opens the regular file at rel beneath root, however long rel is.
func openPath(root int, rel string) (*os.File, error) {
	parent, base := split(rel)
	dir, err := openDir(root, parent)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, _, err := openRegular(int(dir.Fd()), base)
	return f, err
}
