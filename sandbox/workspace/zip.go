package workspace

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"hallmark.build/sandbox"
)

// Bounds of an archive.
const (
	maxMembers  = 1 << 20
	maxNameSize = 4096      // no longer path can be opened
	maxNames    = 256 << 20 // bytes of the names of all members
	maxExtra    = 1 << 10   // bytes of a header's extra fields
)

// Parts of a zip file (APPNOTE.TXT 4.3), all of fixed layout.
const (
	sigLocal      = 0x04034b50
	sigDescriptor = 0x08074b50
	sigCentral    = 0x02014b50
	sigEnd        = 0x06054b50
	sigEnd64      = 0x06064b50
	sigLocator64  = 0x07064b50

	localSize     = 30
	centralSize   = 46
	endSize       = 22
	end64Size     = 56
	locator64Size = 20

	max16 = 1<<16 - 1
	max32 = 1<<32 - 1
)

// Flags and methods that are understood.
const (
	flagLevel      = 0x0006 // how hard deflate tried: a hint
	flagDescriptor = 0x0008
	flagUTF8       = 0x0800
	methodStore    = 0
	methodDeflate  = 8
	methodZstd     = 93 // known, and not read
)

// Extra fields that are understood. Others can carry a second name or content.
const (
	extraZip64     = 0x0001
	extraTimestamp = 0x5455
	extraOwner     = 0x7875
)

// A member is one entry of an archive whose layout was checked.
type member struct {
	name   string // clean, relative, without the slash of a directory
	kind   string // kindFile, kindDirectory or kindLink
	mode   uint32 // permission bits, if known
	modes  bool   // mode is known
	method uint16
	crc    uint32
	data   int64 // where the compressed bytes begin
	packed int64 // compressed
	size   int64 // decompressed
}

// Kinds of members, as the record names them.
const (
	kindFile      = "file"
	kindDirectory = "directory"
	kindLink      = "symlink"
)

// readLayout accepts a zip file only in the one form that every reader
// understands alike: members follow each other from offset 0 without a gap, in
// the central directory's order; local headers, data descriptors and the
// central directory agree; the directory follows the last member, and the end
// record the directory, with nothing between, before or after; and no two
// names can be taken for one another.
func readLayout(r io.ReaderAt, size int64) ([]member, error) {
	e, err := readEnd(r, size)
	if err != nil {
		return nil, err
	}
	l := layout{r: r, end: e, names: maxNames}
	central := bufio.NewReaderSize(io.NewSectionReader(r, e.offset, e.size), 64<<10)
	out := make([]member, 0, min(e.count, 1<<12))
	for range e.count {
		m, err := l.member(central)
		if err != nil {
			return nil, fmt.Errorf("zip: entry %d: %w", len(out)+1, err)
		}
		out = append(out, m)
	}
	switch _, err := central.ReadByte(); {
	case err == nil:
		return nil, errors.New("zip: bytes after the last entry of the central directory")
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("zip: %w", err)
	case l.at != e.offset:
		return nil, errors.New("zip: a gap between the last entry and the central directory")
	}
	return out, checkNames(out)
}

// An end64 is what the end records say of the central directory.
type end64 struct {
	count, offset, size int64
}

func readEnd(r io.ReaderAt, size int64) (end64, error) {
	var b [endSize]byte
	if size < endSize {
		return end64{}, errors.New("zip: too short")
	}
	at := size - endSize
	if _, err := r.ReadAt(b[:], at); err != nil {
		return end64{}, fmt.Errorf("zip: end record: %w", noEOF(err))
	}
	f := fields{b: b[:]}
	sig, disk, first := f.u32(), f.u16(), f.u16()
	here, count, length, offset, comment := f.u16(), f.u16(), f.u32(), f.u32(), f.u16()
	if sig != sigEnd || comment != 0 {
		return end64{}, errors.New("zip: does not end in an end record without comment")
	}
	if disk != 0 || first != 0 || here != count {
		return end64{}, errors.New("zip: more than one disk")
	}
	e := end64{count: int64(count), size: int64(length), offset: int64(offset)}
	if count == max16 || length == max32 || offset == max32 {
		var err error
		if e, err = readEnd64(r, at, e); err != nil {
			return end64{}, err
		}
		at -= locator64Size + end64Size
	}
	switch {
	case e.count < 0 || e.count > maxMembers:
		return end64{}, fmt.Errorf("zip: more than %d entries", maxMembers)
	case e.size < 0 || e.offset < 0 || e.offset > at || e.size != at-e.offset:
		return end64{}, errors.New("zip: the end record does not follow the central directory")
	case e.count*centralSize > e.size:
		return end64{}, errors.New("zip: central directory shorter than its count")
	}
	return e, nil
}

