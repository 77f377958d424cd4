package workspace

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// Bounds on the search for the file that a raw artifact is.
const (
	maxCandidates = 4096     // files of the same size
	maxCompared   = 64 << 30 // bytes of them, beyond the first
	compareBuffer = 64 << 10
)

// zstdMagic begins what the runner calls tarzstd.
const zstdMagic = "\x28\xb5\x2f\xfd"

// Match reads an artifact as the runner's uploader made it, and compares each
// entry with the sealed project directory. file is complete and size bytes
// long. Whatever differs is a *sandbox.SecurityError; an archive that is true
// but ambiguous, or of a format that is not read here, a *sandbox.UserError.
// Entries come in the archive's order.
func (w *Workspace) Match(ctx context.Context, file *os.File, size int64, format, fileName string) ([]record.UploadEntry, error) {
	project, err := w.sealedProject()
	if err != nil {
		return nil, err
	}
	defer project.Close()
	m := matcher{project: int(project.Fd()), compared: maxCompared}
	spooled := hostReader{file}
	var out []record.UploadEntry
	switch format {
	case "zip":
		out, err = m.zip(ctx, spooled, size)
	case "gzip":
		out, err = m.gzip(ctx, spooled, size)
	case "raw":
		out, err = m.raw(ctx, spooled, size, fileName)
	default:
		return nil, &sandbox.UserError{
			Err:  fmt.Errorf("artifact format %q: cannot be compared with the sealed workspace", format),
			Hint: "use zip, gzip or raw",
		}
	}
	if err != nil {
		return nil, classify(ctx, fmt.Errorf("artifact %s: %w", show(fileName), err))
	}
	return out, nil
}

// classify makes a contradiction of every error that is not the job's, nor the
// host's.
func classify(ctx context.Context, err error) error {
	var user *sandbox.UserError
	var host *hostError
	if errors.As(err, &user) || errors.As(err, &host) || ctx.Err() != nil {
		return err
	}
	return &sandbox.SecurityError{Err: err}
}

// A hostError is a failed read of our own disk.
type hostError struct{ err error }

func (e *hostError) Error() string { return e.err.Error() }
func (e *hostError) Unwrap() error { return e.err }

// A hostReader keeps errors of our own disk apart from the archive's.
type hostReader struct{ r io.ReaderAt }

func (h hostReader) ReadAt(p []byte, at int64) (int, error) {
	n, err := h.r.ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &hostError{err}
	}
	return n, err
}

func (w *Workspace) sealedProject() (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.builds == nil:
		return nil, errClosed
	case w.sealed == "":
		return nil, errors.New("workspace: match: not sealed")
	}
	project, err := openDir(int(w.builds.Fd()), w.sealed)
	if missing(err) {
		return nil, &sandbox.SecurityError{Err: errors.New("workspace: match: an artifact without a project directory")}
	}
	if err != nil {
		return nil, fmt.Errorf("workspace: match: %w", err)
	}
	return project, nil
}

// A matcher compares artifacts with the project directory.
type matcher struct {
	project  int
	compared int64 // bytes of the sealed files that a raw artifact may be, beyond the first
}

