package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"unicode/utf8"
)

// maxDepth is how deep JSON may nest. It is package record's limit too, and
// far below the depth at which libraries give up.
const maxDepth = 32

// tolerant marks a type in which, and below which, unknown keys are ignored.
type tolerant interface{ ignoresUnknownKeys() }

var errNotJSON = errors.New("json: not one JSON value")

// decode reads exactly one JSON value into v. It refuses what record.CheckJSON
// refuses (duplicate keys, invalid UTF-8, depth, a second value), keys that
// differ from a known one in case alone, which encoding/json would take for the
// known one, and unknown keys, unless the type is tolerant.
//
// Statements can have a hundred thousand dependencies. So the text is walked
// once, byte by byte, instead of token by token.
func decode(text []byte, v any) error { return decodeAs(text, v, false) }

// decodeTolerant is decode that ignores unknown keys everywhere.
func decodeTolerant(text []byte, v any) error { return decodeAs(text, v, true) }

func decodeAs(text []byte, v any, lax bool) error {
	if !json.Valid(text) {
		return errNotJSON
	}
	if !utf8.Valid(text) {
		return errors.New("json: invalid UTF-8")
	}
	shapes := shapes{}
	w := walker{text: text}
	if err := w.value(shapes.of(reflect.TypeOf(v).Elem(), lax), 0); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// A shape is what a value will be decoded into. A nil shape means that nobody
// looks inside.
type shape struct {
	fields map[string]*shape // of an object, if known
	elem   *shape            // of a list, or of an object that is a map
	lax    bool
}

// shapes keeps the shapes that were made, by type and laxness.
type shapes map[shapeKey]*shape

type shapeKey struct {
	typ reflect.Type
	lax bool
}

func (s shapes) of(typ reflect.Type, lax bool) *shape {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	lax = lax || typ.Implements(reflect.TypeFor[tolerant]())
	key := shapeKey{typ, lax}
	if made, ok := s[key]; ok {
		return made
	}
	if reflect.PointerTo(typ).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil // decodes itself
	}
	made := &shape{lax: lax}
	s[key] = made
	switch typ.Kind() {
	case reflect.Slice, reflect.Map:
		made.elem = s.of(typ.Elem(), lax)
	case reflect.Struct:
		made.fields = map[string]*shape{}
		for i := range typ.NumField() {
			if name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ","); name != "" && name != "-" {
				made.fields[name] = s.of(typ.Field(i).Type, lax)
			}
		}
	}
	return made
}

// field is the shape of the value under a key.
func (s *shape) field(key string) (*shape, error) {
	if s == nil {
		return nil, nil
	}
	if s.fields == nil {
		return s.elem, nil
	}
	if inner, ok := s.fields[key]; ok {
		return inner, nil
	}
	for name := range s.fields {
		if strings.EqualFold(name, key) {
			return nil, fmt.Errorf("json: key %q: want %q", key, name)
		}
	}
	if !s.lax {
		return nil, fmt.Errorf("json: unknown key %q", key)
	}
	return nil, nil
}

// walker walks JSON that is known to be valid.
type walker struct {
	text []byte
	pos  int
}

// next skips white space and returns the byte after it.
func (w *walker) next() byte {
	for {
		switch c := w.text[w.pos]; c {
		case ' ', '\t', '\r', '\n':
			w.pos++
		default:
			return c
		}
	}
}

func (w *walker) value(s *shape, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("json: nested deeper than %d", maxDepth)
	}
	switch w.next() {
	case '{':
		return w.object(s, depth)
	case '[':
		return w.array(s, depth)
	case '"':
		w.skipString()
	default:
		for w.pos < len(w.text) && !strings.ContainsRune(",]} \t\r\n", rune(w.text[w.pos])) {
			w.pos++
		}
	}
	return nil
}

func (w *walker) array(s *shape, depth int) error {
	var elem *shape
	if s != nil {
		elem = s.elem
	}
	w.pos++
	for w.next() != ']' {
		if err := w.value(elem, depth+1); err != nil {
			return err
		}
		if w.next() == ',' {
			w.pos++
		}
	}
	w.pos++
	return nil
}

func (w *walker) object(s *shape, depth int) error {
	var seen keys
	w.pos++
	for w.next() != '}' {
		key, err := w.key()
		if err != nil {
			return err
		}
		if !seen.add(key) {
			return fmt.Errorf("json: duplicate key %q", key)
		}
		inner, err := s.field(key)
		if err != nil {
			return err
		}
		w.next() // the colon
		w.pos++
		if err := w.value(inner, depth+1); err != nil {
			return err
		}
		if w.next() == ',' {
			w.pos++
		}
	}
	w.pos++
	return nil
}

func (w *walker) key() (string, error) {
	start := w.pos
	w.skipString()
	raw := w.text[start:w.pos]
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), nil
	}
	var key string
	err := json.Unmarshal(raw, &key)
	return key, err
}

func (w *walker) skipString() {
	for w.pos++; w.text[w.pos] != '"'; w.pos++ {
		if w.text[w.pos] == '\\' {
			w.pos++
		}
	}
	w.pos++
}

// keys of one object: few as a rule, and then kept without a map.
type keys struct {
	few  [8]string
	n    int
	many map[string]bool
}

// add reports whether the key is new.
func (k *keys) add(key string) bool {
	for i := range k.n {
		if k.few[i] == key {
			return false
		}
	}
	if k.n < len(k.few) {
		k.few[k.n] = key
		k.n++
		return true
	}
	if k.many == nil {
		k.many = map[string]bool{}
	}
	if k.many[key] {
		return false
	}
	k.many[key] = true
	return true
}

// b64 is standard base64 in its one canonical form.
type b64 []byte

func (b *b64) UnmarshalJSON(text []byte) error {
	if len(text) < 2 || text[0] != '"' {
		return errors.New("want base64 in a string")
	}
	inside := text[1 : len(text)-1]
	if bytes.IndexByte(inside, '\\') >= 0 {
		return errors.New("base64 with line breaks or escapes")
	}
	data := make([]byte, base64.StdEncoding.DecodedLen(len(inside)))
	n, err := base64.StdEncoding.Strict().Decode(data, inside)
	if err != nil {
		return err
	}
	*b = data[:n]
	return nil
}
