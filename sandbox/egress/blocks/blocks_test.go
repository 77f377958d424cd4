package blocks

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestBlockList(t *testing.T) {
	const head = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"
	for name, c := range map[string]struct {
		in   string
		want []Ref
	}{
		"as the kit writes it":      {head + "<BlockList><Latest>AAA=</Latest><Latest>BBB=</Latest></BlockList>", []Ref{{ID: "AAA="}, {ID: "BBB="}}},
		"with white space":          {"<BlockList>\n  <Latest>AAA=</Latest>\r\n</BlockList>\n", []Ref{{ID: "AAA="}}},
		"one block twice":           {"<BlockList><Latest>AAA=</Latest><Latest>AAA=</Latest></BlockList>", []Ref{{ID: "AAA="}, {ID: "AAA="}}},
		"no block":                  {head + "<BlockList></BlockList>", nil},
		"what was committed before": {"<BlockList><Latest>AAA=</Latest><Committed>BBB=</Committed></BlockList>", nil},
		"uncommitted":               {"<BlockList><Uncommitted>AAA=</Uncommitted></BlockList>", nil},
		"another root":              {"<BlockLists><Latest>AAA=</Latest></BlockLists>", nil},
		"a namespace":               {`<BlockList xmlns="urn:x"><Latest>AAA=</Latest></BlockList>`, nil},
		"a prefix":                  {`<BlockList><x:Latest xmlns:x="urn:x">AAA=</x:Latest></BlockList>`, nil},
		"an attribute":              {`<BlockList><Latest kind="Committed">AAA=</Latest></BlockList>`, nil},
		"a comment":                 {"<BlockList><!-- --><Latest>AAA=</Latest></BlockList>", nil},
		"a comment in an id":        {"<BlockList><Latest>AA<!-- -->A=</Latest></BlockList>", nil},
		"a doctype":                 {"<!DOCTYPE BlockList [<!ENTITY a \"b\">]><BlockList><Latest>AAA=</Latest></BlockList>", nil},
		"an entity":                 {"<BlockList><Latest>&a;</Latest></BlockList>", nil},
		"an instruction":            {"<BlockList><?x y?><Latest>AAA=</Latest></BlockList>", nil},
		"text":                      {"<BlockList>x<Latest>AAA=</Latest></BlockList>", nil},
		"an empty id":               {"<BlockList><Latest></Latest></BlockList>", nil},
		"a long id":                 {"<BlockList><Latest>" + strings.Repeat("A", maxText+1) + "</Latest></BlockList>", nil},
		"a space in an id":          {"<BlockList><Latest> AAA=</Latest></BlockList>", nil},
		"a second list":             {"<BlockList><Latest>AAA=</Latest></BlockList><BlockList><Latest>BBB=</Latest></BlockList>", nil},
		"an open end":               {"<BlockList><Latest>AAA=</Latest>", nil},
		"another encoding":          {`<?xml version="1.0" encoding="UTF-16"?><BlockList><Latest>AAA=</Latest></BlockList>`, nil},
		"nothing":                   {"", nil},
		"too many":                  {"<BlockList>" + strings.Repeat("<Latest>A</Latest>", MaxBlocks+1) + "</BlockList>", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadBlockList([]byte(c.in))
			judge(t, got, err, c.want)
		})
	}
}

func judge(t *testing.T, got []Ref, err error, want []Ref) {
	t.Helper()
	var form *FormError
	if want == nil && (!errors.As(err, &form) || form.Reason == "" || got != nil) {
		t.Fatalf("read as %v, %v: want a form error", got, err)
	}
	if want != nil && (err != nil || !slices.Equal(got, want)) {
		t.Fatalf("read as %v, %v: want %v", got, err, want)
	}
}

