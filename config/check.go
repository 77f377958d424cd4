package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"hallmark.build/config/tomlfile"
)

// maxSocket is the longest path that a unix socket's address holds on Linux,
// without its zero byte.
const maxSocket = 107

// checker judges values; each method reports at most one problem a value.
type checker struct{ doc *tomlfile.Document }

func (c checker) required(path, hint, value string) {
	switch {
	case value != "":
	case c.doc.Has(path):
		c.doc.Report(path, hint, "must not be empty")
	default:
		c.doc.Report(path, hint, "required, but missing")
	}
}

func (c checker) path(path, value string) {
	const hint = "want an absolute path without . and .. parts"
	switch {
	case value == "":
		c.doc.Report(path, hint, "must not be empty")
	case control(value):
		c.doc.Report(path, "", "contains control characters")
	case !filepath.IsAbs(value) || filepath.Clean(value) != value:
		c.doc.Report(path, hint, "%q is not a clean absolute path", value)
	case value == "/":
		c.doc.Report(path, "", "must not be the root directory")
	}
}

func (c checker) optionalPath(path, value string) {
	if value != "" {
		c.path(path, value)
	}
}

func (c checker) socket(path, value string) {
	switch {
	case strings.Contains(value, "://"):
		c.doc.Report(path, "leave the scheme off", "%q is not a path", value)
	case len(value) > maxSocket:
		c.doc.Report(path, "", "%d bytes: a unix socket's path has at most %d", len(value), maxSocket)
	default:
		c.path(path, value)
	}
}

// apart refuses two directories of which one holds the other: what is wiped at
// boot must not hold what must stay.
func (c checker) apart(path, value, other, otherValue string) {
	if value == otherValue || strings.HasPrefix(value, otherValue+"/") || strings.HasPrefix(otherValue, value+"/") {
		c.doc.Report(path, "", "%q and %s, %q, must lie apart", value, other, otherValue)
	}
}

func (c checker) user(path, value string) {
	if value == "" {
		c.doc.Report(path, "", "must not be empty")
		return
	}
	if len(value) > 32 || strings.HasPrefix(value, "-") || strings.ContainsFunc(value, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	}) {
		c.doc.Report(path, "a name as in /etc/passwd, or a number", "%q is not a user", value)
	}
}

func (c checker) users(path string, values []string) {
	if len(values) == 0 {
		c.doc.Report(path, `["root"] is the default`, "must not be empty")
	}
	for i, value := range values {
		c.user(at(path, i), value)
	}
	c.unique(path, values)
}

func (c checker) unique(path string, values []string) {
	for i, value := range values {
		if slices.Contains(values[:i], value) {
			c.doc.Report(at(path, i), "", "%q is there twice", value)
		}
	}
}

// gitlabURL normalises what does not matter: a slash at the end.
func (c checker) gitlabURL(path string, u *url.URL) {
	if u == nil {
		c.doc.Report(path, `as gitlab_url = "https://gitlab.example.com"`, "required, but missing")
		return
	}
	if problem, hint := urlProblem(u); problem != "" {
		c.doc.Report(path, hint, "%q: %s", u.Redacted(), problem)
		return
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
}

// cacheServers normalises what does not matter: a slash at the end.
func (c checker) cacheServers(path string, servers []*url.URL) {
	seen := make([]string, len(servers))
	for i, u := range servers {
		if problem, _ := urlProblem(u); problem != "" {
			c.doc.Report(at(path, i), `as "https://minio.example.com:9000" or "https://storage.googleapis.com/bucket"`, "%q: %s", u.Redacted(), problem)
			continue
		}
		host := u.Hostname()
		ip, err := netip.ParseAddr(host)
		if err == nil && ip.Unmap().IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost") {
			c.doc.Report(at(path, i), "give it a name or an address that is not the machine's own loopback, in the runner's config.toml too", "%q: in the job's network %s is the job itself", u, host)
		}
		u.Path = strings.TrimSuffix(u.Path, "/")
		seen[i] = u.String()
	}
	c.unique(path, seen)
}

// identity is a URL that is compared as text, so it has one spelling.
func (c checker) identity(path, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	if err != nil {
		c.doc.Report(path, "", "not a URL")
		return
	}
	problem, hint := urlProblem(u)
	switch {
	case problem != "":
		c.doc.Report(path, hint, "%q: %s", u.Redacted(), problem)
	case strings.HasSuffix(value, "/"):
		c.doc.Report(path, "leave the slash at the end off", "%q ends with a slash", value)
	case u.String() != value || strings.ToLower(u.Scheme) != u.Scheme || !strings.HasPrefix(value, u.Scheme+":"):
		c.doc.Report(path, fmt.Sprintf("write it as %q", u), "%q is not in its plain form", value)
	}
}

