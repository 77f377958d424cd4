package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A page is what the reader sees. Colour repeats what the words say, and only
// on a terminal whose owner did not ask for none.
type page struct {
	w      io.Writer
	colour bool
	step   int
}

func newPage(f *os.File) *page {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return &page{w: f, colour: err == nil && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// title begins a numbered part.
func (p *page) title(format string, args ...any) {
	p.step++
	text := fmt.Sprintf("%d  %s", p.step, fmt.Sprintf(format, args...))
	if p.colour {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	fmt.Fprintf(p.w, "\n%s\n", text)
}

// say writes lines of a part.
func (p *page) say(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	for line := range strings.Lines(text) {
		fmt.Fprint(p.w, "   ", line)
	}
	fmt.Fprintln(p.w)
}

// command shows a command line and what came of it.
func (p *page) command(line, output string, code int) {
	p.say("$ %s", line)
	for l := range strings.Lines(strings.TrimRight(output, "\n")) {
		fmt.Fprint(p.w, "     ", clip(strings.TrimRight(l, "\n"), 150), "\n")
	}
	if code != 0 {
		fmt.Fprintf(p.w, "     exit status %d\n", code)
	}
}

func clip(s string, most int) string {
	r := []rune(s)
	if len(r) <= most {
		return s
	}
	return string(r[:most-1]) + "…"
}
