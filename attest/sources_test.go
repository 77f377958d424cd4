package attest_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

// withSubmodules is the sample job with submodules, and what git fetched besides.
func withSubmodules(modules []record.Submodule, fetches ...record.Fetch) []attesttest.Event {
	job := attesttest.Job()
	for _, f := range fetches {
		job = insert(job, attesttest.Event{Kind: record.Fetched, Data: f}, ends("get_sources"))
	}
	for i := range job {
		if s, ok := job[i].Data.(record.Source); ok {
			s.Submodules = modules
			job[i].Data = s
		}
	}
	return job
}

// packOf is an answer that carries a pack.
func packOf(repository string, wants ...string) record.Fetch {
	f := attesttest.GitFetch(repository, wants...)
	f.Git.Pack = true
	return f
}

func TestSubmodules(t *testing.T) {
	const lib, fork = "https://gitlab.example.com/libs/one.git", "https://git.example.org/fork/one"
	commit, tree, tip := strings.Repeat("c", 40), strings.Repeat("d", 40), strings.Repeat("e", 40)
	module := record.Submodule{Path: "third party/one", Commit: commit, Tree: tree, URL: strings.TrimSuffix(lib, ".git")}
	refs := func(repository string) record.Fetch {
		return attesttest.Fetch("get_sources", "GET", repository+"/info/refs?service=git-upload-pack", repository)
	}
	elsewhere := module
	elsewhere.URL = ""
	for name, c := range map[string]struct {
		module  record.Submodule
		fetches []record.Fetch
		uri     string
		notes   map[string]any
		listed  []string // what was fetched and is no commit of the statement's
	}{
		"asked for by its commit": {module, []record.Fetch{refs(lib), packOf(lib, commit)}, "git+" + lib + "@" + commit, map[string]any{"origin": "served"}, nil},
		"among other objects":     {module, []record.Fetch{refs(lib), packOf(lib, commit, tip)}, "git+" + lib + "@" + commit, map[string]any{"origin": "served"}, []string{lib}},
		"a branch that has it":    {module, []record.Fetch{refs(lib), packOf(lib, tip)}, "git+" + lib + "@" + commit, map[string]any{"origin": "named"}, []string{lib}},
		"from another repository": {module, []record.Fetch{refs(fork), packOf(fork, commit)}, "git+" + fork + "@" + commit, map[string]any{"origin": "served", "named": module.URL}, nil},
		"one that has it not":     {module, []record.Fetch{attesttest.GitFetch(lib, commit), packOf(fork, commit)}, "git+" + fork + "@" + commit, map[string]any{"origin": "served", "named": module.URL}, []string{lib}},
		"nowhere asked for":       {module, nil, "", map[string]any{"origin": "unknown", "named": module.URL}, nil},
		"a branch of a fork":      {module, []record.Fetch{packOf(fork, tip)}, "", map[string]any{"origin": "unknown", "named": module.URL}, []string{fork}},
		"no URL":                  {elsewhere, []record.Fetch{packOf(fork, commit)}, "git+" + fork + "@" + commit, map[string]any{"origin": "served"}, nil},
		"of the job's repository": {elsewhere, []record.Fetch{packOf("https://gitlab.example.com/group/project.git", commit)}, "git+https://gitlab.example.com/group/project.git@" + commit, map[string]any{"origin": "served"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			st := one(t, withSubmodules([]record.Submodule{c.module}, c.fetches...))
			deps := dependencies(t, st)
			i := slices.IndexFunc(deps, func(d map[string]any) bool { return d["name"] == "submodule/third party/one" })
			if i < 0 {
				t.Fatalf("not among %v", deps)
			}
			want := map[string]any{
				"name": "submodule/third party/one", "digest": map[string]any{"gitCommit": commit, "gitTree": tree},
				"annotations": map[string]any{"kind": "submodule", "path": "third party/one"},
			}
			for k, v := range c.notes {
				want["annotations"].(map[string]any)[k] = v
			}
			if c.uri != "" {
				want["uri"] = c.uri
			}
			if diff := cmp.Diff(want, deps[i]); diff != "" {
				t.Error(diff)
			}
			var listed []string
			for _, d := range deps {
				if uri := fmt.Sprint(d["uri"]); strings.HasSuffix(uri, "/git-upload-pack") {
					listed = append(listed, strings.TrimSuffix(uri, "/git-upload-pack"))
				}
			}
			if diff := cmp.Diff(c.listed, listed); diff != "" {
				t.Errorf("fetched: %s", diff)
			}
		})
	}
}

// Of a work tree that is not the commit's no submodule is listed, and every
// exchange is.
func TestSubmodulesOfAMismatch(t *testing.T) {
	const lib = "https://gitlab.example.com/libs/one.git"
	commit := strings.Repeat("c", 40)
	job := withSubmodules([]record.Submodule{{Path: "one", Commit: commit, Tree: strings.Repeat("d", 40), URL: lib}}, packOf(lib, commit))
	for i := range job {
		if s, ok := job[i].Data.(record.Source); ok {
			s.Outcome, s.Differs, s.Found = "mismatch", []string{"changed one/f"}, strings.Repeat("9", 40)
			job[i].Data = s
		}
	}
	found := false
	for _, d := range dependencies(t, one(t, job)) {
		if strings.HasPrefix(fmt.Sprint(d["uri"]), "git+") {
			t.Errorf("%v is a dependency", d)
		}
		found = found || d["uri"] == lib+"/git-upload-pack"
	}
	if !found {
		t.Error("the exchange is no dependency")
	}
}

func TestSubmodulesThatCannotBe(t *testing.T) {
	good := record.Submodule{Path: "one", Commit: strings.Repeat("c", 40), Tree: strings.Repeat("d", 40), URL: "https://gitlab.example.com/libs/one.git"}
	for name, c := range map[string]struct {
		modules []record.Submodule
		want    attest.Reason
	}{
		"no path":         {[]record.Submodule{{Commit: good.Commit, Tree: good.Tree}}, attest.Malformed},
		"twice":           {[]record.Submodule{good, good}, attest.Malformed},
		"another format":  {[]record.Submodule{{Path: "one", Commit: strings.Repeat("c", 64), Tree: good.Tree}}, attest.Malformed},
		"no tree":         {[]record.Submodule{{Path: "one", Commit: good.Commit}}, attest.Malformed},
		"no web address":  {[]record.Submodule{{Path: "one", Commit: good.Commit, Tree: good.Tree, URL: "file:///srv"}}, attest.Malformed},
		"with a password": {[]record.Submodule{{Path: "one", Commit: good.Commit, Tree: good.Tree, URL: "https://u:p@git.example.org/x"}}, attest.CredentialsInAddress},
	} {
		t.Run(name, func(t *testing.T) {
			events := withSubmodules(c.modules)
			if _, err := attest.Statements(entries(t, events), factsOf(events)); reason(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
