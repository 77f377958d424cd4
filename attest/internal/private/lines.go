package private

import (
	"fmt"
	"strings"
)

const maxLine = 4096 // bytes of one secret

// ReadLines reads a file of so many secrets, one a line, as ReadFile does.
func ReadLines(name string, count int) ([]string, error) {
	data, err := ReadFile(name, int64(count)*(maxLine+1))
	if err != nil {
		return nil, err
	}
	lines, err := parseLines(string(data), count)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return lines, nil
}

// parseLines wants lines of printable ASCII, none of them empty. Nothing of
// them is in its errors.
func parseLines(text string, count int) ([]string, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) != count {
		return nil, fmt.Errorf("%d lines, want %d", len(lines), count)
	}
	for i, l := range lines {
		if l == "" || len(l) > maxLine || strings.ContainsFunc(l, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("line %d: want printable characters without spaces", i+1)
		}
	}
	return lines, nil
}
