package wordcount

import (
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	for text, want := range map[string]int{"": 0, "one": 1, "two  words\n": 2} {
		if n, err := Count(strings.NewReader(text)); n != want || err != nil {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}
