package workspace

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds on reading a job-written object store.
const (
	maxCommit     = 16 << 20  // bytes of one commit object
	maxTree       = 64 << 20  // bytes of one tree object
	maxTrees      = 256 << 20 // bytes of all trees that differ from the work tree
	maxPointer    = 1 << 10   // bytes of a Git LFS pointer, by its specification
	maxText       = 4 << 20   // bytes of a blob that is compared for line endings
	maxPacks      = 1024      // packfiles of one store, open at once
	maxModules    = 1024      // object stores of submodules
	maxModuleDir  = 1 << 16   // directories looked at to find them
	maxModulePath = 1 << 10   // bytes of the path of one
	maxInflated   = 8 << 30   // bytes inflated for one verification
)

var errNotFound = errors.New("object not found")

// A budget bounds the work that a hostile store can cause.
type budget struct{ left int64 }

func (b *budget) take(n int64) error {
	if n < 0 || n > b.left {
		return fmt.Errorf("%w: more than %d bytes in all", errTooLarge, int64(maxInflated))
	}
	b.left -= n
	return nil
}

// An objectStore reads objects by their id out of directories that a job
// wrote. What it returns has the id that was asked for: where the bytes came
// from does not matter. Alternates, replacements and grafts are not read.
type objectStore struct {
	alg    algorithm
	budget budget
	dirs   []*os.File
	packs  []*pack
	faults []string // packs that were left out, and why
}

func newObjectStore(alg algorithm) *objectStore {
	return &objectStore{alg: alg, budget: budget{left: maxInflated}}
}

func (s *objectStore) close() {
	for _, p := range s.packs {
		p.close()
	}
	for _, d := range s.dirs {
		d.Close()
	}
}

// add opens the object directory at rel beneath root.
func (s *objectStore) add(root int, rel string) error {
	dir, err := openDir(root, rel)
	if err != nil {
		return err
	}
	s.dirs = append(s.dirs, dir)
	names, err := packNames(int(dir.Fd()))
	if err != nil {
		return err
	}
	for _, name := range names {
		if len(s.packs) >= maxPacks {
			return fmt.Errorf("more than %d packfiles", maxPacks)
		}
		p, err := openPack(s.alg, int(dir.Fd()), "pack/"+name)
		if err != nil {
			s.faults = append(s.faults, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		s.packs = append(s.packs, p)
	}
	return nil
}

// packNames lists the packs that have an index, without the suffix.
func packNames(objects int) ([]string, error) {
	dir, err := openDir(objects, "pack")
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var out []string
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if base, ok := strings.CutSuffix(name, ".idx"); ok {
				out = append(out, base)
			}
		}
		if len(out) > maxPacks {
			return nil, fmt.Errorf("more than %d packfiles", maxPacks)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func openPack(alg algorithm, objects int, name string) (*pack, error) {
	index, indexStat, err := openRegular(objects, name+".idx")
	if err != nil {
		return nil, err
	}
	data, dataStat, err := openRegular(objects, name+".pack")
	if err != nil {
		index.Close()
		return nil, err
	}
	p, err := newPack(alg, index, data, indexStat.Size, dataStat.Size)
	if err != nil {
		index.Close()
		data.Close()
		return nil, err
	}
	p.files = []*os.File{index, data}
	return p, nil
}

// read returns the object, which is of that kind and has at most limit bytes.
func (s *objectStore) read(ctx context.Context, id objectID, kind string, limit int64) ([]byte, error) {
	fault := errNotFound
	for _, dir := range s.dirs {
		data, err := s.check(id, kind)(s.loose(int(dir.Fd()), id, limit))
		if err == nil {
			return data, nil
		}
		if !errors.Is(err, errNotFound) {
			fault = err
		}
	}
	for _, p := range s.packs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		offset, found, err := p.find(id)
		if err == nil && !found {
			continue
		}
		var data []byte
		if err == nil {
			data, err = s.check(id, kind)(s.packed(ctx, p, offset, limit))
		}
		if err == nil {
			return data, nil
		}
		fault = err
	}
	return nil, fmt.Errorf("%s %s: %w", kind, id, fault)
}

// check compares what a reader returned with what was asked for.
func (s *objectStore) check(id objectID, kind string) func(string, []byte, error) ([]byte, error) {
	return func(have string, data []byte, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		if have != kind {
			return nil, fmt.Errorf("is a %s", have)
		}
		sum, err := s.alg.id(kind, data)
		if err != nil {
			return nil, err
		}
		if sum != id {
			return nil, errors.New("hash does not match")
		}
		return data, nil
	}
}

// loose reads an object from its own file.
func (s *objectStore) loose(dir int, id objectID, limit int64) (string, []byte, error) {
	name := id.String()
	file, _, err := openRegular(dir, name[:2]+"/"+name[2:])
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil, errNotFound
	}
	if err != nil {
		return "", nil, err
	}
	defer file.Close()
	return readLoose(file, limit, &s.budget)
}

// readLoose reads "<kind> <size>\0<content>", compressed.
func readLoose(r io.Reader, limit int64, b *budget) (string, []byte, error) {
	z, err := zlib.NewReader(bufio.NewReaderSize(r, 4<<10))
	if err != nil {
		return "", nil, fmt.Errorf("loose object: %w", noEOF(err))
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 4<<10)
	kind, size, err := looseHead(in)
	if err != nil {
		return "", nil, err
	}
	if size > limit {
		return "", nil, fmt.Errorf("%w: %d bytes", errTooLarge, size)
	}
	if err := b.take(size); err != nil {
		return "", nil, err
	}
	data, err := readUpTo(in, size)
	if err != nil {
		return "", nil, fmt.Errorf("loose object: %w", noEOF(err))
	}
	if int64(len(data)) != size {
		return "", nil, fmt.Errorf("loose object: %d bytes announced", size)
	}
	return kind, data, nil
}

func looseHead(in *bufio.Reader) (kind string, size int64, err error) {
	const maxHead = 32
	head, err := in.Peek(maxHead)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", 0, fmt.Errorf("loose object: %w", err)
	}
	line, _, ok := bytes.Cut(head, []byte{0})
	kind, digits, ok2 := strings.Cut(string(line), " ")
	size, err = strconv.ParseInt(digits, 10, 64)
	if !ok || !ok2 || err != nil || size < 0 {
		return "", 0, errors.New("loose object: malformed header")
	}
	in.Discard(len(line) + 1)
	return kind, size, nil
}

