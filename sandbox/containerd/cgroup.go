package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cgroups knows the host's cgroup hierarchies: one with version 2, several with
// version 1 (where systemd's and the unified one beside it count too).
type cgroups struct {
	roots  []string // mount points
	memory string   // the one that limits memory
	v2     bool     // memory is the unified hierarchy
	parent string   // of all our cgroups, in every hierarchy
}

// ownCgroups finds the cgroups of this runtime, and of no other on the machine.
func ownCgroups(cfg Config) (cgroups, error) {
	id, err := instance(cfg.Root)
	if err != nil {
		return cgroups{}, err
	}
	return findCgroups(cfg.Namespace + "-" + id)
}

func findCgroups(parent string) (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, fmt.Errorf("cgroups: %w", err)
	}
	defer f.Close()
	return readCgroups(f, parent, func(at string) string {
		b, _ := os.ReadFile(filepath.Join(at, "cgroup.controllers"))
		return string(b)
	})
}

// readCgroups finds the hierarchies in a table of mounts; controllers says what
// the unified one at a place controls.
func readCgroups(mounts io.Reader, parent string, controllers func(at string) string) (cgroups, error) {
	c := cgroups{parent: parent}
	for s := bufio.NewScanner(mounts); s.Scan(); {
		// id parent major:minor root mountpoint options fields... - type source super
		before, after, ok := strings.Cut(s.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 6 || len(right) < 3 || left[3] != "/" {
			continue
		}
		at := left[4]
		switch right[0] {
		case "cgroup":
			if slices.Contains(strings.Split(right[2], ","), "memory") {
				c.memory = at
			}
		case "cgroup2":
			if slices.Contains(strings.Fields(controllers(at)), "memory") {
				c.memory, c.v2 = at, true
			}
		default:
			continue
		}
		if !slices.Contains(c.roots, at) {
			c.roots = append(c.roots, at)
		}
	}
	if c.memory == "" {
		return cgroups{}, errors.New("cgroups: no hierarchy limits memory")
	}
	return c, nil
}

// path is a cgroup's place below each hierarchy's root.
func (c cgroups) path(session, role string) string {
	return filepath.Join("/", c.parent, session, role)
}

// swap reports whether the kernel counts swap, without which it cannot be limited.
func (c cgroups) swap() bool {
	if c.v2 {
		return true // runc leaves out what is not there
	}
	_, err := os.Stat(filepath.Join(c.memory, "memory.memsw.limit_in_bytes"))
	return err == nil
}

// oomKills is how often the kernel killed for want of memory in a cgroup.
func (c cgroups) oomKills(path string) int64 {
	file := "memory.oom_control"
	if c.v2 {
		file = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(c.memory, path, file))
	if err != nil {
		return 0
	}
	return counter(string(b), "oom_kill")
}

// remove kills what is left in a cgroup and removes it with those below it.
func (c cgroups) remove(ctx context.Context, path string) error {
	var errs []error
	for _, root := range c.roots {
		if err := removeCgroup(ctx, filepath.Join(root, path)); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeCgroup(ctx context.Context, dir string) error {
	for {
		err := removeCgroupOnce(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: %w", dir, err)
		case <-time.After(5 * time.Millisecond): // the dying are not gone yet
		}
	}
}

func removeCgroupOnce(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroupOnce(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	if err != nil {
		killCgroup(dir)
	}
	return err
}

// killCgroup kills what is directly in a cgroup.
func killCgroup(dir string) {
	if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// names lists the sessions that have cgroups.
func (c cgroups) sessions() []string {
	var names []string
	for _, root := range c.roots {
		entries, _ := os.ReadDir(filepath.Join(root, c.parent))
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// prune removes parents that have become empty.
func (c cgroups) prune(path string) {
	for _, root := range c.roots {
		unix.Rmdir(filepath.Join(root, path))
	}
}

// sessions counts the containers of each session, so that the cgroups above
// them are removed when the last is gone and never while one is being made.
type sessions struct {
	mu    sync.Mutex
	count map[string]int
}

func (s *sessions) enter(session string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count == nil {
		s.count = map[string]int{}
	}
	s.count[session]++
}

func (s *sessions) leave(session string, c cgroups) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count[session]--; s.count[session] > 0 {
		return
	}
	delete(s.count, session)
	c.prune(c.path(session, ""))
	if len(s.count) == 0 {
		c.prune("/" + c.parent)
	}
}
