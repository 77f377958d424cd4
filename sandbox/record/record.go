// Package record is the append-only, hash-chained evidence log of one attempt.
//
// # Format
//
// A record is a sequence of lines, each one JSON object in UTF-8 followed by
// a newline:
//
//	{"seq":0,"kind":"job_opened","time":"2026-11-26T15:04:05.000000Z","prev":"00…00","data":{…}}
//
// seq counts from 0 without a gap. time is the host's clock in UTC, never
// earlier than the line before. prev is the lower-case hex SHA-256 of the
// whole line before, without its newline; for the first line it is 64 zeros.
// data belongs to the kind (data.go). The hash of the last line, the head,
// stands for the whole record.
//
// The bytes of a line are canonical: they are kept as they were written and
// hashed as they are. Nothing marshals a line again in order to check it. A
// reader refuses unknown kinds, unknown or duplicate fields, lines over
// [MaxLine], a gap, a fork, and anything after a "closed" entry but silence.
//
// # Trust
//
// The host writes the record and could lie in it; what the authority has
// acknowledged can no longer be rewritten. Strings in data may come from the
// tenant (names, URLs): they are claims where data.go says so.
package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// Limits of the format.
const (
	MaxLine    = 4 << 20   // bytes of one line
	MaxEntries = 1_000_000 // entries of one record
	maxDepth   = 32        // nesting of one line
)

// Errors of a line that callers tell apart; any other line is malformed.
var (
	ErrGap     = errors.New("gap")
	ErrFork    = errors.New("fork")
	ErrKind    = errors.New("unknown kind")
	ErrTooMany = fmt.Errorf("more than %d entries", MaxEntries)
)

// Genesis is the prev of the first line.
var Genesis = strings.Repeat("0", 2*sha256.Size)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// A Head names a record at one moment: how many entries, and the hash of the last.
type Head struct {
	Entries int64
	Hash    string
}

// An Entry is one line, checked against the line before it.
type Entry struct {
	Seq  int64
	Kind Kind
	Time time.Time
	Prev string
	Data json.RawMessage
	Line []byte // the canonical bytes, without the newline
	Hash string // of Line
}

// Decode reads the entry's data into the type that its kind has in data.go.
// Unknown and duplicate fields are errors.
func (e Entry) Decode(v any) error {
	if err := DecodeStrict(e.Data, v); err != nil {
		return fmt.Errorf("record: entry %d: %s: %w", e.Seq, e.Kind, err)
	}
	return nil
}

// wireEntry fixes the order of a line's fields.
type wireEntry struct {
	Seq  int64           `json:"seq"`
	Kind Kind            `json:"kind"`
	Time string          `json:"time"`
	Prev string          `json:"prev"`
	Data json.RawMessage `json:"data"`
}

// A Chain checks lines one after another. The zero Chain expects a first line.
// It is not safe for concurrent use.
type Chain struct {
	head   Head
	last   time.Time
	closed bool
}

// Head is the record so far.
func (c *Chain) Head() Head { return c.head }

// Closed reports whether the record has ended.
func (c *Chain) Closed() bool { return c.closed }

// Add checks the next line and returns it decoded. After an error the chain is
// unchanged.
func (c *Chain) Add(line []byte) (Entry, error) {
	var w wireEntry
	switch {
	case c.closed:
		return Entry{}, fmt.Errorf("record: entry %d: the record is closed", c.head.Entries)
	case len(line) > MaxLine:
		return Entry{}, fmt.Errorf("record: entry %d: %d bytes, more than %d", c.head.Entries, len(line), MaxLine)
	case c.head.Entries >= MaxEntries:
		return Entry{}, fmt.Errorf("record: %w", ErrTooMany)
	case bytes.IndexByte(line, '\n') >= 0:
		return Entry{}, fmt.Errorf("record: entry %d: a newline inside a line", c.head.Entries)
	}
	if err := DecodeStrict(line, &w); err != nil {
		return Entry{}, fmt.Errorf("record: entry %d: %w", c.head.Entries, err)
	}
	at, err := time.Parse(timeFormat, w.Time)
	if err != nil {
		return Entry{}, fmt.Errorf("record: entry %d: time %q: want UTC with microseconds", c.head.Entries, w.Time)
	}
	prev := c.head.Hash
	if c.head.Entries == 0 {
		prev = Genesis
	}
	switch {
	case w.Seq != c.head.Entries:
		return Entry{}, fmt.Errorf("record: %w: want entry %d, have %d", ErrGap, c.head.Entries, w.Seq)
	case w.Prev != prev:
		return Entry{}, fmt.Errorf("record: %w: entry %d does not follow the line before it", ErrFork, w.Seq)
	case at.Before(c.last):
		return Entry{}, fmt.Errorf("record: entry %d: time goes backwards", w.Seq)
	case w.Kind.data() == nil:
		return Entry{}, fmt.Errorf("record: entry %d: %w %q", w.Seq, ErrKind, w.Kind)
	case (w.Kind == JobOpened) != (w.Seq == 0):
		return Entry{}, fmt.Errorf("record: entry %d: %s stands first and only there", w.Seq, JobOpened)
	}
	if err := check(w.Data, reflect.TypeOf(w.Kind.data())); err != nil {
		return Entry{}, fmt.Errorf("record: entry %d: %s: %w", w.Seq, w.Kind, err)
	}
	e := Entry{Seq: w.Seq, Kind: w.Kind, Time: at, Prev: w.Prev, Data: w.Data, Line: bytes.Clone(line), Hash: hash(line)}
	c.head = Head{Entries: e.Seq + 1, Hash: e.Hash}
	c.last = at
	c.closed = e.Kind == Closed
	return e, nil
}

// next makes the line that follows. It does not advance the chain.
func (c *Chain) next(kind Kind, now time.Time, data any) ([]byte, error) {
	raw, err := encode(data)
	if err != nil {
		return nil, fmt.Errorf("record: %s: %w", kind, err)
	}
	if now.Before(c.last) {
		now = c.last
	}
	prev := c.head.Hash
	if c.head.Entries == 0 {
		prev = Genesis
	}
	return encode(wireEntry{
		Seq: c.head.Entries, Kind: kind, Prev: prev, Data: raw,
		Time: now.UTC().Truncate(time.Microsecond).Format(timeFormat),
	})
}

// Read reads and checks a whole record. The record need not be closed.
func Read(r io.Reader) ([]Entry, Head, error) {
	var (
		c   Chain
		out []Entry
	)
	lines := newLineReader(r)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return out, c.Head(), nil
		}
		if err != nil {
			return nil, Head{}, err
		}
		e, err := c.Add(line)
		if err != nil {
			return nil, Head{}, err
		}
		out = append(out, e)
	}
}

func hash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// encode is json.Marshal without the escaping of <, > and &: lines are read by
// people during incidents.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// HashLine is the hash that the line after this one must carry as prev.
func HashLine(line []byte) string { return hash(line) }
