package law

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// root is the checkout, from here.
const root = "../.."

// forgerySuite is the package all of whose tests SECURITY.md names.
const forgerySuite = "integration/forgery"

// listed are the first cells that each table of SECURITY.md must have, in order.
var listed = map[string][]string{
	"SLSA Build L3":                  {"B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7a", "B7b", "B7c", "B7d", "B7e"},
	"Threats of SLSA":                {"A, I", "B, C", "D", "E1", "E2", "E3", "E4, E5", "E6", "E7", "F", "G", "H"},
	"Forgery cases":                  numbers(1, 45),
	"What went wrong in other tools": nil,
}

// advisories are those of other tools that a verifier or signer must not repeat.
var advisories = []string{
	"CVE-2026-39395", "CVE-2026-22703", "CVE-2026-24122", "CVE-2022-35929", "CVE-2022-36056", "CVE-2026-49834", "CVE-2026-54787", "CVE-2024-45395",
	"CVE-2026-39984", "CVE-2025-25204", "CVE-2026-44310", "GHSA-r2xv", "CVE-2025-62375", "CVE-2021-41087", "GHSA-pmwq", "CVE-2026-49478", "CVE-2026-22772",
	"CVE-2022-29173", "CVE-2024-47534", "CVE-2026-23992", "CVE-2024-23651", "CVE-2026-33747", "GHSA-g7cv-rxg3-hmpx",
}

// reference is how SECURITY.md names a test: `package.TestName`, the package by
// as much of the end of its path as makes it the only one.
var reference = regexp.MustCompile("`([a-z][a-z0-9/-]*)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`")

func TestSecurityNamesTestsThatExist(t *testing.T) {
	tests := allTests(t)
	named := map[string]bool{}
	for _, m := range reference.FindAllStringSubmatch(securityPage(t), -1) {
		dir := only(t, tests, m[1])
		if dir != "" && !tests[dir][m[2]] {
			t.Errorf("SECURITY.md names %s.%s, which does not exist", dir, m[2])
		}
		named[dir+"."+m[2]] = true
	}
	for _, name := range slices.Sorted(maps.Keys(tests[forgerySuite])) {
		if name != "TestMain" && !named[forgerySuite+"."+name] {
			t.Errorf("SECURITY.md does not name %s of %s", name, forgerySuite)
		}
	}
}

func TestSecurityTablesAreComplete(t *testing.T) {
	page := securityPage(t)
	for title, want := range listed {
		rows := table(page, title)
		if len(rows) == 0 {
			t.Errorf("SECURITY.md: no table below %q", title)
		}
		var firsts []string
		for _, row := range rows {
			firsts = append(firsts, row[0])
			if last := row[len(row)-1]; !reference.MatchString(last) && !strings.Contains(last, "Not ") {
				t.Errorf("SECURITY.md: %s: %s: neither a test nor what is not covered: %q", title, row[0], last)
			}
		}
		if want != nil && !slices.Equal(firsts, want) {
			t.Errorf("SECURITY.md: %s: rows %v, want %v", title, firsts, want)
		}
	}
	for _, id := range advisories {
		if !strings.Contains(page, id) {
			t.Errorf("SECURITY.md does not name %s", id)
		}
	}
}

func securityPage(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// table reads the rows of the first table below a heading.
func table(page, title string) [][]string {
	_, rest, _ := strings.Cut(page, "# "+title+"\n")
	rest, _, _ = strings.Cut(rest, "\n#")
	var rows [][]string
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		rows = append(rows, cells)
	}
	return rows[min(2, len(rows)):] // without head and rule
}

// only is the one package whose path ends in name.
func only(t *testing.T, tests map[string]map[string]bool, name string) string {
	t.Helper()
	var found []string
	for dir := range tests {
		if dir == name || strings.HasSuffix(dir, "/"+name) {
			found = append(found, dir)
		}
	}
	if len(found) != 1 {
		t.Errorf("package %s is one of %v: want exactly one", name, found)
		return ""
	}
	return found[0]
}

// allTests are the tests of each package, by its path in the module.
func allTests(t *testing.T) map[string]map[string]bool {
	t.Helper()
	out := map[string]map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || isModule(path)):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		if out[dir] == nil {
			out[dir] = map[string]bool{}
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				out[dir][f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

// exists tells whether there is a file or directory of a path in the checkout.
func exists(path string) bool {
	_, err := os.Stat(filepath.Join(root, path))
	return err == nil
}

func numbers(from, to int) []string {
	var out []string
	for n := from; n <= to; n++ {
		out = append(out, strconv.Itoa(n))
	}
	return out
}
