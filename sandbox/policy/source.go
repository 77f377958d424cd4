package policy

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Git says which repositories get_sources may read besides the job's own. All
// of it is reading: which of what was read is a submodule is not for a request
// to say, but found afterwards in the commit's own tree.
type Git struct {
	// SameGitLab opens every repository of the job's GitLab. Which of them the
	// job's token opens is GitLab's to decide.
	SameGitLab bool
	// Allow opens repositories of other servers, and single ones of the job's
	// GitLab. Methods of these rules have no effect.
	Allow []Rule
}

// RuleSubmodule lets get_sources read another repository of the job's GitLab.
const RuleSubmodule = "source-submodule"

// A gitRequest is one that git or Git LFS sends to read a repository.
type gitRequest struct {
	repository string // path in escaped form, without ".git"
	suffixed   bool   // ".git" stood there
	refs       bool   // the list of refs is asked for
	lfs        bool
	object     bool // an LFS object, which may lie in an object storage
}

// readsGit takes a request apart. Only what reads has a form here: there is
// nothing in it for git-receive-pack, for locks, for the upload of objects.
func readsGit(r Request) (gitRequest, bool) {
	var g gitRequest
	rest, what := "", ""
	for _, suffix := range []string{"/info/refs", "/git-upload-pack", "/info/lfs/objects/batch"} {
		if cut, ok := strings.CutSuffix(r.Path, suffix); ok {
			rest, what = cut, suffix
		}
	}
	switch {
	case what == "/info/refs" && r.Method == "GET" && r.RawQuery == "service=git-upload-pack":
		g.refs = true
	case what == "/git-upload-pack" && r.Method == "POST" && r.RawQuery == "":
	case what == "/info/lfs/objects/batch" && r.Method == "POST" && r.RawQuery == "":
		g.lfs = true
	case what == "" && r.Method == "GET" && r.RawQuery == "":
		m := lfsObject.FindStringSubmatch(r.Path)
		if m == nil {
			return gitRequest{}, false
		}
		rest, g.lfs, g.object = m[1], true, true
	default:
		return gitRequest{}, false
	}
	g.repository, g.suffixed = strings.CutSuffix(rest, ".git")
	return g, g.repository != "" && !strings.HasSuffix(g.repository, "/")
}

var lfsObject = regexp.MustCompile(`^(.+\.git)/(?:gitlab-lfs|info/lfs)/objects/[0-9a-f]{64}$`)

// source lets get_sources read the job's own repository and what the admin
// opens besides.
func (p Policy) source(r Request) Decision {
	g, ok := readsGit(r)
	if !ok {
		return p.refuseSource(r, "get_sources may only read git repositories")
	}
	if !p.GitLabOrigin(r.Scheme, r.Host, r.Port) {
		if d, ok := public(r.Host); !ok {
			return d
		}
		return p.listedGit(r, g)
	}
	switch {
	case p.ownRepository(g):
		return allowGit(g, RuleSource)
	case p.Git.SameGitLab && p.gitLabProject(g):
		return allowGit(g, RuleSubmodule)
	}
	return p.listedGit(r, g)
}

func allowGit(g gitRequest, rule string) Decision {
	if g.lfs {
		return Decision{Allow: true, Rule: RuleLFS, Follow: g.object}
	}
	return Decision{Allow: true, Rule: rule}
}

// ownRepository reports whether it is the one that the payload names.
func (p Policy) ownRepository(g gitRequest) bool {
	repo, err := originOf(p.Job.Repository)
	return err == nil && g.suffixed && p.GitLabOrigin(repo.scheme, repo.host, repo.port) &&
		rooted(p.Job.Repository) == g.repository+".git"
}

// gitLabProject reports whether the path is a project's on GitLab, in the one
// form that GitLab itself writes. Without ".git" GitLab answers the list of refs
// with a redirect to the form that has it; nothing is sent there.
func (p Policy) gitLabProject(g gitRequest) bool {
	root := strings.TrimSuffix(rooted(p.Job.GitLab), "/")
	path, ok := strings.CutPrefix(g.repository, root+"/")
	if !ok || !g.suffixed && !g.refs {
		return false
	}
	parts := strings.Split(path, "/")
	return len(parts) > 1 && parts[0] != "api" && !slices.ContainsFunc(parts, func(s string) bool {
		return !projectPath.MatchString(s) || strings.HasSuffix(s, ".git")
	})
}

// projectPath is one part of a project's path; "-" begins GitLab's own pages.
var projectPath = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.-]*$`)

// listedGit looks in the admin's rules for git.
func (p Policy) listedGit(r Request, g gitRequest) Decision {
	for _, rule := range p.Git.Allow {
		if rule.Validate() == nil && rule.names(r.Host) && slices.Contains(rule.ports(), r.Port) && rule.covers(r.Path) {
			return Decision{Allow: true, Rule: rule.Name, Follow: g.object}
		}
	}
	return p.refuseSource(r, "no rule lets get_sources read this repository")
}

func (p Policy) refuseSource(r Request, reason string) Decision {
	d := Decision{Rule: RuleStage, Reason: reason,
		Remedy: "submodules of other servers need a [[git.allow]] rule of the runner's admin; nothing but reading by git and Git LFS over HTTP is ever allowed"}
	if p.GitLabOrigin(r.Scheme, r.Host, r.Port) && !p.Git.SameGitLab {
		d.Remedy = `submodules of this GitLab need git.submodules = "same-gitlab" or a [[git.allow]] rule of the runner's admin`
	}
	return d
}

// rooted is a URL's escaped path with its first slash, which url.URL lets be
// implied.
func rooted(u *url.URL) string { return "/" + strings.TrimPrefix(u.EscapedPath(), "/") }

// canonical is the form of the settings that is hashed.
func (g Git) canonical() any {
	allow := []canonicalRule{}
	for _, r := range g.Allow {
		r.Methods = nil
		allow = append(allow, r.canonical())
	}
	return struct {
		SameGitLab bool            `json:"same_gitlab"`
		Allow      []canonicalRule `json:"allow"`
	}{g.SameGitLab, allow}
}
