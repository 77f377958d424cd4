package policy

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
)

func parse(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func firewalled(t testing.TB) Policy {
	return Policy{
		Profile: sandbox.Firewalled,
		Allow: []Rule{
			{Name: "proxy", Host: "proxy.example.com"},
			{Name: "org", Host: "code.example.com", Paths: []string{"/org/repo", "/pub/"}, Methods: []string{"GET", "POST"}},
			{Name: "cdn", Host: "*.cdn.example.com", Ports: []int{8443}},
			{Name: "gitlab", Host: "gitlab.example.com", Methods: []string{"GET", "POST", "PUT", "PATCH"}},
			{Name: "inside", Host: "10.1.2.3"},
			{Name: "address", Host: "93.184.216.34"},
			{Name: "local", Host: "localhost"},
			{Name: "all-methods", Host: "any.example.com", Methods: []string{"GET", "DELETE"}},
			{Name: "broken rule", Host: "broken.example.com"},
		},
		Job: Job{
			ID: 42, GitLab: parse(t, "https://gitlab.example.com"), Repository: parse(t, "https://gitlab.example.com/group/project.git"),
			Dependencies: []int64{7, 8},
		},
	}
}

// request reads "METHOD URL" into a request of a stage.
func request(t testing.TB, stage sandbox.Stage, line string) Request {
	t.Helper()
	method, raw, _ := strings.Cut(line, " ")
	scheme, rest, _ := strings.Cut(raw, "://")
	authority, target := rest, "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, target = rest[:i], rest[i:]
	}
	path, query, _ := strings.Cut(target, "?")
	r := Request{Role: stage.Role(), Stage: stage, Scheme: scheme, Method: method, Host: authority, Port: map[string]int{"https": 443, "http": 80}[scheme], Path: path, RawQuery: query}
	if host, port, ok := strings.Cut(authority, ":"); ok && !strings.Contains(port, ":") {
		r.Host = host
		r.Port = 0
		for _, d := range port {
			r.Port = r.Port*10 + int(d-'0')
		}
	}
	return r
}

