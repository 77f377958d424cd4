package workspace

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// runnerTree makes the tree that the archives in testdata are of.
func runnerTree(t testing.TB, project string) {
	t.Helper()
	var noise, text []byte
	for i := range 22 {
		sum := sha256.Sum256([]byte(strconv.Itoa(i)))
		noise = append(noise, sum[:]...)
	}
	for i := range 200 {
		text = fmt.Appendf(text, "line %d\n", i)
	}
	for name, content := range map[string]string{
		"out/hello.txt": "hello\n", "out/sub/text": string(text), "out/sub/noise": string(noise), "out/ünï/ö%.txt": "unicode\n",
		"out/none": "", "out/tool": "#!/bin/sh\necho tool\n", "report.xml": strings.Repeat("<testsuite/>\n", 20),
	} {
		mustWrite(t, filepath.Join(project, name), content)
	}
	mustMkdir(t, project+"/out/empty")
	link(t, "hello.txt", project+"/out/link")
	if err := unix.Mkfifo(project+"/out/pipe", 0o644); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"out/tool": 0o755, "out/hello.txt": 0o640, "": 0o755, "out": 0o755, "out/sub": 0o755, "out/empty": 0o755, "out/ünï": 0o755} {
		if err := os.Chmod(filepath.Join(project, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

// sealed makes a workspace with a tree and seals it.
func sealed(t testing.TB, fill func(t testing.TB, project string)) *Workspace {
	t.Helper()
	w := newWorkspace(t)
	mustMkdir(t, w.host(projectDir))
	fill(t, w.host(projectDir))
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Fatal(err)
	}
	return w
}

func spooled(t testing.TB, data []byte) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "artifact")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	return f
}

func (w *Workspace) match(t testing.TB, data []byte, format, name string) ([]record.UploadEntry, error) {
	t.Helper()
	return w.Match(t.Context(), spooled(t, data), int64(len(data)), format, name)
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

func TestMatchReadsWhatTheRunnerWrites(t *testing.T) {
	w := sealed(t, runnerTree)
	for name, entries := range map[string]int{"runner-fastzip.zip": 11, "runner-fastzip-stored.zip": 11, "runner-legacy.zip": 11, "runner-all.zip": 13} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.match(t, data, "zip", "artifacts.zip")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got) != entries {
			t.Errorf("%s: %d entries, want %d", name, len(got), entries)
		}
		for _, want := range []record.UploadEntry{
			{Path: "out", Kind: "directory", Mode: 0o755},
			{Path: "out/link", Kind: "symlink", Target: "hello.txt"},
			{Path: "out/hello.txt", Kind: "file", SHA256: sum("hello\n"), Bytes: 6, Mode: 0o640},
			{Path: "out/none", Kind: "file", SHA256: sum(""), Mode: 0o644},
			{Path: "out/ünï/ö%.txt", Kind: "file", SHA256: sum("unicode\n"), Bytes: 8, Mode: 0o644},
		} {
			if !slices.Contains(got, want) {
				t.Errorf("%s: no %+v", name, want)
			}
		}
		// In the archive's order.
		z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range z.File {
			if i < len(got) && strings.TrimSuffix(f.Name, "/") != got[i].Path {
				t.Errorf("%s: entry %d is %s, want %s", name, i, got[i].Path, f.Name)
			}
		}
	}
	data, err := os.ReadFile("testdata/runner.gz")
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.match(t, data, "gzip", "junit.xml.gz")
	want := []record.UploadEntry{
		{Path: "out/hello.txt", Kind: "file", SHA256: sum("hello\n"), Bytes: 6, Mode: 0o640},
		{Path: "out/none", Kind: "file", SHA256: sum(""), Mode: 0o644},
		{Path: "out/ünï/ö%.txt", Kind: "file", SHA256: sum("unicode\n"), Bytes: 8, Mode: 0o644},
		{Path: "report.xml", Kind: "file", SHA256: sum(strings.Repeat("<testsuite/>\n", 20)), Bytes: 260, Mode: 0o644},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("gzip: %v\n%s", err, diff)
	}
}

// One change in the workspace, and the same archives are refused.
func TestMatchSeesEveryDifference(t *testing.T) {
	for name, c := range map[string]struct{ change, wants string }{
		"content":            {"printf 'hellO\\n' > out/hello.txt", "out/hello.txt: differs"},
		"last byte":          {"printf X | dd of=out/sub/noise bs=1 seek=703 conv=notrunc status=none", "out/sub/noise: differs"},
		"longer":             {"echo >> out/hello.txt", "7 in the sealed workspace"},
		"shorter":            {": > out/tool", "0 in the sealed workspace"},
		"gone":               {"rm out/none", "out/none: is not in the sealed workspace"},
		"mode":               {"chmod 644 out/tool", "out/tool: has mode 0755"},
		"setuid":             {"chmod u+s out/tool", "out/tool: has mode 0755"},
		"directory's mode":   {"chmod 700 out/empty", "out/empty: has mode 0755"},
		"directory gone":     {"rmdir out/empty", "out/empty: is not in the sealed workspace"},
		"link elsewhere":     {"ln -sfn tool1.txt out/link", "out/link"},
		"link longer":        {"ln -sfn hello.txt.txt out/link", "out/link: points elsewhere"},
		"file for link":      {"rm out/link; printf hello.txt > out/link", "is a symlink in the archive, a file"},
		"link for file":      {"mv out/hello.txt x; ln -s ../x out/hello.txt", "is a file in the archive, a symlink"},
		"link for directory": {"mv out/sub sub; ln -s ../sub out/sub", "out/sub"},
		"parent a link":      {"mv out real; ln -s real out", "out"},
		"fifo for file":      {"rm out/none; mkfifo out/none", "a special file"},
		"file for directory": {"rmdir out/empty; : > out/empty", "is a directory in the archive, a file"},
		"directory for file": {"rm out/none; mkdir -m 644 out/none", "is a file in the archive, a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			w := sealed(t, func(t testing.TB, project string) {
				runnerTree(t, project)
				sh(t, project, c.change)
			})
			for _, archive := range []string{"runner-fastzip.zip", "runner-legacy.zip"} {
				data, err := os.ReadFile("testdata/" + archive)
				if err != nil {
					t.Fatal(err)
				}
				violation(t, w, data, "zip", c.wants)
			}
		})
	}
}

