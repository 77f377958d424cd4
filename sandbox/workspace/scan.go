package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// Bounds on a work tree. Beyond them a job is told so, and not verified.
const (
	maxEntries = 2 << 20   // files and directories
	maxDepth   = 1024      // directories below each other; git's own paths end at 4096 bytes
	maxFile    = 64 << 30  // bytes of one file
	maxBytes   = 1 << 40   // bytes of all files
	maxPaths   = 256 << 20 // bytes of the paths of all directories
)

// How files are handed to workers.
const (
	batchFiles = 64
	batchBytes = 8 << 20
)

// A node is one entry of a work tree, as git would store it.
type node struct {
	name     string
	mode     uint32 // one of git's, or 0 for what a tree cannot hold
	why      string // for mode 0: what it is
	id       objectID
	size     int64
	impure   bool // for a directory: something of mode 0 lies in it
	children []*node
}

func (n *node) directory() bool { return n.mode == modeTree }

// empty reports whether git would see nothing here.
func (n *node) empty() bool {
	return n.directory() && !slices.ContainsFunc(n.children, func(c *node) bool { return !c.empty() })
}

// A scanner hashes a work tree, with several workers.
type scanner struct {
	alg  algorithm
	root int

	mu      sync.Mutex
	wake    *sync.Cond
	jobs    []scanJob
	pending int // jobs queued or being worked on
	entries int64
	files   int64
	bytes   int64
	paths   int64
	err     error
}

// A scanJob lists a directory, or hashes some of its files.
type scanJob struct {
	dir   *node
	rel   string
	depth int
	files []*node // nil: list
}

// scan reads the tree in root but for root's own .git.
func scan(ctx context.Context, alg algorithm, root int) (*node, *scanner, error) {
	s := &scanner{alg: alg, root: root}
	s.wake = sync.NewCond(&s.mu)
	top := &node{mode: modeTree}
	s.push(scanJob{dir: top})
	stop := context.AfterFunc(ctx, func() { s.fail(ctx.Err()) })
	defer stop()
	var workers sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		workers.Go(func() { s.work() })
	}
	workers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, nil, s.err
	}
	return top, s, treeIDs(alg, top)
}

func (s *scanner) push(j scanJob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.jobs = append(s.jobs, j)
	s.pending++
	s.wake.Signal()
}

func (s *scanner) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.wake.Broadcast()
}

// next waits for a job; false when there will be none.
func (s *scanner) next() (scanJob, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.jobs) == 0 && s.pending > 0 && s.err == nil {
		s.wake.Wait()
	}
	if s.err != nil || len(s.jobs) == 0 {
		return scanJob{}, false
	}
	last := len(s.jobs) - 1
	j := s.jobs[last]
	s.jobs[last] = scanJob{}
	s.jobs = s.jobs[:last]
	return j, true
}

func (s *scanner) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending--; s.pending == 0 {
		s.wake.Broadcast()
	}
}

func (s *scanner) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

func (s *scanner) work() {
	buf := make([]byte, 256<<10)
	for {
		j, ok := s.next()
		if !ok {
			return
		}
		if err := s.do(j, buf); err != nil {
			s.fail(err)
		}
		s.done()
	}
}

func (s *scanner) do(j scanJob, buf []byte) error {
	dir, err := openDir(s.root, j.rel)
	if err != nil {
		return fmt.Errorf("%s: %w", show(j.rel), err)
	}
	defer dir.Close()
	if j.files == nil {
		return s.list(j, dir)
	}
	for _, n := range j.files {
		if s.failed() {
			return nil
		}
		if err := s.hash(int(dir.Fd()), n, buf); err != nil {
			return fmt.Errorf("%s: %w", show(path.Join(j.rel, n.name)), err)
		}
	}
	return nil
}

// list makes a node for each entry, and jobs for what must be read.
func (s *scanner) list(j scanJob, dir *os.File) error {
	if j.depth > maxDepth {
		return refuse("directories nested deeper than %d", maxDepth)
	}
	batch, batched := []*node(nil), int64(0)
	flush := func() {
		if len(batch) > 0 {
			s.push(scanJob{rel: j.rel, files: batch})
			batch, batched = nil, 0
		}
	}
	var below []scanJob
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			n, err := s.look(j, int(dir.Fd()), name)
			if err != nil {
				return fmt.Errorf("%s: %w", show(path.Join(j.rel, name)), err)
			}
			if n == nil {
				continue
			}
			j.dir.children = append(j.dir.children, n)
			switch {
			case n.directory():
				if err := s.descend(int64(len(j.rel) + 1 + len(name))); err != nil {
					return err
				}
				below = append(below, scanJob{dir: n, rel: path.Join(j.rel, name), depth: j.depth + 1})
			case n.mode == modeFile || n.mode == modeExecutable:
				batch, batched = append(batch, n), batched+n.size
				if len(batch) >= batchFiles || batched >= batchBytes {
					flush()
				}
			}
		}
		if err := s.count(int64(len(names))); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", show(j.rel), err)
		}
	}
	flush()
	for _, b := range below {
		s.push(b)
	}
	return nil
}