func TestDecideTenant(t *testing.T) {
	tests := []struct {
		line string
		rule string // "" refused is never right
		ok   bool
	}{
		{"GET https://proxy.example.com/mod/@v/list", "proxy", true},
		{"HEAD https://proxy.example.com/", "proxy", true},
		{"GET http://proxy.example.com/debian/", "proxy", true},
		{"GET https://PROXY.example.COM./x", "proxy", true},
		{"GET https://proxy.example.com/@babel%2fcore", "proxy", true},
		{"GET http://proxy.example.com/debian/pool/libstdc%2b%2b6_1.0%7erc1.deb", "proxy", true},
		{"POST https://code.example.com/org/repo", "org", true},
		{"GET https://code.example.com/org/repo/info/refs?service=git-upload-pack", "org", true},
		{"GET https://code.example.com/pub/x", "org", true},
		{"GET https://a.b.cdn.example.com:8443/x", "cdn", true},
		{"GET https://93.184.216.34/x", "address", true},
		{"GET https://gitlab.example.com/api/v4/projects/1/packages/npm/x", "gitlab", true},
		{"GET https://gitlab.example.com/group/jobs/-/raw/x", "gitlab", true},
		{"DELETE https://any.example.com/x", "all-methods", true},

		{"GET https://evil.example.com/", RuleDefault, false},
		{"POST https://proxy.example.com/x", RuleDefault, false},
		{"PUT https://code.example.com/org/repo", RuleDefault, false},
		{"GET https://proxy.example.com:8443/", RuleDefault, false},
		{"GET https://code.example.com/", RuleDefault, false},
		{"GET https://code.example.com/org", RuleDefault, false},
		{"GET https://code.example.com/org/repository", RuleDefault, false},
		{"GET https://code.example.com/org%2frepo", RuleDefault, false},
		{"GET https://code.example.com/org/repo%2f..%2f..%2fother", RulePath, false},
		{"GET https://code.example.com/org/repo;/x", RuleDefault, false},
		{"GET https://code.example.com/pub", RuleDefault, false},
		{"GET https://cdn.example.com:8443/x", RuleDefault, false},
		{"GET https://evilcdn.example.com:8443/x", RuleDefault, false},
		{"GET https://broken.example.com/", RuleDefault, false},
		{"GET https://proxy.example.com.evil.com/", RuleDefault, false},

		{"get https://proxy.example.com/", RuleMethod, false},
		{"TRACE https://proxy.example.com/", RuleMethod, false},
		{"CONNECT https://proxy.example.com/", RuleMethod, false},
		{"GET\t https://proxy.example.com/", RuleMethod, false},
		{" https://proxy.example.com/", RuleMethod, false},
		{"GET ftp://proxy.example.com:21/", RuleScheme, false},
		{"GET http://proxy.example.com:443/", RuleScheme, false},
		{"GET https://proxy.example.com:80/", RuleScheme, false},
		{"GET https://proxy.example.com:0/", RuleHost, false},
		{"GET https://proxy.example.com:70000/", RuleHost, false},

		{"GET https://127.1/", RuleHost, false},
		{"GET https://0x7f.1/", RuleHost, false},
		{"GET https://0177.0.0.1/", RuleHost, false},
		{"GET https://2130706433/", RuleHost, false},
		{"GET https://user@proxy.example.com/", RuleHost, false},
		{"GET https://proxy_example.com/", RuleHost, false},
		{"GET https://proxy..example.com/", RuleHost, false},
		{"GET https://proxy.example.com../", RuleHost, false},
		{"GET https:///x", RuleHost, false},
		{"GET https://10.1.2.3/", RulePrivate, false}, // although a rule names it
		{"GET https://localhost/", RulePrivate, false},
		{"GET https://x.localhost/", RulePrivate, false},
		{"GET http://169.254.169.254/latest/meta-data", RulePrivate, false},
		{"GET http://[::1]/", RulePrivate, false},
		{"GET http://[::ffff:10.0.0.1]/", RulePrivate, false},
		{"GET http://[64:ff9b::a00:1]/", RulePrivate, false},
		{"GET http://[2002:a00:1::]/", RulePrivate, false},
		{"GET http://[fd00:ec2::254]/", RulePrivate, false},
		{"GET http://[fe80::1%25eth0]/", RuleHost, false},
		{"GET http://100.64.0.1/", RulePrivate, false},
		{"GET http://0.0.0.0/", RulePrivate, false},
		{"GET http://198.18.0.1/", RulePrivate, false},
		{"GET http://255.255.255.255/", RulePrivate, false},
		{"GET http://8.8.8.8/", RuleDefault, false},

		{"POST https://gitlab.example.com/api/v4/jobs/request", RuleRunnerAPI, false},
		{"PUT https://gitlab.example.com/api/v4/jobs/42", RuleRunnerAPI, false},
		{"PATCH https://gitlab.example.com/api/v4/jobs/42/trace", RuleRunnerAPI, false},
		{"POST https://gitlab.example.com/api/v4/jobs/42/artifacts", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com/api/v4/job", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com/api/v4/job.json", RuleRunnerAPI, false},
		{"POST https://gitlab.example.com/api/v4/runners/verify", RuleRunnerAPI, false},
		{"POST https://gitlab.example.com/api/v4/runners", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com/API/V4/Jobs/42", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com./api/v4/jobs/42", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com/gitlab/api/v4/jobs/42", RuleRunnerAPI, false},
		{"GET https://proxy.example.com/api/v4/jobs/42", RuleRunnerAPI, false}, // an alias
		{"GET https://proxy.example.com/api%2fv4%2fjobs%2f42", RuleRunnerAPI, false},
		{"GET https://proxy.example.com/api;x/v4;y/jobs;z", RuleRunnerAPI, false},
		{"GET https://gitlab.example.com//api/v4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api//v4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4/./jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/x/../api/v4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/x/%2e%2e/api/v4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/x/..;/api/v4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4/%6aobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4/j%6Fbs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4%2fjobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4%2Fjobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4%252fjobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api\\v4\\jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api%5cv4/jobs/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4/jobs%00/42", RulePath, false},
		{"GET https://gitlab.example.com/api/v4;/projects", RulePath, false},
		{"GET https://gitlab.example.com/api/v4/projects/a%2Fb/x", RulePath, false},
		{"GET https://gitlab.example.com/%", RulePath, false},
		{"GET https://gitlab.example.com/%zz", RulePath, false},
		{"GET https://gitlab.example.com/\x01", RulePath, false},
		{"GET https://gitlab.example.com/é", RulePath, false},
		{"GET https://proxy.example.com/x?a b", RulePath, false},
		{"GET https://proxy.example.com/x?a#b", RulePath, false},
	}
	p := firewalled(t)
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			d := p.Decide(request(t, sandbox.BuildScript, tt.line))
			if d.Allow != tt.ok || d.Rule != tt.rule {
				t.Fatalf("%+v, want allow %v by rule %s", d, tt.ok, tt.rule)
			}
			if !d.Allow && d.Reason == "" {
				t.Error("a refusal without a reason")
			}
			if d.Upload || d.Follow {
				t.Errorf("a tenant's request got a helper's grant: %+v", d)
			}
		})
	}
}