// readEnd64 reads the zip64 records, which stand before the end record at.
func readEnd64(r io.ReaderAt, at int64, short end64) (end64, error) {
	var b [end64Size + locator64Size]byte
	from := at - int64(len(b))
	if from < 0 {
		return end64{}, errors.New("zip64: too short")
	}
	if _, err := r.ReadAt(b[:], from); err != nil {
		return end64{}, fmt.Errorf("zip64: %w", noEOF(err))
	}
	f := fields{b: b[:]}
	sig, rest := f.u32(), f.u64()
	f.skip(4) // versions
	disk, first, here, count, length, offset := f.u32(), f.u32(), f.u64(), f.u64(), f.u64(), f.u64()
	locator, onDisk, points, disks := f.u32(), f.u32(), f.u64(), f.u32()
	switch {
	case sig != sigEnd64 || locator != sigLocator64:
		return end64{}, errors.New("zip64: no end records where the end record asks for them")
	case rest != end64Size-12 || points != uint64(from):
		return end64{}, errors.New("zip64: end records do not follow each other")
	case disk != 0 || first != 0 || onDisk != 0 || disks != 1 || here != count:
		return end64{}, errors.New("zip64: more than one disk")
	case count > maxMembers || length > 1<<62 || offset > 1<<62:
		return end64{}, errors.New("zip64: too large")
	}
	e := end64{count: int64(count), size: int64(length), offset: int64(offset)}
	if short.count != max16 && short.count != e.count || short.size != max32 && short.size != e.size ||
		short.offset != max32 && short.offset != e.offset {
		return end64{}, errors.New("zip64: end records disagree")
	}
	return e, nil
}

// A layout walks the members in the order of the central directory.
type layout struct {
	r   io.ReaderAt
	end end64
	at  int64 // where the next member must begin
	// names is how many bytes all names may still have: each is held, more than once.
	names int
}

var errNames = &sandbox.UserError{
	Err:  fmt.Errorf("names of members of more than %d bytes in all", maxNames),
	Hint: "upload fewer files, or pack them into a tar archive",
}

// A header holds what local header and central directory both say.
type header struct {
	needs, flags, method, time, date uint16
	crc                              uint32
	packed, size                     int64
	name                             []byte
	extra                            []byte // without zip64
	zip64                            bool   // the central directory has a zip64 field
}

func (l *layout) member(central *bufio.Reader) (member, error) {
	h, offset, creator, attributes, err := readCentral(central)
	if err != nil {
		return member{}, err
	}
	if l.names -= len(h.name); l.names < 0 {
		return member{}, errNames
	}
	if offset != l.at {
		return member{}, errors.New("does not begin where the entry before it ends")
	}
	m, err := describe(h, creator, attributes)
	if err != nil {
		return member{}, err
	}
	m.data, err = l.local(h)
	if err != nil {
		return member{}, fmt.Errorf("%s: %w", show(m.name), err)
	}
	if h.packed > l.end.offset-m.data {
		return member{}, fmt.Errorf("%s: overlaps the central directory", show(m.name))
	}
	l.at = m.data + h.packed
	if err := l.descriptor(h); err != nil {
		return member{}, fmt.Errorf("%s: %w", show(m.name), err)
	}
	return m, nil
}