// urlProblem says why u is not a plain absolute http(s) URL.
func urlProblem(u *url.URL) (problem, hint string) {
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return "want an absolute http or https URL", "as https://gitlab.example.com"
	case u.User != nil:
		return "has a user or password in it", "credentials do not belong here"
	case u.Host == "" || u.Opaque != "":
		return "has no host", ""
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "has a query or a fragment", "leave off everything from ? or # on"
	case strings.ContainsFunc(u.Path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "has blanks or letters beyond ASCII in its path", ""
	case u.RawPath != "" || strings.Contains(u.Path, "//") || u.Path != "" && cleanPath(u.Path) != strings.TrimSuffix(u.Path, "/"):
		return "has a path with empty, escaped, . or .. parts", "leave the path off, unless GitLab lives under one"
	}
	if !validPort(u.Port(), strings.HasSuffix(u.Host, ":")) {
		return "has a bad port", "1 to 65535"
	}
	if host := u.Hostname(); !validIP(host) && !validHost(host) {
		return "has a bad host name", "a name in lower case, or an IP address"
	}
	return "", ""
}

func cleanPath(p string) string { return strings.TrimSuffix(filepath.Clean(p), "/") }

func validPort(port string, dangling bool) bool {
	if port == "" {
		return !dangling
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == port
}

func validIP(host string) bool {
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Zone() == ""
}

// validHost is a DNS name in lower case, without the dot at the end.
func validHost(host string) bool {
	if host == "" || len(host) > 253 {
		return false
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	// A last label of digits is how browsers and C libraries spell an address.
	return strings.ContainsFunc(labels[len(labels)-1], func(r rune) bool { return r < '0' || r > '9' })
}

func (c checker) listen(path, value string) {
	host, port, err := net.SplitHostPort(value)
	const hint = `as "127.0.0.1:8470"`
	switch {
	case err != nil:
		c.doc.Report(path, hint, "%q is not host:port", value)
	case port != "0" && !validPort(port, true):
		c.doc.Report(path, hint, "%q has a bad port", value)
	case host != "" && !validIP(host) && !validHost(host):
		c.doc.Report(path, hint, "%q has a bad host", value)
	}
}

func (c checker) hostNames(path string, values []string) {
	for i, value := range values {
		if !validIP(value) && !validHost(value) {
			c.doc.Report(at(path, i), "a name in lower case, or an IP address", "%q is not a host", value)
		}
	}
	c.unique(path, values)
}

// text is compared with, or given to, another program as it stands.
func (c checker) text(path, value string) {
	if len(value) > 1024 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		c.doc.Report(path, "", "%q has blanks or letters beyond ASCII, or is too long", value)
	}
}

// key is a key's URI; what follows the scheme is for the package that opens it.
func (c checker) key(path, value string) {
	c.text(path, value)
	u, err := url.Parse(value)
	const hint = `as "file:///etc/hallmark/ca.pem", "pkcs11:token=…;object=…" or "awskms:///…"`
	switch {
	case value == "" || strings.HasPrefix(value, "pkcs11:"):
	case err != nil || !strings.Contains(value, "://"):
		c.doc.Report(path, hint, "%q is not a key's URI", value)
	case u.Scheme == "file" && (u.Host != "" || filepath.Clean(u.Path) != u.Path || u.Path == "/"):
		c.doc.Report(path, hint, "%q names no file by a clean absolute path", value)
	}
}

func (c checker) database(path, value string) {
	if value == "" {
		return
	}
	u, err := url.Parse(value)
	const hint = `as "postgres://hallmark@db.example.com/hallmark?sslmode=verify-full"`
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" || u.Opaque != "" {
		c.doc.Report(path, hint, "not the URL of a PostgreSQL")
		return
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		c.doc.Report(path, "put it in a file, and its name in database_password_file", "has a password in it")
	}
}

func (c checker) image(path, value string) {
	switch {
	case value == "":
	case len(value) > 512 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }):
		c.doc.Report(path, "as registry.example.com/group/image@sha256:…", "%q is not an image's name", value)
	case strings.Contains(value, "://"):
		c.doc.Report(path, "leave the scheme off; for plain http see images.plain_http", "%q is not an image's name", value)
	case strings.HasPrefix(value, "-") || strings.HasPrefix(value, "/") || strings.HasSuffix(value, "/"):
		c.doc.Report(path, "as registry.example.com/group/image@sha256:…", "%q is not an image's name", value)
	}
}

func (c checker) oneOf(path, value string, choices ...string) {
	if slices.Contains(choices, value) {
		return
	}
	hint := ""
	if near := tomlfile.Nearest(value, choices); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	c.doc.Report(path, hint, "%q: want %s", value, strings.Join(quoted(choices), " or "))
}

func quoted(values []string) []string {
	list := make([]string, len(values))
	for i, value := range values {
		list[i] = strconv.Quote(value)
	}
	return list
}

func (c checker) duration(path string, value, least, most time.Duration) {
	if value < least || value > most {
		c.doc.Report(path, "", "%s is not between %s and %s", value, least, most)
	}
}

func (c checker) size(path string, value, least, most int64) {
	if value < least || value > most {
		c.doc.Report(path, "", "%s is not between %s and %s",
			tomlfile.FormatSize(value), tomlfile.FormatSize(least), tomlfile.FormatSize(most))
	}
}

