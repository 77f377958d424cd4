package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox/record"
)

// Outcomes of a verification, as the record has them.
const (
	outcomeMatch    = "match"
	outcomeMismatch = "mismatch"
	outcomeAbsent   = "absent"
)

// Bounds on what a record keeps of a mismatch.
const (
	maxDiffers = 20
	maxShown   = 512 // bytes of one path
)

// VerifySource compares the work tree at projectDir, a path in the container,
// with the tree of the commit that GitLab asked for. repository is its URL,
// without credentials: submodules may have theirs relative to it. No process of
// the attempt may run. An error says that it could not be decided; a *sandbox.UserError
// that the tree exceeds a limit.
func (w *Workspace) VerifySource(ctx context.Context, projectDir, commit, format, repository string) (record.Source, error) {
	alg, err := parseAlgorithm(format)
	if err != nil {
		return record.Source{}, fmt.Errorf("workspace: source: %w", err)
	}
	id, err := alg.parseID(commit)
	if err != nil {
		return record.Source{}, fmt.Errorf("workspace: source: commit: %w", err)
	}
	rel, err := sub(projectDir)
	if err != nil {
		return record.Source{}, err
	}
	builds, err := w.root()
	if err != nil {
		return record.Source{}, err
	}
	src := record.Source{Outcome: outcomeAbsent, Commit: commit, Format: alg.name}
	project, err := openDir(builds, rel)
	if missing(err) {
		src.Detail = fmt.Sprintf("project directory: %v", err)
		return src, nil
	}
	if err != nil {
		return record.Source{}, fmt.Errorf("workspace: source: %w", err)
	}
	defer project.Close()
	if err := verify(ctx, alg, int(project.Fd()), id, repository, &src); err != nil {
		return record.Source{}, fmt.Errorf("workspace: source: %w", err)
	}
	return src, nil
}

// missing reports errors that say that what was looked for is not there, or
// that something else stands in its place.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV)
}

func verify(ctx context.Context, alg algorithm, project int, commit objectID, url string, src *record.Source) error {
	top, counted, err := scan(ctx, alg, project)
	if err != nil {
		return err
	}
	src.Files, src.Bytes, src.Found = counted.files, counted.bytes, top.id.String()
	store := newObjectStore(alg)
	defer store.close()
	if err := store.add(project, dotGit+"/objects"); err != nil {
		src.Detail = fmt.Sprintf("object store: %v", err)
		return nil
	}
	data, err := store.read(ctx, commit, kindCommit, maxCommit)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		src.Detail = strings.Join(append([]string{err.Error()}, first(store.faults)...), "; ")
		return nil
	}
	tree, err := parseCommit(alg, data)
	if err != nil {
		src.Detail = err.Error()
		return nil
	}
	src.Tree = tree.String()
	c := comparison{store: store, project: project, super: &repository{tree: tree, url: url}, attrs: allAttributes, trees: maxTrees}
	if top.id != tree || top.impure {
		if err := c.compare(ctx, top, tree, ""); err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	src.Differs, src.Detail, src.Submodules = c.differs, c.detail(), sorted(c.submodules)
	src.Converted = int64(c.converted)
	if len(c.differs) > 0 {
		src.Outcome = outcomeMismatch
		return nil
	}
	src.Outcome, src.Found = outcomeMatch, ""
	return nil
}

func first(s []string) []string { return s[:min(len(s), 3)] }

// errEnough ends a comparison that has found maxDiffers paths.
var errEnough = errors.New("enough differences")

// A comparison lists where a work tree differs from a commit.
type comparison struct {
	store   *objectStore
	project int
	modules bool // their stores are open
	super   *repository
	differs []string

	submodules []record.Submodule
	names      int // bytes of theirs
	attrs      attrLimits
	trees      int64 // bytes of trees that may still be read

	lfs, converted, checkedOut, leftOut int
	more                                bool
}