func TestParts(t *testing.T) {
	const root = `<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">`
	const end = `</CompleteMultipartUpload>`
	for name, c := range map[string]struct {
		in   string
		want []Ref
	}{
		"as the kit writes it": {root + `<Part><ChecksumCRC32>aFOH0g==</ChecksumCRC32><ETag>&#34;9e8f&#34;</ETag><PartNumber>1</PartNumber></Part>` +
			`<Part><ChecksumCRC32>/HfNhQ==</ChecksumCRC32><ETag>&#34;aef2&#34;</ETag><PartNumber>2</PartNumber></Part>` + end, []Ref{{"1", `"9e8f"`}, {"2", `"aef2"`}}},
		"without a namespace":  {"<CompleteMultipartUpload><Part><PartNumber>7</PartNumber><ETag>x</ETag></Part>" + end, []Ref{{"7", "x"}}},
		"no part":              {root + end, nil},
		"an empty part":        {root + "<Part></Part>" + end, nil},
		"no ETag":              {root + "<Part><PartNumber>1</PartNumber></Part>" + end, nil},
		"no number":            {root + "<Part><ETag>x</ETag></Part>" + end, nil},
		"number zero":          {root + "<Part><ETag>x</ETag><PartNumber>0</PartNumber></Part>" + end, nil},
		"a number too large":   {root + "<Part><ETag>x</ETag><PartNumber>10001</PartNumber></Part>" + end, nil},
		"a number with zeroes": {root + "<Part><ETag>x</ETag><PartNumber>01</PartNumber></Part>" + end, nil},
		"two numbers":          {root + "<Part><ETag>x</ETag><PartNumber>1</PartNumber><PartNumber>2</PartNumber></Part>" + end, nil},
		"out of order":         {root + "<Part><ETag>x</ETag><PartNumber>2</PartNumber></Part><Part><ETag>x</ETag><PartNumber>1</PartNumber></Part>" + end, nil},
		"a number twice":       {root + "<Part><ETag>x</ETag><PartNumber>1</PartNumber></Part><Part><ETag>y</ETag><PartNumber>1</PartNumber></Part>" + end, nil},
		"an unknown element":   {root + "<Part><ETag>x</ETag><PartNumber>1</PartNumber><Size>1</Size></Part>" + end, nil},
		"another namespace":    {`<CompleteMultipartUpload xmlns="urn:x"><Part><ETag>x</ETag><PartNumber>1</PartNumber></Part>` + end, nil},
		"a namespace within":   {root + `<Part xmlns="urn:x"><ETag>x</ETag><PartNumber>1</PartNumber></Part>` + end, nil},
		"a list of blocks":     {"<BlockList><Latest>AAA=</Latest></BlockList>", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadParts([]byte(c.in))
			judge(t, got, err, c.want)
		})
	}
}

