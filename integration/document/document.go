// Package document reads what the project tells people: which commands to type,
// which settings to write, which links to follow.
package document

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A Document is one file of Markdown.
type Document struct {
	Path string // below the checkout
	Text string
}

// All are the documents of a checkout, without those that belong to test data.
func All(root string) ([]Document, error) {
	var all []Document
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		all = append(all, Document{name, string(text)})
		return err
	})
	return all, err
}

// A Block is a fenced block. The comment right above it, <!-- mark: name -->,
// says what becomes of it: "session" and "config" are tested under their name,
// "not run" gives a reason.
type Block struct {
	Document   string
	Language   string
	Mark, Name string
	Text       string
}

var (
	fence = regexp.MustCompile("(?ms)^(?:<!-- ([a-z ]+): ([^\n]+) -->\n)?```([a-z]*)\n(.*?)^```$")
	title = regexp.MustCompile(`(?m)^#+ (.*)$`)
	// link is an inline link; one that begins with a scheme leads elsewhere.
	link   = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	scheme = regexp.MustCompile(`^[a-z]+:`)
)

// Blocks are a document's, in its order.
func (d Document) Blocks() []Block {
	var blocks []Block
	for _, m := range fence.FindAllStringSubmatch(d.Text, -1) {
		blocks = append(blocks, Block{d.Path, m[3], m[1], m[2], m[4]})
	}
	return blocks
}

// Marked are the blocks of all documents with a mark, those of one name if it
// is not empty.
func Marked(root, mark, name string) ([]Block, error) {
	all, err := All(root)
	if err != nil {
		return nil, err
	}
	var blocks []Block
	for _, d := range all {
		for _, b := range d.Blocks() {
			if b.Mark == mark && (name == "" || b.Name == name) {
				blocks = append(blocks, b)
			}
		}
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("no document has a block marked %q", mark+": "+name)
	}
	return blocks, nil
}

// Links are where a document leads in this repository, relative to it.
func (d Document) Links() []string {
	var links []string
	for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(d.Text, ""), -1) {
		if !scheme.MatchString(m[1]) {
			links = append(links, m[1])
		}
	}
	return links
}

// HasAnchor tells whether a heading of the document has the anchor that forges
// make of it: small letters, digits and hyphens.
func (d Document) HasAnchor(anchor string) bool {
	return slices.ContainsFunc(title.FindAllStringSubmatch(fence.ReplaceAllString(d.Text, ""), -1), func(m []string) bool {
		return anchor == strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z':
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
	})
}

// A Step is one command of a session with the output that the document shows.
type Step struct {
	Command string
	Want    string
}

// Steps are the commands of a session. One that ends in a backslash goes on in
// the next line.
func (b Block) Steps() []Step {
	var steps []Step
	for _, s := range strings.Split("\n"+b.Text, "\n$ ")[1:] {
		s = strings.ReplaceAll(s, "\\\n", " ")
		command, want, _ := strings.Cut(s, "\n")
		steps = append(steps, Step{command, want})
	}
	return steps
}

// Explain compares what a command printed with what the document shows of it,
// and says what is different, if anything is. No output shown means any; …
// stands for any text in a line; how many blanks make a column does not matter.
func (s Step) Explain(out string) string {
	want, got := lines(s.Want), lines(out)
	if len(want) == 0 {
		return ""
	}
	for i, w := range want {
		if i >= len(got) || !shows(w, got[i]) {
			return fmt.Sprintf("$ %s\n%s\nis shown with line %d as %q", s.Command, out, i+1, w)
		}
	}
	if len(got) != len(want) {
		return fmt.Sprintf("$ %s\n%s\nhas %d lines, shown are %d", s.Command, out, len(got), len(want))
	}
	return ""
}

func lines(text string) []string {
	if text = strings.TrimSpace(text); text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func shows(want, got string) bool {
	parts := strings.Split(columns(want), "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$").MatchString(columns(got))
}

func columns(line string) string { return strings.Join(strings.Fields(line), " ") }
