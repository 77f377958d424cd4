package trace

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/executor/joblog"
)

func TestConvert(t *testing.T) {
	want := []Shown{
		{Text: "Running with gitlab-runner"},
		{Text: "Preparing", Section: "prepare", Header: true},
		{Text: "using hallmark", Section: "prepare"},
		{Text: "Details", Section: "inner", Header: true, Options: "[collapsed=true]"},
		{Text: "one", Section: "inner"},
		{Text: "two", Section: "inner"},
		{Section: "inner", Duration: "00:01"},
		{Section: "prepare", Duration: "01:05"},
		{Text: "Nothing here", Section: "empty", Header: true},
		{Section: "empty", Duration: "00:00"},
		{Text: "Job succeeded"},
	}
	if diff := cmp.Diff(want, Convert(example)); diff != "" {
		t.Error(diff)
	}
	if got := Complaints(example); got != nil {
		t.Errorf("complaints: %q", got)
	}
}

func TestConvertAsGitLabDoes(t *testing.T) {
	for name, tt := range map[string]struct{ log, want string }{
		"progress":            {"10 %\r20 %\rdone\n", "done"},
		"a return at the end": {"kept\r\nnext\n", "kept|next"},
		"empty lines":         {"a\n\n\x1b[0;m\nb\n", "a|b"},
		"a link is mangled":   {"\x1b]8;;https://a.example/x\x1b\\text\x1b]8;;\x1b\\\n", "ttps://a.example/xext"},
		"a sequence unended":  {"red\x1b[31\nnext\n", "rednext"},
		"not a sequence":      {"\x1b(B\n", "\x1b(B"},
	} {
		var got []string
		for _, l := range Convert(tt.log) {
			got = append(got, l.Text)
		}
		if strings.Join(got, "|") != tt.want {
			t.Errorf("%s: %q, want %q", name, strings.Join(got, "|"), tt.want)
		}
	}
}

func TestComplaints(t *testing.T) {
	for name, log := range map[string]string{
		"open section":   "section_start:1:a\r\x1b[0Kheader\ntext\n",
		"no header":      "section_start:1:a\r\x1b[0K\nsection_end:2:a\r\x1b[0K\n",
		"a mark":         "text section_start:1:a\n",
		"an escape":      "a \x1b(B\n",
		"a joined stamp": at + "red \x1b[31\n" + at + "next\n",
	} {
		if len(Complaints(log)) == 0 {
			t.Errorf("%s: no complaint", name)
		}
	}
}

// TestOurLinesSurviveWhatJobsLeave: a script may end anywhere, and the next
// line is ours.
func TestOurLinesSurviveWhatJobsLeave(t *testing.T) {
	for _, left := range []string{
		"", "text", "\x1b[31mred", "\x1b[", "\x1b[31", "\x1b", "\x1b]8;;https://a.example", "50 %\r", "\xff\xfe", "\x1b[0Ksection", "\x9b", "\x1b[?25l",
	} {
		var ours strings.Builder
		l := joblog.New(&ours)
		l.Break()
		section := l.Section("x", "Header "+left, true)
		l.Printf("blocked %s", left)
		l.Hint("do " + left + "otherwise")
		section.End()
		log := "first\n" + left + ours.String() + "after\n"
		var got []string
		for _, line := range Convert(log) {
			got = append(got, line.Text)
		}
		for _, want := range []string{"Header " + joblog.Clean(left), "blocked " + joblog.Clean(left), "hint: do " + joblog.Clean(left+"otherwise"), "after"} {
			found := false
			for _, text := range got {
				found = found || strings.TrimSpace(text) == strings.TrimSpace(want)
			}
			if !found {
				t.Errorf("after %q, %q is no line of %q", left, want, got)
			}
		}
	}
}

func FuzzConvert(f *testing.F) {
	f.Add(example)
	f.Add("a\x1b[3")
	f.Fuzz(func(t *testing.T, log string) {
		for _, l := range Convert(log) {
			if strings.ContainsAny(l.Text, "\n\r") {
				t.Errorf("a line holds the end of one: %q", l.Text)
			}
		}
	})
}