// What is read must be what any reader of XML reads: a list that is written anew
// from it, by another way, has the same content.
func FuzzCommit(f *testing.F) {
	for _, s := range []string{
		"<BlockList><Latest>AAA=</Latest><Latest>B&amp;B</Latest></BlockList>", "<BlockList><Latest><![CDATA[AAA]]></Latest></BlockList>",
		`<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Part><ETag>&#34;x&#34;</ETag><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if list, err := ReadBlockList(in); err == nil {
			var plain struct {
				XMLName xml.Name `xml:"BlockList"`
				Latest  []string
			}
			if err := xml.Unmarshal(in, &plain); err != nil {
				t.Fatal(err)
			}
			var want []Ref
			for _, id := range plain.Latest {
				want = append(want, Ref{ID: id})
			}
			if !reflect.DeepEqual(list, want) {
				t.Fatalf("read %q, want %q", list, want)
			}
		}
		if list, err := ReadParts(in); err == nil {
			var plain struct {
				XMLName xml.Name `xml:"CompleteMultipartUpload"`
				Part    []struct{ PartNumber, ETag string }
			}
			if err := xml.Unmarshal(in, &plain); err != nil {
				t.Fatal(err)
			}
			var want []Ref
			for _, p := range plain.Part {
				want = append(want, Ref{ID: p.PartNumber, ETag: p.ETag})
			}
			if !reflect.DeepEqual(list, want) {
				t.Fatalf("read %q, want %q", list, want)
			}
		}
	})
}

func TestUnframe(t *testing.T) {
	const tail = "\r\n0\r\nx-amz-checksum-crc32:Ygl4fA==\r\n\r\n"
	for name, c := range map[string]struct {
		in   string
		size int64
		want string
	}{
		"as the kit writes it":    {"10\r\n0123456789abcdef" + tail, 16, "0123456789abcdef"},
		"two chunks":              {"8\r\n01234567\r\n8\r\n89abcdef" + tail, 16, ""},
		"a signature":             {"10;chunk-signature=0\r\n0123456789abcdef" + tail, 16, ""},
		"capitals":                {"A\r\n0123456789" + tail, 10, ""},
		"leading zeroes":          {"010\r\n0123456789abcdef" + tail, 16, ""},
		"another size":            {"10\r\n0123456789abcdef" + tail, 15, ""},
		"no size":                 {"10\r\n0123456789abcdef" + tail, 0, ""},
		"no checksum":             {"10\r\n0123456789abcdef\r\n0\r\n\r\n", 16, ""},
		"another trailer":         {"10\r\n0123456789abcdef\r\n0\r\nx-amz-meta-a:Ygl4fA==\r\n\r\n", 16, ""},
		"two trailers":            {"10\r\n0123456789abcdef\r\n0\r\nx-amz-checksum-crc32:Ygl4fA==\r\nx-amz-checksum-sha1:Ygl4fA==\r\n\r\n", 16, ""},
		"something after the end": {"10\r\n0123456789abcdef" + tail + "x", 16, ""},
		"an early end":            {"10\r\n0123", 16, ""},
		"no chunk":                {"", 16, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			f, err := Unframe(&out, strings.NewReader(c.in), c.size)
			var form *FormError
			if c.want == "" {
				if !errors.As(err, &form) {
					t.Fatalf("read as %q, %v: want a form error", out.String(), err)
				}
				return
			}
			if err != nil || out.String() != c.want {
				t.Fatalf("read as %q, %v", out.String(), err)
			}
			var again bytes.Buffer
			if _, err := again.ReadFrom(f.Around(&out)); err != nil || again.String() != c.in || f.Len() != int64(len(c.in)-len(c.want)) {
				t.Errorf("written anew as %q, %v", again.String(), err)
			}
		})
	}
}

func FuzzUnframe(f *testing.F) {
	f.Add([]byte("4\r\n0123\r\n0\r\nx-amz-checksum-crc32:Ygl4fA==\r\n\r\n"), int64(4))
	f.Fuzz(func(t *testing.T, in []byte, size int64) {
		var out, again bytes.Buffer
		frame, err := Unframe(&out, bytes.NewReader(in), size)
		if err != nil {
			return
		}
		if int64(out.Len()) != size {
			t.Fatalf("%d bytes, announced %d", out.Len(), size)
		}
		if _, err := again.ReadFrom(frame.Around(&out)); err != nil || !bytes.Equal(again.Bytes(), in) {
			t.Fatalf("%q written anew as %q, %v", in, again.Bytes(), err)
		}
	})
}

func stage(t *testing.T, limit int64) *Staged {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	s := Stage(f, limit)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t *testing.T, s *Staged, id, content, etag string) {
	t.Helper()
	room, err := s.Take(id, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(room.Writer(), content); err != nil {
		t.Fatal(err)
	}
	var back bytes.Buffer
	if _, err := back.ReadFrom(room.Reader()); err != nil || back.String() != content {
		t.Fatalf("read back %q, %v", back.String(), err)
	}
	sum := sha256.Sum256([]byte(content))
	room.Keep(hex.EncodeToString(sum[:]), etag)
}

func TestStagedObjectIsWhatTheListSays(t *testing.T) {
	s := stage(t, 20)
	put(t, s, "2", "two,", "b")
	put(t, s, "1", "wrong,", "z")
	put(t, s, "1", "one,", "a")
	for name, c := range map[string]struct {
		list []Ref
		want string
	}{
		"in its order":       {[]Ref{{"1", "a"}, {"2", "b"}}, "one,two,"},
		"a block twice":      {[]Ref{{"2", "b"}, {"2", "b"}}, "two,two,"},
		"an unknown block":   {[]Ref{{"1", "a"}, {"3", "c"}}, ""},
		"what was replaced":  {[]Ref{{"1", "z"}}, ""},
		"larger than it may": {slices.Repeat([]Ref{{"1", "a"}}, 6), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			n, err := s.Assemble(&out, c.list)
			if out.String() != c.want || n != int64(len(c.want)) || (err == nil) != (c.want != "") {
				t.Errorf("%q, %d, %v", out.String(), n, err)
			}
		})
	}
}

func TestStagedBlockCountsOnceTheStoreHasIt(t *testing.T) {
	s := stage(t, 100)
	put(t, s, "1", "old", "a")
	if _, err := s.Take("1", 3); err != nil {
		t.Fatal(err)
	}
	var form *FormError
	if _, err := s.Assemble(&bytes.Buffer{}, []Ref{{"1", "a"}}); !errors.As(err, &form) {
		t.Errorf("a block whose replacement is under way: %v, want it refused", err)
	}
}

func TestStagedBlocksAreBounded(t *testing.T) {
	s := stage(t, 10)
	put(t, s, "1", "12345678", "")
	for _, size := range []int64{3, -1, 1 << 62} {
		if _, err := s.Take("2", size); !errors.Is(err, ErrFull) {
			t.Errorf("%d bytes more: %v", size, err)
		}
	}
	put(t, s, "2", "90", "")
	many := stage(t, 10)
	for range MaxBlocks {
		if _, err := many.Take("1", 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := many.Take("1", 0); !errors.Is(err, ErrFull) {
		t.Errorf("one block too many: %v", err)
	}
}

func TestStagedBlockThatChangedIsNoLongerWhatTheStoreHas(t *testing.T) {
	s := stage(t, 10)
	put(t, s, "1", "123", "")
	if _, err := s.file.WriteAt([]byte("x"), 1); err != nil {
		t.Fatal(err)
	}
	var form *FormError
	if _, err := s.Assemble(&bytes.Buffer{}, []Ref{{ID: "1"}}); err == nil || errors.As(err, &form) {
		t.Errorf("%v: want the host's own failure", err)
	}
}