// packed rebuilds an object from its chain of deltas, the oldest first, so that
// no more than two of its states are held.
func (s *objectStore) packed(ctx context.Context, p *pack, offset, limit int64) (string, []byte, error) {
	chain, err := p.chain(offset)
	if err != nil {
		return "", nil, err
	}
	base := chain[len(chain)-1]
	if base.size > limit {
		return "", nil, fmt.Errorf("%w: %d bytes", errTooLarge, base.size)
	}
	data, err := p.inflate(base, &s.budget)
	if err != nil {
		return "", nil, err
	}
	for i := len(chain) - 2; i >= 0; i-- {
		if err := ctx.Err(); err != nil {
			return "", nil, err
		}
		// A delta is never much larger than what it makes.
		if chain[i].size > 2*limit {
			return "", nil, fmt.Errorf("%w: a delta of %d bytes", errTooLarge, chain[i].size)
		}
		delta, err := p.inflate(chain[i], &s.budget)
		if err != nil {
			return "", nil, err
		}
		if data, err = applyDelta(data, delta, limit); err != nil {
			return "", nil, err
		}
		if err := s.budget.take(int64(len(data))); err != nil {
			return "", nil, err
		}
	}
	return packKinds[base.kind], data, nil
}

// chain lists the entries from the one at offset down to the whole object that
// it is built upon.
func (p *pack) chain(offset int64) ([]packEntry, error) {
	var out []packEntry
	for len(out) <= maxDeltaChain {
		e, err := p.entry(offset)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
		switch e.kind {
		case packOfsDelta:
			offset = e.base
		case packRefDelta:
			at, found, err := p.find(e.ref)
			if err != nil {
				return nil, err
			}
			if !found {
				return nil, fmt.Errorf("%w: base %s is not in the pack", errPack, e.ref)
			}
			offset = at
		default:
			return out, nil
		}
	}
	return nil, fmt.Errorf("%w: a chain of more than %d deltas", errPack, maxDeltaChain)
}

// addModules adds the stores of submodules that git keeps in .git/modules,
// wherever they lie there: a submodule's name may contain slashes.
func (s *objectStore) addModules(root int) error {
	found, looked := 0, 0
	queue := []string{dotGit + "/modules"}
	for len(queue) > 0 {
		rel := queue[0]
		queue = queue[1:]
		dir, err := openDir(root, rel)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return err
		}
		if len(rel) > maxModulePath {
			return fmt.Errorf("a directory of submodules whose path has more than %d bytes", maxModulePath)
		}
		names, err := subdirectories(dir)
		dir.Close()
		if err != nil {
			return err
		}
		if looked += len(names); looked > maxModuleDir {
			return fmt.Errorf("more than %d directories of submodules", maxModuleDir)
		}
		for _, name := range names {
			switch name {
			case "objects":
				if found++; found > maxModules {
					return fmt.Errorf("more than %d submodules", maxModules)
				}
				if err := s.add(root, path.Join(rel, name)); err != nil {
					return err
				}
			case "refs", "hooks", "info", "logs", "lfs", "branches":
			default:
				queue = append(queue, path.Join(rel, name))
			}
		}
	}
	return nil
}

func subdirectories(dir *os.File) ([]string, error) {
	var out []string
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			st, err := statAt(int(dir.Fd()), name)
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				out = append(out, name)
			}
		}
		if len(out) > maxModuleDir {
			return nil, fmt.Errorf("more than %d directories of submodules", maxModuleDir)
		}
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
