package executor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of what a message or payload may make this process allocate.
const (
	maxDepth   = 32      // nesting of objects and lists
	maxValues  = 1 << 18 // values in one document
	maxList    = 1 << 14 // items of one list, members of one object
	maxUnknown = 256     // unknown fields that are listed before giving up
	maxKey     = 1 << 10 // bytes of a member's name
)

// A FieldError says which field of a payload or message is wrong. It never
// holds a value: values may be secrets.
type FieldError struct {
	Document string // "job response", "request", "reply"
	Field    string // path like "services[0].name"; empty for the whole document
	Problem  string
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return e.Document + ": " + e.Problem
	}
	return e.Document + ": " + e.Field + ": " + e.Problem
}

// decoder reads one JSON document into a struct. Unlike encoding/json it
// matches names exactly, refuses a name that stands twice, bounds what it
// builds, and reports fields it does not know by their path.
type decoder struct {
	document string
	data     []byte
	tokens   *json.Decoder
	path     []step
	values   int
	unknown  []string
	fields   map[reflect.Type]map[string]int
}

// step is one element of a path: an index, or a member's name if index is negative.
type step struct {
	name  string
	index int
}

func member(name string) step { return step{name: name, index: -1} }

// decode fills v, a pointer to a struct, and lists the fields it does not know.
func decode(document string, data []byte, v any, at ...string) (unknown []string, err error) {
	d := &decoder{
		document: document,
		data:     data,
		tokens:   json.NewDecoder(bytes.NewReader(data)),
		fields:   map[reflect.Type]map[string]int{},
	}
	for _, name := range at {
		d.path = append(d.path, member(name))
	}
	d.tokens.UseNumber()
	if !utf8.Valid(data) {
		return nil, d.errorf("not valid UTF-8")
	}
	tok, err := d.token()
	if err != nil {
		return nil, err
	}
	if tok != json.Delim('{') {
		return nil, d.errorf("want an object")
	}
	if err := d.object(reflect.ValueOf(v).Elem(), 1); err != nil {
		return nil, err
	}
	if _, err := d.tokens.Token(); !errors.Is(err, io.EOF) {
		return nil, d.errorf("more than one value")
	}
	return d.unknown, nil
}

// token returns the next token. Syntax errors are rewritten, since those of
// encoding/json quote the text.
func (d *decoder) token() (json.Token, error) {
	tok, err := d.tokens.Token()
	if err == nil {
		return tok, nil
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, d.errorf("ends after %d bytes, in the middle of a value", len(d.data))
	}
	return nil, d.errorf("not valid JSON at byte %d", d.tokens.InputOffset())
}

// value decodes the value that begins with tok into v.
func (d *decoder) value(tok json.Token, v reflect.Value, depth int) error {
	if d.values++; d.values > maxValues {
		return d.errorf("more than %d values", maxValues)
	}
	if tok == nil { // null means absent, as in encoding/json
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := d.value(tok, p.Elem(), depth); err != nil {
			return err
		}
		v.Set(p)
		return nil
	case reflect.Struct:
		if tok != json.Delim('{') {
			return d.errorf("want an object")
		}
		return d.object(v, depth+1)
	case reflect.Map:
		if tok != json.Delim('{') {
			return d.errorf("want an object")
		}
		return d.rawMembers(v, depth+1)
	case reflect.Slice:
		if tok != json.Delim('[') {
			return d.errorf("want a list")
		}
		return d.list(v, depth+1)
	}
	return d.scalar(tok, v)
}