func (s *scanner) count(names int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries += names; s.entries > maxEntries {
		return refuse("more than %d files and directories", maxEntries)
	}
	return nil
}

// descend counts a path that is kept: with names of 255 bytes, a thousand deep, a
// few directories would take gigabytes.
func (s *scanner) descend(bytes int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paths += bytes; s.paths > maxPaths {
		return errPaths()
	}
	return nil
}

func errPaths() error { return refuse("paths of directories of more than %d bytes in all", maxPaths) }

// look makes the node of one entry; none for the repository itself.
func (s *scanner) look(j scanJob, dir int, name string) (*node, error) {
	if name == dotGit {
		if j.rel == "" {
			return nil, nil
		}
		// Git never writes one into a tree. In a submodule's root it is the
		// submodule's own.
		return &node{name: name, why: "repository"}, nil
	}
	st, err := statAt(dir, name)
	if err != nil {
		return nil, err
	}
	n := &node{name: name, size: st.Size}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.mode, n.size = modeTree, 0
	case unix.S_IFREG:
		n.mode = fileMode(st.Mode)
	case unix.S_IFLNK:
		n.mode = modeSymlink
		return n, s.link(dir, n)
	case unix.S_IFIFO:
		n.why = "fifo"
	case unix.S_IFSOCK:
		n.why = "socket"
	default:
		n.why = "device"
	}
	return n, nil
}

func fileMode(mode uint32) uint32 {
	if mode&0o100 != 0 {
		return modeExecutable
	}
	return modeFile
}

func (s *scanner) link(dir int, n *node) error {
	target, err := readLink(dir, n.name)
	if err != nil {
		return err
	}
	n.size = int64(len(target))
	id, err := s.alg.id(kindBlob, []byte(target))
	return s.settle(n, id, err)
}

// hash reads one file as a blob.
func (s *scanner) hash(dir int, n *node, buf []byte) error {
	f, st, err := openRegular(dir, n.name)
	if err != nil {
		return err
	}
	defer f.Close()
	if st.Size > maxFile {
		return refuse("a file of %d bytes, more than %d", st.Size, int64(maxFile))
	}
	n.mode, n.size = fileMode(st.Mode), st.Size
	h := s.alg.begin(kindBlob, st.Size)
	var got int64
	for {
		m, err := f.Read(buf)
		got += int64(m)
		if got > st.Size {
			return errChanged
		}
		h.Write(buf[:m])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if s.failed() {
			return nil
		}
	}
	if got != st.Size {
		return errChanged
	}
	id, err := end(h)
	return s.settle(n, id, err)
}

var errChanged = errors.New("changed while it was read")

// settle gives a node its id and counts it.
func (s *scanner) settle(n *node, id objectID, err error) error {
	n.id = id
	if errors.Is(err, errCollision) {
		n.mode, n.why, err = 0, "collision", nil
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files++
	if s.bytes += n.size; s.bytes > maxBytes {
		return refuse("more than %d bytes", int64(maxBytes))
	}
	return nil
}

// refuse is for trees that no limit of ours was made for: the job is to blame.
func refuse(format string, args ...any) error {
	return &sandbox.UserError{
		Err:  fmt.Errorf(format, args...),
		Hint: "keep large or generated data out of the project directory while sources are fetched",
	}
}

// treeIDs computes the ids of all directories, the deepest first.
func treeIDs(alg algorithm, n *node) error {
	var data []byte
	slices.SortFunc(n.children, func(a, b *node) int {
		return strings.Compare(treeKey(a.name, a.directory()), treeKey(b.name, b.directory()))
	})
	for _, c := range n.children {
		if c.directory() {
			if err := treeIDs(alg, c); err != nil {
				return err
			}
		}
		n.impure = n.impure || c.impure || c.mode == 0
		if c.mode != 0 && !(c.directory() && c.id == "") {
			data = appendTreeEntry(data, c.mode, c.name, c.id)
		}
	}
	if len(data) == 0 && n.name != "" {
		return nil // an empty directory has no id: git does not store it
	}
	id, err := alg.id(kindTree, data)
	if err != nil {
		return fmt.Errorf("tree: %w", err)
	}
	n.id = id
	return nil
}
