package policy

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/sandbox"
)

// Decide gives the verdict about one request.
func (p Policy) Decide(r Request) Decision {
	switch {
	case r.Stage == "":
		return Decision{Rule: RuleStage, Reason: "no stage of the job is running",
			Remedy: "processes left behind by a stage have no network; start what needs it inside the stage"}
	case !r.Stage.Known() && r.Stage != sandbox.Services || r.Stage.Role() != r.Role:
		return Decision{Rule: RuleStage, Reason: fmt.Sprintf("stage %q has no permission in the %s container", clip(string(r.Stage)), clip(string(r.Role)))}
	}
	if r.Stage.Tenant() && p.Profile == sandbox.Hermetic {
		return Decision{Rule: RuleHermetic, Reason: "under the hermetic profile build steps reach nothing",
			Remedy: "vendor the dependency, put it into the image, or pick the firewalled profile by its runner tag"}
	}
	if d, ok := wellFormed(r); !ok {
		return d
	}
	host, err := CanonicalHost(r.Host)
	if err != nil {
		return Decision{Rule: RuleHost, Reason: err.Error(), Remedy: "use the host's plain DNS name"}
	}
	r.Host = host
	if r.Stage.Tenant() {
		return p.tenant(r)
	}
	return p.helper(r)
}

// wellFormed refuses what no policy could be applied to.
func wellFormed(r Request) (Decision, bool) {
	if r.Scheme != "http" && r.Scheme != "https" {
		return Decision{Rule: RuleScheme, Reason: fmt.Sprintf("scheme %q: want https or http", clip(r.Scheme))}, false
	}
	if r.Port < 1 || r.Port > 65535 {
		return Decision{Rule: RuleHost, Reason: fmt.Sprintf("port %d: want 1 to 65535", r.Port)}, false
	}
	if r.Scheme == "http" && r.Port == 443 || r.Scheme == "https" && r.Port == 80 {
		return Decision{Rule: RuleScheme, Reason: fmt.Sprintf("%s on port %d", r.Scheme, r.Port), Remedy: "use https on port 443, or http on port 80"}, false
	}
	if !forwardable(r.Method) {
		return Decision{Rule: RuleMethod, Reason: fmt.Sprintf("method %q is never forwarded", clip(r.Method))}, false
	}
	if err := CanonicalPath(r.Path); err != nil {
		return Decision{Rule: RulePath, Reason: "the path could be read in more than one way: " + err.Error(),
			Remedy: "ask for the path in its plain form, without //, dot segments or needless percent-encoding"}, false
	}
	if strings.ContainsFunc(r.RawQuery, func(c rune) bool { return c <= ' ' || c == '#' || c > '~' }) {
		return Decision{Rule: RulePath, Reason: "the query has characters that must be percent-encoded", Remedy: "percent-encode the query"}, false
	}
	return Decision{}, true
}

// forwardable reports methods in their one spelling that ask an origin for
// something and no more.
func forwardable(method string) bool {
	if method == "" || len(method) > 20 || strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return false
	}
	switch method {
	case "CONNECT", "TRACE", "TRACK", "PRI":
		return false
	}
	return true
}

// tenant decides for stages whose scripts the tenant wrote, under any profile
// but the hermetic one.
func (p Policy) tenant(r Request) Decision {
	if p.Profile != sandbox.Firewalled {
		return Decision{Rule: RuleDefault, Reason: "no profile is set"}
	}
	gitlab := p.gitLabHost(r.Host)
	switch {
	case gitlab && ambiguous(r.Path):
		return Decision{Rule: RulePath, Reason: "a path of GitLab's with an encoded slash or a semicolon could be read in more than one way",
			Remedy: "name the project by its number instead of its path"}
	case runnerAPI(r.Path):
		return Decision{Rule: RuleRunnerAPI, Reason: "build steps never reach GitLab's endpoints for runners and jobs",
			Remedy: "declare artifacts and dependencies in .gitlab-ci.yml; the helper container moves them"}
	}
	if !p.GitLabOrigin(r.Scheme, r.Host, r.Port) {
		if d, ok := public(r.Host); !ok {
			return d
		}
	}
	return p.listed(r)
}

func (p Policy) gitLabHost(host string) bool {
	origin, err := originOf(p.Job.GitLab)
	return err == nil && origin.host == host
}

// public refuses addresses and names that no rule can open.
func public(host string) (Decision, bool) {
	refuse := Decision{Rule: RulePrivate, Remedy: "only hosts of the public internet can be allowed"}
	if localName(host) {
		refuse.Reason = host + " is the machine itself"
		return refuse, false
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return Decision{}, true
	}
	if ok, what := PublicAddr(addr); !ok {
		refuse.Reason = fmt.Sprintf("address %s: %s", host, what)
		return refuse, false
	}
	return Decision{}, true
}