func violation(t testing.TB, w *Workspace, data []byte, format, wants string) {
	t.Helper()
	got, err := w.match(t, data, format, "artifacts")
	var violation *sandbox.SecurityError
	if !errors.As(err, &violation) || !strings.Contains(err.Error(), wants) {
		t.Errorf("%d entries, %v, want a security error with %q", len(got), err, wants)
	}
}

// A zipEntry is written as it is told to be, true or not.
type zipFile struct {
	name, localName   string
	content           string
	method            uint16
	flags, localFlags uint16
	creator           uint16
	attributes        uint32
	extra, localExtra []byte
	raw               []byte // in place of the compressed content
	crc               *uint32
	size              *uint32
	localCRC          uint32 // added to it
	descriptor        []byte // in place of the true one
	before            []byte // a gap
	offset            int64  // added to it
	comment           string
}

func regular(name, content string) zipFile {
	return zipFile{name: name, content: content, method: zip.Deflate, flags: flagDescriptor | flagUTF8, creator: creatorUnix<<8 | 20, attributes: 0o100644 << 16}
}

func (z zipFile) with(change func(*zipFile)) zipFile { change(&z); return z }

func deflate(s string) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.DefaultCompression)
	io.WriteString(w, s)
	w.Close()
	return b.Bytes()
}

// makeZip writes a zip file by hand.
func makeZip(files ...zipFile) []byte {
	var out, central []byte
	le16, le32 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32
	for _, f := range files {
		out = append(out, f.before...)
		at := int64(len(out)) + f.offset
		data := []byte(f.content)
		if f.method == zip.Deflate {
			data = deflate(f.content)
		}
		if f.raw != nil {
			data = f.raw
		}
		crc, size := crc32.ChecksumIEEE([]byte(f.content)), uint32(len(f.content))
		if f.crc != nil {
			crc = *f.crc
		}
		if f.size != nil {
			size = *f.size
		}
		localName, localExtra := f.name, f.extra
		if f.localName != "" {
			localName = f.localName
		}
		if f.localExtra != nil {
			localExtra = f.localExtra
		}
		out = le32(out, sigLocal)
		out = le16(le16(le16(out, 20), f.flags^f.localFlags), f.method)
		out = le32(out, 0x5c215c21)
		if f.flags&flagDescriptor != 0 {
			out = le32(le32(le32(out, f.localCRC), 0), 0)
		} else {
			out = le32(le32(le32(out, crc+f.localCRC), uint32(len(data))), size)
		}
		out = le16(le16(out, uint16(len(localName))), uint16(len(localExtra)))
		out = append(append(append(out, localName...), localExtra...), data...)
		switch {
		case f.descriptor != nil:
			out = append(out, f.descriptor...)
		case f.flags&flagDescriptor != 0:
			out = le32(le32(le32(le32(out, sigDescriptor), crc), uint32(len(data))), size)
		}
		central = le16(le16(le32(central, sigCentral), f.creator), 20)
		central = le32(le16(le16(central, f.flags), f.method), 0x5c215c21)
		central = le32(le32(le32(central, crc), uint32(len(data))), size)
		central = le16(le16(le16(central, uint16(len(f.name))), uint16(len(f.extra))), uint16(len(f.comment)))
		central = le32(le32(le16(le16(central, 0), 0), f.attributes), uint32(at))
		central = append(append(append(central, f.name...), f.extra...), f.comment...)
	}
	return endZip(out, central, len(files))
}

func endZip(out, central []byte, n int) []byte {
	le16, le32 := binary.LittleEndian.AppendUint16, binary.LittleEndian.AppendUint32
	at := len(out)
	out = append(out, central...)
	out = le16(le16(le16(le16(le32(out, sigEnd), 0), 0), uint16(n)), uint16(n))
	return le16(le32(le32(out, uint32(len(central))), uint32(at)), 0)
}

