package tomlfile

import (
	"errors"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
)

type sample struct {
	Name    string        `toml:"name"`
	On      bool          `toml:"on"`
	Wait    time.Duration `toml:"wait"`
	Small   uint32        `toml:"small"`
	Ratio   float64       `toml:"ratio"`
	URL     *url.URL      `toml:"url"`
	List    []string      `toml:"list"`
	Any     []string      `toml:"any,oneormore"`
	Pool    pool          `toml:"pool"`
	Rules   []rule        `toml:"rule"`
	Private string
}

type pool struct {
	Size  int64 `toml:"size,size"`
	Count int   `toml:"count"`
}

type rule struct {
	Host  string `toml:"host"`
	Ports []int  `toml:"ports"`
}

func decode(t *testing.T, text string) (sample, error) {
	t.Helper()
	doc, err := Parse("f.toml", []byte(text))
	if err != nil {
		return sample{}, err
	}
	var v sample
	doc.Decode(&v)
	return v, doc.Err()
}

func TestDecode(t *testing.T) {
	got, err := decode(t, `
name = "n" # comment
on = true
wait = "1m30s"
small = 4294967295
ratio = 2
url = "https://example.com/a"
list = [
  "a", # one
  'b',
]
any = "one"
pool = { size = "4GiB", count = -1 }
[[rule]]
host = "h1"
[[rule]]
host = "h2"
ports = [1, 2]
`)
	if err != nil {
		t.Fatal(err)
	}
	want := sample{
		Name: "n", On: true, Wait: 90 * time.Second, Small: math.MaxUint32, Ratio: 2,
		URL: &url.URL{Scheme: "https", Host: "example.com", Path: "/a"}, List: []string{"a", "b"}, Any: []string{"one"},
		Pool: pool{Size: 4 << 30, Count: -1}, Rules: []rule{{Host: "h1"}, {Host: "h2", Ports: []int{1, 2}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestProblems(t *testing.T) {
	for _, tt := range []struct{ name, text, want, hint string }{
		{"unknown", "nmae = 'x'", `f.toml:1:1: unknown key "nmae"`, `did you mean "name"?`},
		{"unknown in table", "[pool]\n  sise = '1GiB'", `f.toml:2:3: unknown key "pool.sise"`, `did you mean "pool.size"?`},
		{"unknown dotted", "pool.cuont = 1", `f.toml:1:6: unknown key "pool.cuont"`, `did you mean "pool.count"?`},
		{"unknown inline", "pool = {count = 1, sise = 'x'}", `f.toml:1:20: unknown key "pool.sise"`, `did you mean "pool.size"?`},
		{"unknown in first of several", "[[rule]]\nhots='a'\n[[rule]]\nhost='b'", `f.toml:2:1: unknown key "rule[0].hots"`, `did you mean "rule[0].host"?`},
		{"unknown in last of several", "[[rule]]\nhost='a'\n[[rule]]\nhots='b'", `f.toml:4:1: unknown key "rule[1].hots"`, `did you mean "rule[1].host"?`},
		{"unknown table", "[pol]\ncount = 1", `f.toml:1:2: unknown key "pol"`, `did you mean "pool"?`},
		{"nothing near", "zzzzzzzzzz = 1", `f.toml:1:1: unknown key "zzzzzzzzzz"`, "known here: any, list, name, on, pool, ratio, rule, small, url, wait"},
		{"other case", "Name = 'x'", `f.toml:1:1: unknown key "Name"`, `did you mean "name"?`},
		{"go name of a field without tag", "Private = 'x'", `f.toml:1:1: unknown key "Private"`, "known here: any, list, name, on, pool, ratio, rule, small, url, wait"},
		{"quoted", `"na me" = 1`, `f.toml:1:1: unknown key "\"na me\""`, `did you mean "name"?`},
		{"control characters", `"a\u001b[31m" = 1`, `f.toml:1:1: unknown key "\"a\\x1b[31m\""`, `known here: any, list, name, on, pool, ratio, rule, small, url, wait`},
		{"string", "\n name =  5", "f.toml:2:10: name: want a string, not a whole number", "put it in quotes"},
		{"bool", "on = 'true'", "f.toml:1:6: on: want true or false, not a string", ""},
		{"duration number", "wait = 10", "f.toml:1:8: wait: want a duration, not a whole number", `write it with its unit, as "10s" or "5m"`},
		{"duration", "wait = '10 s'", `f.toml:1:8: wait: "10 s" is not a duration`, `write it with its unit, as "10s" or "5m"`},
		{"size number", "pool.size = 10", "f.toml:1:13: pool.size: want a size, not a whole number", `write it with its unit, as "512MiB" or "4GiB"`},
		{"size unit", "pool.size = '4GB'", `f.toml:1:13: pool.size: "4GB" is not a size`, `write it with its unit, as "512MiB" or "4GiB"`},
		{"negative", "small = -1", "f.toml:1:9: small: -1 is out of range", ""},
		{"overflow", "small = 4294967296", "f.toml:1:9: small: 4294967296 is out of range", ""},
		{"float for int", "pool.count = 1.5", "f.toml:1:14: pool.count: want a whole number, not a number", ""},
		{"string for float", "ratio = '1'", "f.toml:1:9: ratio: want a number, not a string", ""},
		{"url", "url = 'http://a b/'", `f.toml:1:7: url: "http://a b/" is not a URL`, ""},
		{"scalar for list", "list = 'a'", "f.toml:1:8: list: want a list, not a string", "put it in [ ]"},
		{"neither one nor more", "any = 1", "f.toml:1:7: any: want a list, not a whole number", "put it in [ ]"},
		{"element", "list = ['a', 1]", "f.toml:1:14: list[1]: want a string, not a whole number", "put it in quotes"},
		{"element after umlauts", "list = ['äöü', 1]", "f.toml:1:16: list[1]: want a string, not a whole number", "put it in quotes"},
		{"table for tables", "[rule]\nhost = 'a'", "f.toml:1:2: rule: want a list of tables, not a table", "write it as [[rule]]"},
		{"tables for table", "[[pool]]\ncount = 1", "f.toml:1:3: pool: want a table, not a list of tables", "write it as [pool]"},
		{"deep", "[[rule]]\n[[rule]]\nports = [1,\n\n 'x']", "f.toml:5:2: rule[1].ports[1]: want a whole number, not a string", ""},
		{"date", "name = 2026-01-01", "f.toml:1:8: name: want a string, not a date or time", "put it in quotes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode(t, tt.text)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Error() != tt.want || e.Hint != tt.hint {
				t.Errorf("got  %s\nhint %s\nwant %s\nhint %s", e, e.Hint, tt.want, tt.hint)
			}
		})
	}
}

func TestSyntax(t *testing.T) {
	for name, text := range map[string]string{
		"f.toml:2:10: ": "on = true\nname = \"x\n",
		"f.toml:1:8: ":  "name = x",
		"f.toml:2:":     "name = 'a'\nname = 'b'",
		"f.toml: not":   "name = '\xff'",

		"f.toml:1:129: nested deeper than 64": strings.Repeat("a.", 100_000) + "a = 1",
		"f.toml:1:130: nested deeper than 64": "[" + strings.Repeat("a.", 100_000) + "a]",
		"f.toml:1:70: nested deeper than 64":  "a = " + strings.Repeat("[", 100_000),
		"f.toml:1:200: nested deeper than 64": "a = " + strings.Repeat("{a=", 80_000),
	} {
		_, err := decode(t, text)
		if err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%q: got %v, want %s…", text, err, name)
		}
	}
	if _, err := Parse("f.toml", make([]byte, MaxBytes+1)); err == nil {
		t.Error("a file that is too large was read")
	}
}

func TestProblemsAreToldTogetherInOrder(t *testing.T) {
	_, err := decode(t, "on = 1\nnmae = 'x'\n[pool]\ncount = 'x'\n")
	want := "f.toml:1:6: on: want true or false, not a whole number\n" +
		"f.toml:2:1: unknown key \"nmae\"\n" +
		"f.toml:4:9: pool.count: want a whole number, not a string"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	_, err = decode(t, strings.Repeat("[[rule]]\nx = 1\n", 100))
	var all Errors
	if !errors.As(err, &all) || len(all) != maxProblems+1 {
		t.Errorf("%d problems told", len(all))
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file or directory",
		dir:                        "not a regular file",
	} {
		if _, err := Read(path); err == nil || err.Error() != path+": "+want {
			t.Errorf("%s: got %v", path, err)
		}
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := Read(file); err != nil || string(data) != "x" {
		t.Errorf("got %q, %v", data, err)
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0B": 0, "1B": 1, "1KiB": 1024, "512MiB": 512 << 20, "4GiB": 4 << 30, "2TiB": 2 << 40,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
		if got := FormatSize(want); got != text {
			t.Errorf("%d: got %s, want %s", want, got, text)
		}
	}
	for _, text := range []string{
		"", "4", "B", "GiB", "4G", "4GB", "4gib", "4 GiB", " 4GiB", "4GiB ", "+4GiB", "-4GiB", "04GiB",
		"4.5GiB", "1e3MiB", "9223372036854775807KiB", "9223372036854775808B", "99999999999999999999B", "٤GiB",
	} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q: got %d", text, got)
		}
	}
}

