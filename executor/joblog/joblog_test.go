package joblog

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestClean(t *testing.T) {
	long := strings.Repeat("a", MaxLine)
	tests := []struct{ name, in, want string }{
		{"plain", "npm left-pad@1.0.0 from https://mirror.example/x?y=1", "npm left-pad@1.0.0 from https://mirror.example/x?y=1"},
		{"letters of the world", "größe 源 Ελλάδα 👍", "größe 源 Ελλάδα 👍"},
		{"colour", "\x1b[31;1mred\x1b[0;m", "red"},
		{"erase", "a\x1b[0Kb\x1b[2Jc", "abc"},
		{"private parameters", "a\x1b[?25lb\x1b[>0;1cc", "abc"},
		{"unfinished colour", "a\x1b[31;1", "a"},
		{"colour cut by a control", "a\x1b[31\x07b", "a b"},
		{"colour cut by a letter of the world", "a\x1b[31éb", "aéb"},
		{"lone escape", "a\x1b", "a"},
		{"escape before a letter of the world", "a\x1bé", "aé"},
		{"two byte escape", "a\x1bcb\x1b7c", "abc"},
		{"charset escape", "a\x1b(0b", "ab"},
		{"hyperlink", "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "click"},
		{"title ended by bell", "\x1b]0;owned\x07x", "x"},
		{"device control string", "\x1bP1$qm\x1b\\x", "x"},
		{"string that does not end", "\x1b]0;text", "0;text"},
		{"string that ends on another line", "\x1b]0;a\nb\x07c", "0;a b c"},
		{"eight bit colour", "a\u009b31mb", "ab"},
		{"eight bit string", "a\u009d0;title\u009cb", "ab"},
		{"eight bit byte alone is no text", "a\x9b31mb", "a\uFFFD31mb"},
		{"carriage return", "50%\r100%", "50% 100%"},
		{"newline", "fine\nerror: forged", "fine error: forged"},
		{"other line ends", "a\u2028b\u2029c\u0085d\vd\ff", "a b c d d f"},
		{"nul, bell, backspace, delete", "a\x00b\ac\bd\x7fe", "a b c d e"},
		{"section start", "x\x1b[0Ksection_start:1:evil[collapsed=true]\r\x1b[0Khidden", "xsection_start :1:evil[collapsed=true] hidden"},
		{"section end", "section_end:1:evil\r\x1b[0K", "section_end :1:evil "},
		{"section marker put together by cleaning", "section_\x1b[mst\u200bart:1:e\r", "section_start :1:e "},
		{"bidi override", "user\u202egnp.exe", "usergnp.exe"},
		{"bidi isolates and marks", "\u2066a\u2067b\u2068c\u2069\u200e\u200f\u061cd", "abcd"},
		{"zero width", "a\u200bb\u200cc\u2060d\ufeffe\u00adf", "abcdef"},
		{"tags", "a\U000E0041b", "ab"},
		{"variation selectors pile up no higher than marks", "a" + strings.Repeat("\ufe0f", 9), "a" + strings.Repeat("\ufe0f", 4)},
		{"piled marks", "a" + strings.Repeat("\u0301", 50) + "b\u0301", "a" + strings.Repeat("\u0301", 4) + "b\u0301"},
		{"private use", "a\ue000b", "ab"},
		{"wide blanks", "a\u00a0b\u3000c", "a b c"},
		{"invalid UTF-8", "a\xff\xfeb", "a\uFFFD\uFFFDb"},
		{"overlong slash", "a\xc0\xafb", "a\uFFFD\uFFFDb"},
		{"overlong escape", "a\xc0\x9b[31mb", "a\uFFFD\uFFFD[31mb"},
		{"surrogate", "a\xed\xa0\x80b", "a\uFFFD\uFFFD\uFFFDb"},
		{"cut rune", "a\xe6\xba", "a\uFFFD\uFFFD"},
		{"at the limit", long, long},
		{"over the limit", long + "b", long[:MaxLine-3] + "…"},
		{"over the limit inside a rune", long[:MaxLine-4] + "源源", long[:MaxLine-4] + "…"},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Clean(tt.in)); diff != "" {
				t.Errorf("Clean(%q) (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

// TestCleanWork feeds input that would take quadratic time if strings without
// an end were searched for without a bound.
func TestCleanWork(t *testing.T) {
	if got := Clean(strings.Repeat("\x1b]", 8<<20)); len(got) > MaxLine {
		t.Errorf("%d bytes", len(got))
	}
}

func fixed(w *bytes.Buffer) *Log {
	l := New(w)
	l.now = func() time.Time { return time.Unix(1795385425, 5) }
	return l
}

func TestLog(t *testing.T) {
	var b bytes.Buffer
	l := fixed(&b)
	s := l.Section("prepare", "Preparing \x1b[31msandbox", true)
	l.Printf("image %s, %d layers", "alpine\r\nerror: forged\x1b]8;;x\x07", 5)
	inner := l.Section("a b/ü", "Inner", false)
	inner.End()
	l.Error(errors.New("pull image: \x1b[2Jnot found"))
	l.Hint("ask for it\nerror: forged")
	s.End()
	s.End()
	l.Break()
	want := "\x1b[0Ksection_start:1795385425:prepare_dn220kimb7r9[collapsed=true]\r\x1b[0K\x1b[36;1mPreparing sandbox\x1b[0;m\n" +
		"\x1b[0;mimage alpine  error: forged, 5 layers\n" +
		"\x1b[0Ksection_start:1795385425:a_b___dn220kimb7ra\r\x1b[0K\x1b[36;1mInner\x1b[0;m\n" +
		"\x1b[0Ksection_end:1795385425:a_b___dn220kimb7ra\r\x1b[0K\n" +
		"\x1b[31;1merror:\x1b[0;m pull image: not found\n" +
		"\x1b[0;mhint: ask for it error: forged\n" +
		"\x1b[0Ksection_end:1795385425:prepare_dn220kimb7r9\r\x1b[0K\n" +
		"\x1b[0;m\n"
	re := regexp.MustCompile(`_[0-9a-z]{12}\b`)
	names := re.FindAllString(b.String(), -1)
	if len(names) != 4 || names[0] != names[3] || names[1] != names[2] || names[0] == names[1] {
		t.Errorf("section names %q: want two, each opened and closed", names)
	}
	if diff := cmp.Diff(re.ReplaceAllString(want, "_N"), re.ReplaceAllString(b.String(), "_N")); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// writes counts the writes and their lengths.
type writes []int

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, len(p))
	return len(p), nil
}

func TestEveryLineIsOneAtomicWrite(t *testing.T) {
	var w writes
	l := New(&w)
	long := strings.Repeat("x", 1<<20)
	s := l.Section(long, long, true)
	l.Printf("%s", long)
	l.Error(errors.New(long))
	l.Hint(long)
	l.Warn(long)
	l.Quote(long, long)
	s.End()
	if len(w) != 7 {
		t.Errorf("%d writes for 7 lines", len(w))
	}
	for _, n := range w {
		if n >= 4096 {
			t.Errorf("a write of %d bytes", n)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{
		"plain", "\x1b[31mred\x1b[0m", "\x1b]8;;https://x\x1b\\y", "section_start:1:x\r\x1b[0K", "\u009b1m",
		"a\u202eb", "\xc0\x9b", strings.Repeat("section_end:", 300), "a" + strings.Repeat("\u0301", 9), "\x1b\x1b[m",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if len(got) > MaxLine {
			t.Fatalf("%d bytes", len(got))
		}
		if !utf8.ValidString(got) {
			t.Fatalf("%q: invalid UTF-8", got)
		}
		for _, r := range got {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) {
				t.Fatalf("%q holds %U", got, r)
			}
		}
		if strings.Contains(got, "section_start:") || strings.Contains(got, "section_end:") {
			t.Fatalf("%q holds a section marker", got)
		}
		if again := Clean(got); again != got {
			t.Fatalf("Clean is not idempotent: %q, then %q", got, again)
		}
	})
}