func (d *decoder) scalar(tok json.Token, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		s, ok := tok.(string)
		if !ok {
			return d.errorf("want a string")
		}
		if strings.IndexByte(s, 0) >= 0 {
			return d.errorf("holds a NUL byte")
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := tok.(bool)
		if !ok {
			return d.errorf("want true or false")
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, ok := tok.(json.Number)
		if !ok {
			return d.errorf("want an integer")
		}
		i, err := strconv.ParseInt(string(n), 10, 64)
		if err != nil {
			return d.errorf("want an integer of at most 64 bits")
		}
		v.SetInt(i)
	case reflect.Float64:
		n, ok := tok.(json.Number)
		if !ok {
			return d.errorf("want a number")
		}
		f, err := strconv.ParseFloat(string(n), 64)
		if err != nil {
			return d.errorf("want a number of at most 64 bits")
		}
		v.SetFloat(f)
	default:
		return fmt.Errorf("%s: decode into %s", d.document, v.Type())
	}
	return nil
}

// object decodes members up to the closing brace into the struct v.
func (d *decoder) object(v reflect.Value, depth int) error {
	fields := d.fieldsOf(v.Type())
	return d.members(depth, func(name string) error {
		i, ok := fields[name]
		if !ok {
			if len(d.unknown) == maxUnknown {
				return d.errorf("more than %d unknown fields", maxUnknown)
			}
			d.unknown = append(d.unknown, d.where())
			return d.skip(depth)
		}
		field := v.Field(i)
		if field.Type() == rawType {
			raw, err := d.raw(depth)
			if err != nil {
				return err
			}
			field.SetBytes(raw)
			return nil
		}
		tok, err := d.token()
		if err != nil {
			return err
		}
		return d.value(tok, field, depth)
	})
}

var rawType = reflect.TypeFor[json.RawMessage]()

// rawMembers decodes into a map from names to raw values.
func (d *decoder) rawMembers(v reflect.Value, depth int) error {
	m := map[string]json.RawMessage{}
	err := d.members(depth, func(name string) error {
		raw, err := d.raw(depth)
		if err != nil {
			return err
		}
		m[name] = raw
		return nil
	})
	if err != nil {
		return err
	}
	v.Set(reflect.ValueOf(m))
	return nil
}

// members calls each for every member, whose value is still to be read, and
// consumes the closing brace.
func (d *decoder) members(depth int, each func(name string) error) error {
	if depth > maxDepth {
		return d.errorf("nested deeper than %d", maxDepth)
	}
	seen := map[string]bool{}
	for d.tokens.More() {
		tok, err := d.token()
		if err != nil {
			return err
		}
		name, _ := tok.(string) // the tokenizer lets nothing else stand here
		if len(name) > maxKey {
			return d.errorf("a name of more than %d bytes", maxKey)
		}
		d.path = append(d.path, member(name))
		if seen[name] {
			return d.errorf("stands twice")
		}
		seen[name] = true
		if len(seen) > maxList {
			return d.errorf("more than %d members", maxList)
		}
		if err := each(name); err != nil {
			return err
		}
		d.path = d.path[:len(d.path)-1]
	}
	_, err := d.token()
	return err
}

func (d *decoder) list(v reflect.Value, depth int) error {
	item := v.Type().Elem()
	v.Set(reflect.MakeSlice(v.Type(), 0, 0)) // an empty list is not an absent one
	return d.items(depth, func() error {
		tok, err := d.token()
		if err != nil {
			return err
		}
		e := reflect.New(item).Elem()
		if err := d.value(tok, e, depth); err != nil {
			return err
		}
		v.Set(reflect.Append(v, e))
		return nil
	})
}

// items calls each for every item, which is still to be read, and consumes the
// closing bracket.
func (d *decoder) items(depth int, each func() error) error {
	if depth > maxDepth {
		return d.errorf("nested deeper than %d", maxDepth)
	}
	for n := 0; d.tokens.More(); n++ {
		if n == maxList {
			return d.errorf("more than %d items", maxList)
		}
		d.path = append(d.path, step{index: n})
		if err := each(); err != nil {
			return err
		}
		d.path = d.path[:len(d.path)-1]
	}
	_, err := d.token()
	return err
}

// skip reads one value and checks it by the same rules as the rest.
func (d *decoder) skip(depth int) error {
	if d.values++; d.values > maxValues {
		return d.errorf("more than %d values", maxValues)
	}
	tok, err := d.token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		return d.members(depth+1, func(string) error { return d.skip(depth + 1) })
	case json.Delim('['):
		return d.items(depth+1, func() error { return d.skip(depth + 1) })
	}
	return nil
}

// raw is skip that keeps the exact bytes of the value; nil stands for null.
func (d *decoder) raw(depth int) (json.RawMessage, error) {
	start := d.tokens.InputOffset()
	if err := d.skip(depth); err != nil {
		return nil, err
	}
	// Between a name and its value stand a colon and white space.
	text := bytes.TrimLeft(d.data[start:d.tokens.InputOffset()], ": \t\r\n")
	if string(text) == "null" {
		return nil, nil
	}
	return bytes.Clone(text), nil
}

// fieldsOf maps JSON names to field indices. Each type is read once a decode.
func (d *decoder) fieldsOf(t reflect.Type) map[string]int {
	if m, ok := d.fields[t]; ok {
		return m
	}
	m := map[string]int{}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			m[name] = i
		}
	}
	d.fields[t] = m
	return m
}

func (d *decoder) errorf(format string, args ...any) error {
	return &FieldError{d.document, d.where(), fmt.Sprintf(format, args...)}
}

// where renders the path of the current value. Names in it come from outside:
// all but plain ones are quoted and shortened.
func (d *decoder) where() string {
	var b strings.Builder
	for i, s := range d.path {
		switch {
		case s.index >= 0:
			fmt.Fprintf(&b, "[%d]", s.index)
		case plainName(s.name):
			if i > 0 {
				b.WriteByte('.')
			}
			b.WriteString(s.name)
		default:
			fmt.Fprintf(&b, "[%+.64q]", s.name)
		}
	}
	return b.String()
}

func plainName(name string) bool {
	return name != "" && len(name) <= 64 && strings.IndexFunc(name, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}
