package policy

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/sandbox"
)

// CacheAccess is what a decision lets the helper do with a cache that lies in
// object storage. None of it passes unseen: what is read must be vouched for
// before the helper has a byte of it, and what is written must be found equal to
// the sealed workspace before the storage has one.
type CacheAccess string

const (
	CacheLook  CacheAccess = "look" // whether it is there, and since when
	CacheRead  CacheAccess = "read"
	CacheWrite CacheAccess = "write"
)

// Names of the rules for caches in object storage.
const (
	RuleCacheRead  = "cache-read"
	RuleCacheWrite = "cache-write"
)

// cacheAccess is what a stage may do by a method. GitLab Runner looks before it
// writes, and where one cache may have two names.
func cacheAccess(stage sandbox.Stage, method string, step Step) (CacheAccess, string) {
	rule := map[sandbox.Stage]string{
		sandbox.RestoreCache: RuleCacheRead,
		sandbox.ArchiveCache: RuleCacheWrite, sandbox.ArchiveCacheFail: RuleCacheWrite,
	}[stage]
	switch {
	case rule != "" && method == "HEAD":
		return CacheLook, rule
	case rule == RuleCacheRead && method == "GET":
		return CacheRead, rule
	case rule == RuleCacheWrite && (method == "PUT" || step.Kind != ""):
		return CacheWrite, rule
	}
	return "", ""
}

// cache lets the stages that restore and archive caches reach those of the job's
// own project, where the admin says that caches lie. ok is false where the
// request is not to such a place.
func (p Policy) cache(r Request) (d Decision, ok bool) {
	place := p.cachePlace(r)
	if place == "" || r.Stage != sandbox.RestoreCache && r.Stage != sandbox.ArchiveCache && r.Stage != sandbox.ArchiveCacheFail {
		return Decision{}, false
	}
	refuse := func(format string, args ...any) (Decision, bool) {
		return Decision{Rule: RuleStage, Reason: "cache in object storage: " + fmt.Sprintf(format, args...)}, true
	}
	step, query, err := parseStep(r.Method, r.RawQuery)
	if err != nil {
		return refuse("%v", err)
	}
	access, rule := cacheAccess(r.Stage, r.Method, step)
	object, err := p.cacheObject(plainPath(strings.TrimPrefix(r.Path, place), query))
	switch {
	case access == "":
		return refuse("%s does nothing by %s", r.Stage, clip(r.Method))
	case err != nil:
		return refuse("%v", err)
	case !signedQuery(query):
		return refuse("the query is not that of a presigned URL")
	}
	return Decision{Allow: true, Rule: rule, Cache: access, Object: object, Step: step}, true
}

// cachePlace is the path of the configured place that a request is to, "/" where
// it is a whole host, or "".
func (p Policy) cachePlace(r Request) string {
	for _, u := range p.Caches {
		origin, err := originOf(u)
		if err != nil || origin != (endpoint{r.Scheme, r.Host, r.Port}) {
			continue
		}
		place := strings.TrimSuffix(rooted(u), "/")
		if strings.HasPrefix(r.Path, place+"/") {
			return place + "/"
		}
	}
	return ""
}

// plainPath is a path as Azure reads it, whose clients encode the slashes in the name of
// an object. Those of other storages do not.
func plainPath(path, query string) string {
	if values, err := url.ParseQuery(query); err != nil || !values.Has("sig") {
		return path
	}
	return strings.NewReplacer("%2F", "/", "%2f", "/").Replace(path)
}

// cacheObject returns what the runner calls a cache, decoded, of a path below a
// place: [path/][runner/<token>/]project/<id>/<name>. The first project that the
// path names is the one whose object it is: a name may look like a path too.
func (p Policy) cacheObject(path string) (string, error) {
	if ambiguous(path) {
		return "", fmt.Errorf("a path with an encoded slash or a semicolon could be read in more than one way")
	}
	segments := strings.Split(path, "/")
	for i := 0; i+2 < len(segments); i++ {
		id, err := strconv.ParseInt(segments[i+1], 10, 64)
		if segments[i] != "project" || err != nil {
			continue
		}
		name, err := url.PathUnescape(strings.Join(segments[i+2:], "/"))
		switch {
		case id != p.Job.Project || segments[i+1] != strconv.FormatInt(id, 10) || id <= 0:
			return "", fmt.Errorf("project %s is not the job's own", clip(segments[i+1]))
		case err != nil || name == "" || strings.HasSuffix(name, "/"):
			return "", fmt.Errorf("the path names no cache")
		}
		return name, nil
	}
	return "", fmt.Errorf("the path names no project's cache")
}

// signatures are the parameters of presigned URLs beside X-Amz-… and X-Goog-…:
// those of the earlier signatures of S3 and GCS, of Azure's shared access
// signatures, and the one with which AWS's SDK names the operation.
var signatures = strings.Fields("awsaccesskeyid expires googleaccessid signature x-id " +
	"sv ss srt sp se st spr sig sr sip skoid sktid skt ske sks skv")

// signedQuery reports whether a query has a signature's parameters and no others,
// each once: others choose what an object storage does (acl, tagging, uploads),
// or how it says it.
func signedQuery(raw string) bool {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return false
	}
	for name, list := range values {
		name = strings.ToLower(name)
		vendor := strings.HasPrefix(name, "x-amz-") || strings.HasPrefix(name, "x-goog-")
		if len(list) != 1 || !vendor && !slices.Contains(signatures, name) || strings.Contains(name, "copy-source") {
			return false
		}
	}
	return true
}

// canonicalCaches is the form of the places that is hashed.
func (p Policy) canonicalCaches() []string {
	var out []string
	for _, u := range p.Caches {
		if o, err := originOf(u); err == nil {
			out = append(out, fmt.Sprintf("%s://%s:%d%s/", o.scheme, o.host, o.port, strings.TrimSuffix(rooted(u), "/")))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
