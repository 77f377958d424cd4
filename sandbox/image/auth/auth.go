// Package auth finds the login with which a registry is asked for an image.
//
// Logins come from several sources: what a job brings along, what the admin
// gave this host, what GitLab made for the job. A [Ring] holds them in the order
// of precedence that GitLab Runner documents. Among the entries that match an
// image the one with the longest path wins, and among those of one path the
// source that was added first.
//
// A job's source is the tenant's word. It is parsed under limits, nothing of it
// reaches an error text, and the credential helpers that it may name are never
// run: they are programs of the host's. The admin's file may name some.
package auth

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
)

// DockerHub is what people call the registry that answers under other names.
const DockerHub = "docker.io"

// A Login opens a registry. The zero Login is nobody's: anonymous.
type Login struct {
	User, Password string
	// IdentityToken is exchanged for others where it is not empty; User and
	// Password are then not used.
	IdentityToken string
}

// Anonymous reports whether there is nothing in the login.
func (l Login) Anonymous() bool { return l == Login{} }

// String shows nothing of the login.
func (l Login) String() string { return "login" }

// GoString is String, for %#v.
func (l Login) GoString() string { return l.String() }

// LogValue is String, for log/slog.
func (l Login) LogValue() slog.Value { return slog.StringValue(l.String()) }

// A Ring holds logins in order of precedence. The zero Ring has none.
type Ring struct {
	sources []source
}

type source struct {
	name    string
	logins  map[string]Login  // by path
	helpers map[string]helper // by path; the host's sources alone have some
	store   helper            // asked for every registry; or zero
}

// AddJob adds what a job brought along. Helpers that the file names are left out.
func (r *Ring) AddJob(name string, f File) {
	r.sources = append(r.sources, source{name: name, logins: f.logins})
}

// AddHost adds what the admin gave this host. Programs that the file names are
// run, as whoever runs this one.
func (r *Ring) AddHost(name string, f File) {
	r.sources = append(r.sources, source{name: name, logins: f.logins, helpers: f.helpers, store: f.store})
}

// AddLogin adds a login for one registry.
func (r *Ring) AddLogin(name, registry string, l Login) {
	r.sources = append(r.sources, source{name: name, logins: map[string]Login{pathOf(registry): l}})
}

// Find returns the login for a repository, and which source it is from. Both
// are empty where no source has one. The error says that a helper failed; what
// is returned beside it is the best of the rest.
func (r *Ring) Find(ctx context.Context, registry, repository string) (l Login, from string, err error) {
	for path := pathOf(registry + "/" + repository); path != ""; path = parent(path) {
		for _, s := range r.sources {
			got, ok, failed := s.get(ctx, path)
			if failed != nil {
				err = fmt.Errorf("%s: %w", s.name, failed)
			}
			if ok {
				return got, s.name, err
			}
		}
	}
	return Login{}, "", err
}

// get finds the login for exactly one path.
func (s source) get(ctx context.Context, path string) (l Login, ok bool, err error) {
	h, has := s.helpers[path]
	if !has && s.store.program != "" && !strings.Contains(path, "/") {
		h, has = s.store.asking(path), true
	}
	if has {
		if l, ok, err = h.get(ctx); ok {
			return l, true, nil
		}
	}
	l, ok = s.logins[path]
	return l, ok, err
}

func parent(path string) string {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)]
}

var scheme = regexp.MustCompile(`(?i)^https?://`)

// pathOf brings the names under which logins are kept into one form:
// registry or registry/repository, the registry in lower case. With a scheme a
// name is of the old form, in which the registry alone counts.
func pathOf(name string) string {
	path := scheme.ReplaceAllString(name, "")
	host, rest, _ := strings.Cut(path, "/")
	if path != name {
		rest = ""
	}
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = DockerHub
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest = rest[:i]
	}
	if rest = strings.Trim(rest, "/"); rest == "" || host == DockerHub && (rest == "v1" || rest == "v2") {
		return host
	}
	return host + "/" + rest
}