func TestDecideHermetic(t *testing.T) {
	p := firewalled(t)
	p.Profile = sandbox.Hermetic
	for _, line := range []string{
		"GET https://proxy.example.com/", "GET https://gitlab.example.com/group/project.git/info/refs?service=git-upload-pack",
		"POST https://gitlab.example.com/api/v4/jobs/42/artifacts", "GET http://127.0.0.1/",
	} {
		for _, stage := range []sandbox.Stage{sandbox.BuildScript, sandbox.AfterScript, "step_release", sandbox.Services} {
			if d := p.Decide(request(t, stage, line)); d.Allow || d.Rule != RuleHermetic || d.Remedy == "" {
				t.Errorf("%s %s: %+v", stage, line, d)
			}
		}
	}
}

func TestDecideHelper(t *testing.T) {
	const gl = "https://gitlab.example.com"
	oid := strings.Repeat("0a", 32)
	tests := []struct {
		stage sandbox.Stage
		line  string
		want  Decision
	}{
		{sandbox.GetSources, "GET " + gl + "/group/project.git/info/refs?service=git-upload-pack", Decision{Allow: true, Rule: RuleSource}},
		{sandbox.GetSources, "POST " + gl + "/group/project.git/git-upload-pack", Decision{Allow: true, Rule: RuleSource}},
		{sandbox.GetSources, "POST " + gl + "/group/project.git/info/lfs/objects/batch", Decision{Allow: true, Rule: RuleLFS}},
		{sandbox.GetSources, "GET " + gl + "/group/project.git/gitlab-lfs/objects/" + oid, Decision{Allow: true, Rule: RuleLFS, Follow: true}},
		{sandbox.DownloadArtifacts, "GET " + gl + "/api/v4/jobs/7/artifacts", Decision{Allow: true, Rule: RuleDownload, Follow: true, Artifacts: 7}},
		{sandbox.DownloadArtifacts, "GET " + gl + "/api/v4/jobs/8/artifacts?direct_download=true", Decision{Allow: true, Rule: RuleDownload, Follow: true, Artifacts: 8}},
		{sandbox.UploadSuccess, "POST " + gl + "/api/v4/jobs/42/artifacts?artifact_format=zip&artifact_type=archive&expire_in=1+week", Decision{Allow: true, Rule: RuleUpload, Upload: true}},
		{sandbox.UploadFailure, "POST " + gl + "/api/v4/jobs/42/artifacts", Decision{Allow: true, Rule: RuleUpload, Upload: true}},
	}
	for _, profile := range []sandbox.Profile{sandbox.Hermetic, sandbox.Firewalled} {
		p := firewalled(t)
		p.Profile = profile
		for _, tt := range tests {
			if diff := cmp.Diff(tt.want, p.Decide(request(t, tt.stage, tt.line))); diff != "" {
				t.Errorf("%s %s: %s", tt.stage, tt.line, diff)
			}
		}
	}

	refused := map[sandbox.Stage][]string{
		sandbox.GetSources: {
			"GET " + gl + "/group/project.git/info/refs",
			"GET " + gl + "/group/project.git/info/refs?service=git-receive-pack",
			"GET " + gl + "/group/project.git/info/refs?service=git-upload-pack&x=1",
			"POST " + gl + "/group/project.git/git-receive-pack",
			"POST " + gl + "/group/project.git/git-upload-pack?x",
			"PUT " + gl + "/group/project.git/git-upload-pack",
			"GET " + gl + "/group/project.git/HEAD",
			"GET " + gl + "/group/project.git/objects/info/packs",
			"GET " + gl + "/group/project/info/refs?service=git-upload-pack",
			"GET " + gl + "/group/other.git/info/refs?service=git-upload-pack",
			"GET " + gl + "/group/Project.git/info/refs?service=git-upload-pack",
			"GET " + gl + "/group/project.git/../other.git/info/refs?service=git-upload-pack",
			"GET " + gl + "/group/project.git%2finfo/refs?service=git-upload-pack",
			"PUT " + gl + "/group/project.git/gitlab-lfs/objects/" + oid,
			"GET " + gl + "/group/project.git/gitlab-lfs/objects/" + oid[1:],
			"GET " + gl + "/group/project.git/gitlab-lfs/objects/" + oid + "/authorize",
			"POST " + gl + "/group/project.git/info/lfs/locks/verify",
			"GET http://gitlab.example.com/group/project.git/info/refs?service=git-upload-pack",
			"GET https://gitlab.example.com:8443/group/project.git/info/refs?service=git-upload-pack",
			"GET https://gitlab.example.org/group/project.git/info/refs?service=git-upload-pack",
			"GET https://proxy.example.com/x",
			"GET " + gl + "/api/v4/jobs/7/artifacts",
		},
		sandbox.DownloadArtifacts: {
			"GET " + gl + "/api/v4/jobs/9/artifacts",
			"GET " + gl + "/api/v4/jobs/42/artifacts",
			"GET " + gl + "/api/v4/jobs/07/artifacts",
			"GET " + gl + "/api/v4/jobs/+7/artifacts",
			"GET " + gl + "/api/v4/jobs/7/artifacts/",
			"GET " + gl + "/api/v4/jobs/7/artifacts/x",
			"GET " + gl + "/api/v4/jobs/7/artifacts?direct_download=true&token=x",
			"GET " + gl + "/api/v4/jobs/7/artifacts?token=x",
			"HEAD " + gl + "/api/v4/jobs/7/artifacts",
			"POST " + gl + "/api/v4/jobs/7/artifacts",
			"GET " + gl + "/API/v4/jobs/7/artifacts",
			"GET " + gl + "/api/v4/jobs/7",
			"GET " + gl + "/group/project.git/info/refs?service=git-upload-pack",
		},
		sandbox.UploadSuccess: {
			"POST " + gl + "/api/v4/jobs/7/artifacts",
			"POST " + gl + "/api/v4/jobs/42/artifacts/authorize",
			"POST " + gl + "/api/v4/jobs/42/artifacts?file.path=/etc/passwd",
			"POST " + gl + "/api/v4/jobs/42/artifacts?artifact_type=archive&artifact_type=trace",
			"POST " + gl + "/api/v4/jobs/42/artifacts?artifact_format=exe",
			"POST " + gl + "/api/v4/jobs/42/artifacts?artifact_type=../x",
			"POST " + gl + "/api/v4/jobs/42/artifacts?token=x",
			"POST " + gl + "/api/v4/jobs/42/artifacts?a;b",
			"GET " + gl + "/api/v4/jobs/42/artifacts",
			"PUT " + gl + "/api/v4/jobs/42",
			"PATCH " + gl + "/api/v4/jobs/42/trace",
		},
		sandbox.PrepareScript: {"GET " + gl + "/group/project.git/info/refs?service=git-upload-pack", "GET https://proxy.example.com/x"},
		sandbox.RestoreCache:  {"GET " + gl + "/x", "GET https://proxy.example.com/x"},
		sandbox.ArchiveCache:  {"PUT https://proxy.example.com/x", "POST " + gl + "/api/v4/jobs/42/artifacts"},
		sandbox.CleanupFiles:  {"GET " + gl + "/x"},
		sandbox.ClearWorktree: {"GET " + gl + "/x"},
	}
	p := firewalled(t)
	for stage, list := range refused {
		for _, line := range list {
			if d := p.Decide(request(t, stage, line)); d.Allow || d.Upload || d.Reason == "" {
				t.Errorf("%s %s: %+v", stage, line, d)
			}
		}
	}
}

