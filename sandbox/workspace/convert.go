package workspace

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// asAttributesSay reports whether the file at rel is what git on Linux, with
// nothing configured, makes of the blob under the commit's attributes: line
// endings, $Id$, an encoding. Filters are programs of the job's, and are not run.
func (c *comparison) asAttributesSay(ctx context.Context, e treeEntry, blob []byte, n *node, rel string) (bool, error) {
	if n.size > 4*maxText {
		return false, nil
	}
	attrs, err := c.attributesOf(ctx, rel)
	if err != nil {
		return false, ctx.Err()
	}
	wanted := convert(attrs, blob, e.id)
	if len(wanted) == 0 {
		return false, nil
	}
	f, err := openPath(c.project, rel)
	if err != nil {
		return false, fmt.Errorf("%s: %w", show(rel), err)
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(contextReader{ctx, f}, 4*maxText))
	if err != nil {
		return false, fmt.Errorf("%s: %w", show(rel), err)
	}
	for _, w := range wanted {
		if bytes.Equal(w, have) {
			return true, nil
		}
	}
	return false, nil
}

// convert returns what a blob can become in a work tree; nothing where the
// attributes leave it as it is.
func convert(attrs map[string]string, blob []byte, id objectID) [][]byte {
	data := blob
	if attrs["ident"] == "true" {
		data = expandIdent(data, id)
	}
	if wantsCRLF(attrs, data) {
		data = addCR(data)
	}
	out := [][]byte{data}
	if name := attrs["working-tree-encoding"]; name != "" && name != "true" && name != "false" {
		out = encodings(name, data)
	}
	if len(out) == 1 && bytes.Equal(out[0], blob) {
		return nil
	}
	return out
}

// wantsCRLF follows git: eol makes a file text unless text says otherwise, and
// with text=auto only what looks like text, and has no CR yet, is converted.
func wantsCRLF(attrs map[string]string, data []byte) bool {
	text := attrs["text"]
	if text == "" {
		text = attrs["crlf"] // its older name
	}
	if text == "false" || text == "input" || attrs["eol"] != "crlf" {
		return false
	}
	if text != "auto" {
		return true
	}
	return bytes.IndexByte(data, '\r') < 0 && !looksBinary(data)
}

// looksBinary is git's rule: a NUL, or more than one byte in 128 that does not print.
func looksBinary(data []byte) bool {
	data = bytes.TrimSuffix(data, []byte{0x1a})
	printable, odd := 0, 0
	for _, b := range data {
		switch {
		case b == 0:
			return true
		case b == '\n':
		case b == 0x7f, b < ' ' && b != '\b' && b != '\t' && b != 0x1b && b != '\f':
			odd++
		default:
			printable++
		}
	}
	return printable>>7 < odd
}

// addCR puts a CR before each LF that has none.
func addCR(data []byte) []byte {
	out := make([]byte, 0, len(data)+bytes.Count(data, []byte("\n")))
	for i, b := range data {
		if b == '\n' && (i == 0 || data[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, b)
	}
	return out
}

// expandIdent writes the blob's id into each $Id$, and into each $Id:…$ of one
// line that another git could have written.
func expandIdent(data []byte, id objectID) []byte {
	var out []byte
	rest := string(data)
	for {
		before, after, found := strings.Cut(rest, "$Id")
		out = append(out, before...)
		if !found {
			return out
		}
		out = append(out, "$Id"...)
		rest = after
		if strings.HasPrefix(after, "$") {
			out = append(out, ": "+id.String()+" $"...)
			rest = after[1:]
			continue
		}
		inner, behind, closed := strings.Cut(strings.TrimPrefix(after, ":"), "$")
		if !strings.HasPrefix(after, ":") || !closed || strings.Contains(inner, "\n") || foreignIdent(inner) {
			continue
		}
		out = append(out, ": "+id.String()+" $"...)
		rest = behind
	}
}

// foreignIdent reports a space inside of what stands after the colon: another
// system's expansion, which git leaves alone.
func foreignIdent(inner string) bool {
	if inner == "" {
		return false
	}
	space := strings.IndexByte(inner[1:], ' ')
	return space >= 0 && space+1 < len(inner)-1
}

// encodings are what text may look like in the encoding of that name: with
// UTF-16 the machine's libraries choose the order of bytes.
func encodings(name string, utf8 []byte) [][]byte {
	utf16 := func(order unicode.Endianness, bom unicode.BOMPolicy) encoding.Encoding {
		return unicode.UTF16(order, bom)
	}
	var all []encoding.Encoding
	switch strings.ToUpper(name) {
	case "UTF-16":
		all = []encoding.Encoding{utf16(unicode.LittleEndian, unicode.UseBOM), utf16(unicode.BigEndian, unicode.UseBOM)}
	case "UTF-16LE-BOM":
		all = []encoding.Encoding{utf16(unicode.LittleEndian, unicode.UseBOM)}
	case "UTF-16BE-BOM":
		all = []encoding.Encoding{utf16(unicode.BigEndian, unicode.UseBOM)}
	case "UTF-16LE":
		all = []encoding.Encoding{utf16(unicode.LittleEndian, unicode.IgnoreBOM)}
	case "UTF-16BE":
		all = []encoding.Encoding{utf16(unicode.BigEndian, unicode.IgnoreBOM)}
	case "ISO-8859-1", "LATIN1", "LATIN-1":
		all = []encoding.Encoding{charmap.ISO8859_1}
	case "CP1252", "WINDOWS-1252":
		all = []encoding.Encoding{charmap.Windows1252}
	}
	var out [][]byte
	for _, e := range all {
		if text, err := e.NewEncoder().Bytes(utf8); err == nil {
			out = append(out, text)
		}
	}
	return out
}
