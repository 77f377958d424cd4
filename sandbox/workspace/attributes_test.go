package workspace

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestAttributes has git itself write work trees under attributes, and holds
// that they are the commit's.
func TestAttributes(t *testing.T) {
	texts := map[string]string{
		"lf": "one\ntwo\n", "crlf": "one\r\ntwo\n", "cr": "one\rtwo\n", "none": "one", "empty": "", "nul": "one\n\x00\n",
		"odd": strings.Repeat("\x01", 9) + "\n", "end": "one\n\x1a", "umlaut": "ünï\n",
		"id": "$Id$\n$Id: old $ $Id: a b $ $Id:x\n$ $Id", "id2": "$Id: $ $Id:$ $Ident$ $I$ $Id$",
	}
	const names = 11
	for name, c := range map[string]struct {
		files     map[string]string // besides a/TEXT.txt and b/c/TEXT.bat
		converted int64
		outcome   string
	}{
		"nothing asked":       {map[string]string{".gitattributes": "# none\n"}, 0, "match"},
		"line endings":        {map[string]string{".gitattributes": "* eol=crlf\n"}, 2*8 + 1, "match"},
		"what is text":        {map[string]string{".gitattributes": "*.bat text=auto eol=crlf\n"}, 4, "match"},
		"not text":            {map[string]string{".gitattributes": "* eol=crlf\n*.bat binary\n"}, 9, "match"},
		"older name":          {map[string]string{".gitattributes": "*.bat crlf eol=crlf\n"}, 8, "match"},
		"unix":                {map[string]string{".gitattributes": "* text eol=lf\n"}, 0, "match"},
		"ident":               {map[string]string{".gitattributes": "*.txt ident\n"}, 2, "match"},
		"all of it":           {map[string]string{".gitattributes": "*.txt ident eol=crlf working-tree-encoding=UTF-16LE-BOM\n"}, names - 1, "match"},
		"encodings":           {map[string]string{".gitattributes": "a/umlaut.txt working-tree-encoding=ISO-8859-1\n/b/** working-tree-encoding=UTF-16BE\n"}, 1 + names - 1, "match"},
		"deeper counts":       {map[string]string{".gitattributes": "* eol=crlf\n", "b/.gitattributes": "/c/*.bat !eol\n"}, 9 + 1, "match"},
		"macro":               {map[string]string{".gitattributes": "[attr]dos text eol=crlf\nb/*/l[a-f].ba? dos\n"}, 1, "match"},
		"macro not at root":   {map[string]string{"b/.gitattributes": "[attr]dos text eol=crlf\n*.bat dos\n"}, 0, "match"},
		"a directory":         {map[string]string{".gitattributes": "b/ eol=crlf\n"}, 0, "match"},
		"exported only":       {map[string]string{".gitattributes": "* export-subst\n", "v": "$Format:%H$\n"}, 0, "match"},
		"a filter nobody has": {map[string]string{".gitattributes": "*.txt filter=x ident\n"}, 2, "match"},
		"not understood":      {map[string]string{".gitattributes": "\"*.bat\" eol=crlf\n"}, 0, "mismatch"},
		"an odd encoding":     {map[string]string{".gitattributes": "a/umlaut.txt working-tree-encoding=SHIFT-JIS\n"}, 0, "match"},
	} {
		t.Run(name, func(t *testing.T) {
			from := publicDir(t)
			run(t, from, "git", "init", "-q", ".")
			for file, content := range texts {
				mustWrite(t, from+"/a/"+file+".txt", content)
				mustWrite(t, from+"/b/c/"+file+".bat", content)
			}
			run(t, from, "git", "add", ".")
			for file, content := range c.files {
				mustWrite(t, from+"/"+file, content)
				run(t, from, "git", "add", file)
			}
			run(t, from, "git", "commit", "-q", "-m", "x")
			w := newWorkspace(t)
			commit := run(t, from, "git", "rev-parse", "HEAD")
			getSources(t, w.host(projectDir), from, commit, "sha1")
			got, err := w.VerifySource(t.Context(), projectDir, commit, "sha1", "")
			if err != nil || got.Outcome != c.outcome || got.Converted != c.converted {
				t.Errorf("source %+v, %v; want %s, %d converted", got, err, c.outcome, c.converted)
			}
		})
	}
}

