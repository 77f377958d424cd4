package authority

import (
	"strings"
	"testing"

	"hallmark.build/sandbox/record"
)

func TestLastLine(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"alone":           {"one\n", "one"},
		"of two":          {"one\ntwo\n", "two"},
		"empty":           {"", ""},
		"long":            {"one\n" + strings.Repeat("x", 5<<10) + "\n", strings.Repeat("x", 5<<10)},
		"long and alone":  {strings.Repeat("x", 5<<10) + "\n", strings.Repeat("x", 5<<10)},
		"of a long one":   {strings.Repeat("x", 5<<10) + "\ntwo\n", "two"},
		"just too long":   {"one\n" + strings.Repeat("x", 4<<10-1) + "\n", strings.Repeat("x", 4<<10-1)},
		"as long as can":  {"one\n" + strings.Repeat("x", record.MaxLine) + "\n", strings.Repeat("x", record.MaxLine)},
		"longer than can": {"one\n" + strings.Repeat("x", record.MaxLine+1) + "\n", "too long"},
	} {
		have, err := lastLine(strings.NewReader(c.text), int64(len(c.text)))
		if name == "longer than can" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || string(have) != c.want {
			t.Errorf("%s: %.20q, %v", name, have, err)
		}
	}
}
