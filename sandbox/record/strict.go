package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

// DecodeStrict decodes exactly one JSON value into v. It refuses unknown
// fields, names in another case, duplicate keys, invalid UTF-8, nesting deeper
// than a record needs, and anything but white space after the value.
func DecodeStrict(data []byte, v any) error {
	if err := check(data, reflect.TypeOf(v)); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// CheckJSON refuses text that parsers read in different ways: duplicate keys
// (compared after unescaping), invalid UTF-8, deep nesting, a second value.
func CheckJSON(data []byte) error { return check(data, nil) }

// check reads data beside the type that it is to become; encoding/json alone
// would take names in any case. No type means that any names will do.
func check(data []byte, t reflect.Type) error {
	if !utf8.Valid(data) {
		return errors.New("json: invalid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := checkValue(dec, t, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("json: more than one value")
	}
	return nil
}

func checkValue(dec *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("json: nested deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	member := members(t)
	seen := map[string]bool{}
	for dec.More() {
		inner := member("")
		if open == '[' && inner == nil {
			return errors.New("json: a list where an object belongs")
		}
		if open == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if seen[name] {
				return fmt.Errorf("json: duplicate key %q", name)
			}
			seen[name] = true
			if inner = member(name); inner == nil {
				return fmt.Errorf("json: unknown field %q", name)
			}
		}
		if err := checkValue(dec, *inner, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

var rawType = reflect.TypeFor[json.RawMessage]()

// members returns the type of each member of an object or list of type t: nil
// where t has no such field.
func members(t reflect.Type) func(name string) *reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var any reflect.Type // of which nothing is known
	switch {
	case t == nil || t == rawType:
		return func(string) *reflect.Type { return &any }
	case t.Kind() == reflect.Struct:
		byName := fields(t)
		return func(name string) *reflect.Type { return byName[name] }
	case t.Kind() == reflect.Slice || t.Kind() == reflect.Map:
		elem := t.Elem()
		return func(string) *reflect.Type { return &elem }
	}
	return func(string) *reflect.Type { return &any }
}

// fields are those of a struct by the names that their tags give them, to the
// letter.
func fields(t reflect.Type) map[string]*reflect.Type {
	byName := make(map[string]*reflect.Type, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag != "" {
			byName[tag] = &f.Type
		}
	}
	return byName
}

// lineReader splits at newlines and bounds each line.
type lineReader struct {
	r *bufio.Reader
}

func newLineReader(r io.Reader) lineReader { return lineReader{bufio.NewReaderSize(r, 64<<10)} }

var errCutOff = errors.New("record: the last line is cut off")

// next returns the next line without its newline, or io.EOF. A last line
// without a newline was not written whole and is refused.
func (l lineReader) next() ([]byte, error) {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > MaxLine+1:
			return nil, fmt.Errorf("record: a line of more than %d bytes", MaxLine)
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return nil, errCutOff
		default:
			return nil, fmt.Errorf("record: read: %w", err)
		}
	}
}