func readCentral(r *bufio.Reader) (h header, offset int64, creator uint16, attributes uint32, err error) {
	var b [centralSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, 0, 0, 0, noEOF(err)
	}
	f := fields{b: b[:]}
	sig, by := f.u32(), f.u16()
	h.needs, h.flags, h.method, h.time, h.date, h.crc = f.u16(), f.u16(), f.u16(), f.u16(), f.u16(), f.u32()
	packed, size, nameSize, extraSize, comment := f.u32(), f.u32(), f.u16(), f.u16(), f.u16()
	disk, internal, external, at := f.u16(), f.u16(), f.u32(), f.u32()
	switch {
	case sig != sigCentral:
		return h, 0, 0, 0, errors.New("no header in the central directory")
	case comment != 0 || disk != 0 || internal > 1:
		return h, 0, 0, 0, errors.New("a comment, another disk or unknown attributes")
	case nameSize > maxNameSize || extraSize > maxExtra:
		return h, 0, 0, 0, errors.New("name or extra fields too long")
	}
	both := make([]byte, int(nameSize)+int(extraSize))
	if _, err := io.ReadFull(r, both); err != nil {
		return h, 0, 0, 0, noEOF(err)
	}
	h.name = both[:nameSize]
	extra, err := readExtra(both[nameSize:])
	if err != nil {
		return h, 0, 0, 0, err
	}
	h.extra, h.zip64 = extra.rest, extra.zip64 != nil
	if h.size, h.packed, offset, err = extra.wide(size, packed, at); err != nil {
		return h, 0, 0, 0, err
	}
	return h, offset, by, external, nil
}

// extras are a header's extra fields.
type extras struct {
	zip64 []byte // nil if there is none
	rest  []byte // all others, as they stand
}

func readExtra(b []byte) (extras, error) {
	var x extras
	for len(b) > 0 {
		if len(b) < 4 {
			return x, errors.New("extra field cut off")
		}
		id, n := binary.LittleEndian.Uint16(b), int(binary.LittleEndian.Uint16(b[2:]))
		if len(b) < 4+n {
			return x, errors.New("extra field cut off")
		}
		switch id {
		case extraZip64:
			if x.zip64 != nil {
				return x, errors.New("two zip64 fields")
			}
			x.zip64 = b[4 : 4+n]
		case extraTimestamp, extraOwner:
			x.rest = append(x.rest, b[:4+n]...)
		default:
			return x, fmt.Errorf("extra field %#04x", id)
		}
		b = b[4+n:]
	}
	return x, nil
}

// wide replaces the numbers that the 32-bit fields cannot hold. A number that
// is given twice must be the same.
func (x extras) wide(size32, packed32, at32 uint32) (size, packed, at int64, err error) {
	size, packed, at = int64(size32), int64(packed32), int64(at32)
	if x.zip64 == nil {
		if size32 == max32 || packed32 == max32 || at32 == max32 {
			return 0, 0, 0, errors.New("a size beyond 32 bits without a zip64 field")
		}
		return size, packed, at, nil
	}
	f := fields{b: x.zip64}
	for _, v := range []*int64{&size, &packed, &at} {
		// Go writes all three as soon as one is needed.
		if *v != max32 && len(x.zip64) != 24 {
			continue
		}
		if len(f.b) < 8 {
			return 0, 0, 0, errors.New("zip64 field too short")
		}
		n := f.u64()
		if n > 1<<62 || *v != max32 && uint64(*v) != n {
			return 0, 0, 0, errors.New("zip64 field disagrees")
		}
		*v = int64(n)
	}
	if len(f.b) != 0 {
		return 0, 0, 0, errors.New("zip64 field too long")
	}
	return size, packed, at, nil
}

// local checks the local header at l.at and returns where the data begin.
func (l *layout) local(h header) (int64, error) {
	var b [localSize]byte
	if l.at+localSize > l.end.offset {
		return 0, errors.New("local header overlaps the central directory")
	}
	if _, err := l.r.ReadAt(b[:], l.at); err != nil {
		return 0, noEOF(err)
	}
	f := fields{b: b[:]}
	sig := f.u32()
	needs, flags, method, time, date := f.u16(), f.u16(), f.u16(), f.u16(), f.u16()
	crc, packed, size, nameSize, extraSize := f.u32(), f.u32(), f.u32(), int(f.u16()), int(f.u16())
	if sig != sigLocal {
		return 0, errors.New("no local header")
	}
	if needs != h.needs && h.zip64 {
		needs = h.needs // what a streaming writer found out only at the end
	}
	if needs != h.needs || flags != h.flags || method != h.method || time != h.time || date != h.date {
		return 0, errors.New("local header disagrees with the central directory")
	}
	if nameSize != len(h.name) || extraSize != len(h.extra) {
		return 0, errors.New("local header: another name or other extra fields")
	}
	both := make([]byte, nameSize+extraSize)
	if _, err := l.r.ReadAt(both, l.at+localSize); err != nil {
		return 0, noEOF(err)
	}
	if !bytes.Equal(both[:nameSize], h.name) || !bytes.Equal(both[nameSize:], h.extra) {
		return 0, errors.New("local header: another name or other extra fields")
	}
	later := flags&flagDescriptor != 0 && crc == 0 && packed == 0 && size == 0
	if !later && (crc != h.crc || int64(packed) != h.packed || int64(size) != h.size) {
		return 0, errors.New("local header: other sizes or checksum")
	}
	return l.at + localSize + int64(len(both)), nil
}

