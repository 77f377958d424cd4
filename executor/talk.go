package executor

import (
	"io"
	"strings"
	"unicode"
)

// talk writes the driver's few lines, in the look of the daemon's (see
// executor/joblog, which sections and progress need): the word first, the
// colour only repeating it.
type talk struct{ w io.Writer }

func (t talk) line(s string) { io.WriteString(t.w, "\x1b[0;m"+visible(s)+"\n") }
func (t talk) hint(s string) { t.line("hint: " + s) }
func (t talk) error(err error) {
	io.WriteString(t.w, "\x1b[31;1merror:\x1b[0;m "+visible(err.Error())+"\n")
}

// visible keeps what can be seen. Words of the daemon may quote the job, and
// without control and formatting characters they can neither end the line, nor
// colour or reorder it, nor open a section.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.IsSpace(r):
			return ' '
		}
		return -1
	}, strings.ToValidUTF8(s, "\uFFFD"))
}
