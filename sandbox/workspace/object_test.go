package workspace

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func mustAlgorithm(t testing.TB, name string) algorithm {
	t.Helper()
	a, err := parseAlgorithm(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestObjectIDs(t *testing.T) {
	for _, c := range []struct{ format, kind, content, id string }{
		{"sha1", kindBlob, "", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"},
		{"sha1", kindTree, "", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"},
		{"sha1", kindBlob, "hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"},
		{"sha256", kindTree, "", "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321"},
	} {
		got, err := mustAlgorithm(t, c.format).id(c.kind, []byte(c.content))
		if err != nil || got.String() != c.id {
			t.Errorf("%s %q: %s, %v, want %s", c.kind, c.content, got, err, c.id)
		}
	}
}

// The first blocks of one of the two files that were made to share a SHA-1.
func TestCollisionsAreSeen(t *testing.T) {
	text, err := os.ReadFile("testdata/shattered-1.hex")
	if err != nil {
		t.Fatal(err)
	}
	data, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	h := mustAlgorithm(t, "sha1").new()
	h.Write(data)
	if id, err := end(h); !errors.Is(err, errCollision) {
		t.Errorf("id %s, %v, want a collision", id, err)
	}
	n := &node{name: "f", mode: modeFile}
	if err := new(scanner).settle(n, "", errCollision); err != nil || n.mode != 0 || n.why != "collision" {
		t.Errorf("node %+v, %v", n, err)
	}
}

func TestParseCommitRefuses(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	id := strings.Repeat("a", 40)
	if tree, err := parseCommit(a, []byte("tree "+id+"\nauthor x\n\nmessage")); err != nil || tree.String() != id {
		t.Errorf("tree %s, %v", tree, err)
	}
	for _, bad := range []string{
		"", "\n", "tree", "tree \n", "tree " + id, "parent " + id + "\ntree " + id + "\n", " tree " + id + "\n",
		"tree " + strings.ToUpper(id) + "\n", "tree " + id[1:] + "\n", "tree " + id + "aa\n", "tree " + id + "\r\n", "tree\x00" + id + "\n",
	} {
		if tree, err := parseCommit(a, []byte(bad)); err == nil {
			t.Errorf("%q: tree %s", bad, tree)
		}
	}
}

func TestParseTree(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	id := objectID(strings.Repeat("i", 20))
	for mode, want := range map[string]uint32{
		"100644": modeFile, "100755": modeExecutable, "120000": modeSymlink, "40000": modeTree, "160000": modeGitlink,
		"100664": modeFile, "100600": modeFile, "100775": modeExecutable, "040000": modeTree,
	} {
		got, err := parseTree(a, []byte(mode+" name\x00"+string(id)))
		if err != nil || len(got) != 1 || got[0] != (treeEntry{"name", want, id}) {
			t.Errorf("mode %s: %v, %v", mode, got, err)
		}
	}
	for _, bad := range []string{
		"100644 name\x00" + string(id[1:]), "100644 name" + string(id), "100644 \x00" + string(id), " name\x00" + string(id),
		"100644name\x00" + string(id), "100648 name\x00" + string(id), "0 name\x00" + string(id), "20000 name\x00" + string(id),
		"+10644 name\x00" + string(id), "100644 .\x00" + string(id), "100644 ..\x00" + string(id), "100644 .git\x00" + string(id),
		"100644 a/b\x00" + string(id), "100644 /\x00" + string(id), "00000000100644 name\x00" + string(id), "100644 name\x00" + string(id) + "x",
	} {
		if got, err := parseTree(a, []byte(bad)); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestParsePointer(t *testing.T) {
	oid := strings.Repeat("ab", 32)
	good := "version https://git-lfs.github.com/spec/v1\noid sha256:" + oid + "\nsize 12\n"
	if p, ok := parsePointer([]byte(good)); !ok || p != (pointer{oid, 12}) {
		t.Errorf("pointer %+v, %v", p, ok)
	}
	for _, bad := range []string{
		"", good + "\n", good + "x 1\n", strings.TrimSuffix(good, "\n"), strings.ReplaceAll(good, "\n", "\r\n"), "\n" + good,
		strings.Replace(good, "v1", "v2", 1), strings.Replace(good, "sha256", "sha512", 1), strings.Replace(good, "ab", "AB", 1), strings.Replace(good, "ab", "", 1),
		strings.Replace(good, "12", "-1", 1), strings.Replace(good, "12", "", 1), strings.Replace(good, "12", "1e3", 1), strings.Replace(good, "12", strings.Repeat("1", 1000), 1),
		"version https://git-lfs.github.com/spec/v1\next-0-x sha256:" + oid + "\noid sha256:" + oid + "\nsize 12\n",
	} {
		if p, ok := parsePointer([]byte(bad)); ok {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

// A packWriter makes packs that git would not.
type packWriter struct {
	alg     algorithm
	data    []byte
	offsets map[objectID]int64
}

func newPackWriter(a algorithm) *packWriter {
	return &packWriter{alg: a, data: []byte("PACK\x00\x00\x00\x02\x00\x00\x00\x01"), offsets: map[objectID]int64{}}
}

func deflated(b []byte) []byte {
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// add appends an entry under any name, with any announced size.
func (w *packWriter) add(name objectID, kind byte, announced int64, base, content []byte) int64 {
	at := int64(len(w.data))
	w.offsets[name] = at
	first, rest := kind<<4|byte(announced&0x0f), announced>>4
	for rest > 0 {
		w.data = append(w.data, first|0x80)
		first, rest = byte(rest&0x7f), rest>>7
	}
	w.data = append(w.data, first)
	w.data = append(w.data, base...)
	w.data = append(w.data, content...)
	return at
}

func back(n int64) []byte {
	out := []byte{byte(n & 0x7f)}
	for n >>= 7; n > 0; n >>= 7 {
		n--
		out = append([]byte{byte(n&0x7f) | 0x80}, out...)
	}
	return out
}

func (w *packWriter) index() []byte {
	names := make([]objectID, 0, len(w.offsets))
	for n := range w.offsets {
		names = append(names, n)
	}
	slices.Sort(names)
	out := []byte(indexMagic)
	for i := range 256 {
		n := 0
		for _, name := range names {
			if int(name[0]) <= i {
				n++
			}
		}
		out = binary.BigEndian.AppendUint32(out, uint32(n))
	}
	for _, n := range names {
		out = append(out, n...)
	}
	out = append(out, make([]byte, 4*len(names))...)
	var large []byte
	for _, n := range names {
		if at := w.offsets[n]; at < 1<<31 {
			out = binary.BigEndian.AppendUint32(out, uint32(at))
		} else {
			out = binary.BigEndian.AppendUint32(out, 1<<31|uint32(len(large)/8))
			large = binary.BigEndian.AppendUint64(large, uint64(at))
		}
	}
	return append(append(out, large...), make([]byte, 2*w.alg.size)...)
}

func (w *packWriter) store(t testing.TB) *objectStore {
	t.Helper()
	data, index := append(slices.Clone(w.data), make([]byte, w.alg.size)...), w.index()
	p, err := newPack(w.alg, bytes.NewReader(index), bytes.NewReader(data), int64(len(index)), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	s := newObjectStore(w.alg)
	s.packs = []*pack{p}
	return s
}

func TestPackReadsDeltas(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	w := newPackWriter(a)
	base, want := []byte("0123456789"), []byte("34567xyz012")
	delta := []byte{10, 11, 0x91, 3, 5, 3, 'x', 'y', 'z', 0x90, 3}
	baseID, _ := a.id(kindBlob, base)
	wantID, _ := a.id(kindBlob, want)
	at := w.add(baseID, 3, 10, nil, deflated(base))
	w.add(wantID, packOfsDelta, int64(len(delta)), back(int64(len(w.data))-at), deflated(delta))
	for range 2 {
		got, err := w.store(t).read(t.Context(), wantID, kindBlob, 100)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("object %q, %v", got, err)
		}
		w.add(wantID, packRefDelta, int64(len(delta)), []byte(baseID), deflated(delta))
	}
}

func TestHostilePacks(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	id := objectID(strings.Repeat("h", 20))
	other := objectID(strings.Repeat("o", 20))
	blob := []byte("content")
	for name, c := range map[string]struct {
		fill  func(w *packWriter)
		wants string
	}{
		"another content":      {func(w *packWriter) { w.add(id, 3, 7, nil, deflated(blob)) }, "hash does not match"},
		"another kind":         {func(w *packWriter) { w.add(id, 1, 7, nil, deflated(blob)) }, "is a commit"},
		"reserved kind":        {func(w *packWriter) { w.add(id, 5, 7, nil, deflated(blob)) }, "malformed"},
		"kind 0":               {func(w *packWriter) { w.add(id, 0, 7, nil, deflated(blob)) }, "malformed"},
		"announces a petabyte": {func(w *packWriter) { w.add(id, 3, 1<<50, nil, deflated(blob)) }, "too large"},
		"announces too much":   {func(w *packWriter) { w.add(id, 3, 100, nil, deflated(blob)) }, "announced"},
		"announces too little": {func(w *packWriter) { w.add(id, 3, 1, nil, deflated(blob)) }, "announced"},
		"endless size":         {func(w *packWriter) { w.offsets[id] = 12; w.data = append(w.data, bytes.Repeat([]byte{0xff}, 64)...) }, "malformed"},
		"no zlib":              {func(w *packWriter) { w.add(id, 3, 7, nil, blob) }, "malformed"},
		"cut off":              {func(w *packWriter) { w.add(id, 3, 7, nil, deflated(blob)[:8]) }, "malformed"},
		"base of itself":       {func(w *packWriter) { w.add(id, packRefDelta, 7, []byte(id), deflated(blob)) }, "chain of more than"},
		"bases of each other": {func(w *packWriter) {
			w.add(id, packRefDelta, 7, []byte(other), deflated(blob))
			w.add(other, packRefDelta, 7, []byte(id), deflated(blob))
		}, "chain of more than"},
		"base elsewhere":  {func(w *packWriter) { w.add(id, packRefDelta, 7, []byte(other), deflated(blob)) }, "not in the pack"},
		"base at itself":  {func(w *packWriter) { w.add(id, packOfsDelta, 7, []byte{0}, deflated(blob)) }, "malformed"},
		"base before all": {func(w *packWriter) { w.add(id, packOfsDelta, 7, back(1000), deflated(blob)) }, "malformed"},
		"base in header":  {func(w *packWriter) { w.add(id, packOfsDelta, 7, back(5), deflated(blob)) }, "outside"},
		"long chain": {func(w *packWriter) {
			at := w.add(other, 3, 7, nil, deflated(blob))
			for range maxDeltaChain + 10 {
				at = w.add(id, packOfsDelta, 3, back(int64(len(w.data))-at), deflated([]byte{7, 7, 0x90, 7}))
			}
		}, "chain of more than"},
		"delta bomb": {func(w *packWriter) {
			at := w.add(other, 3, 7, nil, deflated(blob))
			d := binary.AppendUvarint([]byte{7}, 1<<40)
			w.add(id, packOfsDelta, int64(len(d)), back(int64(len(w.data))-at), deflated(d))
		}, "too large"},
		"offset beyond":  {func(w *packWriter) { w.offsets[id] = 1 << 40 }, "outside"},
		"offset missing": {func(w *packWriter) { w.offsets[id] = -1 }, "malformed"},
		"offset zero":    {func(w *packWriter) { w.offsets[id] = 0 }, "outside"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newPackWriter(a)
			c.fill(w)
			got, err := w.store(t).read(t.Context(), id, kindBlob, 1<<20)
			if err == nil || !strings.Contains(err.Error(), c.wants) {
				t.Errorf("object %q, %v, want an error with %q", got, err, c.wants)
			}
		})
	}
}

func TestHostileIndexes(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	w := newPackWriter(a)
	w.add(objectID(strings.Repeat("h", 20)), 3, 7, nil, deflated([]byte("content")))
	good := w.index()
	for name, bend := range map[string]func(b []byte) []byte{
		"empty":       func(b []byte) []byte { return nil },
		"magic":       func(b []byte) []byte { b[0] = 0; return b },
		"version 1":   func(b []byte) []byte { return b[8:] },
		"version 3":   func(b []byte) []byte { b[7] = 3; return b },
		"huge count":  func(b []byte) []byte { binary.BigEndian.PutUint32(b[indexNames-4:], 1<<31); return b },
		"count":       func(b []byte) []byte { binary.BigEndian.PutUint32(b[indexNames-4:], 1000); return b },
		"only fanout": func(b []byte) []byte { return b[:indexNames] },
	} {
		b := bend(slices.Clone(good))
		if _, err := newPack(a, bytes.NewReader(b), bytes.NewReader(w.data), int64(len(b)), int64(len(w.data))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	unsorted := slices.Clone(good)
	binary.BigEndian.PutUint32(unsorted[indexFanout+4*('h'-1):], 5)
	p, err := newPack(a, bytes.NewReader(unsorted), bytes.NewReader(w.data), int64(len(unsorted)), int64(len(w.data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.find(objectID(strings.Repeat("h", 20))); err == nil {
		t.Error("a fan-out that is not sorted: accepted")
	}
	for _, head := range []string{"", "PACK", "PACK\x00\x00\x00\x04....", "KCAP\x00\x00\x00\x02...."} {
		if _, err := newPack(a, bytes.NewReader(good), strings.NewReader(head), int64(len(good)), int64(len(head))); err == nil {
			t.Errorf("pack %q: accepted", head)
		}
	}
}

// Many objects that are small in the pack must not cost more than the budget.
func TestBudgetEndsExpensiveReads(t *testing.T) {
	a := mustAlgorithm(t, "sha1")
	id := objectID(strings.Repeat("h", 20))
	w := newPackWriter(a)
	const size = 1 << 20
	at := w.add(objectID(strings.Repeat("b", 20)), 3, size, nil, deflated(make([]byte, size)))
	copyAll := append(binary.AppendUvarint(binary.AppendUvarint(nil, size), size), bytes.Repeat([]byte{0x80}, size>>16)...)
	for range 200 {
		at = w.add(id, packOfsDelta, int64(len(copyAll)), back(int64(len(w.data))-at), deflated(copyAll))
	}
	s := w.store(t)
	s.budget.left = 50 << 20
	if _, err := s.read(t.Context(), id, kindBlob, 2<<20); !errors.Is(err, errTooLarge) {
		t.Errorf("read: %v, want the budget's error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.store(t).read(ctx, id, kindBlob, 2<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v, want the context's error", err)
	}
}

func TestLooseObjects(t *testing.T) {
	read := func(raw []byte) (string, []byte, error) {
		return readLoose(bytes.NewReader(raw), 1<<20, &budget{left: 1 << 30})
	}
	if kind, data, err := read(deflated([]byte("blob 7\x00content"))); err != nil || kind != kindBlob || string(data) != "content" {
		t.Errorf("%s %q, %v", kind, data, err)
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "no zlib": []byte("blob 7\x00content"), "no header": deflated([]byte("content")), "no kind": deflated([]byte("7\x00content")),
		"short": deflated([]byte("blob 8\x00content")), "long": deflated([]byte("blob 6\x00content")), "negative": deflated([]byte("blob -1\x00content")),
		"huge": deflated([]byte("blob 99999999999\x00content")), "overflow": deflated([]byte("blob 99999999999999999999\x00content")), "endless header": deflated(bytes.Repeat([]byte("b"), 1<<20)),
		"cut off": deflated([]byte("blob 7\x00content"))[:12], "checksum": append(deflated([]byte("blob 7\x00content"))[:18], 0, 0, 0, 0),
	} {
		if kind, data, err := read(raw); err == nil {
			t.Errorf("%s: %s %q", name, kind, data)
		}
	}
}

func FuzzParseTree(f *testing.F) {
	f.Add([]byte("100644 name\x00aaaaaaaaaaaaaaaaaaaa40000 dir\x00bbbbbbbbbbbbbbbbbbbb"))
	f.Add([]byte("160000 .git\x00aaaaaaaaaaaaaaaaaaaa"))
	a := mustAlgorithm(f, "sha1")
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseTree(a, data)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			if e.name == "" || strings.ContainsAny(e.name, "/\x00") || e.name == dotGit || len(e.id) != a.size {
				t.Errorf("entry %+v", e)
			}
			again = appendTreeEntry(again, e.mode, e.name, e.id)
		}
		if second, err := parseTree(a, again); err != nil || !slices.Equal(entries, second) {
			t.Errorf("%v, %v, want %v", second, err, entries)
		}
	})
}

func FuzzParseCommit(f *testing.F) {
	f.Add([]byte("tree " + strings.Repeat("a", 40) + "\nauthor a <a> 0 +0000\n\nm"))
	a := mustAlgorithm(f, "sha1")
	f.Fuzz(func(t *testing.T, data []byte) {
		if tree, err := parseCommit(a, data); err == nil && !bytes.HasPrefix(data, []byte("tree "+tree.String()+"\n")) {
			t.Errorf("tree %s of %q", tree, data)
		}
	})
}

func FuzzPack(f *testing.F) {
	a := mustAlgorithm(f, "sha1")
	w := newPackWriter(a)
	base, delta := []byte("0123456789"), []byte{10, 11, 0x91, 3, 5, 3, 'x', 'y', 'z', 0x90, 3}
	baseID, _ := a.id(kindBlob, base)
	wantID, _ := a.id(kindBlob, []byte("34567xyz012"))
	at := w.add(baseID, 3, 10, nil, deflated(base))
	w.add(wantID, packOfsDelta, int64(len(delta)), back(int64(len(w.data))-at), deflated(delta))
	f.Add(w.index(), append(w.data, make([]byte, 20)...), []byte(wantID))
	f.Add(w.index(), append(w.data, make([]byte, 20)...), []byte(baseID))
	f.Fuzz(func(t *testing.T, index, data, id []byte) {
		if len(id) != a.size {
			return
		}
		p, err := newPack(a, bytes.NewReader(index), bytes.NewReader(data), int64(len(index)), int64(len(data)))
		if err != nil {
			return
		}
		s := newObjectStore(a)
		s.packs, s.budget.left = []*pack{p}, 1<<22
		got, err := s.read(t.Context(), objectID(id), kindBlob, 1<<20)
		if err != nil {
			return
		}
		if sum, err := a.id(kindBlob, got); err != nil || sum != objectID(id) {
			t.Errorf("object %x for %x", sum, id)
		}
	})
}

func FuzzLoose(f *testing.F) {
	f.Add(deflated([]byte("blob 7\x00content")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, data, err := readLoose(bytes.NewReader(raw), 1<<16, &budget{left: 1 << 20})
		if err == nil && len(data) > 1<<16 {
			t.Errorf("%d bytes", len(data))
		}
	})
}

func FuzzDelta(f *testing.F) {
	f.Add([]byte("0123456789"), []byte{10, 11, 0x91, 3, 5, 3, 'x', 'y', 'z', 0x90, 3})
	f.Fuzz(func(t *testing.T, base, delta []byte) {
		out, err := applyDelta(base, delta, 1<<16)
		if err != nil && out != nil || len(out) > 1<<16 {
			t.Errorf("%d bytes, %v", len(out), err)
		}
	})
}

func FuzzPointer(f *testing.F) {
	f.Add([]byte("version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("ab", 32) + "\nsize 12\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parsePointer(data); ok && (len(p.sha256) != 64 || p.size < 0) {
			t.Errorf("pointer %+v", p)
		}
	})
}