// descriptor checks the record that follows the data of members whose size
// was not known before.
func (l *layout) descriptor(h header) error {
	if h.flags&flagDescriptor == 0 {
		return nil
	}
	wide := h.size >= max32 || h.packed >= max32
	n := int64(16)
	if wide {
		n = 24
	}
	var b [24]byte
	if l.at+n > l.end.offset {
		return errors.New("data descriptor overlaps the central directory")
	}
	if _, err := l.r.ReadAt(b[:n], l.at); err != nil {
		return noEOF(err)
	}
	f := fields{b: b[:n]}
	sig, crc := f.u32(), f.u32()
	var packed, size uint64
	if wide {
		packed, size = f.u64(), f.u64()
	} else {
		packed, size = uint64(f.u32()), uint64(f.u32())
	}
	if sig != sigDescriptor || crc != h.crc || packed != uint64(h.packed) || size != uint64(h.size) {
		return errors.New("data descriptor disagrees with the central directory")
	}
	l.at += n
	return nil
}

// Who wrote a member's attributes, and how Unix and DOS keep them.
const (
	creatorFAT  = 0
	creatorUnix = 3

	dosDirectory = 0x10
)

// describe reads what a member claims to be.
func describe(h header, creator uint16, attributes uint32) (member, error) {
	name, slash := strings.CutSuffix(string(h.name), "/")
	m := member{name: name, kind: kindFile, method: h.method, crc: h.crc, packed: h.packed, size: h.size}
	if err := checkName(name); err != nil {
		return m, err
	}
	if h.flags&^(flagLevel|flagDescriptor|flagUTF8) != 0 {
		return m, fmt.Errorf("%s: flags %#04x", show(name), h.flags)
	}
	if h.flags&flagUTF8 == 0 && strings.ContainsFunc(name, func(r rune) bool { return r > unicode.MaxASCII }) {
		return m, fmt.Errorf("%s: the name is not marked as UTF-8", show(name))
	}
	if err := m.attributes(creator, attributes, slash); err != nil {
		return m, err
	}
	switch {
	case (m.kind == kindDirectory) != slash:
		return m, fmt.Errorf("%s: name and attributes disagree on whether it is a directory", show(name))
	case m.kind == kindDirectory && (h.size != 0 || h.packed != 0 || h.crc != 0):
		return m, fmt.Errorf("%s: a directory with content", show(name))
	case h.method == methodStore && h.size != h.packed:
		return m, fmt.Errorf("%s: stored with two sizes", show(name))
	case h.method == methodZstd:
		return m, errZstd()
	case h.method != methodStore && h.method != methodDeflate:
		return m, fmt.Errorf("%s: compression method %d", show(name), h.method)
	}
	return m, nil
}

func (m *member) attributes(creator uint16, attributes uint32, slash bool) error {
	switch creator >> 8 {
	case creatorUnix:
		m.mode, m.modes = attributes>>16&0o7777, true
		switch attributes >> 16 & 0o170000 {
		case 0o100000:
		case 0o040000:
			m.kind = kindDirectory
		case 0o120000:
			m.kind = kindLink
		default:
			return fmt.Errorf("%s: neither file, directory nor symbolic link", show(m.name))
		}
	case creatorFAT:
		if attributes&^dosDirectory != 0 || attributes != 0 && !slash {
			return fmt.Errorf("%s: attributes %#x", show(m.name), attributes)
		}
		if slash {
			m.kind = kindDirectory
		}
	default:
		return fmt.Errorf("%s: attributes of system %d", show(m.name), creator>>8)
	}
	return nil
}

