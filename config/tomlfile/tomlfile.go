// Package tomlfile decodes one TOML file strictly, with the position of all that is wrong in it.
//
// TOML readers forgive a lot: unknown keys, keys in another case, a number
// where a duration was meant. A security setting that is silently ignored is
// worse than none, so here everything in the file must be wanted, spelled as
// documented and of the type documented; a problem is told as file, line,
// column and, where we can guess what was meant, a hint. All problems of a
// file are told at once.
//
// A path names a place in the file the way people write it: "limits.memory",
// "allow[2].host", "images.allowed[0]".
package tomlfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// MaxBytes is the largest file that is read.
const MaxBytes = 256 << 10

// maxProblems bounds what is told about one file.
const maxProblems = 20

// An Error is one thing that is wrong in a file. Line and Column count from 1,
// Column in characters; both are 0 where the problem has no place, such as a
// key that is missing.
type Error struct {
	File   string
	Line   int
	Column int
	Msg    string
	Hint   string // what the writer probably wants; may be empty
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

// Errors are all that is wrong in a file, in the file's order; never empty.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the first [*Error].
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, one := range e {
		list[i] = one
	}
	return list
}

// A Document is a file whose syntax is sound. It collects problems.
type Document struct {
	file string
	tree map[string]any
	at   map[string]place
	errs Errors
}

// Read reads at most [MaxBytes] of a regular file.
func Read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, readError(file, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, readError(file, err)
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{File: file, Msg: "not a regular file"}
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, readError(file, err)
	}
	return data, nil
}

func readError(file string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &Error{File: file, Msg: err.Error()}
}

// Parse checks the syntax of a file's bytes. file is its name in errors.
func Parse(file string, data []byte) (*Document, error) {
	if len(data) > MaxBytes {
		return nil, &Error{File: file, Msg: fmt.Sprintf("more than %d bytes", MaxBytes)}
	}
	if !utf8.Valid(data) {
		return nil, &Error{File: file, Msg: "not UTF-8"}
	}
	at, tooDeep := locate(string(data))
	if tooDeep != (Position{}) {
		return nil, &Error{File: file, Line: tooDeep.Line, Column: tooDeep.Column, Msg: fmt.Sprintf("nested deeper than %d", maxNesting)}
	}
	d := &Document{file: file, at: at}
	_, err := toml.Decode(string(data), &d.tree)
	if err == nil {
		return d, nil
	}
	out := &Error{File: file, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	var pe toml.ParseError
	if errors.As(err, &pe) {
		out.Msg = pe.Message
		out.Line, out.Column = lineColumn(string(data), pe.Position.Start)
	}
	return nil, out
}

// Report notes a problem at the value of path.
func (d *Document) Report(path, hint, format string, args ...any) {
	d.report(d.at[path].value, path, hint, format, args...)
}

func (d *Document) report(pos Position, path, hint, format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if path != "" {
		msg = path + ": " + msg
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: pos.Line, Column: pos.Column, Msg: msg, Hint: hint})
}

// Has reports whether the file sets the path.
func (d *Document) Has(path string) bool {
	_, ok := d.at[path]
	return ok
}

// Lines says, for each path of the file, the line on which its value stands.
func (d *Document) Lines() map[string]int {
	lines := make(map[string]int, len(d.at))
	for path, where := range d.at {
		lines[path] = where.value.Line
	}
	return lines
}

// Empty reports whether the file sets nothing.
func (d *Document) Empty() bool { return len(d.tree) == 0 }

// Err returns all problems so far as [Errors], nil if there are none.
func (d *Document) Err() error {
	if len(d.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		// What has no place comes last: it is about what is missing.
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if len(d.errs) > maxProblems {
		more := len(d.errs) - maxProblems
		return append(slices.Clone(d.errs[:maxProblems]), &Error{File: d.file, Msg: fmt.Sprintf("and %d more problems", more)})
	}
	return slices.Clone(d.errs)
}

// Decode fills the struct that v points to; what the file does not set stays as
// it is. Fields carry the tag `toml:"key"`; a field without one is not
// settable. Types: string, bool, int, int64, uint32, uint64, float64,
// [time.Duration] (as "10s"), int64 with the tag option ",size" (as "4GiB"),
// [*url.URL], structs, and slices of these; []string with the tag option
// ",oneormore" may be written as a string alone. Problems are kept for
// [Document.Err].
func (d *Document) Decode(v any) {
	d.table("", d.tree, reflect.ValueOf(v).Elem())
}

type field struct {
	name   string
	option string
	index  int
}

func fields(t reflect.Type) []field {
	var list []field
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("toml")
		if !ok {
			continue
		}
		name, option, _ := strings.Cut(tag, ",")
		list = append(list, field{name: name, option: option, index: i})
	}
	return list
}

