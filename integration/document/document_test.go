package document

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = "# The log\n\n<!-- session: a -->\n```console\n$ one \\\n    -more\nout …\n$ two\n```\n\n" +
	"See [there](../b.md#x), [elsewhere](https://example.com/).\n\n```toml\n# No heading\nx = \"](not.md)\"\n```\n\n## `keys` & more, `x_y`\n"

func TestBlocks(t *testing.T) {
	d := Document{"docs/a.md", sample}
	want := []Block{
		{"docs/a.md", "console", "session", "a", "$ one \\\n    -more\nout …\n$ two\n"},
		{"docs/a.md", "toml", "", "", "# No heading\nx = \"](not.md)\"\n"},
	}
	if diff := cmp.Diff(want, d.Blocks()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Step{{"one      -more", "out …"}, {"two", ""}}, want[0].Steps()); diff != "" {
		t.Error(diff)
	}
}

func TestLinksAndAnchors(t *testing.T) {
	d := Document{"docs/a.md", sample}
	if diff := cmp.Diff([]string{"../b.md#x"}, d.Links()); diff != "" {
		t.Error(diff)
	}
	for anchor, want := range map[string]bool{"the-log": true, "keys--more-x_y": true, "no-heading": false, "The-log": false, "": false} {
		if d.HasAnchor(anchor) != want {
			t.Errorf("%q: want %v", anchor, want)
		}
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		want, got string
		same      bool
	}{
		{"", "anything\n", true},
		{"a  b\n", "a b\n", true},
		{"a … c\n", "a b b c\n", true},
		{"a …\nd\n", "a b\nd\n", true},
		{"a … d\n", "a b\nc d\n", false},
		{"a\n", "a\nb\n", false},
		{"a\nb\n", "a\n", false},
		{"a.c\n", "abc\n", false},
	} {
		if got := (Step{"x", c.want}).Explain(c.got); (got == "") != c.same {
			t.Errorf("%q for %q: %q", c.got, c.want, got)
		}
	}
}