// simpleTree has what the crafted archives claim.
func simpleTree(t testing.TB, project string) {
	t.Helper()
	mustWrite(t, project+"/f", "content")
	mustWrite(t, project+"/d/g", "other")
	mustWrite(t, project+"/evil", "evil")
	mustWrite(t, project+"/zeros", strings.Repeat("\x00", 1<<20))
	mustWrite(t, project+"/F2", "content")
	mustWrite(t, project+"/f2", "content")
	mustWrite(t, project+"/nf\u00fc", "content")
	mustWrite(t, project+"/nfu\u0308", "content")
	mustWrite(t, project+`/back\slash`, "content")
	mustWrite(t, project+"/latin\xe9", "content")
	link(t, "/etc/passwd", project+"/out")
	link(t, "/etc", project+"/etc")
}

func TestMatchAcceptsPlainZips(t *testing.T) {
	w := sealed(t, simpleTree)
	f := regular("f", "content")
	for name, data := range map[string][]byte{
		"descriptor":       makeZip(f),
		"sizes first":      makeZip(f.with(func(z *zipFile) { z.flags = flagUTF8 })),
		"stored":           makeZip(f.with(func(z *zipFile) { z.method = zip.Store })),
		"attributes unset": makeZip(f.with(func(z *zipFile) { z.creator, z.attributes = 20, 0 })),
		"dos directory":    makeZip(zipFile{name: "d/", creator: 20, attributes: dosDirectory}, regular("d/g", "other")),
		"level hint":       makeZip(f.with(func(z *zipFile) { z.flags |= 2 })),
		"link":             makeZip(zipFile{name: "out", content: "/etc/passwd", creator: creatorUnix << 8, attributes: 0o120777 << 16}),
		"two":              makeZip(f, regular("d/g", "other")),
		"none":             makeZip(),
	} {
		if _, err := w.match(t, data, "zip", "a.zip"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ptr(v uint32) *uint32 { return &v }

func TestMatchRefusesCraftedZips(t *testing.T) {
	w := sealed(t, simpleTree)
	f, g := regular("f", "content"), regular("d/g", "other")
	good := makeZip(f, g)
	cut := func(n int) []byte { return slices.Clone(good[:len(good)-n]) }
	edit := func(at int, b ...byte) []byte {
		out := slices.Clone(good)
		copy(out[(at+len(out))%len(out):], b)
		return out
	}
	one := func(change func(*zipFile)) []byte { return makeZip(f.with(change), g) }
	central := bytes.Index(good, []byte("PK\x01\x02"))
	for name, c := range map[string]struct {
		data  []byte
		wants string
	}{
		"empty":              {nil, "too short"},
		"not a zip":          {[]byte(strings.Repeat("x", 100)), "does not end"},
		"cut off":            {cut(1), "does not end"},
		"trailing byte":      {append(slices.Clone(good), 0), "does not end"},
		"leading bytes":      {append([]byte("#!/bin/sh\n"), good...), "does not follow"},
		"comment":            {append(edit(-2, 3, 0), "abc"...), "does not end"},
		"comment hides end":  {append(edit(-2, 22, 0), good[len(good)-22:]...), "does not follow"},
		"second archive":     {append(slices.Clone(good), makeZip(regular("evil", "evil"))...), "does not follow"},
		"disk number":        {edit(-18, 1), "more than one disk"},
		"disk entries":       {edit(-14, 1), "more than one disk"},
		"count too small":    {edit(-14, 1, 0, 1, 0), "after the last entry"},
		"count too large":    {edit(-14, 3, 0, 3, 0), "shorter than its count"},
		"absurd count":       {edit(-14, 0xfe, 0xff, 0xfe, 0xff), "shorter than its count"},
		"zip64 without":      {edit(-14, 0xff, 0xff, 0xff, 0xff), "no end records"},
		"directory offset":   {edit(-6, 1), "does not follow"},
		"no central header":  {edit(central, 'x'), "no header"},
		"central disk":       {edit(central+34, 1), "another disk"},
		"entry comment":      {one(func(z *zipFile) { z.comment = "c" }), "comment"},
		"gap before first":   {one(func(z *zipFile) { z.before = []byte("gap") }), "does not begin"},
		"gap between":        {makeZip(f, g.with(func(z *zipFile) { z.before = []byte("gap") })), "does not begin"},
		"gap at the end":     {endZip(append(slices.Clone(good[:central]), "gap"...), good[central:len(good)-22], 2), "gap"},
		"overlap":            {makeZip(f, g.with(func(z *zipFile) { z.offset = -5 })), "does not begin"},
		"same data twice":    {makeZip(f, regular("d/g", "other").with(func(z *zipFile) { z.offset = -int64(len(good)) })), ""},
		"offset beyond":      {makeZip(f, g.with(func(z *zipFile) { z.offset = 1 << 20 })), "does not begin"},
		"order swapped":      {swapped(f, g), "does not begin"},
		"other local name":   {one(func(z *zipFile) { z.localName = "e" }), "another name"},
		"longer local name":  {one(func(z *zipFile) { z.localName = "evil" }), "another name"},
		"other local flags":  {one(func(z *zipFile) { z.localFlags = 2 }), "disagrees"},
		"local encrypted":    {one(func(z *zipFile) { z.localFlags = 1 }), "disagrees"},
		"other local crc":    {one(func(z *zipFile) { z.flags, z.localCRC = flagUTF8, 1 }), "other sizes"},
		"crc in both":        {one(func(z *zipFile) { z.localCRC = 1 }), "other sizes"},
		"other local extra":  {one(func(z *zipFile) { z.localExtra = []byte{0x55, 0x54, 0, 0} }), "extra"},
		"local zip64":        {one(func(z *zipFile) { z.localExtra = append([]byte{1, 0, 16, 0}, make([]byte, 16)...) }), "extra"},
		"descriptor absent":  {one(func(z *zipFile) { z.descriptor = []byte{} }), "descriptor"},
		"descriptor differs": {one(func(z *zipFile) { z.descriptor = []byte("PK\x07\x08aaaabbbbcccc") }), "descriptor"},
		"descriptor unsigned": {one(func(z *zipFile) {
			z.descriptor = append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte("content"))), 9, 0, 0, 0, 7, 0, 0, 0)
		}), "descriptor"},
		"descriptor wide":      {one(func(z *zipFile) { z.descriptor = append([]byte("PK\x07\x08"), make([]byte, 20)...) }), "descriptor"},
		"unicode path extra":   {one(func(z *zipFile) { z.extra = append([]byte{0x75, 0x70, 9, 0, 1, 0, 0, 0, 0}, "evil"...) }), "extra field 0x7075"},
		"strong encryption":    {one(func(z *zipFile) { z.extra = []byte{0x17, 0, 0, 0} }), "extra field 0x0017"},
		"extra cut off":        {one(func(z *zipFile) { z.extra = []byte{0x55, 0x54, 9, 0, 1} }), "cut off"},
		"extra too long":       {one(func(z *zipFile) { z.extra = append([]byte{0x55, 0x54, 0, 8}, make([]byte, 2048)...) }), "too long"},
		"zip64 for nothing":    {one(func(z *zipFile) { z.extra = append([]byte{1, 0, 8, 0}, make([]byte, 8)...); z.localExtra = []byte{} }), "zip64"},
		"zip64 lies":           {one(func(z *zipFile) { z.extra = append([]byte{1, 0, 24, 0}, make([]byte, 24)...); z.localExtra = []byte{} }), "zip64 field disagrees"},
		"zip64 missing":        {one(func(z *zipFile) { z.size = ptr(max32) }), "without a zip64 field"},
		"encrypted":            {one(func(z *zipFile) { z.flags |= 1 }), "flags"},
		"patched data":         {one(func(z *zipFile) { z.flags |= 0x20 }), "flags"},
		"masked headers":       {one(func(z *zipFile) { z.flags |= 0x2000 }), "flags"},
		"bzip2":                {one(func(z *zipFile) { z.method = 12 }), "method 12"},
		"lzma":                 {one(func(z *zipFile) { z.method = 14 }), "method 14"},
		"stored, two sizes":    {one(func(z *zipFile) { z.method, z.raw = zip.Store, []byte("contentX") }), "two sizes"},
		"absolute":             {makeZip(regular("/etc/passwd", "x")), "not a clean"},
		"dot dot":              {makeZip(regular("../f", "x")), "not a clean"},
		"dot dot inside":       {makeZip(regular("d/../../f", "x")), "not a clean"},
		"only dot dot":         {makeZip(regular("..", "x")), "not a clean"},
		"dot":                  {makeZip(regular("./f", "content")), "not a clean"},
		"double slash":         {makeZip(regular("d//g", "other")), "not a clean"},
		"double slash at end":  {makeZip(zipFile{name: "d//", creator: 20, attributes: dosDirectory}), "not a clean"},
		"zero byte":            {makeZip(regular("f\x00.txt", "content")), "zero byte"},
		"empty name":           {makeZip(regular("", "content")), "empty"},
		"only a slash":         {makeZip(zipFile{name: "/", creator: 20, attributes: dosDirectory}), "empty"},
		"long name":            {makeZip(regular(strings.Repeat("a/", 2100)+"b", "x")), "too long"},
		"name of no code page": {makeZip(regular("nf\u00fc", "content").with(func(z *zipFile) { z.flags = flagDescriptor })), "not marked as UTF-8"},
		"twice":                {makeZip(f, f), "two entries"},
		"twice, file and dir":  {makeZip(f, zipFile{name: "f/", creator: 20, attributes: dosDirectory}), "two entries"},
		"below a file":         {makeZip(f, regular("f/x", "content")), "not in the sealed"},
		"through a link":       {makeZip(regular("etc/passwd", "x")), "not in the sealed"},
		"link followed":        {makeZip(regular("out", "x")), "is a file in the archive, a symlink"},
		"link's target":        {makeZip(zipFile{name: "out", content: "/etc/shadow", creator: creatorUnix << 8, attributes: 0o120777 << 16}), "target"},
		"slash and file mode":  {makeZip(zipFile{name: "d/", creator: creatorUnix << 8, attributes: 0o100644 << 16}), "disagree"},
		"dir without slash":    {makeZip(zipFile{name: "d", creator: creatorUnix << 8, attributes: 0o040755 << 16}), "disagree"},
		"dir with content":     {makeZip(zipFile{name: "d/", content: "x", creator: 20, attributes: dosDirectory}), "directory with content"},
		"device":               {makeZip(f.with(func(z *zipFile) { z.attributes = 0o020644 << 16 })), "neither file"},
		"no type":              {makeZip(f.with(func(z *zipFile) { z.attributes = 0o644 << 16 })), "neither file"},
		"mode":                 {makeZip(f.with(func(z *zipFile) { z.attributes = 0o104755 << 16 })), "mode 4755"},
		"dos attributes":       {makeZip(f.with(func(z *zipFile) { z.creator, z.attributes = 20, 0x21 })), "attributes"},
		"made by a Mac":        {makeZip(f.with(func(z *zipFile) { z.creator = 19 << 8 })), "system 19"},
		"wrong checksum":       {one(func(z *zipFile) { z.crc = ptr(7) }), "checksum"},
		"wrong size":           {one(func(z *zipFile) { z.size = ptr(8) }), "has 8 bytes"},
		"longer than said":     {one(func(z *zipFile) { z.raw = deflate("content and more") }), "longer than it claims"},
		"shorter than said":    {one(func(z *zipFile) { z.raw = deflate("conten") }), "EOF"},
		"hidden after deflate": {one(func(z *zipFile) { z.raw = append(deflate("content"), "evil"...) }), "bytes after the end"},
		"second stream":        {one(func(z *zipFile) { z.raw = append(deflate("content"), deflate("evil")...) }), "bytes after the end"},
		"broken deflate":       {one(func(z *zipFile) { z.raw = []byte{0xff, 0xff, 0xff} }), "corrupt"},
		"content":              {makeZip(regular("f", "kontent")), "differs from the sealed workspace"},
		"not there":            {makeZip(regular("nothing", "")), "not in the sealed"},
		"bomb":                 {makeZip(regular("f", strings.Repeat("\x00", 64<<20))), "has 67108864 bytes"},
		"bomb that hides":      {makeZip(regular("zeros", strings.Repeat("\x00", 64<<20)).with(func(z *zipFile) { z.size = ptr(1 << 20) })), "longer than it claims"},
	} {
		t.Run(name, func(t *testing.T) { violation(t, w, c.data, "zip", c.wants) })
	}
}