func (c checker) between(path string, value, least, most int64) {
	if value < least || value > most {
		c.doc.Report(path, "", "%d is not between %d and %d", value, least, most)
	}
}

func (c checker) globs(path string, values []string) {
	for i, value := range values {
		switch {
		case value == "" || control(value):
			c.doc.Report(at(path, i), `as "registry.example.com/ci/**"`, "%q is not a glob", value)
		case !doublestar.ValidatePattern(value):
			c.doc.Report(at(path, i), "* is anything within one part, ** any number of parts, {a,b} a choice", "%q is not a glob", value)
		case strings.Contains(value, "://"):
			c.doc.Report(at(path, i), "leave the scheme off", "%q can match no image's name", value)
		}
	}
	c.unique(path, values)
}

func (c checker) pullPolicies(path string, values []string) {
	for i, value := range values {
		c.oneOf(at(path, i), value, "always", "if-not-present", "never")
	}
	c.unique(path, values)
}

// imageUsers are names or numbers as a container's passwd has them, with or without
// a group.
func (c checker) imageUsers(path string, values ...string) {
	for _, value := range values {
		if len(value) > 256 || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			c.doc.Report(path, `as "1000:1000" or "builder"`, "%q is not a user", value)
		}
	}
}

func (c checker) registries(path string, values []string) {
	for i, value := range values {
		u, err := url.Parse("http://" + value)
		if err != nil || u.Host != value || u.Hostname() == "" || !validPort(u.Port(), strings.HasSuffix(value, ":")) ||
			!validIP(u.Hostname()) && !validHost(u.Hostname()) {
			c.doc.Report(at(path, i), `as "registry.internal:5000"`, "%q is not host or host:port", value)
		}
	}
	c.unique(path, values)
}

func (c checker) rules(path string, rules []AllowRule) {
	names := make([]string, len(rules))
	for i, rule := range rules {
		names[i] = rule.Name
		c.rule(at(path, i), rule)
		if rule.Name != "" && slices.Contains(names[:i], rule.Name) {
			c.doc.Report(at(path, i)+".name", "", "two rules are called %q", rule.Name)
		}
	}
}

// gitRules are checked as others are, and have names apart from theirs: the
// record tells rules by name alone.
func (c checker) gitRules(path string, rules []GitRule, others []AllowRule) {
	same := make([]AllowRule, len(rules))
	for i, r := range rules {
		same[i] = AllowRule{Name: r.Name, Host: r.Host, Ports: r.Ports, Paths: r.Paths}
		if r.Name != "" && slices.ContainsFunc(others, func(o AllowRule) bool { return o.Name == r.Name }) {
			c.doc.Report(at(path, i)+".name", "", "a rule of allow is called %q too", r.Name)
		}
	}
	c.rules(path, same)
}

func (c checker) rule(path string, rule AllowRule) {
	c.ruleName(path+".name", rule.Name)
	c.ruleHost(path+".host", rule.Host)
	for i, port := range rule.Ports {
		c.between(at(path+".ports", i), int64(port), 1, 65535)
	}
	for i, method := range rule.Methods {
		c.method(at(path+".methods", i), method)
	}
	for i, prefix := range rule.Paths {
		if !strings.HasPrefix(prefix, "/") || strings.ContainsAny(prefix, "?#%\\*") || control(prefix) ||
			strings.Contains(prefix+"/", "/../") || strings.Contains(prefix+"/", "/./") || strings.Contains(prefix, "//") {
			c.doc.Report(at(path+".paths", i), `a prefix, as "/group/project/"`, "%q is not a plain path", prefix)
		}
	}
}

func (c checker) ruleName(path, name string) {
	if name == "" {
		c.required(path, `the record calls the rule so, as name = "go-proxy"`, name)
		return
	}
	if len(name) > 64 || strings.Trim(name, "-.") != name || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.", r))
	}) {
		c.doc.Report(path, "letters in lower case, digits, - _ and .", "%q is not a rule's name", name)
	}
}

func (c checker) ruleHost(path, host string) {
	const hint = `as "proxy.example.com" or "*.example.com"`
	if host == "" {
		c.required(path, hint, host)
		return
	}
	name, wild := strings.CutPrefix(host, "*.")
	switch {
	case validIP(strings.Trim(host, "[]")):
		c.doc.Report(path, "name the host: an address says nothing of whose it is", "%q is an address", host)
	case strings.ToLower(host) != host && validHost(strings.ToLower(name)):
		c.doc.Report(path, fmt.Sprintf("write it as %q", strings.ToLower(host)), "%q is not in lower case", host)
	case !validHost(name):
		c.doc.Report(path, hint, "%q is not a host", host)
	case wild && !strings.Contains(name, "."):
		c.doc.Report(path, hint, "%q would allow a whole top-level domain", host)
	}
}

func (c checker) method(path, method string) {
	if upper := strings.ToUpper(method); method != upper {
		c.doc.Report(path, fmt.Sprintf("write it as %q", upper), "%q is not in upper case", method)
		return
	}
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT":
	default:
		c.doc.Report(path, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, PROPFIND, REPORT", "%q cannot be allowed", method)
	}
}

func control(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func at(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }
