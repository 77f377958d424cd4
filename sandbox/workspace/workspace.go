package workspace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"hallmark.build/sandbox"
)

// Where the workspace appears in every container.
const (
	buildsTarget = "/builds"
	cacheTarget  = "/cache"
)

// Names inside the workspace's directory on the host.
const (
	buildsName = "builds" // the overlay: all that a job can reach
	cacheName  = "cache"
	lowerName  = "lower" // empty for ever
	upperName  = "upper" // what the job writes, out of its reach
	workName   = "work"  // the overlay's own
)

// tenantMode lets the helper, which writes as root, and an image's
// unprivileged user share the tree, as GitLab Runner's own executors do.
const tenantMode = 0o777

var errClosed = errors.New("workspace: closed")

// A Workspace is the file system of one attempt. Its methods are safe for
// concurrent use, but for Close.
type Workspace struct {
	dir string
	ids sandbox.IDs

	mu     sync.Mutex
	builds *os.File // the overlay's root; nil once closed
	sealed string   // the project directory relative to builds; "" before Seal
}

// Create makes a workspace in dir, which must not exist yet: its parent must
// be writable by root alone and lie on a file system that can hold the upper
// layer of an overlay (ext4, xfs, btrfs, tmpfs).
func Create(dir string, ids sandbox.IDs) (*Workspace, error) {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsAny(dir, ",:\\") {
		return nil, fmt.Errorf("workspace: directory %q: want a clean absolute path without comma, colon and backslash", dir)
	}
	// The kernel lists mounts by their real paths.
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("workspace: %w", err)
	}
	w := &Workspace{dir: dir, ids: ids}
	if err := w.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("workspace: create: %w", err), w.Close())
	}
	return w, nil
}

func (w *Workspace) build() error {
	for _, name := range []string{buildsName, cacheName, lowerName, upperName, workName} {
		if err := os.Mkdir(w.path(name), 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{upperName, cacheName} {
		if err := w.give(w.path(name)); err != nil {
			return err
		}
	}
	if err := isolate(w.dir); err != nil {
		return err
	}
	builds, err := mountOverlay(w.path(buildsName), w.path(lowerName), w.path(upperName), w.path(workName))
	if err != nil {
		return err
	}
	w.builds = builds
	return nil
}

// give makes a directory the tenant's. The mode is set after the owner, since
// the process's umask must not decide it.
func (w *Workspace) give(path string) error {
	if err := os.Lchown(path, int(w.ids.First), int(w.ids.First)); err != nil {
		return err
	}
	return os.Chmod(path, tenantMode)
}

func (w *Workspace) path(name string) string { return filepath.Join(w.dir, name) }

// Mounts are what every container of the attempt must have.
func (w *Workspace) Mounts() []sandbox.Mount {
	return []sandbox.Mount{
		{Source: w.path(buildsName), Target: buildsTarget, Follow: true},
		{Source: w.path(cacheName), Target: cacheTarget},
	}
}

// Cache opens the directory that containers see as /cache, for archives that the
// host puts there or takes from it. Whatever a job makes of it, no name leads out.
func (w *Workspace) Cache() (*os.Root, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.builds == nil {
		return nil, errClosed
	}
	return os.OpenRoot(w.path(cacheName))
}

// root returns the open root of the builds directory.
func (w *Workspace) root() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.builds == nil {
		return -1, errClosed
	}
	return int(w.builds.Fd()), nil
}

// Close unmounts and removes the workspace. No process that has it mounted may
// run any more. It works on a half-built workspace, and again after an error.
func (w *Workspace) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.builds != nil {
		w.builds.Close()
		w.builds = nil
	}
	return discard(w.dir)
}

// Unmount ends the workspace, and leaves its files to a caller who throws away the
// file system that they are on. It may be called again.
func (w *Workspace) Unmount() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.builds != nil {
		w.builds.Close()
		w.builds = nil
	}
	if err := unmountBelow(w.dir); err != nil {
		return fmt.Errorf("workspace: unmount: %w", err)
	}
	return nil
}

// Sweep removes the workspaces that a killed daemon left at
// root/<session>/workspace. What keep reports true for stays.
func Sweep(root string, keep func(session string) bool) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("workspace: sweep: %w", err)
	}
	var failed []error
	for _, e := range entries {
		if !e.IsDir() || keep(e.Name()) {
			continue
		}
		if err := discard(filepath.Join(root, e.Name(), "workspace")); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// discard ends all mounts at and below dir, then removes it.
func discard(dir string) error {
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("workspace: remove: %w", err)
	}
	base := filepath.Base(dir)
	if err := unmountBelow(filepath.Join(parent, base)); err != nil {
		return fmt.Errorf("workspace: unmount: %w", err)
	}
	at, err := os.Open(parent)
	if err != nil {
		return fmt.Errorf("workspace: remove: %w", err)
	}
	defer at.Close()
	if err := removeAt(int(at.Fd()), base); err != nil {
		return fmt.Errorf("workspace: remove: %w", err)
	}
	return nil
}