// swapped lists the second entry first in the central directory.
func swapped(a, b zipFile) []byte {
	z := makeZip(a, b)
	at := bytes.Index(z, []byte("PK\x01\x02"))
	first := centralSize + len(a.name)
	central := append(slices.Clone(z[at+first:len(z)-endSize]), z[at:at+first]...)
	return endZip(slices.Clone(z[:at]), central, 2)
}

// TestMatchSaysThatItReadsNoZstd: a job that asks the runner for zstd attacks
// nobody.
func TestMatchSaysThatItReadsNoZstd(t *testing.T) {
	w := sealed(t, simpleTree)
	zstd := regular("f", "content").with(func(z *zipFile) { z.method = methodZstd })
	for name, data := range map[string][]byte{"zipzstd": makeZip(zstd), "tarzstd": []byte(zstdMagic + "\x04\x00")} {
		t.Run(name, func(t *testing.T) {
			_, err := w.match(t, data, "zip", "cache.zip")
			user, ok := errors.AsType[*sandbox.UserError](err)
			if !ok || !strings.Contains(user.Hint, "CACHE_COMPRESSION_FORMAT") {
				t.Errorf("%v", err)
			}
		})
	}
}

// What is true but not for every reader is the job's to solve, not an attack.
func TestMatchRefusesAmbiguousNames(t *testing.T) {
	w := sealed(t, simpleTree)
	mac := func(names ...string) []byte {
		var files []zipFile
		for _, n := range names {
			files = append(files, regular(n, "content"))
		}
		return makeZip(files...)
	}
	var gz bytes.Buffer
	gz.Write(gzipMemberOf(`back\slash`, `back\slash`, "content"))
	for name, c := range map[string]struct {
		data   []byte
		format string
	}{
		"case": {mac("F2", "f2"), "zip"}, "unicode form": {mac("nf\u00fc", "nfu\u0308"), "zip"}, "backslash": {mac(`back\slash`), "zip"},
		"invisible": {mac("f", "f\u200d"), "zip"}, "sharp s": {mac("stra\u00dfe", "STRASSE"), "zip"}, "trailing dot": {mac("d/f.", "d/f"), "zip"}, "trailing space": {mac("d /f", "d/f"), "zip"},
		"a file for a directory": {mac("D", "d/f"), "zip"}, "and the other way round": {mac("d/e/f", "D/E"), "zip"},
		"latin 1": {mac("latin\xe9"), "zip"}, "gzip backslash": {gz.Bytes(), "gzip"}, "format": {mac("f"), "zipzstd"}, "no format": {mac("f"), ""},
	} {
		_, err := w.match(t, c.data, c.format, "a.zip")
		var user *sandbox.UserError
		var violation *sandbox.SecurityError
		if !errors.As(err, &user) || errors.As(err, &violation) || user.Hint == "" {
			t.Errorf("%s: %v, want an error of the job's with a hint", name, err)
		}
	}
}

