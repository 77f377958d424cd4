package workspace

import (
	"bufio"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// A pack is one packfile with its index, both written by the job. Nothing of
// it is believed: what it yields counts only once its hash was compared. The
// reader seeks; it never reads an index or a pack as a whole.
type pack struct {
	alg   algorithm
	index io.ReaderAt
	data  io.ReaderAt
	size  int64 // of data
	count int64 // objects that the index names
	files []*os.File
}

// The layout of an index of version 2.
const (
	indexMagic    = "\xfftOc\x00\x00\x00\x02"
	indexFanout   = int64(len(indexMagic))
	indexNames    = indexFanout + 256*4
	maxPackCount  = 1 << 30
	packTrailer   = 20 // at least: the pack's own hash
	packHeader    = 12
	maxDeltaChain = 4096 // git itself makes none longer than 4095
)

var (
	errPack     = errors.New("pack: malformed")
	errTooLarge = errors.New("object too large")
)

func newPack(alg algorithm, index, data io.ReaderAt, indexSize, size int64) (*pack, error) {
	p := &pack{alg: alg, index: index, data: data, size: size}
	head := make([]byte, indexNames)
	if _, err := index.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("%w: index: %w", errPack, noEOF(err))
	}
	if string(head[:indexFanout]) != indexMagic {
		return nil, fmt.Errorf("%w: index is not of version 2", errPack)
	}
	p.count = int64(binary.BigEndian.Uint32(head[indexNames-4:]))
	if p.count > maxPackCount || indexNames+p.count*int64(alg.size+8) > indexSize {
		return nil, fmt.Errorf("%w: index is shorter than its count", errPack)
	}
	var magic [8]byte
	if _, err := data.ReadAt(magic[:], 0); err != nil {
		return nil, fmt.Errorf("%w: %w", errPack, noEOF(err))
	}
	if v := string(magic[:]); v != "PACK\x00\x00\x00\x02" && v != "PACK\x00\x00\x00\x03" {
		return nil, fmt.Errorf("%w: not a packfile", errPack)
	}
	return p, nil
}