func TestNearest(t *testing.T) {
	names := []string{"memory", "cpus", "pids", "tmpfs", "open_files", "gitlab_url"}
	for key, want := range map[string]string{
		"memroy": "memory", "Memory": "memory", "cpu": "cpus", "pid": "pids", "open-files": "open_files",
		"openfiles": "open_files", "gitlab_uri": "gitlab_url", "url": "", "x": "", "": "", strings.Repeat("m", 1000): "",
	} {
		if got := Nearest(key, names); got != want {
			t.Errorf("%q: got %q, want %q", key, got, want)
		}
	}
}

// TestPlaces compares the scanner with the parser: what the parser knows as a
// key has a place.
func TestPlaces(t *testing.T) {
	for _, text := range placesSeeds() {
		checkPlaces(t, text)
	}
}

func placesSeeds() []string {
	return []string{
		"a = 1\nb.c = 2\n[d.e]\nf = 3\n[[g]]\nh = 4\n[[g.i]]\nj = 5\n[[g]]\nh = 6\n",
		"a = '''x\n[b]\n'''\nc = \"\"\"\\\"\"\"\" # [d]\n",
		"a = [[1, 2], [{b = 3}, {c = '}'}]] # ]\n",
		"a = {b = {c = [1, 2]}, d.e = 3}\nf = 1979-05-27T07:32:00Z\n",
		"'quoted key' = 1\n\"es\\u0063aped\".x = 2\n\"\" = 3\n",
		"\ufeffa = \"\"\"x\"\"\"\"\"\nb = ''\r\nc = 0x1F\r\n",
		"[ a . b ]\n c = 1\n [ d ]\n[a.'b'.e]\nf=1\n",
	}
}

