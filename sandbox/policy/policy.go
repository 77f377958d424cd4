// Package policy decides whether one request may pass the border.
//
// It is pure: a [Policy] and a [Request] go in, a [Decision] comes out. What a
// name resolves to is not known here, so package egress asks
// [PublicAddr] once more about the address that it is about to dial.
//
// # Who may do what
//
// The helper's stages run GitLab's own scripts, and each of them needs exactly
// one thing: get_sources the job's own repository (read only, with its LFS
// objects) and those that its submodules may lie in ([Git]), download_artifacts the artifacts of the jobs that the
// payload names, upload_artifacts_* the job's own artifacts endpoint. They get
// that, on the configured origin by scheme, host and port, and nothing else but
// repositories that the admin's rules for git list, and, where the admin has caches
// in object storage, restore_cache and archive_cache those of the job's project.
//
// Tenant stages reach nothing under the hermetic profile, and under the
// firewalled profile what the admin's rules list. No rule can open what follows
// here: GitLab's runner API (/api/v4/job, /api/v4/jobs, /api/v4/runners) under
// any host name, because an alias of GitLab cannot be told from its name; and
// addresses that are not public.
//
// # Spelling
//
// Two parsers that read one URL differently are a hole. Host names are compared
// in the one form that [CanonicalHost] gives. Paths are not normalised but
// refused, when they are not already in the one form that every server reads
// alike (see [CanonicalPath]); the origin then gets the bytes that were decided
// upon.
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/sandbox"
)

// Names of the rules that refuse. They are stable: logs, records and people's
// notes refer to them.
const (
	RuleStage     = "stage"             // no stage runs, or the stage's permission does not cover it
	RuleHermetic  = "hermetic"          // the profile lets tenant stages reach nothing
	RuleDefault   = "default-deny"      // no rule of the admin's allows it
	RuleRunnerAPI = "gitlab-runner-api" // the runner's endpoints of GitLab
	RulePrivate   = "private-address"   // an address that is not public
	RuleHost      = "host"              // a host name that is not one
	RulePath      = "path"              // a path that servers read in different ways
	RuleScheme    = "scheme"            // not http or https, or on the other one's port
	RuleMethod    = "method"            // a method that is never forwarded
)

// Names of the rules that let the helper's stages do their work.
const (
	RuleSource   = "source"
	RuleLFS      = "source-lfs"
	RuleDownload = "artifact-download"
	RuleUpload   = "artifact-upload"
)

// A Rule is one entry of the admin's allow-list.
type Rule struct {
	// Name is what the record calls the rule; it must be set.
	Name string
	// Host is a host name, or "*." and a domain for every name below it.
	Host string
	// Ports defaults to 443 (https) and 80 (http).
	Ports []int
	// Methods defaults to GET and HEAD.
	Methods []string
	// Paths are prefixes of whole segments: "/org" is "/org" and "/org/…" but
	// not "/organ". Default: every path.
	Paths []string
}

// Validate reports what is wrong with a rule as an admin wrote it.
func (r Rule) Validate() error {
	if r.Name == "" || len(r.Name) > maxName || strings.ContainsFunc(r.Name, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return fmt.Errorf("rule %q: name: want 1 to %d printable characters without spaces", r.Name, maxName)
	}
	if _, _, err := r.host(); err != nil {
		return fmt.Errorf("rule %s: %w", r.Name, err)
	}
	for _, p := range r.Ports {
		if p < 1 || p > 65535 {
			return fmt.Errorf("rule %s: port %d: want 1 to 65535", r.Name, p)
		}
	}
	for _, m := range r.Methods {
		if !forwardable(m) {
			return fmt.Errorf("rule %s: method %q: want an HTTP method in capitals that a proxy may forward", r.Name, m)
		}
	}
	for _, p := range r.Paths {
		if err := CanonicalPath(p); err != nil {
			return fmt.Errorf("rule %s: path %q: %w", r.Name, p, err)
		}
		if strings.Contains(strings.ToLower(p), "%2f") {
			return fmt.Errorf("rule %s: path %q: an encoded slash is never matched", r.Name, p)
		}
	}
	return nil
}

const maxName = 64

// host returns the canonical host and whether names below it are meant.
func (r Rule) host() (string, bool, error) {
	name, wild := strings.CutPrefix(r.Host, "*.")
	host, err := CanonicalHost(name)
	if err != nil {
		return "", false, err
	}
	if !wild {
		return host, false, nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", false, fmt.Errorf("host %q: a wildcard stands before a domain, not an address", r.Host)
	}
	if !strings.Contains(host, ".") {
		return "", false, fmt.Errorf("host %q: a wildcard over a whole top-level domain", r.Host)
	}
	return host, true, nil
}

func (r Rule) ports() []int {
	if len(r.Ports) == 0 {
		return []int{443, 80}
	}
	return r.Ports
}

func (r Rule) methods() []string {
	if len(r.Methods) == 0 {
		return []string{"GET", "HEAD"}
	}
	return r.Methods
}