// A million names of four kilobytes must not be held.
func TestNamesAreBoundedTogether(t *testing.T) {
	data := makeZip(regular("abc", "1"), regular("def", "2"))
	end, err := readEnd(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for names, want := range map[int]bool{len("abcdef"): true, len("abcdef") - 1: false} {
		l := layout{r: bytes.NewReader(data), end: end, names: names}
		central := bufio.NewReader(io.NewSectionReader(bytes.NewReader(data), end.offset, end.size))
		_, first := l.member(central)
		_, second := l.member(central)
		var user *sandbox.UserError
		if first != nil || (second == nil) != want || second != nil && !errors.As(second, &user) {
			t.Errorf("%d bytes of names: %v, %v", names, first, second)
		}
	}
}

func TestFold(t *testing.T) {
	for _, c := range [][2]string{{"A", "a"}, {"K", "\u212a"}, {"é", "e\u0301"}, {"É", "e\u0301"}, {"ſ", "S"}, {"σ", "ς"}, {"ß", "SS"}, {"a", "\u200da\ufe0f"}, {"a/b", "a./b .."}} {
		if fold(c[0]) != fold(c[1]) {
			t.Errorf("%q and %q are kept apart", c[0], c[1])
		}
	}
	for _, c := range [][2]string{{"a", "b"}, {"a", "á"}, {"a/b", "a_b"}, {"a", ".a"}, {"a b", "ab"}, {"a/b", "a.b"}} {
		if fold(c[0]) == fold(c[1]) {
			t.Errorf("%q and %q are not kept apart", c[0], c[1])
		}
	}
}

func TestMatchReadsZip64(t *testing.T) {
	// A file of five gigabytes without its five gigabytes: what counts is the layout.
	const size = 5 << 30
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, flags := range []uint16{flagDescriptor, flagDescriptor | flagUTF8} {
		h := &zip.FileHeader{Name: fmt.Sprint("large", flags), Method: zip.Deflate, Flags: flags, CRC32: 7, UncompressedSize64: size, CompressedSize64: 5}
		h.SetMode(0o644)
		f, err := z.CreateRaw(h)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, "bytes")
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	members, err := readLayout(bytes.NewReader(good), int64(len(good)))
	if err != nil || len(members) != 2 || members[1].size != size || members[1].packed != 5 {
		t.Fatalf("%+v, %v", members, err)
	}
	field := bytes.LastIndex(good, []byte{1, 0, 24, 0})
	descriptor := bytes.LastIndex(good, []byte("PK\x07\x08"))
	for name, at := range map[string]int{
		"field id": field, "field length": field + 2, "size": field + 4, "high size": field + 9, "packed": field + 12, "offset": field + 20, "high offset": field + 27,
		"descriptor": descriptor, "descriptor's checksum": descriptor + 4, "descriptor's packed": descriptor + 8, "descriptor's size": descriptor + 16, "descriptor's high size": descriptor + 23,
	} {
		bad := slices.Clone(good)
		bad[at] ^= 1
		if _, err := readLayout(bytes.NewReader(bad), int64(len(bad))); err == nil {
			t.Errorf("%s altered: accepted", name)
		}
	}
	w := sealed(t, simpleTree)
	violation(t, w, good, "zip", "large8: is not in the sealed workspace")
}

func TestMatchReadsManyEntries(t *testing.T) {
	const n = 66_000 // more than the end record can count
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for i := range n {
		if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	members, err := readLayout(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil || len(members) != n {
		t.Fatalf("%d members, %v", len(members), err)
	}
	for name, at := range map[string]int{"record": 76 + 22, "size": 76 + 22 - 4, "disk": 76 + 22 - 16, "count": 76 + 22 - 24, "count here": 76 + 22 - 32, "length": 76 + 22 - 40, "offset": 76 + 22 - 48, "locator": 20 + 22, "locator disk": 20 + 22 - 4, "locator offset": 20 + 22 - 8, "disks": 20 + 22 - 16} {
		bad := slices.Clone(b.Bytes())
		bad[len(bad)-at] ^= 1
		if _, err := readLayout(bytes.NewReader(bad), int64(len(bad))); err == nil {
			t.Errorf("zip64 %s altered: accepted", name)
		}
	}
}

func gzipMemberOf(name, comment, content string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Name, z.Comment = name, comment
	io.WriteString(z, content)
	z.Close()
	return b.Bytes()
}

func TestMatchRefusesCraftedGzips(t *testing.T) {
	w := sealed(t, simpleTree)
	good := gzipMemberOf("f", "f", "content")
	if got, err := w.match(t, append(slices.Clone(good), gzipMemberOf("g", "d/g", "other")...), "gzip", "r.gz"); err != nil || len(got) != 2 || got[1].Path != "d/g" {
		t.Fatalf("%+v, %v", got, err)
	}
	edit := func(at int, b ...byte) []byte {
		out := slices.Clone(good)
		copy(out[(at+len(out))%len(out):], b)
		return out
	}
	var extra bytes.Buffer
	z := gzip.NewWriter(&extra)
	z.Name, z.Comment, z.Extra = "f", "f", []byte("xx")
	io.WriteString(z, "content")
	z.Close()
	for name, c := range map[string]struct {
		data  []byte
		wants string
	}{
		"empty":               {nil, "no member"},
		"not gzip":            {[]byte("content of some kind"), "no member"},
		"cut off in header":   {good[:12], "EOF"},
		"cut off in data":     {good[:16], "EOF"},
		"cut off in trailer":  {good[:len(good)-2], "EOF"},
		"trailing byte":       {append(slices.Clone(good), 0), "EOF"},
		"trailing zeros":      {append(slices.Clone(good), make([]byte, 512)...), "no member"},
		"method":              {edit(2, 7), "no member"},
		"no name":             {gzipMemberOf("", "f", "content"), "flags"},
		"no path":             {gzipMemberOf("f", "", "content"), "flags"},
		"extra field":         {extra.Bytes(), "flags"},
		"header checksum":     {edit(3, gzipName|gzipComment|2), "flags"},
		"reserved flag":       {edit(3, gzipName|gzipComment|0x80), "flags"},
		"name and path":       {gzipMemberOf("evil", "f", "content"), "disagree"},
		"path in name":        {gzipMemberOf("d/g", "d/g", "other"), "disagree"},
		"dot dot":             {gzipMemberOf("f", "../f", "content"), "not a clean"},
		"absolute":            {gzipMemberOf("passwd", "/etc/passwd", "content"), "not a clean"},
		"not clean":           {gzipMemberOf("f", "./f", "content"), "not a clean"},
		"escape for nothing":  {gzipMemberOf("e:%66", "e:%66", "content"), "not escaped as"},
		"escape missing":      {gzipMemberOf("%66", "%66", "content"), "not escaped as"},
		"escape broken":       {gzipMemberOf("e:%zz", "e:%zz", "content"), "invalid URL escape"},
		"escaped slash":       {gzipMemberOf("e:%C3%A9%2Fx", "e:%C3%A9/x", "content"), "not escaped as"},
		"latin 1 header":      {edit(10, 0xe9), "not ASCII"},
		"not there":           {gzipMemberOf("nothing", "nothing", "content"), "not in the sealed"},
		"a link":              {gzipMemberOf("out", "out", "content"), "not"},
		"through a link":      {gzipMemberOf("passwd", "etc/passwd", "content"), "not in the sealed"},
		"a directory":         {gzipMemberOf("d", "d", "content"), "not a regular file"},
		"content":             {gzipMemberOf("f", "f", "kontent"), "differs"},
		"longer":              {gzipMemberOf("f", "f", "content and more"), "longer"},
		"shorter":             {gzipMemberOf("f", "f", "conten"), "EOF"},
		"bomb":                {gzipMemberOf("zeros", "zeros", strings.Repeat("\x00", 64<<20)), "longer"},
		"checksum":            {edit(-8, 1), "checksum"},
		"size":                {edit(-4, 1), "size"},
		"twice":               {append(slices.Clone(good), good...), "two entries"},
		"second member lies":  {append(slices.Clone(good), gzipMemberOf("g", "d/g", "evil!")...), "d/g: differs"},
		"endless name":        {append([]byte{0x1f, 0x8b, 8, 0x18, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte("a"), 1<<20)...), "too long"},
		"name without an end": {append([]byte{0x1f, 0x8b, 8, 0x18, 0, 0, 0, 0, 0, 0}, "aaa"...), "EOF"},
	} {
		t.Run(name, func(t *testing.T) { violation(t, w, c.data, "gzip", c.wants) })
	}
}

func TestMatchRaw(t *testing.T) {
	w := sealed(t, func(t testing.TB, project string) {
		simpleTree(t, project)
		mustWrite(t, project+"/a/report.json", "{}")
		mustWrite(t, project+"/b/report.json", "[]")
		mustWrite(t, project+"/x", "[]")
		link(t, "/etc/hostname", project+"/hostname")
	})
	for _, c := range []struct{ content, name, path string }{
		{"{}", "report.json", "a/report.json"}, {"[]", "report.json", "b/report.json"}, {"[]", "x", "x"}, {"[]", "gl-report.json", "b/report.json"}, {"other", "g", "d/g"},
	} {
		got, err := w.match(t, []byte(c.content), "raw", c.name)
		want := []record.UploadEntry{{Path: c.path, Kind: "file", SHA256: sum(c.content), Bytes: int64(len(c.content)), Mode: 0o644}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", c.name, err, diff)
		}
	}
	hostname, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"()", "contenT", "{}\n", "nothing of this size here", string(hostname) + "x"} {
		violation(t, w, []byte(bad), "raw", "equals none")
	}
}

func TestMatchRawIsNoEndlessWork(t *testing.T) {
	w := sealed(t, func(t testing.TB, project string) {
		for i := range 8 {
			mustWrite(t, fmt.Sprintf("%s/%d", project, i), fmt.Sprintf("the same until %d", i))
		}
	})
	project, err := w.sealedProject()
	if err != nil {
		t.Fatal(err)
	}
	defer project.Close()
	content := "the same until 5"
	size := int64(len(content))
	for candidates, want := range map[int64]bool{4: false, 5: true} {
		m := matcher{project: int(project.Fd()), compared: candidates * size}
		_, err := m.raw(t.Context(), strings.NewReader(content), size, "report")
		var user *sandbox.UserError
		if (err == nil) != want || err != nil && !errors.As(err, &user) {
			t.Errorf("%d files compared: %v", candidates, err)
		}
	}
	m := matcher{project: int(project.Fd())}
	if _, err := m.raw(t.Context(), strings.NewReader(content), size, "5"); err != nil {
		t.Errorf("the file that has the artifact's name: %v", err)
	}
}

func TestMatchRawBoundsItsSearch(t *testing.T) {
	top := t.TempDir()
	for _, name := range []string{"a/f", "b/f", "f", "g"} {
		mustWrite(t, top+"/"+name, "x")
	}
	for name, c := range map[string]struct {
		left searchLimits
		good bool
	}{
		"enough":         {searchLimits{4, 2 * len("rel/a"), 2}, true},
		"too many":       {searchLimits{3, 100, 2}, false},
		"too long":       {searchLimits{4, 2*len("rel/a") - 1, 2}, false},
		"too many alike": {searchLimits{4, 100, 1}, false},
	} {
		dir, err := os.Open(top)
		if err != nil {
			t.Fatal(err)
		}
		below, found, err := listOfSize(t.Context(), dir, "rel", 1, &c.left)
		dir.Close()
		var user *sandbox.UserError
		if (err == nil) != c.good || err != nil && !errors.As(err, &user) || c.good && len(below)+len(found) != 4 {
			t.Errorf("%s: %q, %q, %v", name, below, found, err)
		}
	}
}

func TestMatchNeedsASeal(t *testing.T) {
	w := newWorkspace(t)
	simpleTreeIn := w.host(projectDir)
	mustMkdir(t, simpleTreeIn)
	simpleTree(t, simpleTreeIn)
	if got, err := w.match(t, makeZip(regular("f", "content")), "zip", "a.zip"); err == nil {
		t.Errorf("%+v before the seal", got)
	}
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data := makeZip(regular("f", "content"))
	_, err := w.Match(ctx, spooled(t, data), int64(len(data)), "zip", "a.zip")
	var violation *sandbox.SecurityError
	if !errors.Is(err, context.Canceled) || errors.As(err, &violation) {
		t.Errorf("a canceled context: %v", err)
	}
	closed := spooled(t, data)
	closed.Close()
	if _, err := w.Match(t.Context(), closed, int64(len(data)), "zip", "a.zip"); !errors.Is(err, fs.ErrClosed) || errors.As(err, &violation) {
		t.Errorf("our own file cannot be read: %v", err)
	}
}

func TestMatchWithoutAProject(t *testing.T) {
	w := newWorkspace(t)
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Fatal(err)
	}
	violation(t, w, makeZip(regular("f", "content")), "zip", "without a project directory")
}

// Whatever layout is accepted, another reader sees the same.
func FuzzZip(f *testing.F) {
	file, dir := regular("f", "content"), zipFile{name: "d/", creator: creatorUnix << 8, attributes: 0o040755 << 16}
	f.Add(makeZip(file, dir))
	f.Add(makeZip(file.with(func(z *zipFile) { z.flags = flagUTF8 })))
	f.Add(makeZip())
	for _, name := range []string{"runner-fastzip.zip", "runner-legacy.zip", "runner-all.zip"} {
		data, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		members, err := readLayout(r, int64(len(data)))
		if err != nil {
			return
		}
		other, err := zip.NewReader(r, int64(len(data)))
		if err != nil || len(other.File) != len(members) {
			t.Fatalf("archive/zip: %v, %d members", err, len(members))
		}
		var total int64
		for i, m := range members {
			o := other.File[i]
			at, err := o.DataOffset()
			if err != nil || at != m.data || strings.TrimSuffix(o.Name, "/") != m.name || int64(o.UncompressedSize64) != m.size || int64(o.CompressedSize64) != m.packed ||
				o.Method != m.method || o.CRC32 != m.crc || o.FileInfo().IsDir() != (m.kind == kindDirectory) || (o.Mode().Type() == fs.ModeSymlink) != (m.kind == kindLink) {
				t.Errorf("archive/zip sees %+v, %v, not %+v", o.FileHeader, err, m)
			}
			if !filepath.IsLocal(m.name) {
				t.Errorf("name %q", m.name)
			}
			if m.modes && m.kind != kindLink && unixMode(o.Mode()) != m.mode {
				t.Errorf("mode %o, not %o", unixMode(o.Mode()), m.mode)
			}
			total += m.packed
		}
		if total > int64(len(data)) {
			t.Errorf("%d compressed bytes in %d", total, len(data))
		}
	})
}