func (c *comparison) detail() string {
	var out []string
	say := func(n int, what string) {
		if n > 0 {
			out = append(out, strconv.Itoa(n)+" "+what)
		}
	}
	say(c.lfs, "Git LFS objects equal to their pointers")
	say(c.converted, "files as .gitattributes has them")
	say(c.checkedOut, "submodules compared with their commits")
	say(c.leftOut, "submodules not checked out")
	if c.more {
		out = append(out, "further paths were not compared")
	}
	return strings.Join(out, "; ")
}

// differ notes one path; it returns errEnough with the last that is kept.
func (c *comparison) differ(what, rel string) error {
	c.differs = append(c.differs, what+" "+show(rel))
	if len(c.differs) >= maxDiffers {
		c.more = true
		return errEnough
	}
	return nil
}

// compare looks at one directory that is not equal to its tree as it stands.
// A git tree is a tree of hashes, so the descent ends.
func (c *comparison) compare(ctx context.Context, dir *node, tree objectID, rel string) error {
	entries, err := c.readTree(ctx, tree)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return c.differ("unknown", rel+"/: "+err.Error())
	}
	have := make(map[string]*node, len(dir.children))
	for _, n := range dir.children {
		have[n.name] = n
	}
	for _, e := range entries {
		if err := c.entry(ctx, e, have[e.name], path.Join(rel, e.name)); err != nil {
			return err
		}
		delete(have, e.name)
	}
	for _, n := range dir.children {
		if have[n.name] == nil || n.empty() {
			continue
		}
		if err := c.extra(n, path.Join(rel, n.name)); err != nil {
			return err
		}
	}
	return nil
}

// readTree reads a tree of the commit's. Those of the directories above are held
// meanwhile, so all count together.
func (c *comparison) readTree(ctx context.Context, id objectID) ([]treeEntry, error) {
	data, err := c.store.read(ctx, id, kindTree, min(maxTree, c.trees))
	if err != nil {
		return nil, err
	}
	c.trees -= int64(len(data))
	return parseTree(c.store.alg, data)
}

func (c *comparison) extra(n *node, rel string) error {
	switch {
	case n.mode == 0:
		return c.differ(n.why, rel)
	case n.directory():
		return c.differ("added", rel+"/")
	}
	return c.differ("added", rel)
}

func (c *comparison) entry(ctx context.Context, e treeEntry, n *node, rel string) error {
	switch {
	case e.mode == modeGitlink:
		return c.submodule(ctx, e, n, rel)
	case n == nil && e.mode == modeTree:
		return c.differ("missing", rel+"/")
	case n == nil:
		return c.differ("missing", rel)
	case n.mode == 0:
		return c.differ(n.why, rel)
	case e.mode == modeTree && n.directory():
		if n.id == e.id && !n.impure {
			return nil
		}
		return c.compare(ctx, n, e.id, rel)
	case kindOf(e.mode) != kindOf(n.mode):
		return c.differ("kind", rel)
	case n.id != e.id:
		return c.content(ctx, e, n, rel)
	case n.mode != e.mode:
		return c.differ("mode", rel)
	}
	return nil
}

// kindOf is a mode without the executable bit.
func kindOf(mode uint32) uint32 { return mode & 0o170000 }

// content decides about a file whose blob differs: it may be what the blob, a
// Git LFS pointer, stands for, or what the commit's own attributes make of it.
// Nothing else is forgiven.
func (c *comparison) content(ctx context.Context, e treeEntry, n *node, rel string) error {
	if e.mode == modeSymlink {
		return c.differ("changed", rel)
	}
	blob, err := c.store.read(ctx, e.id, kindBlob, maxText)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return c.differ("changed", rel) // too large to be a pointer, or not there
	}
	if p, ok := parsePointer(blob); ok && p.size == n.size {
		sum, size, err := sumFile(ctx, c.project, rel)
		if err != nil {
			return fmt.Errorf("%s: %w", show(rel), err)
		}
		if sum == p.sha256 && size == p.size {
			return c.forgive(e, n, rel, &c.lfs)
		}
	}
	asked, err := c.asAttributesSay(ctx, e, blob, n, rel)
	if err != nil {
		return err
	}
	if asked {
		return c.forgive(e, n, rel, &c.converted)
	}
	same, err := c.onlyLines(ctx, blob, n, rel)
	if err != nil {
		return fmt.Errorf("%s: %w", show(rel), err)
	}
	if same {
		return c.differ("eol", rel)
	}
	return c.differ("changed", rel)
}

