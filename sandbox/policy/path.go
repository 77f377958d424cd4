package policy

import (
	"errors"
	"strings"
)

// CanonicalPath refuses an escaped path that servers read in different ways.
// What it lets through begins with a slash and has no empty segment but a last
// one; no segment that is "." or ".." once decoded, parameters after ";" left
// out; nothing encoded that need not be (RFC 3986, 6.2.2.2), nothing encoded
// twice, no backslash, no control character, and no character that RFC 3986
// does not let stand in a path. An encoded slash may pass (package names of npm
// have one), unless the whole would decode to something that is refused.
func CanonicalPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return errors.New("it does not begin with a slash")
	}
	decoded, err := decodeOnce(path)
	if err != nil {
		return err
	}
	segments := strings.Split(decoded[1:], "/")
	for i, s := range segments {
		s, _, _ = strings.Cut(s, ";")
		switch {
		case s == "" && i < len(segments)-1:
			return errors.New("it has an empty segment")
		case s == "." || s == "..":
			return errors.New("it has a dot segment")
		}
	}
	return nil
}

// decodeOnce decodes a path and refuses what canonical paths do not contain.
func decodeOnce(path string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c != '%' {
			if c != '/' && !pchar(c) {
				return "", errors.New("it has a character that must be percent-encoded")
			}
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(path) {
			return "", errors.New("it has a broken percent-encoding")
		}
		hi, lo := unhex(path[i+1]), unhex(path[i+2])
		if hi < 0 || lo < 0 {
			return "", errors.New("it has a broken percent-encoding")
		}
		c = byte(hi<<4 | lo)
		switch {
		case unreserved(c) && strings.IndexByte("-_~", c) < 0:
			return "", errors.New("it encodes a letter, a digit or a dot")
		case c == '%':
			return "", errors.New("it is encoded twice")
		case c == '\\' || c < 0x20 || c == 0x7f:
			return "", errors.New("it encodes a backslash or a control character")
		}
		b.WriteByte(c)
		i += 2
	}
	return b.String(), nil
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

// pchar is RFC 3986's, without percent-encoding.
func pchar(c byte) bool {
	return unreserved(c) || strings.IndexByte("!$&'()*+,;=:@", c) >= 0
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// ambiguous reports characters that a canonical path may have but that GitLab's
// front ends could treat as separators.
func ambiguous(path string) bool {
	return strings.Contains(path, ";") || strings.Contains(strings.ToLower(path), "%2f") || strings.Contains(strings.ToLower(path), "%3b")
}

// runnerAPI reports whether a canonical path leads to what GitLab offers to
// runners. It errs on the side of refusing: any case, any version, any suffix
// of the last word, below any relative root, encoded slashes decoded.
func runnerAPI(path string) bool {
	decoded, err := decodeOnce(path)
	if err != nil {
		return true
	}
	segments := strings.Split(strings.ToLower(decoded), "/")
	for i := range segments {
		segments[i], _, _ = strings.Cut(segments[i], ";")
	}
	for i := 0; i+2 < len(segments); i++ {
		if segments[i] == "api" && apiVersion(segments[i+1]) &&
			(strings.HasPrefix(segments[i+2], "job") || strings.HasPrefix(segments[i+2], "runner")) {
			return true
		}
	}
	return false
}

func apiVersion(s string) bool {
	digits, ok := strings.CutPrefix(s, "v")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// below reports whether path is prefix or lies below it, by whole segments.
func below(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || strings.HasSuffix(prefix, "/") || rest[0] == '/')
}
