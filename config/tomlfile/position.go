package tomlfile

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// A Position is a place in a file, both from 1; the zero Position is none.
type Position struct{ Line, Column int }

// place is where a path's key and its value begin.
type place struct{ key, value Position }

// maxNesting bounds how deep the scanner looks, in parts of a key and in values.
const maxNesting = 64

// locate finds every key and every value of a TOML text. The parser does not
// tell where keys are, and for arrays of tables it forgets all but the last.
// The scanner need not judge: text with bad syntax is refused by the parser,
// and a place that is not found costs an error its line, no more. It does say
// where nesting is deeper than maxNesting, which takes the parser minutes.
func locate(text string) (at map[string]place, tooDeep Position) {
	s := scanner{text: text, at: map[string]place{}, tables: map[string]int{}}
	s.document()
	return s.at, s.tooDeep
}

func lineColumn(text string, offset int) (line, column int) {
	offset = min(max(offset, 0), len(text))
	before := text[:offset]
	start := strings.LastIndexByte(before, '\n') + 1
	return strings.Count(before, "\n") + 1, utf8.RuneCountInString(before[start:]) + 1
}

// join appends a key to a path, quoted where it needs quotes.
func join(path, key string) string {
	if !bare(key) {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func bare(key string) bool {
	if key == "" {
		return false
	}
	for i := range len(key) {
		if !bareByte(key[i]) {
			return false
		}
	}
	return true
}

func bareByte(c byte) bool {
	return c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

type scanner struct {
	text   string
	pos    int
	at     map[string]place
	tables map[string]int // number of [[path]] headers so far

	// counted follows pos, so that finding a position costs little; newlines
	// and characters are those before it, of the text and of its line.
	counted    int
	newlines   int
	characters int

	tooDeep Position
}

// stop ends the scan where nesting is too deep.
func (s *scanner) stop(pos Position) {
	s.tooDeep = pos
	s.pos = len(s.text)
}

func (s *scanner) here() Position {
	between := s.text[s.counted:s.pos]
	s.counted = s.pos
	if i := strings.LastIndexByte(between, '\n'); i >= 0 {
		s.newlines += strings.Count(between, "\n")
		s.characters = 0
		between = between[i+1:]
	}
	s.characters += utf8.RuneCountInString(between)
	return Position{s.newlines + 1, s.characters + 1}
}

func (s *scanner) peek() byte {
	if s.pos >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

func (s *scanner) eof() bool { return s.pos >= len(s.text) }

func (s *scanner) accept(prefix string) bool {
	if strings.HasPrefix(s.text[s.pos:], prefix) {
		s.pos += len(prefix)
		return true
	}
	return false
}

// blank skips white space, newlines and comments.
func (s *scanner) blank() {
	for !s.eof() {
		switch s.peek() {
		case ' ', '\t', '\r', '\n':
			s.pos++
		case '#':
			s.skipTo("\n")
		default:
			return
		}
	}
}

func (s *scanner) skipTo(end string) {
	i := strings.Index(s.text[s.pos:], end)
	if i < 0 {
		s.pos = len(s.text)
		return
	}
	s.pos += i
}

func (s *scanner) document() {
	s.accept("\ufeff")
	table := ""
	for {
		s.blank()
		if s.eof() {
			return
		}
		before := s.pos
		switch {
		case s.accept("[["):
			table = s.header(true)
		case s.accept("["):
			table = s.header(false)
		default:
			s.assignment(table, 0)
		}
		if s.pos == before {
			return // not TOML
		}
	}
}

// header reads a table's name up to its closing bracket and returns its path.
func (s *scanner) header(array bool) string {
	path := ""
	var pos Position
	for parts := 0; ; parts++ {
		var key string
		key, pos = s.key()
		if parts == maxNesting {
			s.stop(pos)
			return path
		}
		path = join(path, key)
		if s.peek() != '.' {
			break
		}
		s.pos++
		s.note(path, pos)
		path = s.current(path)
	}
	s.note(path, pos)
	if array {
		s.tables[path]++
		path = s.current(path)
		s.note(path, pos)
	}
	s.accept("]")
	s.accept("]")
	return path
}

// current is the table that a header's name means: of an array the last one.
func (s *scanner) current(path string) string {
	if n := s.tables[path]; n > 0 {
		return fmt.Sprintf("%s[%d]", path, n-1)
	}
	return path
}

// note keeps the first place at which a path is named.
func (s *scanner) note(path string, pos Position) {
	if _, ok := s.at[path]; !ok {
		s.at[path] = place{key: pos, value: pos}
	}
}

func (s *scanner) assignment(path string, depth int) {
	for parts := 0; ; parts++ {
		key, pos := s.key()
		if parts == maxNesting {
			s.stop(pos)
			return
		}
		path = join(path, key)
		s.note(path, pos)
		if s.peek() != '.' {
			break
		}
		s.pos++
	}
	if !s.accept("=") {
		return
	}
	s.value(path, depth)
}

// key reads one part of a key and the blanks around it.
func (s *scanner) key() (string, Position) {
	s.blank()
	pos, start := s.here(), s.pos
	key := ""
	switch s.peek() {
	case '"', '\'':
		s.quoted()
		key = unquote(s.text[start:s.pos])
	default:
		for !s.eof() && bareByte(s.peek()) {
			s.pos++
		}
		key = s.text[start:s.pos]
	}
	s.blank()
	return key, pos
}

// unquote leaves TOML's escapes to the parser.
func unquote(raw string) string {
	var v struct{ K string }
	if _, err := toml.Decode("k = "+raw, &v); err != nil {
		return raw
	}
	return v.K
}

func (s *scanner) value(path string, depth int) {
	s.blank()
	pos := s.here()
	known := s.at[path]
	if known.key == (Position{}) {
		known.key = pos
	}
	known.value = pos
	s.at[path] = known
	if depth > maxNesting {
		s.stop(pos)
		return
	}
	switch s.peek() {
	case '"', '\'':
		s.quoted()
	case '[':
		s.pos++
		s.array(path, depth)
	case '{':
		s.pos++
		s.inline(path, depth)
	default:
		for !s.eof() && !strings.ContainsRune(",]}#\n", rune(s.peek())) {
			s.pos++
		}
	}
	if depth > 0 {
		s.blank()
	}
}

func (s *scanner) array(path string, depth int) {
	for i := 0; ; i++ {
		s.blank()
		if s.accept("]") || s.eof() {
			return
		}
		before := s.pos
		s.value(fmt.Sprintf("%s[%d]", path, i), depth+1)
		s.accept(",")
		if s.pos == before {
			return
		}
	}
}

func (s *scanner) inline(path string, depth int) {
	for {
		s.blank()
		if s.accept("}") || s.eof() {
			return
		}
		before := s.pos
		s.assignment(path, depth+1)
		s.blank()
		s.accept(",")
		if s.pos == before {
			return
		}
	}
}

// quoted skips a string of any of the four kinds.
func (s *scanner) quoted() {
	switch {
	case s.accept(`"""`):
		s.closing(`"""`, true)
	case s.accept(`'''`):
		s.closing(`'''`, false)
	case s.accept(`"`):
		s.closing(`"`, true)
	case s.accept(`'`):
		s.closing(`'`, false)
	}
}

func (s *scanner) closing(end string, escapes bool) {
	for !s.eof() {
		if escapes && s.peek() == '\\' {
			s.pos = min(s.pos+2, len(s.text))
			continue
		}
		if s.accept(end) {
			// A multi-line string may end in one or two quotes of its own.
			for len(end) == 3 && s.accept(end[:1]) {
			}
			return
		}
		s.pos++
	}
}
