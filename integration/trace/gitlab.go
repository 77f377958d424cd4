package trace

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A Shown is one line of a log as GitLab's page has it.
type Shown struct {
	Text     string
	Section  string // the innermost open one, as GitLab spells it
	Header   bool   // of that section
	Options  string // of a header
	Duration string // of a section that ends here, in place of text
}

// What GitLab's converter looks for at each place of a line, in this order. A
// sequence ends at the first character that could end any, be it the start of
// the next.
var (
	sequence = regexp.MustCompile(`^\x1b([@-_])(.*?)([@-~])`)
	unended  = regexp.MustCompile(`^\x1b(?:[@-_].*?)?(?m:$)`)
	lineEnd  = regexp.MustCompile(`^\r?\n`)
	plainRun = regexp.MustCompile(`^(?s:.)[^\x1b\r\ns]*`)
	marked   = regexp.MustCompile(`^section_(start|end):(\d+):([A-Za-z0-9_.-]+)(\[.*\])?\r\x1b\[0K`)
)

// header is how long what precedes each line of a log with timestamps is.
const header = len("2026-11-26T12:00:00.000000Z 00O ")

// Convert shows a log as GitLab does (lib/gitlab/ci/ansi2json): colours apart,
// which it takes for text that looks otherwise. Lines without text are not shown.
func Convert(log string) []Shown {
	c := &converter{stamps: stamp.MatchString(log), opened: map[string]int64{}}
	var buffer string
	lines := slices.Collect(strings.Lines(log))
	for i, line := range lines {
		if buffer != "" && len(line) >= header {
			line = line[header:]
		}
		buffer += line
		if c.stamps && i+1 < len(lines) && len(lines[i+1]) >= header && lines[i+1][header-1] == '+' {
			buffer = strings.TrimSuffix(buffer, "\n")
			continue
		}
		c.line(buffer)
		buffer = ""
	}
	c.flush()
	return c.shown
}

type converter struct {
	stamps bool
	shown  []Shown
	open   []string
	opened map[string]int64 // when, in unix seconds
	now    Shown
}

func (c *converter) line(rest string) {
	for rest != "" {
		if c.now.Text == "" && c.stamps && stamp.MatchString(rest) {
			rest = rest[header:]
			continue
		}
		switch {
		case marked.MatchString(rest):
			m := marked.FindStringSubmatch(rest)
			c.section(m[1], m[2], m[3], m[4])
			rest = rest[len(m[0]):]
		case sequence.MatchString(rest):
			rest = rest[len(sequence.FindString(rest)):]
		case unended.MatchString(rest):
			return // with the end of the line, which is then not seen
		case lineEnd.MatchString(rest):
			c.flush()
			rest = rest[len(lineEnd.FindString(rest)):]
		case rest[0] == '\r':
			c.now.Text = ""
			rest = rest[1:]
		default:
			run := plainRun.FindString(rest)
			c.now.Text += run
			rest = rest[len(run):]
		}
	}
}

func (c *converter) section(action, at, name, options string) {
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	when, _ := strconv.ParseInt(at, 10, 64)
	if action == "start" {
		c.flush()
		c.open = append(slices.DeleteFunc(c.open, func(n string) bool { return n == name }), name)
		c.opened[name] = when
		c.now.Section, c.now.Header, c.now.Options = name, true, options
		return
	}
	if !slices.Contains(c.open, name) {
		return
	}
	c.flush()
	took := when - c.opened[name]
	c.now.Section, c.now.Duration = name, fmt.Sprintf("%02d:%02d", took/60%60, took%60)
	c.open = slices.DeleteFunc(c.open, func(n string) bool { return n == name })
	c.flush()
}

func (c *converter) flush() {
	if c.now.Text != "" || c.now.Duration != "" {
		c.shown = append(c.shown, c.now)
	}
	c.now = Shown{}
	if n := len(c.open); n > 0 {
		c.now.Section = c.open[n-1]
	}
}

var stray = regexp.MustCompile(`\x1b|section_(start|end):\d|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \d\d[OE]`)

// Complaints are what a developer would stumble over in a log as GitLab shows
// it: marks, escapes and timestamps as text, sections that have no header or
// never end.
func Complaints(log string) []string {
	var out []string
	headers, ends := map[string]int{}, map[string]int{}
	for _, l := range Convert(log) {
		if m := stray.FindString(l.Text); m != "" {
			out = append(out, fmt.Sprintf("%q is shown in %q", m, l.Text))
		}
		switch {
		case l.Header:
			headers[l.Section]++
		case l.Duration != "":
			ends[l.Section]++
		}
	}
	for name := range headers {
		if ends[name] == 0 {
			out = append(out, "section "+name+" never ends")
		}
	}
	for name := range ends {
		if headers[name] == 0 {
			out = append(out, "section "+name+" has no header")
		}
	}
	slices.Sort(out)
	return out
}
