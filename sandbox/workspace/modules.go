package workspace

import (
	"context"
	"errors"
	"net/url"
	"path"
	"slices"
	"strings"

	"hallmark.build/sandbox/record"
)

const (
	gitmodules = ".gitmodules"

	maxModulesText = 1 << 20   // bytes of one .gitmodules
	maxModuleURL   = 2 << 10   // bytes of one URL
	maxModuleNames = 256 << 10 // bytes of all paths and URLs of submodules
)

// A repository is the superproject of what is being compared: where its root
// lies, its tree and its URL, as far as that is known.
type repository struct {
	rel  string
	tree objectID
	url  string

	read bool
	urls map[string]string // of .gitmodules: URL by path

	dirs   map[string]*attrDir // by path
	macros map[string][]attrSet
}

// urlOf is where the superproject's commit says that the submodule at rel is.
// Nothing rests on it but what a statement calls the submodule: the commit is
// the gitlink's, and the border saw where things came from.
func (c *comparison) urlOf(ctx context.Context, rel string) string {
	r := c.super
	if !r.read {
		r.read = true
		if text, err := c.textOf(ctx, r.tree, gitmodules); err == nil {
			r.urls = parseModules(text)
		}
	}
	inside := strings.TrimPrefix(strings.TrimPrefix(rel, r.rel), "/")
	return moduleURL(r.url, r.urls[inside])
}

// textOf reads a regular file in a tree's root.
func (c *comparison) textOf(ctx context.Context, tree objectID, name string) ([]byte, error) {
	entries, err := c.readTree(ctx, tree)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.name == name && (e.mode == modeFile || e.mode == modeExecutable) {
			return c.store.read(ctx, e.id, kindBlob, maxModulesText)
		}
	}
	return nil, errNotFound
}

// note keeps a submodule for the record.
func (c *comparison) note(m record.Submodule) error {
	c.names += len(m.Path) + len(m.URL)
	if len(c.submodules) >= maxModules || c.names > maxModuleNames {
		return refuse("more than %d submodules, or names of more than %d bytes", maxModules, maxModuleNames)
	}
	c.submodules = append(c.submodules, m)
	return nil
}

// parseModules reads the part of git's configuration syntax that git itself
// writes into .gitmodules: sections, and keys with a value on one line. Of what
// it does not understand, or finds twice, it knows nothing.
func parseModules(data []byte) map[string]string {
	type module struct{ path, url string }
	var all []*module
	byName := map[string]*module{}
	var now *module
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[':
			name, ok := moduleSection(line)
			if !ok {
				return nil
			}
			if now = byName[name]; now == nil {
				now = &module{}
				byName[name] = now
				all = append(all, now)
			}
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		value, err := moduleValue(value)
		if err != nil || now == nil {
			return nil
		}
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "path":
			now.path = value
		case "url":
			now.url = value
		}
	}
	out := map[string]string{}
	for _, m := range all {
		if _, again := out[m.path]; again {
			m.url = ""
		}
		out[m.path] = m.url
	}
	return out
}

// moduleSection reads [submodule "name"].
func moduleSection(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, `[submodule "`)
	rest, closed := strings.CutSuffix(rest, `"]`)
	return rest, ok && closed && !strings.ContainsAny(rest, `"\`)
}

var errModuleValue = errors.New("not one line's value")

// moduleValue reads a value: quotes and escapes are git's, a comment ends it.
func moduleValue(s string) (string, error) {
	var out []byte
	quoted, kept := false, 0 // kept: up to where spaces count
	s = strings.TrimSpace(s)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
			kept = len(out)
		case c == '\\':
			i++
			at := strings.IndexByte(`"\nt`, at(s, i))
			if at < 0 {
				return "", errModuleValue
			}
			out = append(out, "\"\\\n\t"[at])
			kept = len(out)
		case !quoted && (c == '#' || c == ';'):
			i = len(s)
		default:
			out = append(out, c)
			if quoted || c != ' ' && c != '\t' {
				kept = len(out)
			}
		}
	}
	if quoted {
		return "", errModuleValue
	}
	return string(out[:kept]), nil
}

// at is a byte of s, or 0 behind its end.
func at(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// moduleURL is a submodule's URL in one form: absolute, by http or https,
// without credentials. Addresses for ssh become what GIT_SUBMODULE_FORCE_HTTPS
// makes of them. Empty is what has no such form.
func moduleURL(base, raw string) string {
	if len(raw) > maxModuleURL {
		return ""
	}
	super, err := url.Parse(base)
	if err != nil {
		return ""
	}
	var u *url.URL
	switch {
	case strings.HasPrefix(raw, "./"), strings.HasPrefix(raw, "../"):
		if super.Host == "" {
			return ""
		}
		relative := *super
		relative.Path, relative.RawPath = path.Join("/", super.Path, raw), ""
		u = &relative
	case strings.Contains(raw, "://"):
		if u, err = url.Parse(raw); err != nil {
			return ""
		}
	default: // user@host:path
		host, rest, ok := strings.Cut(raw, ":")
		if _, h, user := strings.Cut(host, "@"); user {
			host = h
		}
		if !ok || host == "" || strings.Contains(host, "/") || strings.HasPrefix(rest, "/") {
			return ""
		}
		u = &url.URL{Scheme: "ssh", Host: host, Path: "/" + rest}
	}
	if u.Scheme == "ssh" {
		u = &url.URL{Scheme: "https", Host: u.Hostname(), Path: u.Path}
		if super.Hostname() == u.Host {
			u.Scheme, u.Host = super.Scheme, super.Host
		}
	}
	return plainURL(u)
}

func plainURL(u *url.URL) string {
	clean := strings.TrimSuffix(u.Path, "/")
	host := strings.ToLower(u.Host)
	switch {
	case u.Scheme != "https" && u.Scheme != "http", u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "":
		return ""
	case host == "" || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-:[]") != "":
		return ""
	case clean == "" || path.Clean(clean) != clean || strings.ContainsFunc(clean, func(r rune) bool { return r <= ' ' || r > '~' || r == '@' || r == '%' || r == '\\' }):
		return ""
	}
	return u.Scheme + "://" + host + clean
}

// sorted are the submodules by path, for the record.
func sorted(all []record.Submodule) []record.Submodule {
	slices.SortFunc(all, func(a, b record.Submodule) int { return strings.Compare(a.Path, b.Path) })
	return all
}
