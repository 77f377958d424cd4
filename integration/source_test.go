package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// A repositories is what the jobs of this file fetch, by commit.
type repositories struct {
	oneOld, one, nested, super string
	merge                      string // of a merge request, with the branch it is for
}

const (
	gitlab     = "https://" + world.GitLabName
	elsewhere  = "https://" + world.GitName
	lfsContent = "what Git LFS keeps\n"
)

// modules is the text of a .gitmodules file; URLs by path.
func modules(urls map[string]string) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(urls)) {
		fmt.Fprintf(&b, "[submodule %q]\n\tpath = %s\n\turl = %s\n", path, path, urls[path])
	}
	return b.String()
}

// publishSources makes all repositories. Each has two commits or more, so that
// a pinned one need not be a branch's.
func publishSources(t *testing.T) repositories {
	t.Helper()
	if published.super == "" {
		published = publishThem(t)
	}
	return published
}

var published repositories

func publishThem(t *testing.T) (r repositories) {
	t.Helper()
	publish := func(project string, tree coordinator.Tree) string {
		commit, err := theWorld.PublishTree(project, "main", tree)
		if err != nil {
			t.Fatal(err)
		}
		return commit
	}
	outside := func(project string, tree coordinator.Tree) string {
		commit, err := theWorld.PublishElsewhere(project, "main", tree)
		if err != nil {
			t.Fatal(err)
		}
		return commit
	}
	files := func(content string) coordinator.Tree {
		return coordinator.Tree{Files: map[string]string{"file": content}}
	}
	r.oneOld = publish("libs/one", files("one, old\n"))
	r.one = publish("libs/one", files("one\n"))
	publish("libs/private", files("private\n"))
	r.nested = publish("libs/nested", coordinator.Tree{
		Files:   map[string]string{"file": "nested\n", ".gitmodules": modules(map[string]string{"inner": "../one.git"})},
		Modules: map[string]string{"inner": r.one},
	})
	if again := outside("open/one", files("one, old\n")); again != r.oneOld {
		t.Fatalf("the copy is %s, want %s", again, r.oneOld)
	}
	outside("open/one", files("one\n"))
	outside("closed/one", files("one\n"))
	super := func(project string, modulesOf map[string]string, commits map[string]string) string {
		return publish(project, coordinator.Tree{
			Files:   map[string]string{"README": "super\n", ".gitmodules": modules(modulesOf)},
			Modules: commits,
		})
	}
	r.super = super("sources/super", map[string]string{"vendor/one": "../../libs/one.git", "third/nested": gitlab + "/libs/nested.git"},
		map[string]string{"vendor/one": r.one, "third/nested": r.nested})
	super("sources/old", map[string]string{"one": "../../libs/one"}, map[string]string{"one": r.oneOld})
	super("sources/private", map[string]string{"private": "../../libs/private.git"}, map[string]string{"private": r.one})
	super("sources/ssh", map[string]string{"one": "git@" + world.GitLabName + ":libs/one.git"}, map[string]string{"one": r.one})
	super("sources/file", map[string]string{"one": "file:///builds/sources/file/.git"}, map[string]string{"one": r.one})
	super("sources/elsewhere", map[string]string{"one": elsewhere + "/open/one.git"}, map[string]string{"one": r.one})
	super("sources/closed", map[string]string{"one": elsewhere + "/closed/one.git"}, map[string]string{"one": r.one})
	super("sources/canary", map[string]string{"one": "https://" + world.CanaryName + "/one.git"}, map[string]string{"one": r.one})
	super("sources/rewritten", map[string]string{"one": "../../libs/one.git"}, map[string]string{"one": strings.Repeat("1", 40)})

	publish("sources/attributes", coordinator.Tree{Files: map[string]string{
		".gitattributes": "*.bat eol=crlf\nREADME ident export-subst\n", "run.bat": "one\ntwo\n", "README": "$Id$ $Format:%H$\n",
	}})
	// What has overwritten .git/hooks where names of two cases are one.
	publish("sources/case", coordinator.Tree{
		Files: map[string]string{"README": "case\n", ".gitmodules": modules(map[string]string{"A/modules/one": "../../libs/one.git"})},
		Links: map[string]string{"a": ".git"}, Modules: map[string]string{"A/modules/one": r.one},
	})
	publish("sources/name", coordinator.Tree{
		Files:   map[string]string{"README": "name\n", ".gitmodules": "[submodule \"../../hooks\"]\n\tpath = one\n\turl = ../../libs/one.git\n"},
		Modules: map[string]string{"one": r.one},
	})

	inner := publish("libs/sha256", coordinator.Tree{Format: "sha256", Files: map[string]string{"file": "one\n"}})
	publish("sources/sha256", coordinator.Tree{
		Format: "sha256", Modules: map[string]string{"one": inner},
		Files: map[string]string{"README": "sha256\n", ".gitmodules": modules(map[string]string{"one": "../../libs/sha256.git"})},
	})
	theWorld.GitLab.Share("libs/sha256", "sources/sha256")
	for _, lib := range []string{"libs/one", "libs/nested"} {
		theWorld.GitLab.Share(lib, "sources/super", "sources/old", "sources/ssh", "sources/rewritten", "sources/case", "sources/name")
	}

	for name, pointer := range map[string]string{
		"lfs":    theWorld.GitLab.KeepLFS([]byte(lfsContent)),
		"badlfs": theWorld.GitLab.KeepLFSAs(strings.Repeat("5", 64), []byte(lfsContent)),
	} {
		tree := coordinator.Tree{Files: map[string]string{".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", "big.bin": pointer}}
		publish("sources/"+name, tree)
		kept := publish("libs/"+name, tree)
		super("sources/super"+name, map[string]string{"kept": "../../libs/" + name + ".git"}, map[string]string{"kept": kept})
		theWorld.GitLab.Share("libs/"+name, "sources/super"+name)
	}

	repo := theWorld.Repository("sources/super")
	for _, args := range [][]string{
		{"update-ref", "refs/merge-requests/7/head", r.super},
	} {
		if _, err := coordinator.Git(repo, args...); err != nil {
			t.Fatal(err)
		}
	}
	tagged := publish("sources/tagged", coordinator.Tree{Files: map[string]string{"README": "tagged\n"}})
	if _, err := coordinator.Git(theWorld.Repository("sources/tagged"), "tag", "-a", "-m", "a release", "v1", tagged); err != nil {
		t.Fatal(err)
	}
	tree, err := coordinator.Git(repo, "rev-parse", r.super+"^{tree}")
	if err == nil {
		r.merge, err = coordinator.Git(repo, "commit-tree", "-m", "merged result", "-p", r.super, tree)
	}
	if err == nil {
		_, err = coordinator.Git(repo, "update-ref", "refs/merge-requests/7/merge", r.merge)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A sourceCase is one job and what is said of its sources.
type sourceCase struct {
	project string // sources/super
	vars    string // "KEY=value KEY=value"
	job     func(*coordinator.Job)
	hook    string // runs after get_sources
	script  string // the build's

	fails    bool
	says     string // in the job log
	outcome  string // of the comparison: match
	differs  string // the first path that does
	detail   string
	modules  []string // submodules in the statement: path, origin and URI
	fetched  []string // what else the statement says was fetched in get_sources, without GitLab's scheme and name
	blocked  string   // what was tried, and refused
	artifact string
}

func sourceCases(r repositories) map[string]sourceCase {
	one := "vendor/one served git+" + gitlab + "/libs/one.git@" + r.one
	nested := "third/nested served git+" + gitlab + "/libs/nested.git@" + r.nested
	inner := "third/nested/inner served git+" + gitlab + "/libs/one.git@" + r.one
	at := func(ref string) func(*coordinator.Job) { return func(j *coordinator.Job) { j.Ref = ref } }
	read := "cat vendor/one/file third/nested/file"
	return map[string]sourceCase{
		// Strategies and what goes with them.
		"fetch":         {vars: "GIT_STRATEGY=fetch", detail: "2 submodules not checked out"},
		"clone":         {vars: "GIT_STRATEGY=clone"},
		"native clone":  {vars: "GIT_STRATEGY=clone FF_USE_GIT_NATIVE_CLONE=true GIT_CLONE_EXTRA_FLAGS=--no-tags"},
		"whole history": {job: func(j *coordinator.Job) { j.Depth = -1 }, hook: "echo depth $(git rev-list --count HEAD) of main", says: "depth 1 of main"},
		"depth by job":  {vars: "GIT_DEPTH=1"},
		"flags":         {vars: "GIT_CLEAN_FLAGS=none GIT_FETCH_EXTRA_FLAGS=--prune"},
		"none":          {vars: "GIT_STRATEGY=none", fails: true, outcome: "absent"},
		"empty":         {vars: "GIT_STRATEGY=empty", fails: true, outcome: "absent"},
		"no checkout":   {vars: "GIT_CHECKOUT=false", fails: true, outcome: "mismatch", differs: "missing .gitmodules"},
		"tried again":   {vars: "GET_SOURCES_ATTEMPTS=2", hook: "if [ ! -e ../again ]; then touch ../again; echo evil > README; exit 1; fi"},
		"hooks that look": {job: func(j *coordinator.Job) {
			j.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{"echo before"}}}
		}, says: "before"},
		"tag":           {project: "sources/tagged", fetched: []string{"/sources/tagged.git/git-upload-pack "}, job: func(j *coordinator.Job) { j.Ref, j.Tag = "v1", true }},
		"merge request": {job: at("refs/merge-requests/7/head")},
		"merged result": {job: at("refs/merge-requests/7/merge")},
		"other objects": {hook: "git fetch -q origin refs/merge-requests/7/merge", fetched: []string{"/sources/super.git/git-upload-pack " + r.merge}},
		"sha256": {project: "sources/sha256", vars: "GIT_SUBMODULE_STRATEGY=normal", job: func(j *coordinator.Job) { j.Format = "sha256" }, script: "cat one/file",
			modules: []string{"one served git+" + gitlab + "/libs/sha256.git"}, artifact: "one\n"},

		// Submodules.
		"normal":         {vars: "GIT_SUBMODULE_STRATEGY=normal", script: read, modules: []string{nested, one}, artifact: "one\nnested\n", detail: "1 submodules not checked out"},
		"recursive":      {vars: "GIT_SUBMODULE_STRATEGY=recursive", script: read + " third/nested/inner/file", modules: []string{nested, inner, one}, artifact: "one\nnested\none\n"},
		"paths":          {vars: "GIT_SUBMODULE_STRATEGY=recursive GIT_SUBMODULE_PATHS=vendor", modules: []string{one}, detail: "1 submodules not checked out"},
		"shallow":        {vars: "GIT_SUBMODULE_STRATEGY=recursive GIT_SUBMODULE_DEPTH=1", modules: []string{nested, inner, one}},
		"without .git":   {project: "sources/old", vars: "GIT_SUBMODULE_STRATEGY=normal", script: "cat one/file", modules: []string{"one named git+" + gitlab + "/libs/one.git@" + r.oneOld}, fetched: []string{"/libs/one.git/git-upload-pack " + r.one}, artifact: "one, old\n"},
		"update flags":   {project: "sources/old", vars: "GIT_SUBMODULE_STRATEGY=normal GIT_SUBMODULE_UPDATE_FLAGS=--remote", fails: true, outcome: "mismatch", differs: "changed one/file"},
		"ssh by https":   {project: "sources/ssh", vars: "GIT_SUBMODULE_STRATEGY=normal GIT_SUBMODULE_FORCE_HTTPS=true", modules: []string{"one served git+" + gitlab + "/libs/one.git@" + r.one}},
		"allowed server": {project: "sources/elsewhere", vars: "GIT_SUBMODULE_STRATEGY=normal", modules: []string{"one served git+" + elsewhere + "/open/one.git@" + r.one}},
		"taken from a fork": {hook: "git config submodule.vendor/one.url " + elsewhere + "/open/one.git; git submodule update -q --init --depth 1 vendor/one",
			modules: []string{"vendor/one served git+" + elsewhere + "/open/one.git@" + r.one}},

		// Git LFS, by a redirect to the object storage.
		"lfs":      {project: "sources/lfs", script: "cat big.bin", artifact: lfsContent, detail: "1 Git LFS objects", fetched: []string{"/sources/lfs.git/gitlab-lfs/objects/", "/sources/lfs.git/info/lfs/objects/batch"}},
		"lfs left": {project: "sources/lfs", vars: "GIT_LFS_SKIP_SMUDGE=1", script: "head -c 7 big.bin", artifact: "version"},
		"lfs in a submodule": {project: "sources/superlfs", vars: "GIT_SUBMODULE_STRATEGY=recursive", script: "cat kept/big.bin", artifact: lfsContent, detail: "1 Git LFS objects",
			modules: []string{"kept served git+" + gitlab + "/libs/lfs.git@"}, fetched: []string{"/libs/lfs.git/gitlab-lfs/objects/", "/libs/lfs.git/info/lfs/objects/batch"}},
		"lfs in a submodule left": {project: "sources/superlfs", vars: "GIT_SUBMODULE_STRATEGY=normal GIT_LFS_SKIP_SMUDGE=1", script: "head -c 7 kept/big.bin", artifact: "version",
			modules: []string{"kept served git+" + gitlab + "/libs/lfs.git@"}},

		// Attributes: what the commit's own ask for is its work tree.
		"attributes":          {project: "sources/attributes", script: "cat run.bat", artifact: "one\r\ntwo\r\n", detail: "2 files as .gitattributes has them"},
		"attributes besides":  {project: "sources/attributes", hook: "mkdir -p .git/info; echo '* -eol' > .git/info/attributes; rm run.bat; git checkout -q run.bat; echo x >> run.bat", fails: true, outcome: "mismatch", differs: "changed run.bat"},
		"configured by a job": {vars: "GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=core.autocrlf GIT_CONFIG_VALUE_0=true", fails: true, outcome: "mismatch", differs: "eol .gitmodules"},

		// Attacks.
		"names of two cases":                  {project: "sources/case", vars: "GIT_SUBMODULE_STRATEGY=recursive", modules: []string{"A/modules/one served git+" + gitlab + "/libs/one.git@" + r.one}},
		"a name that climbs":                  {project: "sources/name", vars: "GIT_SUBMODULE_STRATEGY=recursive", fails: true, outcome: "none"},
		"private submodule":                   {project: "sources/private", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none"},
		"server not allowed":                  {project: "sources/canary", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none", blocked: "https://" + world.CanaryName + "/one.git/"},
		"path not allowed":                    {project: "sources/closed", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none", blocked: elsewhere + "/closed/one.git/"},
		"ssh":                                 {project: "sources/ssh", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none"},
		"file":                                {project: "sources/file", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none"},
		"commit that is not":                  {project: "sources/rewritten", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none"},
		"lfs with other bytes":                {project: "sources/badlfs", fails: true, outcome: "none"},
		"lfs in a submodule with other bytes": {project: "sources/superbadlfs", vars: "GIT_SUBMODULE_STRATEGY=normal", fails: true, outcome: "none"},
		"lfs in a submodule edited":           {project: "sources/superlfs", vars: "GIT_SUBMODULE_STRATEGY=normal", hook: "echo evil > kept/big.bin", fails: true, outcome: "mismatch", differs: "changed kept/big.bin"},
		"submodule edited":                    {vars: "GIT_SUBMODULE_STRATEGY=normal", hook: "echo evil > vendor/one/file", fails: true, outcome: "mismatch", differs: "changed vendor/one/file"},
		"submodule at another":                {vars: "GIT_SUBMODULE_STRATEGY=normal", hook: "git -C vendor/one fetch -q origin " + r.oneOld + "; git -C vendor/one checkout -q " + r.oneOld, fails: true, outcome: "mismatch", differs: "changed vendor/one/file"},
		"submodule made up":                   {hook: "git init -q .git/modules/vendor/one; echo one > vendor/one/file", fails: true, outcome: "mismatch", differs: "submodule vendor/one"},
		"modules planted":                     {hook: "git -C vendor/one init -q; cd vendor/one; echo evil > file; git add file; git -c user.name=x -c user.email=x@x commit -qm x; git update-ref HEAD HEAD", fails: true, outcome: "mismatch", differs: "submodule vendor/one"},
		"a link for a submodule":              {hook: "rmdir vendor/one; ln -s .git vendor/one", fails: true, outcome: "mismatch", differs: "kind vendor/one"},
		"another case":                        {hook: "mkdir Vendor; echo x > Vendor/One", fails: true, outcome: "mismatch", differs: "added Vendor/"},
		"replaced":                            {hook: "echo evil > README; git -c user.name=x -c user.email=x@x commit -qam x; git replace -f $CI_COMMIT_SHA HEAD; git checkout -qf $CI_COMMIT_SHA", fails: true, outcome: "mismatch", differs: "changed README"},
		"grafted and shallow":                 {hook: "mkdir -p .git/info; echo $CI_COMMIT_SHA > .git/info/grafts; echo $CI_COMMIT_SHA > .git/shallow"},
		"alternates":                          {hook: "mv .git/objects ../hidden; mkdir -p .git/objects/info; echo $PWD/../hidden > .git/objects/info/alternates", fails: true, outcome: "absent"},
		"another work tree":                   {hook: "mkdir ../other; git config core.worktree ../../other; git checkout -qf HEAD; echo evil > README", fails: true, outcome: "mismatch", differs: "changed README"},
	}
}

// TestSources has the runner fetch what jobs ask for, and holds what the record
// and the statement say of it. All jobs are queued at once.
func TestSources(t *testing.T) {
	r := publishSources(t)
	cases := sourceCases(r)
	attempts := map[string]*coordinator.Attempt{}
	for name, c := range cases {
		attempts[name] = start(t, c.queued())
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { c.judge(t, wait(t, attempts[name])) })
	}
}

func (c sourceCase) queued() coordinator.Job {
	script := c.script
	if script == "" {
		script = "cat README"
		if c.project == "sources/lfs" || c.project == "sources/badlfs" {
			script = "cat big.bin"
		}
	}
	job := hermetic("{ " + script + "; } > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	job.Artifacts[0].When = "always"
	job.Project, job.ProjectID = "sources/super", 90
	if c.project != "" {
		job.Project = c.project
	}
	for kv := range strings.FieldsSeq(c.vars) {
		key, value, _ := strings.Cut(kv, "=")
		job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: value, Public: true})
	}
	if c.hook != "" {
		job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{c.hook}}}
	}
	if c.job != nil {
		c.job(&job)
	}
	return job
}

func (c sourceCase) judge(t *testing.T, r coordinator.Result) {
	entries := evidence(t, r)
	if c.says != "" {
		mention(t, r, c.says)
	}
	never(t, r, "CANARY")
	if c.blocked != "" && !slices.ContainsFunc(dataOf[record.Block](t, entries, record.Blocked), func(b record.Block) bool { return strings.HasPrefix(b.Target, c.blocked) }) {
		t.Errorf("%s was not blocked", c.blocked)
	}
	c.judgeRecord(t, dataOf[record.Source](t, entries, record.SourceVerified))
	if c.fails {
		if r.State != coordinator.Failed {
			t.Errorf("the job ended as %s", r.State)
		}
		unattested(t, r)
		return
	}
	expect(t, r, coordinator.Success, "")
	if got := archive(t, r)["out.txt"]; c.artifact != "" && got != c.artifact {
		t.Errorf("the build read %q, want %q", got, c.artifact)
	}
	c.judgeStatement(t, attested(t, r).Statement)
}

func (c sourceCase) judgeRecord(t *testing.T, sources []record.Source) {
	want := c.outcome
	switch {
	case want == "":
		want = "match"
	case want == "none":
		if len(sources) != 0 {
			t.Errorf("compared, although nothing was fetched: %+v", sources)
		}
		return
	}
	if len(sources) == 0 {
		t.Fatal("nothing was compared")
	}
	s := sources[len(sources)-1]
	if s.Outcome != want || !strings.Contains(s.Detail, c.detail) {
		t.Errorf("the comparison found %+v, want %s, %q", s, want, c.detail)
	}
	if c.differs != "" && (len(s.Differs) == 0 || !strings.HasPrefix(s.Differs[0], c.differs)) {
		t.Errorf("%q differ, want %q first", s.Differs, c.differs)
	}
}

// judgeStatement wants the submodules and fetches that are named, and no others.
func (c sourceCase) judgeStatement(t *testing.T, s harness.Statement) {
	var got, fetched []string
	source := 0
	for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
		path, module := strings.CutPrefix(d.Name, "submodule/")
		stages := fmt.Sprint(d.Annotations["stages"])
		switch {
		case module:
			if d.Digest["gitCommit"] == "" || d.Digest["gitTree"] == "" {
				t.Errorf("%s has no digests: %v", path, d.Digest)
			}
			got = append(got, fmt.Sprint(path, " ", d.Annotations["origin"], " ", d.URI))
		case d.Name == "source":
			source++
		case d.Annotations["kind"] == "fetched" && strings.Contains(stages, "get_sources"):
			what := strings.TrimPrefix(d.URI, gitlab)
			if wants, ok := d.Annotations["wants"].([]any); ok {
				for _, w := range wants {
					what += " " + fmt.Sprint(w)
				}
			}
			fetched = append(fetched, what)
		}
	}
	if source != 1 {
		t.Errorf("%d sources", source)
	}
	prefixes(t, "submodules", got, c.modules)
	prefixes(t, "fetched", fetched, c.fetched)
}

// TestSourcesAreDeclared has an admin who lets jobs build what is not the
// commit: the statement says so, and names no source that was not there.
func TestSourcesAreDeclared(t *testing.T) {
	publishSources(t)
	restore, err := theWorld.ConfigureSandboxd(func(config string) string { return "source_mismatch = \"declare\"\n" + config })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := restore(); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]sourceCase{
		"none":   {vars: "GIT_STRATEGY=none", outcome: "absent", script: "echo built"},
		"edited": {vars: "GIT_SUBMODULE_STRATEGY=normal", hook: "echo evil > vendor/one/file", outcome: "mismatch", script: "cat vendor/one/file", artifact: "evil\n"},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, c.queued())
			expect(t, r, coordinator.Success, "")
			if got := archive(t, r)["out.txt"]; c.artifact != "" && got != c.artifact {
				t.Errorf("the build read %q", got)
			}
			s := attested(t, r).Statement
			if !strings.Contains(s.Raw, `"sources":"declared"`) || !strings.Contains(s.Raw, `"outcome":"`+c.outcome+`"`) {
				t.Errorf("the statement does not say %s: %s", c.outcome, s.Raw)
			}
			packs := 0
			for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
				if strings.HasPrefix(d.URI, "git+") || strings.HasPrefix(d.Name, "submodule/") {
					t.Errorf("%s %s is a dependency", d.Name, d.URI)
				}
				if strings.HasSuffix(d.URI, "/git-upload-pack") {
					packs++
				}
			}
			if c.outcome == "mismatch" && packs == 0 {
				t.Error("what was fetched is no dependency")
			}
		})
	}
}

// prefixes wants one of got for each of want, in order, that begins so.
func prefixes(t *testing.T, what string, got, want []string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		t.Errorf("%s:\n%s\nwant\n%s", what, lines(got), lines(want))
	}
}
