package git

import (
	"bytes"
	"strconv"
)

// maxAnswer is how many bytes of an answer are looked at for where its pack
// begins: acknowledgements come first, a line for each object that the client has.
const maxAnswer = 1 << 20

// An Answer is written what git-upload-pack answers, as it streams, and finds
// out whether it carries a pack. A server that lacks one object that was wanted
// sends none: of a pack it can be said that the server had all of them.
type Answer struct {
	line   []byte // the line so far
	seen   int
	over   bool // nothing more is to be learnt
	packed bool
}

// Pack reports whether a pack has begun.
func (a *Answer) Pack() bool { return a.packed }

// Write implements io.Writer; it never fails.
func (a *Answer) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !a.over {
		took := min(a.missing(), len(p), maxAnswer-a.seen)
		a.line, p = append(a.line, p[:took]...), p[took:]
		a.seen += took
		a.look()
		a.over = a.over || a.seen == maxAnswer
	}
	return n, nil
}

const packMagic = "PACK"

// missing is how many bytes the line lacks to be looked at: its length, then
// as much as begins a pack, then the rest.
func (a *Answer) missing() int {
	if len(a.line) < 4 {
		return 4 - len(a.line)
	}
	return max(1, a.size()-len(a.line))
}

// size is what the line's length says, or 4 for one without text.
func (a *Answer) size() int {
	n, err := strconv.ParseUint(string(a.line[:4]), 16, 16)
	if err != nil {
		return 4
	}
	return max(4, int(n))
}

// look reads a line when it is whole: what a pack begins with says so, in a
// line of the first side band or, where there are no bands, in place of a line.
func (a *Answer) look() {
	switch {
	case len(a.line) < 4:
		return
	case string(a.line[:4]) == packMagic:
		a.packed, a.over = true, true
		return
	case !isLength(a.line[:4]):
		a.over = true
		return
	case len(a.line) < a.size():
		a.packed = bytes.HasPrefix(a.line[4:], []byte("\x01"+packMagic))
		a.over = a.packed
		return
	}
	text := a.line[4:]
	a.packed = bytes.HasPrefix(text, []byte("\x01"+packMagic))
	a.over = a.packed || bytes.HasPrefix(text, []byte("ERR "))
	a.line = a.line[:0]
}

func isLength(b []byte) bool {
	_, err := strconv.ParseUint(string(b), 16, 16)
	return err == nil
}
