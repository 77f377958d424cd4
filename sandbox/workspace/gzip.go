package workspace

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"
	"unicode"
)

// GitLab Runner packs reports as gzip members, one a file (RFC 1952 2.2), with
// the file's base name as the member's name and its path as the comment.
const (
	gzipHead     = 10
	gzipName     = 0x08
	gzipComment  = 0x10
	maxGzipField = 3*maxNameSize + len(escaped) // every byte may be escaped
)

// A gzipMember is the head of a member.
type gzipMember struct {
	path string
}

// readGzipHead reads a member's head. io.EOF says that there is none more.
func readGzipHead(r *bufio.Reader) (gzipMember, error) {
	var b [gzipHead]byte
	n, err := io.ReadFull(r, b[:])
	if n == 0 && errors.Is(err, io.EOF) {
		return gzipMember{}, io.EOF
	}
	if err != nil {
		return gzipMember{}, fmt.Errorf("gzip: header: %w", noEOF(err))
	}
	if b[0] != 0x1f || b[1] != 0x8b || b[2] != 8 {
		return gzipMember{}, errors.New("gzip: bytes that are no member")
	}
	if b[3] != gzipName|gzipComment {
		return gzipMember{}, fmt.Errorf("gzip: flags %#02x: want a name and a comment and nothing else", b[3])
	}
	name, err := gzipString(r)
	if err != nil {
		return gzipMember{}, fmt.Errorf("gzip: name: %w", err)
	}
	comment, err := gzipString(r)
	if err != nil {
		return gzipMember{}, fmt.Errorf("gzip: comment: %w", err)
	}
	rel, err := unescapeGzip(comment)
	if err != nil {
		return gzipMember{}, err
	}
	if err := checkName(rel); err != nil {
		return gzipMember{}, fmt.Errorf("gzip: %w", err)
	}
	if name != escapeGzip(path.Base(rel)) {
		return gzipMember{}, fmt.Errorf("gzip: %s: name and path disagree", show(rel))
	}
	return gzipMember{path: rel}, nil
}

func gzipString(r *bufio.Reader) (string, error) {
	var out []byte
	for {
		c, err := r.ReadByte()
		switch {
		case err != nil:
			return "", noEOF(err)
		case c == 0:
			return string(out), nil
		case c > unicode.MaxASCII:
			return "", errors.New("not ASCII")
		case len(out) >= maxGzipField:
			return "", errors.New("too long")
		}
		out = append(out, c)
	}
}

// The runner escapes a path for a gzip header when it is not plain ASCII or
// holds a percent sign, and says so by a prefix.
const escaped = "e:"

func escapeGzip(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII || r == '%' }) {
		return s
	}
	return escaped + url.PathEscape(s)
}

func unescapeGzip(s string) (string, error) {
	out := s
	if rest, ok := strings.CutPrefix(s, escaped); ok && strings.IndexByte(rest, '%') >= 0 {
		var err error
		if out, err = url.PathUnescape(rest); err != nil {
			return "", fmt.Errorf("gzip: path: %w", err)
		}
	}
	if escapeGzip(out) != s {
		return "", errors.New("gzip: path is not escaped as the runner does")
	}
	return out, nil
}

// checkGzipTail compares a member's trailer with what was decompressed.
func checkGzipTail(r io.Reader, crc uint32, size int64) error {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return fmt.Errorf("gzip: trailer: %w", noEOF(err))
	}
	if binary.LittleEndian.Uint32(b[:]) != crc || binary.LittleEndian.Uint32(b[4:]) != uint32(size) {
		return errors.New("gzip: checksum or size is wrong")
	}
	return nil
}
