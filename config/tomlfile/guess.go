package tomlfile

import (
	"fmt"
	"slices"
	"strings"
)

// guess says what an unknown key was probably meant to be.
func (d *Document) guess(path, key string, known []field) string {
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
	}
	if name := Nearest(key, names); name != "" {
		return fmt.Sprintf("did you mean %q?", join(path, name))
	}
	slices.Sort(names)
	if len(names) == 0 {
		return ""
	}
	where := "known here"
	if path != "" {
		where = "known in " + path
	}
	return where + ": " + strings.Join(names, ", ")
}

// Nearest returns the name that key is most likely a slip for, or "". The
// first of equally near names wins.
func Nearest(key string, names []string) string {
	const longest = 64
	if len(key) > longest {
		return ""
	}
	best, distance := "", len(key)/4+2
	for _, name := range names {
		if n := edits(fold(key), fold(name)); n < distance {
			best, distance = name, n
		}
	}
	return best
}

// fold drops what people most often get wrong: case and separators.
func fold(s string) string {
	return strings.NewReplacer("-", "_", " ", "_").Replace(strings.ToLower(s))
}

// edits counts insertions, deletions, substitutions and swaps of neighbours
// that turn a into b.
func edits(a, b string) int {
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
