package workspace

import (
	"context"
	"errors"
	"path"
	"regexp"
	"strings"
)

const (
	gitattributes = ".gitattributes"

	maxAttributes = 1 << 20 // bytes of all .gitattributes of one verification
	maxAttrLine   = 2 << 10 // bytes of one line; git ignores longer ones
	maxAttrSets   = 1 << 18 // values of all lines, with what macros stand for
	maxAttrWork   = 1 << 34 // bytes of patterns times bytes of the paths that they are compared with
)

// errAttributes says that a file of attributes cannot be read as git reads it.
// What it asks for is then not known, and nothing is forgiven for its sake.
var errAttributes = errors.New("attributes that are not understood")

// An attrRule is one line of a .gitattributes file.
type attrRule struct {
	pattern *regexp.Regexp
	size    int  // of the pattern, in bytes
	base    bool // of the last component alone
	sets    []attrSet
}

// An attrSet gives one attribute a value: "true", "false", "" for none, or text.
type attrSet struct{ name, value string }

// attrLimits are what is left of the bounds of one verification. A macro can
// stand for others, and so on: a few lines can stand for more than there is memory.
type attrLimits struct {
	text, sets int
	work       int64
}

var allAttributes = attrLimits{maxAttributes, maxAttrSets, maxAttrWork}

// An attrDir is a directory of a commit with the rules in it.
type attrDir struct {
	entries []treeEntry
	rules   []attrRule
}

// attributesOf are those that the commit's own files give the file at rel. What
// the job has in .git/info or in its configuration does not count: it is not the
// commit's.
func (c *comparison) attributesOf(ctx context.Context, rel string) (map[string]string, error) {
	inside := strings.TrimPrefix(strings.TrimPrefix(rel, c.super.rel), "/")
	out := map[string]string{}
	at, rest := "", inside
	for {
		d, err := c.attrDir(ctx, at)
		if err != nil {
			return nil, err
		}
		for _, r := range d.rules {
			if c.attrs.work -= int64(r.size) * int64(len(rest)); c.attrs.work < 0 || ctx.Err() != nil {
				return nil, errAttributes
			}
			r.apply(rest, out)
		}
		next, below, ok := strings.Cut(rest, "/")
		if !ok {
			return out, nil
		}
		at, rest = path.Join(at, next), below
	}
}

func (r attrRule) apply(rel string, out map[string]string) {
	if r.base {
		rel = path.Base(rel)
	}
	if !r.pattern.MatchString(rel) {
		return
	}
	for _, s := range r.sets {
		out[s.name] = s.value
	}
}

// attrDir reads one directory of the superproject's commit, once.
func (c *comparison) attrDir(ctx context.Context, rel string) (*attrDir, error) {
	if d := c.super.dirs[rel]; d != nil {
		return d, nil
	}
	tree := c.super.tree
	if rel == "" {
		c.super.macros = map[string][]attrSet{"binary": {{"diff", "false"}, {"merge", "false"}, {"text", "false"}}}
	} else {
		parent, base := split(rel)
		up, err := c.attrDir(ctx, parent)
		if err != nil {
			return nil, err
		}
		tree = ""
		for _, e := range up.entries {
			if e.name == base && e.mode == modeTree {
				tree = e.id
			}
		}
	}
	entries, err := c.readTree(ctx, tree)
	if err != nil {
		return nil, err
	}
	d := &attrDir{entries: entries}
	for _, e := range d.entries {
		if e.name != gitattributes || e.mode != modeFile && e.mode != modeExecutable {
			continue
		}
		text, err := c.store.read(ctx, e.id, kindBlob, int64(c.attrs.text))
		if err != nil {
			return nil, err
		}
		c.attrs.text -= len(text)
		if d.rules, err = parseAttributes(string(text), rel == "", c.super.macros, &c.attrs); err != nil {
			return nil, err
		}
	}
	if c.super.dirs == nil {
		c.super.dirs = map[string]*attrDir{}
	}
	c.super.dirs[rel] = d
	return d, nil
}