// What the commit does not ask for is a difference, whatever made it.
func TestAttributesOfTheJobsOwn(t *testing.T) {
	from := publicDir(t)
	run(t, from, "git", "init", "-q", ".")
	mustWrite(t, from+"/f.txt", "one\n$Id$\n")
	mustWrite(t, from+"/g.txt", "one\n")
	mustWrite(t, from+"/.gitattributes", "g.txt eol=crlf\n")
	run(t, from, "git", "add", ".")
	run(t, from, "git", "commit", "-q", "-m", "x")
	commit := run(t, from, "git", "rev-parse", "HEAD")
	for name, c := range map[string]struct {
		bend    string
		differs string
	}{
		"info/attributes":       {"mkdir -p .git/info; echo '* eol=crlf' > .git/info/attributes; rm *.txt; git checkout -q .", "eol f.txt"},
		"ident of its own":      {"mkdir -p .git/info; echo '* ident' > .git/info/attributes; rm *.txt; git checkout -q .", "changed f.txt"},
		"autocrlf":              {"git config core.autocrlf true; rm *.txt; git checkout -q .", "eol f.txt"},
		"a filter":              {"git config filter.x.smudge 'sed s/one/evil/'; echo '* filter=x' > .git/info/attributes; rm *.txt; git checkout -q .", "changed f.txt"},
		"as the blob has it":    {"printf 'one\\n' > g.txt", ""},
		"asked for and evil":    {"printf 'evil\\r\\n' > g.txt", "changed g.txt"},
		"mode of a converted":   {"chmod +x g.txt", "mode g.txt"},
		"attributes in the way": {"echo 'f.txt eol=crlf' >> .gitattributes; printf 'one\\r\\n$Id$\\r\\n' > f.txt", "changed .gitattributes"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkspace(t)
			project := w.host(projectDir)
			getSources(t, project, from, commit, "sha1")
			sh(t, project, "mkdir -p .git/info; "+c.bend)
			got, err := w.VerifySource(t.Context(), projectDir, commit, "sha1", "")
			if err != nil || (got.Outcome == "match") != (c.differs == "") || c.differs != "" && (len(got.Differs) == 0 || got.Differs[0] != c.differs) {
				t.Errorf("source %+v, %v; want %q", got, err, c.differs)
			}
		})
	}
}

func TestAttrPattern(t *testing.T) {
	for pattern, c := range map[string]struct{ yes, no []string }{
		"*.c":     {[]string{"x.c", "a/b/x.c"}, []string{"x.cc", "x.c/y"}},
		"/x":      {[]string{"x"}, []string{"a/x"}},
		"a/*.c":   {[]string{"a/x.c"}, []string{"a/b/x.c", "b/a/x.c"}},
		"**/x":    {[]string{"x", "a/x", "a/b/x"}, []string{"ax"}},
		"a/**":    {[]string{"a/x", "a/b/x"}, []string{"a", "b/a/x"}},
		"a/**/x":  {[]string{"a/x", "a/b/c/x"}, []string{"a/bx"}},
		"[!a-c]x": {[]string{"dx"}, []string{"ax", "x"}},
		"?.[ch]":  {[]string{"a.c"}, []string{"a.d"}},
		`\*.+`:    {[]string{"*.+"}, []string{"a.+"}},
		"a/":      {nil, []string{"a", "a/b"}},
	} {
		re, base, matches, err := attrPattern(pattern)
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
			continue
		}
		hit := func(rel string) bool {
			out := map[string]string{}
			if matches {
				attrRule{re, len(pattern), base, []attrSet{{"x", "true"}}}.apply(rel, out)
			}
			return out["x"] == "true"
		}
		for _, rel := range c.yes {
			if !hit(rel) {
				t.Errorf("%s does not match %s", pattern, rel)
			}
		}
		for _, rel := range c.no {
			if hit(rel) {
				t.Errorf("%s matches %s", pattern, rel)
			}
		}
	}
	for _, p := range []string{"[[:alpha:]]", "[]a]", "a\\", "\xff"} {
		if _, _, _, err := attrPattern(p); err == nil {
			t.Errorf("%q is taken", p)
		}
	}
}

