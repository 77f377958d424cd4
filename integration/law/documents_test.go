package law

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/document"
)

// tested are the names that blocks of documents may be marked with: there is a
// test for each.
var tested = map[string][]string{
	"session": {"admin", "root", "verify", "auditor", "cosign", // integration.TestSessionsOfTheDocuments
		"enrol", "keys", "log"}, // hallmark-attestd.TestScripts
	"config": {"sandboxd", "attestd", // config.TestDocuments
		"policy", "signers", "witnesses"}, // attest/policy.TestDocuments
}

// TestDocumentsAreTested wants everything that people are told to type or to
// write into a file to be tested, or to say why it is not.
func TestDocumentsAreTested(t *testing.T) {
	for _, d := range documents(t) {
		for _, b := range d.Blocks() {
			if b.Language != "console" && b.Language != "toml" {
				continue
			}
			reasoned := b.Mark == "not run" && len(strings.Fields(b.Name)) >= 4
			if !reasoned && !slices.Contains(tested[b.Mark], b.Name) {
				t.Errorf("%s: marked %q, which nothing tests:\n%s", d.Path, b.Mark+": "+b.Name, b.Text)
			}
		}
	}
}

// TestLinksLeadSomewhere follows the links from one document to another file of
// the repository, and to the heading that they name.
func TestLinksLeadSomewhere(t *testing.T) {
	all := documents(t)
	for _, d := range all {
		for _, link := range d.Links() {
			file, anchor, anchored := strings.Cut(link, "#")
			path := d.Path
			if file != "" {
				path = filepath.Join(filepath.Dir(d.Path), file)
			}
			i := slices.IndexFunc(all, func(d document.Document) bool { return d.Path == path })
			switch {
			case !exists(path):
				t.Errorf("%s: %s: there is no %s", d.Path, link, path)
			case anchored && (i < 0 || !all[i].HasAnchor(anchor)):
				t.Errorf("%s: %s: %s has no such heading", d.Path, link, path)
			}
		}
	}
}

// TestDocumentsAreReached wants each document of docs to be one that the README
// leads to.
func TestDocumentsAreReached(t *testing.T) {
	all := documents(t)
	readme := all[slices.IndexFunc(all, func(d document.Document) bool { return d.Path == "README.md" })]
	for _, d := range all {
		if filepath.Dir(d.Path) == "docs" && !slices.Contains(readme.Links(), d.Path) {
			t.Errorf("README.md does not lead to %s", d.Path)
		}
	}
}

func documents(t *testing.T) []document.Document {
	t.Helper()
	all, err := document.All(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("only %d documents found", len(all))
	}
	return all
}