func checkPlaces(t *testing.T, text string) {
	t.Helper()
	at, _ := locate(text)
	var tree map[string]any
	if _, err := toml.Decode(text, &tree); err != nil {
		return
	}
	walk("", tree, func(path string) {
		where, ok := at[path]
		if !ok || where.key.Line == 0 || where.value.Line == 0 {
			t.Errorf("%q: no place for %s", text, path)
		}
	})
}

func walk(path string, value any, visit func(string)) {
	switch v := value.(type) {
	case map[string]any:
		for key, inner := range v {
			visit(join(path, key))
			walk(join(path, key), inner, visit)
		}
	case []map[string]any:
		for i, inner := range v {
			walk(path+"["+itoa(i)+"]", inner, visit)
		}
	case []any:
		for i, inner := range v {
			visit(path + "[" + itoa(i) + "]")
			walk(path+"["+itoa(i)+"]", inner, visit)
		}
	}
}

func itoa(i int) string { return strconv.Itoa(i) }

func FuzzParse(f *testing.F) {
	for _, text := range placesSeeds() {
		f.Add(text)
	}
	f.Add("name = 5\nwait = 'x'\n[pool]\nsize='4GiB'\n[[rule]]\nports=[1]")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Count(text, "[")+strings.Count(text, "{") < maxNesting {
			checkPlaces(t, text)
		}
		doc, err := Parse("f.toml", []byte(text))
		if err != nil {
			return
		}
		var v sample
		doc.Decode(&v)
		for _, e := range doc.errs {
			if e.Msg == "" || strings.ContainsRune(e.Error(), 0x1b) {
				t.Errorf("bad message %q", e)
			}
		}
	})
}
