// Package value is a stand-in: a JSON value with marks.
package value

import (
	"encoding/json"
	"errors"
	"iter"
)

var (
	ErrAttributeNotFound = errors.New("attribute not found")
	ErrInvalidKey        = errors.New("invalid key")
)

// Kind is a value's type.
type Kind int

const (
	NullKind Kind = iota
	BoolKind
	NumberKind
	StringKind
	ArrayKind
	ObjectKind
)

func (k Kind) String() string {
	return [...]string{"null", "bool", "number", "string", "array", "object"}[k]
}

// Mapper is what an object value is backed by.
type Mapper interface {
	All() iter.Seq2[Value, Value]
	Attr(name string) (Value, error)
	Get(key Value) (Value, error)
	Keys() iter.Seq[Value]
	Values() iter.Seq[Value]
	Len() int
	WithMarks(marks uint16) Mapper
}

// Value is a decoded JSON value, or an object backed by a Mapper.
type Value struct {
	kind  Kind
	str   string          // StringKind
	raw   json.RawMessage // every other kind
	obj   Mapper
	marks uint16
}

func Null() Value           { return Value{raw: json.RawMessage("null")} }
func String(s string) Value { return Value{kind: StringKind, str: s} }
func Object(m Mapper) Value { return Value{kind: ObjectKind, obj: m} }

func (v Value) Kind() Kind { return v.kind }

func (v Value) String() string {
	if v.kind == StringKind {
		return v.str
	}
	return string(v.raw)
}

func (v Value) WithMarks(m uint16) Value   { v.marks |= m; return v }
func (v Value) HasMarks(marks uint16) bool { return v.marks&marks != 0 }

func (v Value) MarshalJSON() ([]byte, error) {
	switch {
	case v.kind == StringKind:
		return json.Marshal(v.str)
	case v.obj != nil:
		m := map[string]Value{}
		for k, x := range v.obj.All() {
			m[k.String()] = x
		}
		return json.Marshal(m)
	case v.raw == nil:
		return []byte("null"), nil
	}
	return v.raw, nil
}

func (v *Value) UnmarshalJSON(data []byte) error {
	var x any
	if err := json.Unmarshal(data, &x); err != nil {
		return err
	}
	*v = Value{raw: append(json.RawMessage(nil), data...)}
	switch t := x.(type) {
	case bool:
		v.kind = BoolKind
	case float64:
		v.kind = NumberKind
	case string:
		v.kind, v.str, v.raw = StringKind, t, nil
	case []any:
		v.kind = ArrayKind
	case map[string]any:
		v.kind = ObjectKind
	}
	return nil
}
