package blocks

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	// MaxCommit bounds the body of a commit in bytes. Ten thousand parts with
	// their checksums take a third of it.
	MaxCommit = 8 << 20
	// MaxBlocks bounds the blocks of one object. It is S3's own bound; a client can
	// make blocks large enough.
	MaxBlocks = 10_000

	maxText = 256 // of one element
)

// A Ref is one block in the list that makes an object of blocks.
type Ref struct {
	ID string // Azure's block id, or S3's part number
	// ETag is what the store answered when it took the part. Azure has none.
	ETag string
}

// A FormError says why a request is not what the kit sends.
type FormError struct{ Reason string }

func (e *FormError) Error() string { return e.Reason }

func malformed(format string, args ...any) error {
	return &FormError{Reason: fmt.Sprintf(format, args...)}
}

// ReadBlockList reads the body of Azure's Put Block List. Only the latest of the
// blocks with an id can be named, as the kit does: what was committed earlier is
// content that nobody here has seen.
func ReadBlockList(body []byte) ([]Ref, error) {
	p := newParser(body)
	if err := p.root("BlockList", ""); err != nil {
		return nil, err
	}
	var list []Ref
	for {
		name, err := p.next("Latest")
		if err != nil {
			return nil, err
		}
		if name == "" {
			return p.finish(list)
		}
		id, err := p.text(name)
		if err != nil {
			return nil, err
		}
		if list = append(list, Ref{ID: id}); len(list) > MaxBlocks {
			return nil, malformed("more than %d blocks", MaxBlocks)
		}
	}
}

// s3Namespace is what the root of S3's bodies may say.
const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

// ReadParts reads the body of S3's CompleteMultipartUpload. Its parts come in
// ascending order, as S3 demands.
func ReadParts(body []byte) ([]Ref, error) {
	p := newParser(body)
	if err := p.root("CompleteMultipartUpload", s3Namespace); err != nil {
		return nil, err
	}
	var list []Ref
	last := 0
	for {
		name, err := p.next("Part")
		if err != nil {
			return nil, err
		}
		if name == "" {
			return p.finish(list)
		}
		ref, number, err := p.part()
		if err != nil {
			return nil, err
		}
		if number <= last {
			return nil, malformed("part %d after part %d", number, last)
		}
		last, list = number, append(list, ref)
	}
}

// part reads one part. Its checksums are for the store, which compares them with
// what it has.
func (p *parser) part() (Ref, int, error) {
	seen := map[string]string{}
	for {
		name, err := p.next("PartNumber", "ETag", "ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")
		if err != nil {
			return Ref{}, 0, err
		}
		if name == "" {
			break
		}
		if _, twice := seen[name]; twice {
			return Ref{}, 0, malformed("element %s twice in a part", name)
		}
		if seen[name], err = p.text(name); err != nil {
			return Ref{}, 0, err
		}
	}
	number, err := strconv.Atoi(seen["PartNumber"])
	if err != nil || number < 1 || number > MaxBlocks || strconv.Itoa(number) != seen["PartNumber"] {
		return Ref{}, 0, malformed("a part without a number from 1 to %d", MaxBlocks)
	}
	if seen["ETag"] == "" {
		return Ref{}, 0, malformed("part %d without an ETag", number)
	}
	return Ref{ID: seen["PartNumber"], ETag: seen["ETag"]}, number, nil
}

// A parser reads elements one after the other, and nothing that another parser
// could read differently: no attributes, no declarations but XML's own at the
// beginning, no comments.
type parser struct {
	d     *xml.Decoder
	space string
}

func newParser(body []byte) *parser { return &parser{d: xml.NewDecoder(bytes.NewReader(body))} }

// root reads the beginning. A namespace may be named, if there is one.
func (p *parser) root(name, space string) error {
	start, end, err := p.token()
	switch {
	case err != nil:
		return err
	case end || start.Name.Local != name:
		return malformed("not a %s", name)
	}
	p.space = start.Name.Space
	switch {
	case p.space == "" && len(start.Attr) == 0:
	case p.space == space && len(start.Attr) == 1 && start.Attr[0].Name == (xml.Name{Local: "xmlns"}):
	default:
		return malformed("element %s with an attribute that is not known", name)
	}
	return nil
}

// next reads the beginning of one of the named elements, or returns "" at the
// end of the one around it.
func (p *parser) next(names ...string) (string, error) {
	start, end, err := p.token()
	if err != nil || end {
		return "", err
	}
	for _, name := range names {
		if start.Name == (xml.Name{Space: p.space, Local: name}) && len(start.Attr) == 0 {
			return name, nil
		}
	}
	return "", malformed("element %q is not known, or has attributes", clip(start.Name.Local))
}

// token reads an element's beginning or end, over white space.
func (p *parser) token() (xml.StartElement, bool, error) {
	for {
		at := p.d.InputOffset()
		t, err := p.d.Token()
		if err != nil {
			return xml.StartElement{}, false, broken(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			return t, false, nil
		case xml.EndElement:
			return xml.StartElement{}, true, nil
		case xml.CharData:
			if strings.Trim(string(t), " \t\r\n") != "" {
				return xml.StartElement{}, false, malformed("text between elements")
			}
		case xml.ProcInst:
			if t.Target != "xml" || at != 0 {
				return xml.StartElement{}, false, malformed("a processing instruction")
			}
		default:
			return xml.StartElement{}, false, malformed("a comment or a declaration")
		}
	}
}

// text reads what an element has up to its end: letters that mean themselves.
func (p *parser) text(name string) (string, error) {
	var b strings.Builder
	for {
		t, err := p.d.Token()
		if err != nil {
			return "", broken(err)
		}
		switch t := t.(type) {
		case xml.CharData:
			if b.Len()+len(t) > maxText {
				return "", malformed("element %s has more than %d bytes", name, maxText)
			}
			b.Write(t)
		case xml.EndElement:
			s := b.String()
			if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return "", malformed("element %s is empty or has other than printable characters", name)
			}
			return s, nil
		default:
			return "", malformed("element %s has more than text", name)
		}
	}
}

// finish makes sure that nothing follows.
func (p *parser) finish(list []Ref) ([]Ref, error) {
	for {
		t, err := p.d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, broken(err)
		}
		if text, ok := t.(xml.CharData); !ok || strings.Trim(string(text), " \t\r\n") != "" {
			return nil, malformed("something after the list")
		}
	}
	if len(list) == 0 {
		return nil, malformed("a list without blocks")
	}
	return list, nil
}

// broken is what the decoder says of a body that is there as a whole.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return malformed("the XML does not end")
	}
	return malformed("not well-formed XML: %v", err)
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
