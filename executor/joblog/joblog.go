// Package joblog writes what a developer sees in the job log.
//
// GitLab's log viewer understands sections, colours (SGR) and bare https://
// addresses, and mangles every other escape sequence. A log line of ours is
// therefore plain text behind a reset of whatever colour the job left on, one
// write each, so that lines of several writers do not mix. Text that a tenant
// can influence passes through [Clean].
package joblog

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxLine is the longest text, in bytes, that Clean returns. With its
// decoration a line stays below 4096 bytes, up to which a write to a pipe is
// atomic.
const MaxLine = 2048

// maxSource bounds the name of who is quoted.
const maxSource = 256

const (
	reset = "\x1b[0;m"
	red   = "\x1b[31;1m"
	amber = "\x1b[0;33m"
	grey  = "\x1b[0;37m"
	cyan  = "\x1b[36;1m"
	clear = "\x1b[0K"
)

// Log writes lines and sections. Its methods may be called concurrently. They
// report no errors: a log that cannot be written to leaves nobody to tell.
type Log struct {
	now func() time.Time

	mu   sync.Mutex
	w    io.Writer
	last int64 // number of the last section
}

// New returns a Log that writes to w.
func New(w io.Writer) *Log { return &Log{w: w, now: time.Now} }

// Section opens a section that the viewer can fold. The name is made of
// letters, digits, '_', '.' and '-', and is made unique by a suffix, since a
// retried stage writes into the same log again. Close it with End, in a defer.
func (l *Log) Section(name, header string, collapsed bool) *Section {
	now := l.now()
	l.mu.Lock()
	l.last = max(l.last+1, now.UnixNano())
	s := &Section{log: l, name: sectionName(name) + "_" + strconv.FormatInt(l.last, 36)}
	l.mu.Unlock()
	options := ""
	if collapsed {
		options = "[collapsed=true]"
	}
	l.write(fmt.Sprintf("%ssection_start:%d:%s%s\r%s%s%s%s\n",
		clear, now.Unix(), s.name, options, clear, cyan, Clean(header), reset))
	return s
}

func sectionName(name string) string {
	name = strings.Map(func(r rune) rune {
		if r == '_' || r == '.' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), 64)]
}

// A Section is a part of the log that can be folded.
type Section struct {
	log  *Log
	name string
	once sync.Once
}

// End closes the section. Further calls do nothing.
func (s *Section) End() {
	s.once.Do(func() {
		s.log.write(fmt.Sprintf("%ssection_end:%d:%s\r%s\n", clear, s.log.now().Unix(), s.name, clear))
	})
}

// Printf writes one line. The formatted text is cleaned, so arguments may come
// from anywhere.
func (l *Log) Printf(format string, args ...any) {
	l.write(reset + Clean(fmt.Sprintf(format, args...)) + "\n")
}

// Hint writes what the reader can do.
func (l *Log) Hint(text string) {
	l.write(reset + "hint: " + Clean(text) + "\n")
}

// Warn writes a warning in GitLab Runner's shape.
func (l *Log) Warn(text string) {
	l.write(amber + "*** WARNING:" + reset + " " + Clean(text) + "\n")
}

// Quote writes a line that a service said, as GitLab Runner shows it.
func (l *Log) Quote(source, line string) {
	l.write(grey + "[service:" + cut(Clean(source), maxSource) + "] " + Clean(line) + reset + "\n")
}

// Error writes what went wrong.
func (l *Log) Error(err error) {
	l.write(red + "error:" + reset + " " + Clean(err.Error()) + "\n")
}

// Break ends the line, colour and escape sequence that a job's own output may
// have left open. Call it before the first line that follows such output.
func (l *Log) Break() { l.write(reset + "\n") }

func (l *Log) write(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	io.WriteString(l.w, line)
}

// Clean makes text from outside safe as part of one line of the job log. It
// takes out escape sequences with their parameters, control and formatting
// characters (those that reorder text among them), and section markers; it
// replaces invalid UTF-8, and cuts at MaxLine bytes. Clean(Clean(s)) == Clean(s).
func Clean(s string) string {
	s = s[:min(len(s), 16*MaxLine)] // bounds the work where most of s vanishes
	var b strings.Builder
	marks := 0
	for len(s) > 0 && b.Len() <= MaxLine {
		if n := escape(s); n > 0 {
			s = s[n:]
			continue
		}
		r, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		switch {
		case unicode.Is(unicode.M, r):
			if marks++; marks > maxMarks {
				continue
			}
			b.WriteRune(r)
			continue
		case unicode.IsSpace(r), unicode.IsControl(r), unicode.Is(unicode.Zl, r), unicode.Is(unicode.Zp, r):
			r = ' '
		case !unicode.IsPrint(r): // formatting, private, unassigned
			continue
		}
		marks = 0
		b.WriteRune(r)
	}
	return cut(defuse(b.String()), MaxLine)
}

// maxMarks is how many combining marks may follow one character: enough for
// every script, too few to paint over neighbouring lines.
const maxMarks = 4

// escape returns the length of the escape sequence that s starts with, or 0. It
// knows both forms of an introducer: ESC with a letter, and the single
// character of the C1 range.
func escape(s string) int {
	r, size := utf8.DecodeRuneInString(s)
	if kind := r - 0x40; strings.ContainsRune("[]PX^_", kind) {
		return size + sequence(byte(kind), s[size:])
	}
	if r != 0x1b {
		return 0
	}
	rest := s[size:]
	if rest == "" || rest[0] < ' ' || rest[0] > '~' {
		return size
	}
	return size + 1 + sequence(rest[0], rest[1:])
}

// sequence returns how many bytes of rest belong to what kind introduces.
func sequence(kind byte, rest string) int {
	switch {
	case kind == '[': // parameters, then one final byte
		i := strings.IndexFunc(rest, func(r rune) bool { return r < ' ' || r > '?' })
		switch {
		case i < 0:
			return len(rest)
		case rest[i] > '?' && rest[i] <= '~':
			return i + 1
		}
		return i
	case strings.IndexByte("]PX^_", kind) >= 0: // a string
		return controlString(rest)
	case kind <= '/' && rest != "" && ' ' <= rest[0] && rest[0] <= '~': // one more byte
		return 1
	}
	return 0
}

// controlString returns the length of a control string with its terminator,
// BEL or ST. One that does not end soon, or on the same line, is no string.
func controlString(rest string) int {
	for i, r := range rest[:min(len(rest), MaxLine/2)] {
		switch r {
		case 0x07:
			return i + 1
		case 0x9c:
			return i + utf8.RuneLen(r)
		case 0x1b:
			if strings.HasPrefix(rest[i+1:], `\`) {
				return i + 2
			}
			return i
		case '\n', '\r':
			return 0
		}
	}
	return 0
}

// defuse breaks up what the viewer could take for a section marker.
func defuse(s string) string {
	s = strings.ReplaceAll(s, "section_start:", "section_start :")
	return strings.ReplaceAll(s, "section_end:", "section_end :")
}

func cut(s string, most int) string {
	const mark = "…"
	if len(s) <= most {
		return s
	}
	end := most - len(mark)
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + mark
}
