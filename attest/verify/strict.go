package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"hallmark.build/sandbox/record"
)

// decodeStrict decodes text whose every key is known and spelled as documented.
func decodeStrict(text []byte, v any) error { return decodeExact(text, v, false) }

// decodeTolerant lets unknown keys be, but not known ones in another case:
// encoding/json would take those for the known ones.
func decodeTolerant(text []byte, v any) error { return decodeExact(text, v, true) }

// decodeExact refuses what package record's strict reading refuses (duplicate
// keys, invalid UTF-8, depth, a second value), and keys of the wrong case.
func decodeExact(text []byte, v any, tolerant bool) error {
	if err := record.CheckJSON(text); err != nil {
		return err
	}
	w := walker{dec: json.NewDecoder(bytes.NewReader(text)), tolerant: tolerant, fields: map[reflect.Type]map[string]reflect.Type{}}
	w.dec.UseNumber()
	if err := w.value(reflect.TypeOf(v).Elem()); err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

type walker struct {
	dec      *json.Decoder
	tolerant bool
	fields   map[reflect.Type]map[string]reflect.Type
}

// value reads one value that will be decoded into typ; nil means that nobody
// will look inside.
func (w *walker) value(typ reflect.Type) error {
	tok, err := w.dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		return w.object(plain(typ))
	case json.Delim('['):
		return w.array(plain(typ))
	}
	return nil
}

// plain strips pointers, and gives nil for types that decode themselves.
func plain(typ reflect.Type) reflect.Type {
	for typ != nil && typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ == nil || reflect.PointerTo(typ).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	return typ
}

func (w *walker) array(typ reflect.Type) error {
	var elem reflect.Type
	if typ != nil && typ.Kind() == reflect.Slice {
		elem = typ.Elem()
	}
	for w.dec.More() {
		if err := w.value(elem); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return err
}

func (w *walker) object(typ reflect.Type) error {
	for w.dec.More() {
		tok, err := w.dec.Token()
		if err != nil {
			return err
		}
		key, _ := tok.(string)
		inner, err := w.field(typ, key)
		if err != nil {
			return err
		}
		if err := w.value(inner); err != nil {
			return err
		}
	}
	_, err := w.dec.Token()
	return err
}

func (w *walker) field(typ reflect.Type, key string) (reflect.Type, error) {
	if typ == nil {
		return nil, nil
	}
	switch typ.Kind() {
	case reflect.Map:
		return typ.Elem(), nil
	case reflect.Struct:
	default:
		return nil, nil // json.Unmarshal will refuse it
	}
	known := w.known(typ)
	if inner, ok := known[key]; ok {
		return inner, nil
	}
	for name := range known {
		if strings.EqualFold(name, key) {
			return nil, fmt.Errorf("json: key %q: want %q", key, name)
		}
	}
	if !w.tolerant {
		return nil, fmt.Errorf("json: unknown key %q", key)
	}
	return nil, nil
}

func (w *walker) known(typ reflect.Type) map[string]reflect.Type {
	if known, ok := w.fields[typ]; ok {
		return known
	}
	known := map[string]reflect.Type{}
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			known[name] = typ.Field(i).Type
		}
	}
	w.fields[typ] = known
	return known
}

// b64 is standard base64 in its one canonical form.
type b64 []byte

func (b *b64) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return errors.New("want base64 in a string")
	}
	if strings.ContainsAny(s, "\r\n") {
		return errors.New("base64 with line breaks")
	}
	data, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return err
	}
	*b = data
	return nil
}