// forgive counts a file that is what its blob stands for.
func (c *comparison) forgive(e treeEntry, n *node, rel string, count *int) error {
	if e.mode != n.mode {
		return c.differ("mode", rel)
	}
	*count++
	return nil
}

func (c *comparison) onlyLines(ctx context.Context, blob []byte, n *node, rel string) (bool, error) {
	if n.size > 2*maxText {
		return false, nil
	}
	f, err := openPath(c.project, rel)
	if err != nil {
		return false, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(contextReader{ctx, f}, 2*maxText))
	if err != nil {
		return false, err
	}
	return sameButLines(blob, text), nil
}

// submodule compares the directory at a gitlink with the commit that the
// gitlink names. The commit may come from any store of the project: its hash
// is what makes it the right one.
func (c *comparison) submodule(ctx context.Context, e treeEntry, n *node, rel string) error {
	switch {
	case n == nil || n.empty():
		c.leftOut++
		return nil
	case n.mode == 0:
		return c.differ(n.why, rel)
	case !n.directory():
		return c.differ("kind", rel)
	}
	if err := c.openModules(rel); err != nil {
		return c.differ("submodule", rel+": "+err.Error())
	}
	data, err := c.store.read(ctx, e.id, kindCommit, maxCommit)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return c.differ("submodule", rel+": "+err.Error())
	}
	tree, err := parseCommit(c.store.alg, data)
	if err != nil {
		return c.differ("submodule", rel+": "+err.Error())
	}
	c.checkedOut++
	inside := &repository{rel: rel, tree: tree, url: c.urlOf(ctx, rel)}
	if err := c.note(record.Submodule{Path: printable(rel), Commit: e.id.String(), Tree: tree.String(), URL: inside.url}); err != nil {
		return err
	}
	outside := c.super
	c.super = inside
	defer func() { c.super = outside }()
	return c.compare(ctx, withoutGit(n), tree, rel)
}

// openModules adds the stores of the project's submodules, once, and the one
// that a submodule of old style has in its own directory.
func (c *comparison) openModules(rel string) error {
	if !c.modules {
		c.modules = true
		if err := c.store.addModules(c.project); err != nil {
			return err
		}
	}
	if len(c.store.dirs) > maxModules {
		return fmt.Errorf("more than %d submodules", maxModules)
	}
	err := c.store.add(c.project, path.Join(rel, dotGit, "objects"))
	if err != nil && !missing(err) {
		return err
	}
	return nil
}

// withoutGit is a submodule's directory without what makes it one.
func withoutGit(n *node) *node {
	out := *n
	out.children = nil
	for _, c := range n.children {
		if c.name != dotGit {
			out.children = append(out.children, c)
		}
	}
	return &out
}

// show makes a job-written path safe for a record and a log, and short.
func show(rel string) string {
	if rel == "" {
		return "."
	}
	if len(rel) > maxShown {
		rel = strings.ToValidUTF8(rel[:maxShown], "") + "…"
	}
	return printable(rel)
}

// printable is a path as it is, or quoted where it has bytes that do not print.
// No two paths have the same.
func printable(rel string) string {
	if quoted := strconv.Quote(rel); !utf8.ValidString(rel) || quoted != `"`+rel+`"` {
		return quoted
	}
	return rel
}