// checkName refuses names that mean different paths to different readers. Some
// are honest names of files: then it is the job that must choose others.
func checkName(name string) error {
	switch {
	case name == "" || len(name) > maxNameSize || strings.IndexByte(name, 0) >= 0:
		return errors.New("name is empty, too long or holds a zero byte")
	case strings.HasPrefix(name, "/") || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../"):
		return fmt.Errorf("name %q: not a clean relative path", name)
	case !utf8.ValidString(name):
		return ambiguous("name %q: not UTF-8", name)
	case strings.IndexByte(name, '\\') >= 0:
		return ambiguous("name %q: holds a backslash, which some systems take for a slash", name)
	}
	return nil
}

// checkNames refuses members that a file system could take for one another.
// Two directories of one name are harmless.
func checkNames(members []member) error {
	exact := make(map[string]bool, len(members))
	folded := make(map[string]int, len(members))
	for i, m := range members {
		if exact[m.name] {
			return fmt.Errorf("%s: two entries of this name", show(m.name))
		}
		exact[m.name] = true
		key := fold(m.name)
		j, taken := folded[key]
		if taken && (m.kind != kindDirectory || members[j].kind != kindDirectory) {
			return ambiguous("%s and %s: one name where case or Unicode form do not count", show(members[j].name), show(m.name))
		}
		folded[key] = i
	}
	return checkParents(members, folded)
}

// checkParents refuses a file or link that a file system could take for a
// directory of other members: what lies in that would go where it leads. One that
// has the directory's very name is no member of the sealed workspace.
func checkParents(members []member, folded map[string]int) error {
	seen := map[string]bool{}
	for key, i := range folded {
		for slash := strings.LastIndexByte(key, '/'); slash > 0 && !seen[key[:slash]]; slash = strings.LastIndexByte(key[:slash], '/') {
			seen[key[:slash]] = true
			if j, taken := folded[key[:slash]]; taken && members[j].kind != kindDirectory && !strings.HasPrefix(members[i].name, members[j].name+"/") {
				return ambiguous("%s and %s: a %s and a directory of one name where case or Unicode form do not count",
					show(members[j].name), show(members[i].name), members[j].kind)
			}
		}
	}
	return nil
}

// fold maps names to one another that some file system takes for the same: those
// that differ in case, Unicode form, characters that nobody sees, or dots and
// spaces at an end.
func fold(name string) string {
	seen := strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) {
			return -1
		}
		return r
	}, norm.NFD.String(name))
	parts := strings.Split(norm.NFC.String(cases.Fold().String(seen)), "/")
	for i, p := range parts {
		parts[i] = strings.TrimRight(p, ". ")
	}
	return strings.Join(parts, "/")
}

// ambiguous is an archive that tells the truth in a way that not every reader
// understands.
func ambiguous(format string, args ...any) error {
	return &sandbox.UserError{
		Err:  fmt.Errorf(format, args...),
		Hint: "rename the file, leave it out of the artifacts with artifacts:exclude, or pack it into a tar archive",
	}
}

// errZstd is for what GitLab Runner makes of caches where a job asks for it, and
// never of artifacts: GitLab takes none such.
func errZstd() error {
	return &sandbox.UserError{
		Err:  errors.New("compressed with zstd, which is not compared with the sealed workspace"),
		Hint: "leave CACHE_COMPRESSION_FORMAT out, or set it to zip",
	}
}

// fields reads little-endian numbers from a record of known length.
type fields struct{ b []byte }

func (f *fields) skip(n int) { f.b = f.b[n:] }

func (f *fields) u16() uint16 {
	v := binary.LittleEndian.Uint16(f.b)
	f.skip(2)
	return v
}

func (f *fields) u32() uint32 {
	v := binary.LittleEndian.Uint32(f.b)
	f.skip(4)
	return v
}

func (f *fields) u64() uint64 {
	v := binary.LittleEndian.Uint64(f.b)
	f.skip(8)
	return v
}