func unixMode(m fs.FileMode) uint32 {
	out := uint32(m.Perm())
	for bit, is := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&is != 0 {
			out |= bit
		}
	}
	return out
}

func FuzzGzip(f *testing.F) {
	f.Add(gzipMemberOf("f", "f", "content"))
	data, err := os.ReadFile("testdata/runner.gz")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	dir := f.TempDir()
	mustWrite(f, dir+"/f", "content")
	project, err := os.Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	m := matcher{project: int(project.Fd())}
	f.Cleanup(func() { project.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := m.gzip(t.Context(), bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(z)
		if err != nil || len(got) != 1 || string(all) != "content" || got[0].Path != "f" {
			t.Errorf("compress/gzip sees %q, %v, not %+v", all, err, got)
		}
	})
}

func FuzzGzipPath(f *testing.F) {
	f.Add("a/b")
	f.Add("e:%C3%A9")
	f.Add("ünï/ö%.txt")
	f.Fuzz(func(t *testing.T, s string) {
		if out, err := unescapeGzip(s); err == nil && escapeGzip(out) != s {
			t.Errorf("%q reads as %q", s, out)
		}
		if back, err := unescapeGzip(escapeGzip(s)); err != nil || back != s {
			t.Errorf("%q comes back as %q, %v", s, back, err)
		}
	})
}
