package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func newLog(t testing.TB, now func() time.Time) (*Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "record.jsonl")
	l, err := Create(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, path
}

func fixed() time.Time { return noon }

// closedRecord is a short record as its file holds it.
func closedRecord(t testing.TB) []byte {
	t.Helper()
	l, path := newLog(t, fixed)
	for _, e := range []struct {
		kind Kind
		data any
	}{
		{JobOpened, Opened{Session: "s", Profile: "hermetic"}},
		{Fetched, Fetch{URL: "https://example.test/a<b>&c", Status: 200}},
		{Closed, Closing{Result: "success"}},
	} {
		if _, err := l.Append(e.kind, e.data); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestReadReturnsWhatWasAppended(t *testing.T) {
	data := closedRecord(t)
	entries, head, err := Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	if head.Entries != 3 || head.Hash != HashLine(lines[2]) {
		t.Errorf("head = %+v", head)
	}
	var f Fetch
	if err := entries[1].Decode(&f); err != nil || f.URL != "https://example.test/a<b>&c" {
		t.Errorf("entry 1 = %+v, %v", f, err)
	}
	if !bytes.Contains(lines[1], []byte("a<b>&c")) {
		t.Errorf("line is escaped beyond need: %s", lines[1])
	}
	if entries[1].Prev != entries[0].Hash || entries[0].Prev != Genesis {
		t.Error("entries are not chained")
	}
}

func TestReadRefuses(t *testing.T) {
	good := string(closedRecord(t))
	lines := strings.SplitAfter(good, "\n")
	for name, tc := range map[string]struct{ data, want string }{
		"changed byte":          {strings.Replace(good, `"hermetic"`, `"hermetiC"`, 1), "fork"},
		"missing line":          {lines[0] + lines[2], "gap"},
		"repeated line":         {lines[0] + lines[0] + lines[1], "gap"},
		"swapped lines":         {lines[1] + lines[0], "gap"},
		"cut off":               {good[:len(good)-1], "cut off"},
		"after closed":          {good + strings.Replace(lines[1], `"seq":1`, `"seq":3`, 1), "closed"},
		"unknown kind":          {strings.Replace(lines[0], "job_opened", "job_forged", 1), "unknown kind"},
		"not opened first":      {strings.Replace(lines[0], "job_opened", "sealed", 1), "stands first"},
		"unknown field":         {strings.Replace(lines[0], `{"seq"`, `{"x":1,"seq"`, 1), "unknown field"},
		"duplicate key":         {strings.Replace(lines[0], `{"seq":0`, `{"seq":0,"seq":0`, 1), "duplicate key"},
		"escaped duplicate":     {strings.Replace(lines[0], `{"seq":0`, `{"seq":0,"\u0073eq":0`, 1), "duplicate key"},
		"name in another case":  {strings.Replace(lines[0], `"seq"`, `"Seq"`, 1), "unknown field"},
		"case beside the other": {strings.Replace(lines[0], `{"seq":0`, `{"seq":0,"SEQ":1`, 1), "unknown field"},
		"list for an object":    {"[" + strings.TrimSuffix(lines[0], "\n") + "]\n", "a list"},
		"two values":            {strings.TrimSuffix(lines[0], "\n") + "{}\n", "more than one"},
		"bad time":              {strings.Replace(lines[0], "Z\"", "+00:00\"", 1), "time"},
		"invalid utf-8":         {strings.Replace(lines[0], "hermetic", "\xff", 1), "UTF-8"},
		"deep":                  {strings.Replace(lines[0], `"data":`, `"data":`+strings.Repeat("[", 99)+strings.Repeat("]", 99)+`,"d":`, 1), "deeper"},
		"long":                  {strings.Repeat("x", MaxLine+2) + "\n", "more than"},
		"empty line":            {"\n", "EOF"},
		"genesis":               {strings.Replace(lines[0], Genesis, strings.Repeat("1", 64), 1), "fork"},
		"time goes back":        {lines[0] + strings.Replace(lines[1], "12:00:00", "11:00:00", 1), "backwards"},
		"data not an object":    {strings.Replace(lines[0], `"data":{`, `"data":"x","e":{`, 1), "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Read(strings.NewReader(tc.data))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestNamesInDataAreThoseOfTheKind(t *testing.T) {
	for data, want := range map[string]string{
		`{"session":"s","forged":true}`:          `"forged"`,
		`{"session":"s","Session":"t"}`:          `"Session"`,
		`{"job":{"sha":"a","SHA":"b"}}`:          `"SHA"`,
		`{"external":{"steps":[{"digesT":""}]}}`: `"digesT"`,
		`{"session":"s"}`:                        "",
	} {
		var c Chain
		_, err := c.Add([]byte(`{"seq":0,"kind":"job_opened","time":"2026-11-26T12:00:00.000000Z","prev":"` + Genesis + `","data":` + data + `}`))
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", data, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error = %v, want the name %s", data, err, want)
		}
		if err := (Entry{Kind: JobOpened, Data: []byte(data)}).Decode(new(Opened)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: decoded: %v, want the name %s", data, err, want)
		}
	}
}

func TestNamesAreExactAtEveryDepth(t *testing.T) {
	type inner struct {
		Name string `json:"name"`
	}
	type outer struct {
		List []inner           `json:"list"`
		Map  map[string]*inner `json:"map"`
		Raw  json.RawMessage   `json:"raw"`
		One  *inner            `json:"one,omitempty"`
	}
	for text, ok := range map[string]bool{
		`{"list":[{"name":"a"}],"map":{"K":{"name":"b"}},"raw":{"Any":[{"x":1}]},"one":{"name":"c"}}`: true,
		`{"list":[{"name":"a"},{"Name":"b"}]}`:                                                        false,
		`{"map":{"k":{"NAME":"b"}}}`:                                                                  false,
		`{"one":{"nAme":"b"}}`:                                                                        false,
		`{"one":{"name":"b","other":1}}`:                                                              false,
		`{"One":{"name":"b"}}`:                                                                        false,
		`{"list":null,"one":null}`:                                                                    true,
	} {
		if err := DecodeStrict([]byte(text), new(outer)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestConcurrentAppendsFormOneChain(t *testing.T) {
	l, path := newLog(t, time.Now)
	if _, err := l.Append(JobOpened, Opened{}); err != nil {
		t.Fatal(err)
	}
	const n = 64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := l.Append(Blocked, Block{Target: fmt.Sprint(i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entries, head, err := Read(bytes.NewReader(data))
	if err != nil || len(entries) != n+1 || head != l.Head() {
		t.Errorf("read %d entries, head %+v, %v; log has %+v", len(entries), head, err, l.Head())
	}
}

func TestClockThatGoesBackKeepsTheLastTime(t *testing.T) {
	now := noon
	l, _ := newLog(t, func() time.Time { return now })
	first, err := l.Append(JobOpened, Opened{})
	if err != nil {
		t.Fatal(err)
	}
	now = noon.Add(-time.Hour)
	second, err := l.Append(Sealed, Seal{})
	if err != nil || second.Time != first.Time {
		t.Errorf("second entry at %v, %v; want %v", second.Time, err, first.Time)
	}
}

func TestNothingFollowsAFailedWrite(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full here: ", err)
	}
	l := &Log{now: fixed, file: full, changed: make(chan struct{})}
	if _, err := l.Append(JobOpened, Opened{}); err == nil {
		t.Fatal("append to a full disk succeeded")
	}
	if l.Head().Entries != 0 {
		t.Errorf("head moved to %+v", l.Head())
	}
	if _, err := l.Append(JobOpened, Opened{}); err == nil || !strings.Contains(err.Error(), "write") {
		t.Errorf("second append: %v, want the first failure again", err)
	}
}

func TestLinesComeInBatches(t *testing.T) {
	l, _ := newLog(t, fixed)
	var want [][]byte
	for i := range 10 {
		kind, data := Blocked, any(Block{Target: strings.Repeat("x", i)})
		if i == 0 {
			kind, data = JobOpened, Opened{}
		}
		e, err := l.Append(kind, data)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, e.Line)
	}
	var got [][]byte
	for int64(len(got)) < l.Head().Entries {
		lines, err := l.Lines(int64(len(got)), 300)
		if err != nil || len(lines) == 0 {
			t.Fatalf("lines from %d: %d, %v", len(got), len(lines), err)
		}
		got = append(got, lines...)
	}
	if !bytes.Equal(bytes.Join(got, []byte("\n")), bytes.Join(want, []byte("\n"))) {
		t.Error("lines differ from what was appended")
	}
}

func TestResumeGoesOnFromTheLastWholeLine(t *testing.T) {
	whole := closedRecord(t)
	lines := bytes.SplitAfter(whole, []byte("\n"))
	open := bytes.Join(lines[:2], nil)
	for name, data := range map[string][]byte{
		"whole":      open,
		"cut off":    append(bytes.Clone(open), lines[2][:20]...),
		"cut at end": append(bytes.Clone(open), bytes.TrimSuffix(lines[2], []byte("\n"))...),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "record")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := Resume(path, fixed)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			if _, err := l.Append(Closed, Closing{Result: "success"}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, whole) {
				t.Errorf("record is\n%s(%v), want\n%s", got, err, whole)
			}
			if again, err := l.Lines(0, 1<<20); err != nil || len(again) != 3 {
				t.Errorf("%d lines, %v", len(again), err)
			}
		})
	}
}

func TestResumeRefusesAChangedRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	data := bytes.Replace(closedRecord(t), []byte("hermetic"), []byte("Hermetic"), 1)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(path, fixed); err == nil || !strings.Contains(err.Error(), "fork") {
		t.Errorf("error = %v, want a fork", err)
	}
}

func TestCreateRefusesAnExistingRecord(t *testing.T) {
	_, path := newLog(t, fixed)
	if _, err := Create(path, fixed); !errors.Is(err, os.ErrExist) {
		t.Errorf("error = %v, want %v", err, os.ErrExist)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(closedRecord(f))
	f.Add([]byte(`{"seq":0}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, head, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = append(append(again, e.Line...), '\n')
		}
		if !bytes.Equal(again, data) || head.Entries != int64(len(entries)) {
			t.Error("an accepted record is not its lines")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l, _ := newLog(b, time.Now)
	if _, err := l.Append(JobOpened, Opened{}); err != nil {
		b.Fatal(err)
	}
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := l.Append(Fetched, Fetch{URL: "https://example.test/", Status: 200}); err != nil {
				b.Error(err)
			}
		}
	})
}