// A path without its first slash, as url.URL.JoinPath makes it, is the same path.
func TestImpliedSlash(t *testing.T) {
	p := firewalled(t)
	p.Job.Repository = p.Job.GitLab.JoinPath("group", "project.git")
	if d := p.Decide(request(t, sandbox.GetSources, "POST https://gitlab.example.com/group/project.git/git-upload-pack")); !d.Allow {
		t.Errorf("%+v", d)
	}
	p.Job.Repository = parse(t, "https://gitlab.example.com")
	for _, path := range []string{"/.git/git-upload-pack", "/git-upload-pack"} {
		if d := p.Decide(request(t, sandbox.GetSources, "POST https://gitlab.example.com"+path)); d.Allow {
			t.Errorf("a repository without a path: %+v", d)
		}
	}
}

func TestDecideStage(t *testing.T) {
	p := firewalled(t)
	line := "GET https://proxy.example.com/"
	if d := p.Decide(request(t, sandbox.BuildScript, line)); !d.Allow {
		t.Fatalf("the base case is refused: %+v", d)
	}
	for name, change := range map[string]func(*Request){
		"between stages":   func(r *Request) { r.Stage = "" },
		"services' helper": func(r *Request) { r.Stage, r.Role = sandbox.Services, sandbox.Helper },
		"unknown stage":    func(r *Request) { r.Stage = "future_stage" },
		"other container":  func(r *Request) { r.Role = sandbox.Helper },
		"no role":          func(r *Request) { r.Role = "" },
	} {
		r := request(t, sandbox.BuildScript, line)
		change(&r)
		if d := p.Decide(r); d.Allow || d.Rule != RuleStage {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestZeroRefuses(t *testing.T) {
	if (Decision{}).Allow {
		t.Error("the zero decision allows")
	}
	r := request(t, sandbox.BuildScript, "GET https://proxy.example.com/")
	if d := (Policy{}).Decide(r); d.Allow {
		t.Errorf("the zero policy allows: %+v", d)
	}
	p := firewalled(t)
	p.Profile = "firewalled "
	if d := p.Decide(r); d.Allow {
		t.Errorf("an unknown profile allows: %+v", d)
	}
	for _, stage := range []sandbox.Stage{sandbox.GetSources, sandbox.DownloadArtifacts, sandbox.UploadSuccess} {
		if d := (Policy{}).Decide(request(t, stage, "GET https://x.example.com/")); d.Allow {
			t.Errorf("the zero policy allows %s: %+v", stage, d)
		}
	}
	p = firewalled(t)
	p.Job.Repository = nil
	if d := p.Decide(request(t, sandbox.GetSources, "GET https://gitlab.example.com/.git/info/refs?service=git-upload-pack")); d.Allow {
		t.Errorf("a policy without repository allows: %+v", d)
	}
	p.Job.Repository = parse(t, "https://other.example.com/group/project.git")
	if d := p.Decide(request(t, sandbox.GetSources, "GET https://gitlab.example.com/group/project.git/info/refs?service=git-upload-pack")); d.Allow {
		t.Errorf("a repository elsewhere is allowed: %+v", d)
	}
}

func TestGitLabOrigin(t *testing.T) {
	p := firewalled(t)
	p.Job.GitLab = parse(t, "http://10.0.0.5:8080/gitlab")
	p.Job.Repository = parse(t, "http://10.0.0.5:8080/gitlab/g/p.git")
	p.Allow = append(p.Allow, Rule{Name: "gitlab-inside", Host: "10.0.0.5", Ports: []int{8080}})
	if !p.GitLabOrigin("http", "10.0.0.5", 8080) || p.GitLabOrigin("https", "10.0.0.5", 8080) || p.GitLabOrigin("http", "10.0.0.5", 80) || p.GitLabOrigin("http", "10.0.0.6", 8080) {
		t.Error("origin is not compared exactly")
	}
	allowed := []Request{
		request(t, sandbox.BuildScript, "GET http://10.0.0.5:8080/gitlab/api/v4/projects/1"),
		request(t, sandbox.GetSources, "POST http://10.0.0.5:8080/gitlab/g/p.git/git-upload-pack"),
		request(t, sandbox.DownloadArtifacts, "GET http://10.0.0.5:8080/gitlab/api/v4/jobs/7/artifacts"),
	}
	for _, r := range allowed {
		if d := p.Decide(r); !d.Allow {
			t.Errorf("%+v: %+v", r, d)
		}
	}
	for _, r := range []Request{
		request(t, sandbox.BuildScript, "GET http://10.0.0.5:8080/gitlab/api/v4/jobs/7/artifacts"),
		request(t, sandbox.DownloadArtifacts, "GET http://10.0.0.5:8080/api/v4/jobs/7/artifacts"),
	} {
		if d := p.Decide(r); d.Allow {
			t.Errorf("%+v: %+v", r, d)
		}
	}
}

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"Example.COM": "example.com", "example.com.": "example.com", "ｅxample.com": "example.com", "bücher.example": "xn--bcher-kva.example",
		"192.0.2.1": "192.0.2.1", "[2001:DB8::1]": "2001:db8::1", "2001:db8:0::1": "2001:db8::1", "::ffff:192.0.2.1": "192.0.2.1", "a-b.c": "a-b.c",
	} {
		if got, err := CanonicalHost(in); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ".", "..", "a..b", "a@b", "a:80", "a b", "a/b", "a\\b", "a%2fb", "a?b", "a#b", "[a]", "[192.0.2.1]", "[::1", "::1]", "fe80::1%eth0",
		"1", "127.1", "0x7f000001", "0x7f.1", "1.2.3.4.5", "1.2.3.256", "a.1", "-a.b", "a-.b", "a_b", "a\x00b", "a\nb", strings.Repeat("a", 64), strings.Repeat("a.", 130) + "b",
		"*.example.com", "１２７.1",
	} {
		if got, err := CanonicalHost(in); err == nil {
			t.Errorf("%q: accepted as %q", in, got)
		}
	}
}

func TestPublicAddr(t *testing.T) {
	for _, s := range []string{"8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::8.8.8.8", "2002:808:808::1", "::ffff:8.8.8.8"} {
		if ok, what := PublicAddr(netip.MustParseAddr(s)); !ok {
			t.Errorf("%s: %s", s, what)
		}
	}
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255",
		"192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001::1", "2001:db8::1", "3fff::1",
		"64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:a00:1::1", "2002:7f00:1::1", "2002:a9fe:a9fe::1", "100::1", "5f00::1",
	} {
		if ok, what := PublicAddr(netip.MustParseAddr(s)); ok || what == "" {
			t.Errorf("%s: public", s)
		}
	}
	if ok, _ := PublicAddr(netip.Addr{}); ok {
		t.Error("no address is public")
	}
	if ok, _ := PublicAddr(netip.MustParseAddr("2606:4700::1%eth0")); ok {
		t.Error("an address with a zone is public")
	}
}

func TestRuleValidate(t *testing.T) {
	good := Rule{Name: "x", Host: "*.example.com", Ports: []int{443}, Methods: []string{"GET"}, Paths: []string{"/a/b"}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Rule){
		"no name": func(r *Rule) { r.Name = "" }, "space in name": func(r *Rule) { r.Name = "a b" }, "long name": func(r *Rule) { r.Name = strings.Repeat("a", 65) },
		"no host": func(r *Rule) { r.Host = "" }, "host with port": func(r *Rule) { r.Host = "a.example.com:80" }, "star": func(r *Rule) { r.Host = "*" },
		"star over tld": func(r *Rule) { r.Host = "*.com" }, "inner star": func(r *Rule) { r.Host = "a.*.com" }, "star over address": func(r *Rule) { r.Host = "*.192.0.2.1" },
		"port 0": func(r *Rule) { r.Ports = []int{0} }, "port high": func(r *Rule) { r.Ports = []int{65536} },
		"lower method": func(r *Rule) { r.Methods = []string{"get"} }, "connect": func(r *Rule) { r.Methods = []string{"CONNECT"} },
		"relative path": func(r *Rule) { r.Paths = []string{"a"} }, "dots": func(r *Rule) { r.Paths = []string{"/a/../b"} }, "encoded slash": func(r *Rule) { r.Paths = []string{"/a%2fb"} },
	} {
		r := good
		change(&r)
		if r.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDigest(t *testing.T) {
	p := firewalled(t)
	same := p
	same.Job = Job{ID: 1}
	same.Allow = append([]Rule{}, p.Allow...)
	same.Allow[0] = Rule{Name: "proxy", Host: "PROXY.example.com.", Ports: []int{80, 443, 80}, Methods: []string{"HEAD", "GET"}}
	if p.Digest() != same.Digest() {
		t.Error("the same rules in other words have another digest")
	}
	other := p
	other.Allow = append([]Rule{}, p.Allow...)
	other.Allow[0].Methods = []string{"GET", "POST"}
	hermetic := p
	hermetic.Profile = sandbox.Hermetic
	bare := Policy{Profile: sandbox.Hermetic}
	open, listed := bare, bare
	open.Git.SameGitLab = true
	listed.Git.Allow = []Rule{{Name: "lib", Host: "git.example.org"}}
	if p.Digest() == other.Digest() || p.Digest() == hermetic.Digest() || open.Digest() == bare.Digest() || listed.Digest() == bare.Digest() {
		t.Error("another policy has the same digest")
	}
	if hermetic.Digest() != bare.Digest() {
		t.Error("rules without effect change the digest")
	}
	const want = "26542a2f" // golden: records of one version are compared with those of the next
	if got := bare.Digest(); len(got) != 64 || got[:8] != want {
		t.Errorf("digest of the bare hermetic policy: %s, want %s…", got, want)
	}
}
