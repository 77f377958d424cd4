package attest

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"hallmark.build/sandbox/record"
)

// folded are exchanges that byproducts stand for.
type folded struct {
	git   []fetch // the commits of source and submodules stand for them
	other []fetch // no byte of a body crossed: HEAD, not modified, no answer
}

// sortFetches says which exchanges are dependencies.
func sortFetches(s *story) (listed []fetch, rest folded) {
	known := commits(s)
	for _, f := range s.fetches {
		switch {
		case !f.brought():
			rest.other = append(rest.other, f)
		case f.brings(): // the cache is listed
		case f.Stage == "get_sources" && f.only(known[f.repository()]):
			rest.git = append(rest.git, f)
		default:
			listed = append(listed, f)
		}
	}
	return listed, rest
}

// commits are those that the statement lists, by the repository that it lists
// them of. None where the work tree is not the commit's.
func commits(s *story) map[string]map[string]bool {
	out := map[string]map[string]bool{}
	if !s.matched() {
		return out
	}
	add := func(repository, commit string) {
		if out[repository] == nil {
			out[repository] = map[string]bool{}
		}
		out[repository][commit] = true
	}
	add(repositoryKey(s.opened.Job.SourceURI), s.source.Commit)
	for _, m := range submodules(s) {
		add(repositoryKey(m.repository), m.Commit)
	}
	delete(out, "")
	return out
}

func (s *story) matched() bool { return s.source != nil && s.source.Outcome == sourceMatch }

// only reports whether git was asked for no object but the commits. A pack with
// others is an input of its own: the job can read them in .git. A request that
// could not be read may have asked for anything. A repository of which no commit
// is listed has none.
func (f fetch) only(commits map[string]bool) bool {
	if commits == nil || f.repository() == "" {
		return false
	}
	if strings.HasSuffix(f.url.Path, "/info/refs") {
		return true
	}
	return f.Git != nil && !slices.ContainsFunc(f.Git.Wants, func(id string) bool { return !commits[id] })
}

// address is the repository that the exchange spoke git's fetch protocol with,
// as it was written; empty where it spoke another.
func (f fetch) address() string {
	at := *f.url
	at.RawQuery, at.RawPath = "", ""
	for suffix, query := range map[string]string{"/info/refs": "service=git-upload-pack", "/git-upload-pack": ""} {
		if rest, ok := strings.CutSuffix(f.url.Path, suffix); ok && f.url.RawQuery == query {
			at.Path = rest
			return at.String()
		}
	}
	return ""
}

// repository is the exchange's repository in the form in which they are compared.
func (f fetch) repository() string { return repositoryKey(f.address()) }

// repositoryKey is one form for a repository's URL, with and without ".git".
func repositoryKey(repository string) string {
	u, err := url.Parse(repository)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + hostPort(u) + strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), ".git")
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return strings.ToLower(u.Hostname()) + ":" + port
}

// sourceResources names the source only if it was found in the workspace. A
// workspace that differs is named by its own tree, without the repository's
// URL: who looks for the source must not find it.
func sourceResources(s *story) []resource {
	if s.source == nil {
		return nil
	}
	switch {
	case s.matched():
		return []resource{{
			Name:   "source",
			URI:    "git+" + s.opened.External.Source + "@" + s.opened.External.Ref,
			Digest: map[string]string{"gitCommit": s.source.Commit, "gitTree": s.source.Tree},
		}}
	case s.source.Found != "":
		return []resource{{
			Name:        "workspace",
			Digest:      map[string]string{"gitTree": s.source.Found},
			Annotations: map[string]any{"source": s.source.Outcome},
		}}
	}
	return nil
}

// A submodule is one whose files were found equal to its commit's.
type submodule struct {
	record.Submodule
	repository string // where it came from; empty where nobody can say
	origin     string // how that is known
}

// How a submodule's origin is known.
const (
	originServed  = "served"  // the repository answered a request for the commit with a pack
	originNamed   = "named"   // .gitmodules names the repository, and it answered some request with a pack
	originUnknown = "unknown" // neither
)

// submodules says of each where it came from, as far as the border saw. A name
// in .gitmodules alone is no origin: git can be told to look elsewhere.
func submodules(s *story) []submodule {
	if !s.matched() {
		return nil
	}
	addresses := map[string]string{}      // by key
	packs := map[string]map[string]bool{} // by key: what was asked for and came
	for _, f := range s.fetches {
		if f.Stage != "get_sources" || f.Git == nil || !f.Git.Pack || !f.answered() || f.Incomplete != "" || f.repository() == "" {
			continue
		}
		key := f.repository()
		if packs[key] == nil {
			addresses[key], packs[key] = f.address(), map[string]bool{}
		}
		for _, id := range f.Git.Wants {
			packs[key][id] = true
		}
	}
	out := make([]submodule, 0, len(s.source.Submodules))
	for _, m := range s.source.Submodules {
		key, how := origin(m, packs)
		out = append(out, submodule{m, addresses[key], how})
	}
	return out
}

func origin(m record.Submodule, packs map[string]map[string]bool) (key, how string) {
	named := repositoryKey(m.URL)
	if packs[named][m.Commit] {
		return named, originServed
	}
	for _, key := range slices.Sorted(maps.Keys(packs)) {
		if packs[key][m.Commit] {
			return key, originServed
		}
	}
	if packs[named] != nil {
		return named, originNamed
	}
	return "", originUnknown
}

func submoduleResources(all []submodule) []resource {
	var out []resource
	for _, m := range all {
		r := resource{
			Name:        "submodule/" + m.Path,
			Digest:      map[string]string{"gitCommit": m.Commit, "gitTree": m.Tree},
			Annotations: map[string]any{"kind": "submodule", "path": m.Path, "origin": m.origin},
		}
		if m.repository != "" {
			r.URI = "git+" + m.repository + "@" + m.Commit
		}
		if m.URL != "" && repositoryKey(m.URL) != repositoryKey(m.repository) {
			r.Annotations["named"] = m.URL
		}
		out = append(out, r)
	}
	return out
}