// listed looks a request up in the admin's rules. The first rule that matches
// in full allows; rules that only name the host explain the refusal.
func (p Policy) listed(r Request) Decision {
	near := ""
	for _, rule := range p.Allow {
		if rule.Validate() != nil || !rule.names(r.Host) {
			continue
		}
		switch {
		case !slices.Contains(rule.ports(), r.Port):
			near = fmt.Sprintf("rule %s allows %s on other ports than %d", rule.Name, r.Host, r.Port)
		case !slices.Contains(rule.methods(), r.Method):
			near = fmt.Sprintf("rule %s allows %s with other methods than %s", rule.Name, r.Host, r.Method)
		case !rule.covers(r.Path):
			near = fmt.Sprintf("rule %s allows other paths of %s", rule.Name, r.Host)
		default:
			return Decision{Allow: true, Rule: rule.Name}
		}
	}
	if near == "" {
		near = fmt.Sprintf("no rule allows %s", r.Host)
	}
	return Decision{Rule: RuleDefault, Reason: near,
		Remedy: "ask the runner's admin to add the host to the allow-list, or vendor the dependency"}
}

func (r Rule) names(host string) bool {
	name, wild, err := r.host()
	switch {
	case err != nil:
		return false
	case wild:
		return strings.HasSuffix(host, "."+name)
	}
	return host == name
}

// covers compares by whole segments. Under a rule with paths an encoded slash
// never matches: it could hide the end of a segment.
func (r Rule) covers(path string) bool {
	if len(r.Paths) == 0 {
		return true
	}
	if ambiguous(path) {
		return false
	}
	return slices.ContainsFunc(r.Paths, func(prefix string) bool { return below(path, prefix) })
}

// helper decides for stages whose scripts GitLab Runner generates.
func (p Policy) helper(r Request) Decision {
	if r.Stage == sandbox.GetSources {
		return p.source(r)
	}
	if d, ok := p.cache(r); ok {
		return d
	}
	if !p.GitLabOrigin(r.Scheme, r.Host, r.Port) {
		return Decision{Rule: RuleStage, Reason: fmt.Sprintf("stage %s reaches nothing but the configured GitLab", r.Stage),
			Remedy: "if this is the object storage of [runners.cache], list it in cache.servers of sandboxd.toml, where caches must not be off for the profile, or take [runners.cache] out of the runner's config.toml to keep caches on the runner host; if it is your GitLab, check gitlab_url"}
	}
	switch {
	case r.Stage == sandbox.DownloadArtifacts:
		return p.download(r)
	case r.Stage.Upload():
		return p.upload(r)
	}
	return Decision{Rule: RuleStage, Reason: fmt.Sprintf("stage %s needs no network", r.Stage)}
}

// download lets download_artifacts fetch what the payload names.
func (p Policy) download(r Request) Decision {
	id, ok := p.artifactsOf(r.Path)
	known := r.RawQuery == "" || r.RawQuery == "direct_download=true" || r.RawQuery == "direct_download=false"
	if !ok || !known || r.Method != "GET" || !slices.Contains(p.Job.Dependencies, id) {
		return Decision{Rule: RuleStage, Reason: "download_artifacts may only fetch the artifacts of jobs that this job depends on",
			Remedy: "name the job under dependencies: or needs: in .gitlab-ci.yml"}
	}
	return Decision{Allow: true, Rule: RuleDownload, Follow: true, Artifacts: id}
}

// upload lets upload_artifacts_* hand over the job's own artifacts.
func (p Policy) upload(r Request) Decision {
	id, ok := p.artifactsOf(r.Path)
	if !ok || r.Method != "POST" || id != p.Job.ID {
		return Decision{Rule: RuleStage, Reason: "this stage may only upload the job's own artifacts"}
	}
	if _, err := ParseUploadQuery(r.RawQuery); err != nil {
		return Decision{Rule: RuleStage, Reason: "artifact upload: " + err.Error()}
	}
	return Decision{Allow: true, Rule: RuleUpload, Upload: true}
}

// artifactsOf returns the job number of an artifacts endpoint in its one
// spelling.
func (p Policy) artifactsOf(path string) (int64, bool) {
	root := strings.TrimSuffix(rooted(p.Job.GitLab), "/")
	rest, ok := strings.CutPrefix(path, root+"/api/v4/jobs/")
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutSuffix(rest, "/artifacts")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || id <= 0 || strconv.FormatInt(id, 10) != digits {
		return 0, false
	}
	return id, true
}

// UploadQuery is what an artifact upload says about itself.
type UploadQuery struct{ Type, Format string }

var uploadValue = map[string]*regexp.Regexp{
	"artifact_type":   regexp.MustCompile(`^[a-z0-9_]{1,64}$`),
	"artifact_format": regexp.MustCompile(`^(zip|gzip|raw)$`),
	"expire_in":       regexp.MustCompile(`^[A-Za-z0-9 .,]{0,128}$`),
	"accessibility":   regexp.MustCompile(`^[a-z_]{1,32}$`),
}

// ParseUploadQuery reads the query of an artifact upload and refuses what GitLab
// Runner does not send: other parameters mean something to GitLab's front end.
func ParseUploadQuery(raw string) (UploadQuery, error) {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return UploadQuery{}, fmt.Errorf("query: cannot be parsed")
	}
	for name, list := range values {
		form, ok := uploadValue[name]
		if !ok || len(list) != 1 || !form.MatchString(list[0]) {
			return UploadQuery{}, fmt.Errorf("query: parameter %q: unknown, repeated or out of form", clip(name))
		}
	}
	q := UploadQuery{Type: "archive", Format: "zip"} // GitLab's defaults
	if values.Has("artifact_type") {
		q.Type = values.Get("artifact_type")
	}
	if values.Has("artifact_format") {
		q.Format = values.Get("artifact_format")
	}
	return q, nil
}