// parseAttributes reads a .gitattributes file. Macros are defined in the root
// alone.
func parseAttributes(text string, root bool, macros map[string][]attrSet, left *attrLimits) ([]attrRule, error) {
	var out []attrRule
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		line = strings.Trim(line, " \t\r\n")
		if line == "" || line[0] == '#' || len(line) > maxAttrLine {
			continue
		}
		words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' })
		name, macro := strings.CutPrefix(words[0], "[attr]")
		sets, err := parseSets(words[1:], macros, left)
		switch {
		case err != nil || words[0][0] == '"':
			return nil, errAttributes
		case macro && root:
			macros[name] = sets
			continue
		case macro || words[0][0] == '!', len(sets) == 0: // nothing comes of these
			continue
		}
		r := attrRule{size: len(words[0]), sets: sets}
		var matches bool
		if r.pattern, r.base, matches, err = attrPattern(words[0]); err != nil {
			return nil, err
		}
		if matches {
			out = append(out, r)
		}
	}
	return out, nil
}

var attrName = regexp.MustCompile(`^[A-Za-z0-9_.][A-Za-z0-9_.-]*$`)

// parseSets reads what follows a pattern. A macro counts for itself and, when it
// is set, for what it stands for.
func parseSets(words []string, macros map[string][]attrSet, left *attrLimits) ([]attrSet, error) {
	var out []attrSet
	for _, w := range words {
		s := attrSet{w, "true"}
		switch {
		case w[0] == '-':
			s = attrSet{w[1:], "false"}
		case w[0] == '!':
			s = attrSet{w[1:], ""}
		default:
			if name, value, ok := strings.Cut(w, "="); ok {
				s = attrSet{name, value}
			}
		}
		if !attrName.MatchString(s.name) {
			return nil, errAttributes
		}
		more := []attrSet(nil)
		if s.value == "true" {
			more = macros[s.name]
		}
		if left.sets -= 1 + len(more); left.sets < 0 {
			return nil, errAttributes
		}
		out = append(append(out, s), more...)
	}
	return out, nil
}

// attrPattern makes a pattern of git's one of Go's, whose work is linear.
// Without a slash it is for the last component; one that ends in a slash is for
// directories, and matches no file.
func attrPattern(p string) (re *regexp.Regexp, base, matches bool, err error) {
	if strings.HasSuffix(p, "/") {
		return nil, false, false, nil
	}
	base = !strings.Contains(p, "/")
	p = strings.TrimPrefix(p, "/")
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	for i := 0; i < len(p); i++ {
		switch rest := p[i:]; {
		case !base && strings.HasPrefix(rest, "**/") && (i == 0 || p[i-1] == '/'):
			b.WriteString(`(?:.*/)?`)
			i += 2
		case !base && rest == "**" && (i == 0 || p[i-1] == '/'):
			b.WriteString(`.*`)
			i++
		case p[i] == '*':
			b.WriteString(`[^/]*`)
		case p[i] == '?':
			b.WriteString(`[^/]`)
		case p[i] == '[':
			m := attrClass.FindStringSubmatch(rest)
			if m == nil {
				return nil, false, false, errAttributes
			}
			b.WriteString("[" + strings.Replace(m[1], "!", "^/", 1) + m[2] + "]")
			i += len(m[0]) - 1
		case p[i] == '\\':
			if i++; i == len(p) {
				return nil, false, false, errAttributes
			}
			b.WriteString(regexp.QuoteMeta(p[i : i+1]))
		default:
			b.WriteString(regexp.QuoteMeta(p[i : i+1]))
		}
	}
	b.WriteString(`\z`)
	if re, err = regexp.Compile(b.String()); err != nil {
		return nil, false, false, errAttributes // bytes that are no UTF-8
	}
	return re, base, true, nil
}

// attrClass is a set of letters, digits and ranges of them: others are read in
// different ways.
var attrClass = regexp.MustCompile(`^\[(!?)((?:[A-Za-z0-9_](?:-[A-Za-z0-9])?)+)\]`)