// Job is what the policy must know of the job: facts of the payload, never of
// a variable.
type Job struct {
	ID           int64
	Project      int64    // its id
	GitLab       *url.URL // configured by the admin; its path is GitLab's relative root
	Repository   *url.URL // of the payload, without credentials
	Dependencies []int64  // jobs whose artifacts the payload names
}

// A Policy is what the admin allows, for one job. The zero Policy allows nothing.
type Policy struct {
	Profile sandbox.Profile
	Allow   []Rule
	Git     Git
	// Caches are where the runner keeps caches in object storage: origins, each
	// with the path (a bucket, say) below which all of them lie. None of them is
	// opened to a tenant's stages. They are dialled whatever their address.
	Caches []*url.URL
	Job    Job
}

// canonicalRule is the form of a rule that is hashed: defaults spelt out.
type canonicalRule struct {
	Name    string   `json:"name"`
	Host    string   `json:"host"`
	Ports   []int    `json:"ports"`
	Methods []string `json:"methods"`
	Paths   []string `json:"paths"`
}

// Digest names the profile and its rules, not the job: the lower-case hex
// SHA-256 of their canonical JSON, with defaults filled in and lists sorted.
// Rules stay in order, because the first that matches gives its name. Rules of
// a hermetic profile have no effect and are not counted; those for git have.
func (p Policy) Digest() string {
	form := struct {
		Profile sandbox.Profile `json:"profile"`
		Allow   []canonicalRule `json:"allow"`
		Git     any             `json:"git"`
		Caches  []string        `json:"caches,omitempty"`
	}{Profile: p.Profile, Allow: []canonicalRule{}, Git: p.Git.canonical(), Caches: p.canonicalCaches()}
	if p.Profile == sandbox.Firewalled {
		for _, r := range p.Allow {
			form.Allow = append(form.Allow, r.canonical())
		}
	}
	data, err := json.Marshal(form)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (r Rule) canonical() canonicalRule {
	host := strings.ToLower(r.Host)
	if name, wild, err := r.host(); err == nil {
		host = name
		if wild {
			host = "*." + name
		}
	}
	sorted := func(s []string) []string {
		s = slices.Clone(s)
		slices.Sort(s)
		return slices.Compact(s)
	}
	ports := slices.Clone(r.ports())
	slices.Sort(ports)
	return canonicalRule{
		Name: r.Name, Host: host, Ports: slices.Compact(ports),
		Methods: sorted(r.methods()), Paths: sorted(append([]string{}, r.Paths...)),
	}
}

// A Request is one attempt to pass the border. Names inside have been found to
// agree with each other before.
type Request struct {
	Role     sandbox.Role
	Stage    sandbox.Stage // "" between stages
	Scheme   string        // "http" or "https"
	Method   string
	Host     string // name or address, without port
	Port     int
	Path     string // escaped, as in the request line
	RawQuery string
}

// A Decision is the verdict about one request. The zero Decision refuses.
type Decision struct {
	Allow  bool
	Rule   string // the rule that allowed or refused
	Reason string // why it was refused
	Remedy string // what the reader can do about it
	// Upload says that the body is an artifact that must be found equal to the
	// sealed workspace before GitLab has a byte of it.
	Upload bool
	// Follow says that the border itself follows redirects to public addresses:
	// GitLab answers so where artifacts or LFS objects lie in object storage.
	Follow bool
	// Artifacts is the earlier job whose artifacts are asked for, or 0: they
	// must be looked up before the helper has a byte of them.
	Artifacts int64
	// Cache says that a cache in object storage is asked for, and Object which of
	// the project's: the runner's name for it, decoded.
	Cache  CacheAccess
	Object string
	// Step says which step of an upload in blocks a write is.
	Step Step
}

// GitLabOrigin reports whether scheme, host and port are exactly those of the
// configured GitLab. It is the one origin that is dialled whatever its address.
func (p Policy) GitLabOrigin(scheme, host string, port int) bool {
	origin, err := originOf(p.Job.GitLab)
	if err != nil {
		return false
	}
	name, err := CanonicalHost(host)
	return err == nil && origin == (endpoint{scheme, name, port})
}

type endpoint struct {
	scheme, host string
	port         int
}

func originOf(u *url.URL) (endpoint, error) {
	if u == nil {
		return endpoint{}, errors.New("no url")
	}
	host, err := CanonicalHost(u.Hostname())
	if err != nil {
		return endpoint{}, err
	}
	port, err := portOf(u)
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{u.Scheme, host, port}, nil
}

func portOf(u *url.URL) (int, error) {
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return 0, fmt.Errorf("scheme %q: want https or http", u.Scheme)
	case u.Port() == "" && u.Scheme == "https":
		return 443, nil
	case u.Port() == "":
		return 80, nil
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("port %q: want 1 to 65535", u.Port())
	}
	return int(port), nil
}
