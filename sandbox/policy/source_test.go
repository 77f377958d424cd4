package policy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
)

func TestDecideSubmodules(t *testing.T) {
	const gl = "https://gitlab.example.com"
	oid := strings.Repeat("0a", 32)
	submodule, lfs, listed := Decision{Allow: true, Rule: RuleSubmodule}, Decision{Allow: true, Rule: RuleLFS}, Decision{Allow: true, Rule: "libs"}
	object := Decision{Allow: true, Rule: RuleLFS, Follow: true}
	inside := Rule{Name: "libs", Host: "gitlab.example.com", Paths: []string{"/libs"}}
	outside := Rule{Name: "libs", Host: "*.example.org", Paths: []string{"/acme"}, Methods: []string{"DELETE"}}
	for name, c := range map[string]struct {
		git  Git
		line string
		want Decision
	}{
		"another project":             {Git{SameGitLab: true}, "GET " + gl + "/libs/one.git/info/refs?service=git-upload-pack", submodule},
		"its objects":                 {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/git-upload-pack", submodule},
		"in a subgroup":               {Git{SameGitLab: true}, "POST " + gl + "/libs/deep/er/one.wiki.git/git-upload-pack", submodule},
		"without .git":                {Git{SameGitLab: true}, "GET " + gl + "/libs/one/info/refs?service=git-upload-pack", submodule},
		"its LFS objects":             {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/info/lfs/objects/batch", lfs},
		"one of them":                 {Git{SameGitLab: true}, "GET " + gl + "/libs/one.git/gitlab-lfs/objects/" + oid, object},
		"its own, of all":             {Git{SameGitLab: true}, "POST " + gl + "/group/project.git/git-upload-pack", Decision{Allow: true, Rule: RuleSource}},
		"a listed project":            {Git{Allow: []Rule{inside}}, "POST " + gl + "/libs/one.git/git-upload-pack", listed},
		"a listed server":             {Git{Allow: []Rule{outside}}, "POST https://git.example.org/acme/one/git-upload-pack", listed},
		"a listed server's refs":      {Git{Allow: []Rule{outside}}, "GET https://git.example.org/acme/one/info/refs?service=git-upload-pack", listed},
		"a listed server's LFS":       {Git{Allow: []Rule{outside}}, "POST https://git.example.org/acme/one.git/info/lfs/objects/batch", listed},
		"a listed server's object":    {Git{Allow: []Rule{outside}}, "GET https://git.example.org/acme/one.git/info/lfs/objects/" + oid, Decision{Allow: true, Rule: "libs", Follow: true}},
		"off":                         {Git{}, "POST " + gl + "/libs/one.git/git-upload-pack", Decision{}},
		"an unlisted project":         {Git{Allow: []Rule{inside}}, "POST " + gl + "/libsx/one.git/git-upload-pack", Decision{}},
		"an unlisted server":          {Git{SameGitLab: true}, "POST https://git.example.org/acme/one.git/git-upload-pack", Decision{}},
		"an unlisted path":            {Git{Allow: []Rule{outside}}, "POST https://git.example.org/other/one.git/git-upload-pack", Decision{}},
		"an unlisted port":            {Git{Allow: []Rule{outside}}, "POST https://git.example.org:8443/acme/one.git/git-upload-pack", Decision{}},
		"push":                        {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/git-receive-pack", Decision{}},
		"before a push":               {Git{SameGitLab: true}, "GET " + gl + "/libs/one.git/info/refs?service=git-receive-pack", Decision{}},
		"push elsewhere":              {Git{Allow: []Rule{outside}}, "POST https://git.example.org/acme/one.git/git-receive-pack", Decision{}},
		"a page elsewhere":            {Git{Allow: []Rule{outside}}, "GET https://git.example.org/acme/one/archive.zip", Decision{}},
		"the rule's method":           {Git{Allow: []Rule{outside}}, "DELETE https://git.example.org/acme/one", Decision{}},
		"dumb protocol":               {Git{SameGitLab: true}, "GET " + gl + "/libs/one.git/HEAD", Decision{}},
		"LFS locks":                   {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/info/lfs/locks/verify", Decision{}},
		"upload of an LFS object":     {Git{SameGitLab: true}, "PUT " + gl + "/libs/one.git/gitlab-lfs/objects/" + oid, Decision{}},
		"objects without .git":        {Git{SameGitLab: true}, "POST " + gl + "/libs/one/git-upload-pack", Decision{}},
		"an endpoint of the API":      {Git{SameGitLab: true}, "POST " + gl + "/api/v4/projects/7/repository/files/x.git/git-upload-pack", Decision{}},
		"a page":                      {Git{SameGitLab: true}, "GET " + gl + "/libs/one/-/raw/main/x.git/info/refs?service=git-upload-pack", Decision{}},
		"a repository in another":     {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/two.git/git-upload-pack", Decision{}},
		"a group":                     {Git{SameGitLab: true}, "POST " + gl + "/libs.git/git-upload-pack", Decision{}},
		"no name":                     {Git{SameGitLab: true}, "POST " + gl + "/libs/.git/git-upload-pack", Decision{}},
		"an encoded slash":            {Git{SameGitLab: true}, "POST " + gl + "/libs%2fone.git/git-upload-pack", Decision{}},
		"private address, listed":     {Git{Allow: []Rule{{Name: "x", Host: "10.0.0.9"}}}, "POST https://10.0.0.9/acme/one.git/git-upload-pack", Decision{}},
		"another query":               {Git{SameGitLab: true}, "POST " + gl + "/libs/one.git/git-upload-pack?private_token=x", Decision{}},
		"GitLab's name, other port":   {Git{SameGitLab: true}, "POST https://gitlab.example.com:8443/libs/one.git/git-upload-pack", Decision{}},
		"GitLab's name, in the clear": {Git{SameGitLab: true}, "POST http://gitlab.example.com/libs/one.git/git-upload-pack", Decision{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := firewalled(t)
			p.Profile, p.Git = sandbox.Hermetic, c.git
			got := p.Decide(request(t, sandbox.GetSources, c.line))
			if !c.want.Allow {
				if got.Allow || got.Reason == "" || got.Remedy == "" && got.Rule == RuleStage {
					t.Errorf("%+v", got)
				}
				return
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			for _, stage := range []sandbox.Stage{sandbox.PrepareScript, sandbox.RestoreCache, sandbox.BuildScript} {
				if d := p.Decide(request(t, stage, c.line)); d.Allow {
					t.Errorf("%s: %+v", stage, d)
				}
			}
		})
	}
}

// Below a relative root, another application of the same server is no project.
func TestSubmodulesStayBelowGitLabsRoot(t *testing.T) {
	p := firewalled(t)
	p.Git.SameGitLab = true
	p.Job.GitLab = parse(t, "https://gitlab.example.com/git")
	for path, want := range map[string]bool{"/git/libs/one.git": true, "/libs/one.git": false, "/gitx/libs/one.git": false} {
		if d := p.Decide(request(t, sandbox.GetSources, "POST https://gitlab.example.com"+path+"/git-upload-pack")); d.Allow != want {
			t.Errorf("%s: %+v", path, d)
		}
	}
}

func FuzzSourcesAreReadAlone(f *testing.F) {
	f.Add("POST", "gitlab.example.com", "/libs/one.git/git-upload-pack", "")
	f.Add("GET", "git.example.org", "/acme/one/info/refs", "service=git-upload-pack")
	f.Add("GET", "gitlab.example.com", "/a/b.git/gitlab-lfs/objects/"+strings.Repeat("0a", 32), "")
	f.Fuzz(func(t *testing.T, method, host, path, query string) {
		p := firewalled(t)
		p.Git = Git{SameGitLab: true, Allow: []Rule{{Name: "libs", Host: "git.example.org", Paths: []string{"/acme"}}}}
		d := p.Decide(Request{Role: sandbox.Helper, Stage: sandbox.GetSources, Scheme: "https", Method: method, Host: host, Port: 443, Path: path, RawQuery: query})
		if !d.Allow {
			return
		}
		clean := lenient(path)
		reads := method == "GET" && query == "service=git-upload-pack" && strings.HasSuffix(clean, "/info/refs") ||
			query == "" && method == "POST" && (strings.HasSuffix(clean, ".git/git-upload-pack") || strings.HasSuffix(clean, "/info/lfs/objects/batch") || d.Rule == "libs" && strings.HasSuffix(clean, "/git-upload-pack")) ||
			query == "" && method == "GET" && strings.Contains(clean, "/objects/")
		if !reads || d.Upload || strings.HasPrefix(clean, "/api/") && d.Rule != "libs" || strings.Contains(clean, "/-/") && d.Rule != "libs" || d.Rule == "libs" && !strings.HasPrefix(clean, "/acme/") {
			t.Fatalf("%s %s %q?%q allowed: %+v", method, host, path, query, d)
		}
	})
}