func (d *Document) table(path string, tree map[string]any, out reflect.Value) {
	known := fields(out.Type())
	for _, key := range sortedKeys(tree) {
		i := slices.IndexFunc(known, func(f field) bool { return f.name == key })
		full := join(path, key)
		if i < 0 {
			d.report(d.at[full].key, "", d.guess(path, key, known), "unknown key %q", full)
			continue
		}
		d.value(full, tree[key], out.Field(known[i].index), known[i].option)
	}
}

func sortedKeys(tree map[string]any) []string {
	keys := make([]string, 0, len(tree))
	for key := range tree {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func (d *Document) value(path string, value any, out reflect.Value, option string) {
	switch out.Interface().(type) {
	case time.Duration:
		d.duration(path, value, out)
		return
	case *url.URL:
		d.url(path, value, out)
		return
	}
	one, single := value.(string)
	switch {
	case option == "size":
		d.size(path, value, out)
		return
	case option == "oneormore" && single:
		out.Set(reflect.ValueOf([]string{one}))
		return
	}
	switch out.Kind() {
	case reflect.Struct:
		tree, ok := value.(map[string]any)
		if !ok {
			d.mismatch(path, value, "a table", "write it as [%s]", path)
			return
		}
		d.table(path, tree, out)
	case reflect.Slice:
		d.slice(path, value, out)
	case reflect.String:
		s, ok := value.(string)
		if !ok {
			d.mismatch(path, value, "a string", "put it in quotes")
			return
		}
		out.SetString(s)
	case reflect.Bool:
		b, ok := value.(bool)
		if !ok {
			d.mismatch(path, value, "true or false", "")
			return
		}
		out.SetBool(b)
	case reflect.Float64:
		d.float(path, value, out)
	default:
		d.integer(path, value, out)
	}
}

func (d *Document) slice(path string, value any, out reflect.Value) {
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		if out.Type().Elem().Kind() == reflect.Struct {
			d.mismatch(path, value, "a list of tables", "write it as [[%s]]", path)
			return
		}
		d.mismatch(path, value, "a list", "put it in [ ]")
		return
	}
	made := reflect.MakeSlice(out.Type(), list.Len(), list.Len())
	for i := range list.Len() {
		d.value(fmt.Sprintf("%s[%d]", path, i), list.Index(i).Interface(), made.Index(i), "")
	}
	out.Set(made)
}

func (d *Document) duration(path string, value any, out reflect.Value) {
	const hint = `write it with its unit, as "10s" or "5m"`
	s, ok := value.(string)
	if !ok {
		d.mismatch(path, value, "a duration", hint)
		return
	}
	span, err := time.ParseDuration(s)
	if err != nil {
		d.Report(path, hint, "%s is not a duration", quote(s))
		return
	}
	out.SetInt(int64(span))
}

func (d *Document) size(path string, value any, out reflect.Value) {
	const hint = `write it with its unit, as "512MiB" or "4GiB"`
	s, ok := value.(string)
	if !ok {
		d.mismatch(path, value, "a size", hint)
		return
	}
	n, err := ParseSize(s)
	if err != nil {
		d.Report(path, hint, "%v", err)
		return
	}
	out.SetInt(n)
}

func (d *Document) url(path string, value any, out reflect.Value) {
	s, ok := value.(string)
	if !ok {
		d.mismatch(path, value, "a URL", "put it in quotes")
		return
	}
	u, err := url.Parse(s)
	if err != nil {
		d.Report(path, "", "%s is not a URL", quote(s))
		return
	}
	out.Set(reflect.ValueOf(u))
}

func (d *Document) float(path string, value any, out reflect.Value) {
	switch n := value.(type) {
	case float64:
		out.SetFloat(n)
	case int64:
		out.SetFloat(float64(n))
	default:
		d.mismatch(path, value, "a number", "")
	}
}

func (d *Document) integer(path string, value any, out reflect.Value) {
	n, ok := value.(int64)
	if !ok {
		d.mismatch(path, value, "a whole number", "")
		return
	}
	if out.CanUint() {
		if n < 0 || out.OverflowUint(uint64(n)) {
			d.Report(path, "", "%d is out of range", n)
			return
		}
		out.SetUint(uint64(n))
		return
	}
	if out.OverflowInt(n) {
		d.Report(path, "", "%d is out of range", n)
		return
	}
	out.SetInt(n)
}

func (d *Document) mismatch(path string, value any, want, hint string, args ...any) {
	d.Report(path, fmt.Sprintf(hint, args...), "want %s, not %s", want, typeName(value))
}

func typeName(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64:
		return "a whole number"
	case float64:
		return "a number"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	case []any:
		return "a list"
	default:
		return "a date or time"
	}
}

// quote shows a value from a file, bounded and with control characters escaped.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
