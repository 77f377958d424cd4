// Package trace reads and renders job logs as GitLab does.
//
// A log has timestamps at the start of its lines (FF_TIMESTAMPS), ANSI colours,
// and sections that nest:
//
//	section_start:<unix>:<name>[options]\r\033[0K<header>
//	section_end:<unix>:<name>\r\033[0K
package trace

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// stamp is what the runner puts before each line: time, stream, kind, and a
// plus where the line continues the one before.
var stamp = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \d\d[OE]([+ ])`)

// mark is a section's start or end.
var mark = regexp.MustCompile(`section_(start|end):(\d+):([A-Za-z0-9_.-]+)(\[[^\]\r\n]*\])?\r\x1b\[0K`)

var ansi = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// Text is a log without timestamps; continued lines are joined.
func Text(log string) string {
	var out []string
	for line := range strings.Lines(log) {
		line = strings.TrimSuffix(line, "\n")
		if m := stamp.FindStringSubmatchIndex(line); m != nil {
			continued := line[m[2]:m[3]] == "+"
			line = line[m[1]:]
			if continued && len(out) > 0 {
				out[len(out)-1] += line
				continue
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// Plain is Text without colours, marks and carriage returns.
func Plain(log string) string {
	text := mark.ReplaceAllString(Text(log), "")
	text = ansi.ReplaceAllString(text, "")
	return strings.ReplaceAll(text, "\r", "")
}

// A Section is a part of a log under a header. The whole log is one without.
type Section struct {
	Name, Header string
	Collapsed    bool
	Took         time.Duration
	Closed       bool
	Parts        []Part
}

// A Part is a line, or a section if that is not nil.
type Part struct {
	Line    string
	Section *Section
}

// Parse takes a log apart. What is not closed ends with the log; an end
// without a start is text that never was.
func Parse(log string) *Section {
	root := &Section{Closed: true}
	p := parser{stack: []*Section{root}, starts: []int64{0}}
	for line := range strings.Lines(Text(log)) {
		p.line(strings.TrimSuffix(line, "\n"))
	}
	return root
}

type parser struct {
	stack  []*Section
	starts []int64 // unix seconds, per section
}

func (p *parser) top() *Section { return p.stack[len(p.stack)-1] }

func (p *parser) line(line string) {
	rest, header := line, (*Section)(nil)
	marked := false
	for {
		m := mark.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		p.text(rest[:m[0]], header, true)
		header, marked = nil, true
		at, _ := strconv.ParseInt(rest[m[4]:m[5]], 10, 64)
		name, options := rest[m[6]:m[7]], ""
		if m[8] >= 0 {
			options = rest[m[8]:m[9]]
		}
		if rest[m[2]:m[3]] == "start" {
			header = p.open(name, strings.Contains(options, "collapsed=true"), at)
		} else {
			p.close(name, at)
		}
		rest = rest[m[1]:]
	}
	p.text(rest, header, marked)
}

// text adds what stands on a line: a header if a section was just opened.
func (p *parser) text(text string, header *Section, mayBeEmpty bool) {
	text = strings.TrimRight(strings.ReplaceAll(text, "\r", ""), " ")
	plain := strings.TrimSpace(ansi.ReplaceAllString(text, ""))
	switch {
	case header != nil:
		header.Header = plain
	case plain == "" && mayBeEmpty:
	default:
		s := p.top()
		s.Parts = append(s.Parts, Part{Line: text})
	}
}

func (p *parser) open(name string, collapsed bool, at int64) *Section {
	s := &Section{Name: name, Collapsed: collapsed}
	top := p.top()
	top.Parts = append(top.Parts, Part{Section: s})
	p.stack, p.starts = append(p.stack, s), append(p.starts, at)
	return s
}

func (p *parser) close(name string, at int64) {
	for i := len(p.stack) - 1; i > 0; i-- {
		if p.stack[i].Name != name {
			continue
		}
		p.stack[i].Closed = true
		p.stack[i].Took = time.Duration(at-p.starts[i]) * time.Second
		p.stack, p.starts = p.stack[:i], p.starts[:i]
		return
	}
}

// Width is that of rendered headers, durations at their ends.
const Width = 92

// Render writes a log as GitLab shows it: headers with durations, collapsed
// sections closed. Colour repeats what the words say.
func Render(w io.Writer, log, indent string, colour bool) error {
	return render(w, Parse(log), indent, colour)
}

func render(w io.Writer, s *Section, indent string, colour bool) error {
	for _, p := range s.Parts {
		if p.Section == nil {
			line := p.Line
			if !colour {
				line = ansi.ReplaceAllString(line, "")
			}
			if _, err := fmt.Fprintln(w, strings.TrimRight(indent+line, " ")); err != nil {
				return err
			}
			continue
		}
		if err := renderSection(w, p.Section, indent, colour); err != nil {
			return err
		}
	}
	return nil
}

func renderSection(w io.Writer, s *Section, indent string, colour bool) error {
	if s.Header == "" && len(s.Parts) == 0 {
		return nil
	}
	sign, took := "v", fmt.Sprintf("%02d:%02d", int(s.Took.Minutes()), int(s.Took.Seconds())%60)
	header := s.Header
	if s.Collapsed {
		sign = ">"
		header += fmt.Sprintf(" (%d lines)", len(s.Parts))
	}
	pad := max(1, Width-len([]rune(indent+sign+" "+header))-len(took))
	shown := header
	if colour {
		shown = "\x1b[1m" + header + "\x1b[0m"
	}
	if _, err := fmt.Fprintf(w, "%s%s %s%s%s\n", indent, sign, shown, strings.Repeat(" ", pad), took); err != nil {
		return err
	}
	if s.Collapsed {
		return nil
	}
	return render(w, s, indent+"  ", colour)
}
