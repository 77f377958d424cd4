package private

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReadLines(t *testing.T) {
	for text, want := range map[string][]string{
		"one\ntwo\n":                       {"one", "two"},
		"one\ntwo":                         {"one", "two"},
		"one\n":                            nil,
		"one\ntwo\nthree\n":                nil,
		"one\n\n":                          nil,
		"one \ntwo\n":                      nil,
		"one\r\ntwo\r\n":                   nil,
		"one\nzwei€\n":                     nil,
		"one\n" + strings.Repeat("x", 5e3): nil,
		"":                                 nil,
	} {
		file := filepath.Join(t.TempDir(), "secrets")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		have, err := ReadLines(file, 2)
		if diff := cmp.Diff(want, have); diff != "" || (err == nil) != (want != nil) {
			t.Errorf("%q: %v\n%s", text, err, diff)
		}
		if err != nil && strings.Contains(err.Error(), "one") {
			t.Errorf("%q: the secret is in the error: %v", text, err)
		}
	}
	if _, err := ReadLines(filepath.Join(t.TempDir(), "none"), 1); err == nil {
		t.Error("read a file that is not there")
	}
}

func FuzzParseLines(f *testing.F) {
	f.Add("one\ntwo\n", 2)
	f.Fuzz(func(t *testing.T, text string, count int) {
		lines, err := parseLines(text, count)
		if err != nil {
			return
		}
		if len(lines) != count || strings.Join(lines, "\n") != strings.TrimSuffix(text, "\n") {
			t.Errorf("%q: %q", text, lines)
		}
	})
}