func (m matcher) zip(ctx context.Context, file io.ReaderAt, size int64) ([]record.UploadEntry, error) {
	if head := make([]byte, len(zstdMagic)); size >= int64(len(head)) {
		if _, err := file.ReadAt(head, 0); err == nil && string(head) == zstdMagic {
			return nil, errZstd()
		}
	}
	members, err := readLayout(file, size)
	if err != nil {
		return nil, err
	}
	out := make([]record.UploadEntry, len(members))
	err = parallel(ctx, len(members), func(ctx context.Context, i int) error {
		e, err := m.member(ctx, file, members[i])
		if err != nil {
			return fmt.Errorf("%s: %w", show(members[i].name), err)
		}
		out[i] = e
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// parallel runs do for 0 to n-1 with several workers. Of several errors it
// returns the one of the least number that it saw.
func parallel(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var (
		mu     sync.Mutex
		next   int
		failed error
		least  = n
		group  sync.WaitGroup
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	for range min(n, max(2, runtime.GOMAXPROCS(0))) {
		group.Go(func() {
			for i := take(); i < n && ctx.Err() == nil; i = take() {
				err := do(ctx, i)
				if err == nil {
					continue
				}
				mu.Lock()
				// What ends because another failed says nothing.
				if i < least && (failed == nil || !errors.Is(err, context.Canceled)) {
					failed, least = err, i
				}
				mu.Unlock()
				stop()
			}
		})
	}
	group.Wait()
	if failed == nil {
		return ctx.Err()
	}
	return failed
}

// member compares one entry of a zip file.
func (m matcher) member(ctx context.Context, file io.ReaderAt, e member) (record.UploadEntry, error) {
	dir, base := split(e.name)
	parent, err := openDir(m.project, dir)
	if err != nil {
		return record.UploadEntry{}, sealedError(err)
	}
	defer parent.Close()
	st, err := statAt(int(parent.Fd()), base)
	if err != nil {
		return record.UploadEntry{}, sealedError(err)
	}
	if have := kindOfStat(st); have != e.kind {
		return record.UploadEntry{}, fmt.Errorf("is a %s in the archive, a %s in the sealed workspace", e.kind, have)
	}
	if e.modes && e.kind != kindLink && st.Mode&0o7777 != e.mode {
		return record.UploadEntry{}, fmt.Errorf("has mode %04o in the archive, %04o in the sealed workspace", e.mode, st.Mode&0o7777)
	}
	out := record.UploadEntry{Path: e.name, Kind: e.kind, Mode: st.Mode & 0o7777}
	packed := io.NewSectionReader(file, e.data, e.packed)
	switch e.kind {
	case kindFile:
		out.Bytes = e.size
		out.SHA256, err = m.memberFile(ctx, packed, e, int(parent.Fd()), base)
	case kindLink:
		out.Mode = 0
		out.Target, err = m.memberLink(ctx, packed, e, int(parent.Fd()), base)
	}
	return out, err
}

// sealedError says what is wrong with the sealed side of a comparison: what is
// missing there contradicts the archive, a failing disk does not.
func sealedError(err error) error {
	if missing(err) || errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("is not in the sealed workspace: %w", err)
	}
	return &hostError{fmt.Errorf("sealed workspace: %w", err)}
}

func kindOfStat(st unix.Stat_t) string {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return kindFile
	case unix.S_IFDIR:
		return kindDirectory
	case unix.S_IFLNK:
		return kindLink
	}
	return "special file"
}

func (m matcher) memberFile(ctx context.Context, packed *io.SectionReader, e member, dir int, base string) (string, error) {
	f, st, err := openRegular(dir, base)
	if err != nil {
		return "", sealedError(err)
	}
	defer f.Close()
	if st.Size != e.size {
		return "", fmt.Errorf("has %d bytes in the archive, %d in the sealed workspace", e.size, st.Size)
	}
	content := unpack(packed, e.method)
	sum, crc, err := compare(ctx, content.r, f, e.size)
	if err != nil {
		return "", err
	}
	if crc != e.crc {
		return "", errors.New("checksum is wrong")
	}
	return sum, content.exhausted()
}

func (m matcher) memberLink(ctx context.Context, packed *io.SectionReader, e member, dir int, base string) (string, error) {
	target, err := readLink(dir, base)
	if err != nil {
		return "", sealedError(err)
	}
	if int64(len(target)) != e.size {
		return "", errors.New("points elsewhere in the sealed workspace")
	}
	content := unpack(packed, e.method)
	_, crc, err := compare(ctx, content.r, bytes.NewReader([]byte(target)), e.size)
	if err != nil {
		return "", fmt.Errorf("target: %w", err)
	}
	if crc != e.crc {
		return "", errors.New("checksum is wrong")
	}
	return target, content.exhausted()
}

// A content is a member's data, decompressed, and what they are read from.
type content struct {
	r    io.Reader
	from *bufio.Reader
}

func unpack(packed io.Reader, method uint16) content {
	from := bufio.NewReaderSize(packed, 32<<10)
	if method == methodDeflate {
		return content{flate.NewReader(from), from}
	}
	return content{from, from}
}

// exhausted checks that nothing is left beside what was read.
func (c content) exhausted() error {
	switch _, err := c.from.ReadByte(); {
	case err == nil:
		return errors.New("bytes after the end of its compressed data")
	case !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// compare reads size bytes from the archive and the sealed file and returns
// their digests. It stops at the first difference, and at the first byte that
// the archive has beyond: a bomb never unfolds.
func compare(ctx context.Context, archive, sealed io.Reader, size int64) (sum string, crc uint32, err error) {
	h, c := sha256.New(), crc32.NewIEEE()
	var have, want [compareBuffer]byte
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", 0, err
		}
		n := min(size-at, compareBuffer)
		if _, err := io.ReadFull(archive, have[:n]); err != nil {
			return "", 0, fmt.Errorf("archive: %w", noEOF(err))
		}
		if _, err := io.ReadFull(sealed, want[:n]); err != nil {
			return "", 0, &hostError{fmt.Errorf("sealed workspace: %w", noEOF(err))}
		}
		if !bytes.Equal(have[:n], want[:n]) {
			return "", 0, fmt.Errorf("differs from the sealed workspace within bytes %d to %d", at, at+n-1)
		}
		h.Write(have[:n])
		c.Write(have[:n])
		at += n
	}
	switch n, err := io.ReadFull(archive, have[:1]); {
	case n != 0:
		return "", 0, errors.New("is longer than it claims to be")
	case !errors.Is(err, io.EOF):
		return "", 0, fmt.Errorf("archive: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), c.Sum32(), nil
}

// gzip compares each member of a gzip file.
func (m matcher) gzip(ctx context.Context, file io.ReaderAt, size int64) ([]record.UploadEntry, error) {
	in := bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 64<<10)
	inflater := flate.NewReader(in)
	var out []record.UploadEntry
	var names []member
	left := maxNames
	for {
		head, err := readGzipHead(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(out) >= maxMembers {
			return nil, fmt.Errorf("gzip: more than %d members", maxMembers)
		}
		if left -= len(head.path); left < 0 {
			return nil, errNames
		}
		if err := inflater.(flate.Resetter).Reset(in, nil); err != nil {
			return nil, err
		}
		e, err := m.gzipMember(ctx, head.path, in, inflater)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", show(head.path), err)
		}
		out, names = append(out, e), append(names, member{name: head.path, kind: kindFile})
	}
	if len(out) == 0 {
		return nil, errors.New("gzip: no member")
	}
	return out, checkNames(names)
}

func (m matcher) gzipMember(ctx context.Context, rel string, in *bufio.Reader, content io.Reader) (record.UploadEntry, error) {
	f, st, err := m.open(rel)
	if err != nil {
		return record.UploadEntry{}, err
	}
	defer f.Close()
	sum, crc, err := compare(ctx, content, f, st.Size)
	if err != nil {
		return record.UploadEntry{}, err
	}
	if err := checkGzipTail(in, crc, st.Size); err != nil {
		return record.UploadEntry{}, err
	}
	return record.UploadEntry{Path: rel, Kind: kindFile, SHA256: sum, Bytes: st.Size, Mode: st.Mode & 0o7777}, nil
}

func (m matcher) open(rel string) (*os.File, unix.Stat_t, error) {
	dir, base := split(rel)
	parent, err := openDir(m.project, dir)
	if err != nil {
		return nil, unix.Stat_t{}, sealedError(err)
	}
	defer parent.Close()
	f, st, err := openRegular(int(parent.Fd()), base)
	if errors.Is(err, errNotRegular) {
		return nil, st, fmt.Errorf("is %w in the sealed workspace", err)
	}
	if err != nil {
		return nil, st, sealedError(err)
	}
	return f, st, nil
}

// raw finds the sealed file that the artifact is. The runner sends the content
// alone, under a name that GitLab chose for the report: the path is not known.
func (m matcher) raw(ctx context.Context, file io.ReaderAt, size int64, fileName string) ([]record.UploadEntry, error) {
	candidates, err := m.ofSize(ctx, size)
	if err != nil {
		return nil, err
	}
	rank := func(rel string) int {
		switch {
		case rel == fileName:
			return 0
		case path.Base(rel) == fileName:
			return 1
		}
		return 2
	}
	slices.SortFunc(candidates, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	for i, rel := range candidates {
		// They may all differ in their last byte alone.
		if int64(i) > m.compared/max(size, 1) {
			return nil, &sandbox.UserError{
				Err:  fmt.Errorf("raw: %d sealed files of its size do not equal it, and no more are compared", i),
				Hint: "name the file as the artifact is named, or upload it in an archive",
			}
		}
		e, err := m.same(ctx, rel, io.NewSectionReader(file, 0, size), size)
		var host *hostError
		if errors.As(err, &host) || ctx.Err() != nil {
			return nil, err
		}
		if err == nil {
			return []record.UploadEntry{e}, nil
		}
	}
	return nil, fmt.Errorf("raw: equals none of the %d sealed files of %d bytes", len(candidates), size)
}

func (m matcher) same(ctx context.Context, rel string, content io.Reader, size int64) (record.UploadEntry, error) {
	f, st, err := m.open(rel)
	if err != nil {
		return record.UploadEntry{}, err
	}
	defer f.Close()
	sum, _, err := compare(ctx, content, f, size)
	if err != nil {
		return record.UploadEntry{}, err
	}
	return record.UploadEntry{Path: rel, Kind: kindFile, SHA256: sum, Bytes: size, Mode: st.Mode & 0o7777}, nil
}

// ofSize lists the sealed files of one size.
func (m matcher) ofSize(ctx context.Context, size int64) ([]string, error) {
	var out []string
	left := searchLimits{maxEntries, maxPaths, maxCandidates}
	queue := []string{""}
	for len(queue) > 0 {
		rel := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		dir, err := openDir(m.project, rel)
		if err != nil {
			return nil, sealedError(err)
		}
		below, found, err := listOfSize(ctx, dir, rel, size, &left)
		dir.Close()
		if err != nil {
			return nil, err
		}
		queue, out = append(queue, below...), append(out, found...)
	}
	return out, nil
}

// searchLimits are what is left of the bounds of a search.
type searchLimits struct{ entries, paths, candidates int }

// listOfSize returns a directory's subdirectories and its files of one size.
func listOfSize(ctx context.Context, dir *os.File, rel string, size int64, left *searchLimits) (below, found []string, err error) {
	for {
		names, err := dir.Readdirnames(1024)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, sealedError(err)
		}
		if left.entries -= len(names); left.entries < 0 {
			return nil, nil, refuse("more than %d files and directories", maxEntries)
		}
		for _, name := range names {
			full := path.Join(rel, name)
			st, err := statAt(int(dir.Fd()), name)
			if err != nil {
				return nil, nil, sealedError(err)
			}
			switch kind := kindOfStat(st); {
			case kind == kindDirectory:
				if left.paths -= len(full); left.paths < 0 {
					return nil, nil, errPaths()
				}
				below = append(below, full)
			case kind == kindFile && st.Size == size && checkName(full) == nil:
				if left.candidates--; left.candidates < 0 {
					return nil, nil, refuse("more than %d files of the size of the artifact", maxCandidates)
				}
				found = append(found, full)
			}
		}
		if err != nil || ctx.Err() != nil {
			return below, found, ctx.Err()
		}
	}
}