func (p *pack) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// find returns where the index says that the object begins.
func (p *pack) find(id objectID) (offset int64, found bool, err error) {
	lo, hi, err := p.fanout(id[0])
	if err != nil {
		return 0, false, err
	}
	name := make([]byte, p.alg.size)
	for lo < hi {
		mid := lo + (hi-lo)/2
		if _, err := p.index.ReadAt(name, indexNames+mid*int64(p.alg.size)); err != nil {
			return 0, false, fmt.Errorf("%w: index: %w", errPack, noEOF(err))
		}
		switch strings.Compare(string(name), string(id)) {
		case 0:
			offset, err := p.offset(mid)
			return offset, err == nil, err
		case -1:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false, nil
}

func (p *pack) fanout(first byte) (lo, hi int64, err error) {
	var b [8]byte
	from, at := int64(first)-1, 0
	if first == 0 {
		from, at = 0, 4
	}
	if _, err := p.index.ReadAt(b[at:], indexFanout+from*4); err != nil {
		return 0, 0, fmt.Errorf("%w: index: %w", errPack, noEOF(err))
	}
	lo, hi = int64(binary.BigEndian.Uint32(b[:4])), int64(binary.BigEndian.Uint32(b[4:]))
	if lo > hi || hi > p.count {
		return 0, 0, fmt.Errorf("%w: index: fan-out is not sorted", errPack)
	}
	return lo, hi, nil
}

func (p *pack) offset(i int64) (int64, error) {
	offsets := indexNames + p.count*int64(p.alg.size+4)
	var b [8]byte
	if _, err := p.index.ReadAt(b[:4], offsets+i*4); err != nil {
		return 0, fmt.Errorf("%w: index: %w", errPack, noEOF(err))
	}
	small := binary.BigEndian.Uint32(b[:4])
	if small&0x80000000 == 0 {
		return int64(small), nil
	}
	if _, err := p.index.ReadAt(b[:], offsets+p.count*4+int64(small&0x7fffffff)*8); err != nil {
		return 0, fmt.Errorf("%w: index: %w", errPack, noEOF(err))
	}
	large := binary.BigEndian.Uint64(b[:])
	if large > 1<<62 {
		return 0, fmt.Errorf("%w: index: offset", errPack)
	}
	return int64(large), nil
}

// Types of entries in a pack.
const (
	packOfsDelta = 6
	packRefDelta = 7
)

var packKinds = map[byte]string{1: kindCommit, 2: kindTree, 3: kindBlob, 4: kindTag}

// entry is the head of one entry of a pack.
type packEntry struct {
	kind byte
	size int64    // inflated
	base int64    // of an offset delta: where its base begins
	ref  objectID // of a reference delta
	data int64    // where the compressed bytes begin
}

func (p *pack) entry(offset int64) (packEntry, error) {
	var e packEntry
	if offset < packHeader || offset >= p.size-packTrailer {
		return e, fmt.Errorf("%w: offset outside of the pack", errPack)
	}
	var buf [64]byte
	n, err := p.data.ReadAt(buf[:], offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return e, fmt.Errorf("%w: %w", errPack, err)
	}
	b := buf[:n]
	pos, ok := e.parse(b, offset, p.alg.size)
	if !ok {
		return e, fmt.Errorf("%w: entry", errPack)
	}
	e.data = offset + int64(pos)
	return e, nil
}

// parse reads an entry's head and returns its length.
func (e *packEntry) parse(b []byte, offset int64, idSize int) (int, bool) {
	if len(b) == 0 {
		return 0, false
	}
	e.kind = b[0] >> 4 & 7
	size, shift, pos := uint64(b[0]&0x0f), 4, 0
	for b[pos]&0x80 != 0 {
		pos++
		if pos >= len(b) || shift > 56 {
			return 0, false
		}
		size |= uint64(b[pos]&0x7f) << shift
		shift += 7
	}
	pos++
	if size > 1<<62 {
		return 0, false
	}
	e.size = int64(size)
	switch e.kind {
	case packOfsDelta:
		return e.parseOffset(b, pos, offset)
	case packRefDelta:
		if pos+idSize > len(b) {
			return 0, false
		}
		e.ref = objectID(b[pos : pos+idSize])
		return pos + idSize, true
	}
	return pos, packKinds[e.kind] != ""
}

func (e *packEntry) parseOffset(b []byte, pos int, offset int64) (int, bool) {
	var back uint64
	for i := 0; ; i++ {
		if pos >= len(b) || i > 8 {
			return 0, false
		}
		c := b[pos]
		pos++
		back = back<<7 | uint64(c&0x7f)
		if c&0x80 == 0 {
			break
		}
		back++
	}
	// A base lies before what builds upon it: chains cannot run in circles.
	if back == 0 || back >= uint64(offset) {
		return 0, false
	}
	e.base = offset - int64(back)
	return pos, true
}

// inflate returns exactly size bytes of the entry.
func (p *pack) inflate(e packEntry, b *budget) ([]byte, error) {
	section := io.NewSectionReader(p.data, e.data, p.size-e.data)
	return inflate(section, e.size, b)
}

// inflate reads a zlib stream that holds exactly size bytes.
func inflate(r io.Reader, size int64, b *budget) ([]byte, error) {
	if err := b.take(size); err != nil {
		return nil, err
	}
	z, err := zlib.NewReader(bufio.NewReaderSize(r, 4<<10))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPack, noEOF(err))
	}
	defer z.Close()
	// Grown as it fills: an announced size alone must not take memory.
	data, err := readUpTo(z, size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPack, noEOF(err))
	}
	if int64(len(data)) != size {
		return nil, fmt.Errorf("%w: %d bytes announced", errPack, size)
	}
	return data, nil
}

// readUpTo reads to the end, but no more than one byte beyond size.
func readUpTo(r io.Reader, size int64) ([]byte, error) {
	const first = 64 << 10
	out := make([]byte, 0, min(size+1, first))
	for {
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
		room := min(int64(cap(out)-len(out)), size+1-int64(len(out)))
		n, err := r.Read(out[len(out) : len(out)+int(room)])
		out = out[:len(out)+n]
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case int64(len(out)) > size:
			return out, nil
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