// A few lines of macros that stand for macros must not become gigabytes.
func TestMacrosAreNoBomb(t *testing.T) {
	macros := "[attr]m0 ident\n"
	for i := range 8 {
		macros += fmt.Sprintf("[attr]m%d%s\n", i+1, strings.Repeat(fmt.Sprintf(" m%d", i), 512))
	}
	left := allAttributes
	if rules, err := parseAttributes(macros+"* m8\n", true, map[string][]attrSet{}, &left); err == nil {
		t.Errorf("%d rules", len(rules))
	}
	left = allAttributes
	if rules, err := parseAttributes(strings.Repeat("x\n", maxAttributes/2), true, nil, &left); err != nil || len(rules) != 0 {
		t.Errorf("%d rules that say nothing, %v", len(rules), err)
	}
}

// One small blob can be the attributes of many directories, and what is kept of
// each counts.
func TestAttributesAreBoundedTogether(t *testing.T) {
	from := publicDir(t)
	run(t, from, "git", "init", "-q", ".")
	const text = "* eol=crlf\n"
	for i := range 3 {
		mustWrite(t, fmt.Sprintf("%s/%d/.gitattributes", from, i), text)
	}
	run(t, from, "git", "add", ".")
	run(t, from, "git", "commit", "-q", "-m", "x")
	dir, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	alg := mustAlgorithm(t, "sha1")
	tree, err := alg.parseID(run(t, from, "git", "rev-parse", "HEAD^{tree}"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		left attrLimits
		good int
	}{
		"text": {attrLimits{2 * len(text), 100, 1 << 20}, 2},
		"sets": {attrLimits{1 << 10, 2, 1 << 20}, 2},
		"work": {attrLimits{1 << 10, 100, 2 * int64(len("*")*len("f"))}, 2},
		"none": {allAttributes, 3},
	} {
		store := newObjectStore(alg)
		defer store.close()
		if err := store.add(int(dir.Fd()), ".git/objects"); err != nil {
			t.Fatal(err)
		}
		all := comparison{store: store, super: &repository{tree: tree}, attrs: c.left, trees: maxTrees}
		good := 0
		for i := range 3 {
			if got, err := all.attributesOf(t.Context(), fmt.Sprintf("%d/f", i)); err == nil && got["eol"] == "crlf" {
				good++
			}
		}
		if good != c.good {
			t.Errorf("%s: %d directories were read, want %d", name, good, c.good)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add("[attr]dos text eol=crlf\n*.bat dos\n", "a/b.bat", []byte("one\n"))
	f.Add("*.txt ident working-tree-encoding=UTF-16\n", "x.txt", []byte("$Id$ $Id: a $"))
	f.Fuzz(func(t *testing.T, text, rel string, blob []byte) {
		macros := map[string][]attrSet{}
		left := allAttributes
		rules, err := parseAttributes(text, true, macros, &left)
		if err != nil {
			return
		}
		attrs := map[string]string{}
		for _, r := range rules {
			r.apply(rel, attrs)
		}
		for _, out := range convert(attrs, blob, objectID(strings.Repeat("\x11", 20))) {
			if len(out) > 2*(len(blob)+4)+48*len(blob) {
				t.Errorf("%d bytes became %d", len(blob), len(out))
			}
		}
		if len(attrs) == 0 {
			if diff := cmp.Diff([][]byte(nil), convert(attrs, blob, "")); diff != "" {
				t.Error(fmt.Sprint("converted without being asked: ", diff))
			}
		}
	})
}
