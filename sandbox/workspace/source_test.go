package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// upstream makes a repository with what git can hold, 30 commits long.
func upstream(t testing.TB, format string) (dir, commit string) {
	t.Helper()
	dir = publicDir(t)
	run(t, dir, "git", "init", "-q", "--object-format="+format, ".")
	for name, content := range map[string]string{
		"README.md": "hello\n", "src/main.c": "int main;\n", "src/deep/er/x": "x\n", "src.c": "sorts before src/\n",
		"empty": "", "ünïcode/日本語.txt": "u\n", "with\nnewline": "n\n", "-dash": "d\n", "latin-\xe9": "l\n", "large": strings.Repeat("0123456789abcdef", 40_000),
		"crlf.txt": "a\r\nb\r\n", "lf.txt": "a\nb\n", ".gitignore": "*.o\n", ".gitattributes": "export-subst.txt export-subst\n", "export-subst.txt": "$Format:%H$\n",
	} {
		mustWrite(t, filepath.Join(dir, name), content)
	}
	mustWrite(t, filepath.Join(dir, "bin/tool"), "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(dir, "bin/tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	link(t, "README.md", filepath.Join(dir, "link"))
	link(t, "/etc/passwd", filepath.Join(dir, "src/outside"))
	link(t, "nowhere", filepath.Join(dir, "dangling"))
	run(t, dir, "git", "add", "-A", "--force")
	run(t, dir, "git", "commit", "-q", "-m", "first")
	for i := range 30 {
		mustWrite(t, filepath.Join(dir, "counter"), strings.Repeat(fmt.Sprintf("line %d\n", i), 200))
		mustWrite(t, filepath.Join(dir, "large"), strings.Repeat("0123456789abcdef", 40_000)+fmt.Sprint(i))
		run(t, dir, "git", "add", ".")
		run(t, dir, "git", "commit", "-q", "-m", fmt.Sprint("commit ", i))
	}
	return dir, run(t, dir, "git", "rev-parse", "HEAD")
}

// getSources does what the runner's get_sources stage does.
func getSources(t testing.TB, project, from, commit, format string) {
	t.Helper()
	mustMkdir(t, project)
	run(t, project, "git", "init", "-q", "--object-format="+format, ".")
	run(t, project, "git", "remote", "add", "origin", "file://"+from)
	run(t, project, "git", "fetch", "-q", "origin", "+refs/heads/*:refs/remotes/origin/*", "--depth", "20", "--prune")
	run(t, project, "git", "checkout", "-f", "-q", commit)
	run(t, project, "git", "clean", "-ffdx")
}

func copyTo(t testing.TB, from, to string) {
	t.Helper()
	mustMkdir(t, filepath.Dir(to))
	run(t, from, "cp", "-a", from, to)
}

func TestVerifySource(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		from, commit := upstream(t, format)
		tree := run(t, from, "git", "rev-parse", commit+"^{tree}")
		fetched := filepath.Join(publicDir(t), "project")
		getSources(t, fetched, from, commit, format)
		for name, c := range sourceCases {
			t.Run(format+"/"+name, func(t *testing.T) {
				w := newWorkspace(t)
				project := w.host(projectDir)
				switch {
				case !c.bare:
					copyTo(t, fetched, project)
				case c.bend != nil:
					mustMkdir(t, project)
				}
				if c.bend != nil {
					c.bend(t, project, commit)
				}
				got, err := w.VerifySource(t.Context(), projectDir, commit, format, "")
				if err != nil {
					t.Fatal(err)
				}
				if got.Outcome != c.outcome {
					t.Fatalf("outcome %q, want %q: %+v", got.Outcome, c.outcome, got)
				}
				if diff := cmp.Diff(c.differs, got.Differs); diff != "" {
					t.Errorf("differs (-want +got):\n%s\n%s", diff, got.Detail)
				}
				if !strings.Contains(got.Detail, c.detail) || c.detail == "" && got.Detail != "" {
					t.Errorf("detail %q, want %q", got.Detail, c.detail)
				}
				if got.Commit != commit || got.Format != format || (got.Tree != tree) != (got.Outcome == outcomeAbsent) {
					t.Errorf("source %+v, want tree %s", got, tree)
				}
				if got.Outcome == outcomeMatch && (got.Files < 20 || got.Bytes < 600_000 || got.Found != "") {
					t.Errorf("counts: %+v", got)
				}
			})
		}
	}
}

type sourceCase struct {
	bare    bool // without get_sources
	bend    func(t *testing.T, project, commit string)
	outcome string
	differs []string
	detail  string
}

func script(s string) func(*testing.T, string, string) {
	return func(t *testing.T, project, commit string) {
		t.Helper()
		sh(t, project, "commit="+commit+"\n"+s)
	}
}

var sourceCases = map[string]sourceCase{
	"as fetched":   {outcome: "match"},
	"packed":       {bend: script("git repack -q -a -d -f --depth=50 --window=50"), outcome: "match"},
	"loose":        {bend: script(unpackAll + "test -z \"$(ls .git/objects/pack)\""), outcome: "match"},
	"ref deltas":   {bend: script("git -c repack.useDeltaBaseOffset=false repack -q -a -d -f"), outcome: "match"},
	"many packs":   {bend: script("for i in 1 2 3; do echo $i > n; git add n; git -c user.name=x commit -q -m n; git repack -q -d; done; git checkout -q -f $commit; git clean -qffdx"), outcome: "match"},
	"midx":         {bend: script("git multi-pack-index write"), outcome: "match"},
	"umask 0":      {bend: script("find . -path ./.git -prune -o -type f -print0 | xargs -0 chmod a+rw; chmod 777 bin src"), outcome: "match"},
	"mode 0":       {bend: script("chmod 0 README.md src/deep/er; chmod 100 bin/tool"), outcome: "match"},
	"empty dirs":   {bend: script("mkdir -p a/b/c src/none"), outcome: "match"},
	"bad packs":    {bend: script("for f in idx pack; do head -c 3000 /dev/urandom > .git/objects/pack/pack-0.$f; : > .git/objects/pack/pack-1.$f; done; mkfifo .git/objects/pack/pack-2.idx; ln -s /etc/passwd .git/objects/pack/pack-3.idx"), outcome: "match"},
	"git config":   {bend: script(`git config core.fsmonitor 'touch /tmp/hallmark-ran-fsmonitor'; git config core.worktree /etc; git config core.fileMode false; printf '#!/bin/sh\nexit 1\n' > .git/hooks/post-checkout`), outcome: "match"},
	"index flags":  {bend: script("git update-index --assume-unchanged README.md; git update-index --skip-worktree src/main.c"), outcome: "match"},
	"head moved":   {bend: script("echo ref: refs/heads/none > .git/HEAD; rm -rf .git/refs .git/packed-refs .git/index"), outcome: "match"},
	"replace refs": {bend: script("git replace $commit $(git commit-tree -m evil $(git hash-object -t tree -w /dev/null))"), outcome: "match"},
	"grafts":       {bend: script("mkdir -p .git/info; echo $commit > .git/info/grafts"), outcome: "match"},

	"changed":        {bend: script("echo x >> README.md"), outcome: "mismatch", differs: []string{"changed README.md"}},
	"changed deep":   {bend: script("echo y > src/deep/er/x"), outcome: "mismatch", differs: []string{"changed src/deep/er/x"}},
	"same size":      {bend: script("printf 'hellO\\n' > README.md"), outcome: "mismatch", differs: []string{"changed README.md"}},
	"large changed":  {bend: script("printf x | dd of=large conv=notrunc status=none"), outcome: "mismatch", differs: []string{"changed large"}},
	"added":          {bend: script("echo x > new"), outcome: "mismatch", differs: []string{"added new"}},
	"ignored":        {bend: script("echo x > new.o"), outcome: "mismatch", differs: []string{"added new.o"}},
	"added dir":      {bend: script("mkdir -p new/er; touch new/er/1 new/2"), outcome: "mismatch", differs: []string{"added new/"}},
	"missing":        {bend: script("rm README.md"), outcome: "mismatch", differs: []string{"missing README.md"}},
	"missing dir":    {bend: script("rm -r src/deep"), outcome: "mismatch", differs: []string{"missing src/deep/"}},
	"executable":     {bend: script("chmod +x README.md"), outcome: "mismatch", differs: []string{"mode README.md"}},
	"not executable": {bend: script("chmod -x bin/tool"), outcome: "mismatch", differs: []string{"mode bin/tool"}},
	"link changed":   {bend: script("ln -sfn /etc/shadow link"), outcome: "mismatch", differs: []string{"changed link"}},
	"link to file":   {bend: script("rm link; printf README.md > link"), outcome: "mismatch", differs: []string{"kind link"}},
	"file to link":   {bend: script("rm README.md; ln -s link README.md"), outcome: "mismatch", differs: []string{"kind README.md"}},
	"dir to link":    {bend: script("mv src ../moved; ln -s ../moved src"), outcome: "mismatch", differs: []string{"kind src"}},
	"dir to file":    {bend: script("rm -r src; echo x > src"), outcome: "mismatch", differs: []string{"kind src"}},
	"file to dir":    {bend: script("rm README.md; mkdir README.md; echo x > README.md/x"), outcome: "mismatch", differs: []string{"kind README.md"}},
	"fifo":           {bend: script("mkfifo pipe"), outcome: "mismatch", differs: []string{"fifo pipe"}},
	"fifo instead":   {bend: script("rm README.md; mkfifo README.md"), outcome: "mismatch", differs: []string{"fifo README.md"}},
	"socket": {bend: func(t *testing.T, project, _ string) {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: project + "/s", Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
	}, outcome: "mismatch", differs: []string{"socket s"}},
	"device": {bend: script("mknod null c 1 3"), outcome: "mismatch", differs: []string{"device null"}},
	"block":  {bend: script("mknod src/disk b 254 0"), outcome: "mismatch", differs: []string{"device src/disk"}},
	"names": {bend: func(t *testing.T, project, _ string) {
		mustWrite(t, project+"/a\nb\x1b[31m", "x")
		mustWrite(t, project+"/\xff", "x")
		mustWrite(t, project+"/\u202egpj.exe", "x")
	}, outcome: "mismatch", differs: []string{`added "a\nb\x1b[31m"`, `added "\u202egpj.exe"`, `added "\xff"`}},
	"to lf":       {bend: script(`printf 'a\nb\n' > crlf.txt`), outcome: "mismatch", differs: []string{"eol crlf.txt"}},
	"to crlf":     {bend: script(`printf 'a\r\nb\r\n' > lf.txt`), outcome: "mismatch", differs: []string{"eol lf.txt"}},
	"subst":       {bend: script(`echo $commit > export-subst.txt`), outcome: "mismatch", differs: []string{"changed export-subst.txt"}},
	"nested git":  {bend: script("mkdir -p src/.git/objects; touch src/.git/HEAD"), outcome: "mismatch", differs: []string{"repository src/.git"}},
	"git in case": {bend: script("mkdir -p .GIT; touch .GIT/x"), outcome: "mismatch", differs: []string{"added .GIT/"}},
	"many": {bend: script("for i in $(seq 100 140); do touch $i; done"), outcome: "mismatch", differs: func() []string {
		var out []string
		for i := range 20 {
			out = append(out, fmt.Sprint("added ", 100+i))
		}
		return out
	}(), detail: "further paths were not compared"},
	"other commit": {bend: script("git checkout -q -f HEAD~3; git clean -qffdx"), outcome: "mismatch", differs: []string{"changed counter", "changed large"}},
	"own commit":   {bend: script("echo x > README.md; git commit -q -a -m mine"), outcome: "mismatch", differs: []string{"changed README.md"}},
	"hook edits":   {bend: script(`printf '#!/bin/sh\necho x > src/main.c\n' > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout; git checkout -q -f $commit`), outcome: "mismatch", differs: []string{"changed src/main.c"}},

	"nothing":        {bare: true, outcome: "absent", detail: "project directory"},
	"empty project":  {bare: true, bend: script("true"), outcome: "absent", detail: "object store"},
	"strategy none":  {bare: true, bend: script("echo x > f"), outcome: "absent", detail: "object store"},
	"project a file": {bare: true, bend: func(t *testing.T, p, _ string) { os.Remove(p); mustWrite(t, p, "x") }, outcome: "absent", detail: "project directory"},
	"project a link": {bare: true, bend: func(t *testing.T, p, _ string) { os.Remove(p); link(t, "/etc", p) }, outcome: "absent", detail: "project directory"},
	"parent a link": {bare: true, bend: func(t *testing.T, p, _ string) {
		os.RemoveAll(filepath.Dir(p))
		link(t, "/etc", filepath.Dir(p))
	}, outcome: "absent", detail: "project directory"},
	"git a file":     {bend: script("mv .git ../git; echo gitdir: ../git > .git"), outcome: "absent", detail: "object store"},
	"git a link":     {bend: script("mv .git ../git; ln -s ../git .git"), outcome: "absent", detail: "object store"},
	"objects a link": {bend: script("mv .git/objects ../objects; ln -s ../../objects .git/objects"), outcome: "absent", detail: "object store"},
	"pack a link":    {bend: script("mv .git/objects/pack ../pack; ln -s ../../../pack .git/objects/pack"), outcome: "absent", detail: "object store"},
	"alternates":     {bend: script("mv .git/objects ../objects; mkdir -p .git/objects/info; realpath ../objects > .git/objects/info/alternates; git cat-file -e $commit"), outcome: "absent", detail: "not found"},
	"alternates etc": {bend: script("rm -rf .git/objects; mkdir -p .git/objects/info; echo /etc > .git/objects/info/alternates"), outcome: "absent", detail: "not found"},
	"no objects":     {bend: script("rm -rf .git/objects/*"), outcome: "absent", detail: "not found"},
	"pack cut off":   {bend: script("for f in .git/objects/pack/*.pack; do chmod +w $f; truncate -s 100 $f; done"), outcome: "absent", detail: "commit"},
	"pack altered": {bend: script(`for f in .git/objects/pack/*.pack; do chmod +w $f
		dd if=/dev/zero of=$f bs=1 seek=12 count=2000 conv=notrunc status=none; done`), outcome: "absent", detail: "commit"},
	"commit forged": {bend: script(unpackAll + `cp -f $(object $(git rev-parse $commit~1)) $(object $commit)`), outcome: "absent", detail: "hash does not match"},
	"commit a fifo": {bend: script(`rm -rf .git/objects/pack; d=.git/objects/$(printf %.2s $commit); mkdir -p $d; mkfifo $d/$(printf %s $commit | tail -c +3)`), outcome: "absent", detail: "not a regular file"},
}

// unpackAll turns every pack into loose objects and names their files.
const unpackAll = `mkdir ../p; mv .git/objects/pack/* ../p; for f in ../p/*.pack; do git unpack-objects -q < $f; done
	object() { echo .git/objects/$(printf %.2s $1)/$(printf %s $1 | tail -c +3); }
	`

// A tree that cannot be read hides what differs, not that something does.
func TestVerifySourceWithoutTrees(t *testing.T) {
	from, commit := upstream(t, "sha1")
	w := newWorkspace(t)
	project := w.host(projectDir)
	getSources(t, project, from, commit, "sha1")
	script(unpackAll+"echo x > new; rm -f $(object $(git rev-parse $commit^{tree}))")(t, project, commit)
	got, err := w.VerifySource(t.Context(), projectDir, commit, "sha1", "")
	if err != nil || got.Outcome != outcomeMismatch || len(got.Differs) != 1 || !strings.HasPrefix(got.Differs[0], "unknown ") {
		t.Errorf("source %+v, %v", got, err)
	}
}

// The trees above one that is compared are held, and a repository can nest large
// ones.
func TestTreesAreBoundedTogether(t *testing.T) {
	alg := mustAlgorithm(t, "sha1")
	pack := newPackWriter(alg)
	add := func(data []byte) objectID {
		id, err := alg.id(kindTree, data)
		if err != nil {
			t.Fatal(err)
		}
		pack.add(id, 2, int64(len(data)), nil, deflated(data))
		return id
	}
	blob := objectID(strings.Repeat("\x11", alg.size))
	tree := add(appendTreeEntry(nil, modeFile, "f", blob))
	dir := &node{mode: modeTree, children: []*node{{name: "f", mode: modeFile, id: blob}}}
	size := 0
	for range 10 {
		data := appendTreeEntry(nil, modeTree, "d", tree)
		tree, size = add(data), size+len(data)
		dir = &node{mode: modeTree, children: []*node{{name: "d", mode: modeTree, impure: true, children: dir.children}}}
	}
	size += len(appendTreeEntry(nil, modeFile, "f", blob))
	store := pack.store(t)
	for left, want := range map[int]int{size: 0, size - 1: 1} {
		c := comparison{store: store, super: &repository{tree: tree}, trees: int64(left)}
		if err := c.compare(t.Context(), dir, tree, ""); err != nil || len(c.differs) != want {
			t.Errorf("%d bytes of trees: %q, %v; want %d differences", left, c.differs, err, want)
		}
	}
}

func TestVerifySourceSubmodules(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		inner, _ := upstream(t, format)
		middle := publicDir(t)
		run(t, middle, "git", "init", "-q", "--object-format="+format, ".")
		run(t, middle, "git", "submodule", "--quiet", "add", "--name", "vendor/inner name", inner, "third party/inner")
		run(t, middle, "git", "commit", "-q", "-m", "m")
		outer := publicDir(t)
		run(t, outer, "git", "init", "-q", "--object-format="+format, ".")
		mustWrite(t, outer+"/f", "x")
		run(t, outer, "git", "add", "f")
		run(t, outer, "git", "submodule", "--quiet", "add", middle, "sub/middle")
		run(t, outer, "git", "commit", "-q", "-m", "o")
		commit := run(t, outer, "git", "rev-parse", "HEAD")
		const deep = "sub/middle/third party/inner"
		fetched := filepath.Join(publicDir(t), "project")
		getSources(t, fetched, outer, commit, format)
		for name, c := range map[string]sourceCase{
			"left out":         {outcome: "match", detail: "1 submodules not checked out"},
			"directory gone":   {bend: script("rm -r sub"), outcome: "mismatch", differs: []string{"missing sub/"}},
			"link gone":        {bend: script("rmdir sub/middle; touch sub/x; rm sub/x; ls sub"), outcome: "match", detail: "1 submodules not checked out"},
			"normal":           {bend: script("git submodule --quiet update --init"), outcome: "match", detail: "1 submodules compared with their commits; 1 submodules not checked out"},
			"recursive":        {bend: script("git submodule --quiet update --init --recursive"), outcome: "match", detail: "2 submodules compared"},
			"shallow":          {bend: script("git submodule --quiet update --init --recursive --depth 1"), outcome: "match", detail: "2 submodules compared"},
			"changed inside":   {bend: script("git submodule --quiet update --init --recursive; echo x > '" + deep + "/README.md'"), outcome: "mismatch", differs: []string{"changed " + deep + "/README.md"}, detail: "2 submodules"},
			"added inside":     {bend: script("git submodule --quiet update --init; echo x > sub/middle/new"), outcome: "mismatch", differs: []string{"added sub/middle/new"}, detail: "1 submodules"},
			"other commit":     {bend: script("git submodule --quiet update --init --recursive; cd '" + deep + "'; git checkout -q HEAD~1"), outcome: "mismatch", differs: []string{"changed " + deep + "/counter", "changed " + deep + "/large"}, detail: "2 submodules"},
			"a file instead":   {bend: script("rmdir sub/middle; echo x > sub/middle"), outcome: "mismatch", differs: []string{"kind sub/middle"}},
			"a link instead":   {bend: script("rmdir sub/middle; ln -s /etc sub/middle"), outcome: "mismatch", differs: []string{"kind sub/middle"}},
			"a fifo instead":   {bend: script("rmdir sub/middle; mkfifo sub/middle"), outcome: "mismatch", differs: []string{"fifo sub/middle"}},
			"own repository":   {bend: script("git submodule --quiet update --init; cd sub/middle; rm .git; mv ../../.git/modules/sub/middle .git; sed -i /worktree/d .git/config"), outcome: "match", detail: "1 submodules compared"},
			"modules a link":   {bend: script("git submodule --quiet update --init; mv .git/modules ../modules; ln -s ../../modules .git/modules"), outcome: "mismatch", differs: []string{"submodule sub/middle"}},
			"store not there":  {bend: script("echo x > sub/middle/evil"), outcome: "mismatch", differs: []string{"submodule sub/middle"}},
			"foreign contents": {bend: script("git submodule --quiet update --init; rm -r .git/modules"), outcome: "mismatch", differs: []string{"submodule sub/middle"}},
		} {
			t.Run(format+"/"+name, func(t *testing.T) {
				w := newWorkspace(t)
				project := w.host(projectDir)
				copyTo(t, fetched, project)
				if c.bend != nil {
					c.bend(t, project, commit)
				}
				got, err := w.VerifySource(t.Context(), projectDir, commit, format, "")
				if err != nil {
					t.Fatal(err)
				}
				for i, d := range got.Differs { // the reason after a colon names hashes
					got.Differs[i], _, _ = strings.Cut(d, ": ")
				}
				if got.Outcome != c.outcome || !cmp.Equal(c.differs, got.Differs) || !strings.Contains(got.Detail, c.detail) {
					t.Errorf("source %+v, want %s, %q, %q", got, c.outcome, c.differs, c.detail)
				}
				want := map[string][]string{"left out": nil, "normal": {"sub/middle"}, "recursive": {"sub/middle", deep}, "shallow": {"sub/middle", deep}}
				if paths, ok := want[name]; ok && !cmp.Equal(paths, pathsOf(got.Submodules)) {
					t.Errorf("submodules %+v, want %q", got.Submodules, paths)
				}
			})
		}
	}
}

func pathsOf(modules []record.Submodule) (out []string) {
	for _, m := range modules {
		out = append(out, m.Path)
	}
	return out
}

func TestVerifySourceLFS(t *testing.T) {
	content := strings.Repeat("large object ", 1000)
	sum := sha256.Sum256([]byte(content))
	point := fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", hex.EncodeToString(sum[:]), len(content))
	from := publicDir(t)
	run(t, from, "git", "init", "-q", ".")
	mustWrite(t, from+"/asset.bin", point)
	mustWrite(t, from+"/bad.bin", strings.Replace(point, "size", "sise", 1))
	run(t, from, "git", "add", ".")
	run(t, from, "git", "commit", "-q", "-m", "lfs")
	commit := run(t, from, "git", "rev-parse", "HEAD")
	for name, c := range map[string]struct {
		file, content string
		mode          os.FileMode
		differs       []string
		detail        string
	}{
		"pointer kept":    {file: "asset.bin", content: point},
		"smudged":         {file: "asset.bin", content: content, detail: "1 Git LFS objects"},
		"other content":   {file: "asset.bin", content: strings.Repeat("Large object ", 1000), differs: []string{"changed asset.bin"}},
		"other size":      {file: "asset.bin", content: content + "x", differs: []string{"changed asset.bin"}},
		"executable":      {file: "asset.bin", content: content, mode: 0o755, differs: []string{"mode asset.bin"}},
		"no real pointer": {file: "bad.bin", content: content, differs: []string{"changed bad.bin"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkspace(t)
			project := w.host(projectDir)
			getSources(t, project, from, commit, "sha1")
			mustWrite(t, filepath.Join(project, c.file), c.content)
			if c.mode != 0 {
				if err := os.Chmod(filepath.Join(project, c.file), c.mode); err != nil {
					t.Fatal(err)
				}
			}
			got, err := w.VerifySource(t.Context(), projectDir, commit, "", "")
			if err != nil {
				t.Fatal(err)
			}
			if !cmp.Equal(got.Differs, c.differs) || !strings.Contains(got.Detail, c.detail) || (got.Outcome == "match") != (c.differs == nil) {
				t.Errorf("source %+v, want %q, %q", got, c.differs, c.detail)
			}
		})
	}
}

func TestVerifySourceRefusesTreesBeyondItsLimits(t *testing.T) {
	for name, bend := range map[string]func(t *testing.T, project string){
		"five terabytes of holes": func(t *testing.T, p string) { sparse(t, p+"/f", 5<<40) },
		"too deep":                func(t *testing.T, p string) { makeDeep(t, p+"/d", maxDepth+1) },
		"too long in all":         makeLong,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkspace(t)
			mustMkdir(t, w.host(projectDir))
			bend(t, w.host(projectDir))
			_, err := w.VerifySource(t.Context(), projectDir, strings.Repeat("a", 40), "sha1", "")
			var user *sandbox.UserError
			if !errors.As(err, &user) || user.Hint == "" {
				t.Errorf("VerifySource: %v, want an error of the job's with a hint", err)
			}
		})
	}
}

// makeLong makes few directories whose paths take more than maxPaths.
func makeLong(t *testing.T, top string) {
	t.Helper()
	const depth = 800
	fd, err := unix.Open(top, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("n", 255)
	for range depth {
		if err := unix.Mkdirat(fd, name, 0o777); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	defer unix.Close(fd)
	for i := range maxPaths/(depth*len(name)) + 1 {
		if err := unix.Mkdirat(fd, strconv.Itoa(i), 0o777); err != nil {
			t.Fatal(err)
		}
	}
}

// Paths beyond PATH_MAX are hashed like others.
func TestVerifySourceReadsDeepTrees(t *testing.T) {
	w := newWorkspace(t)
	mustMkdir(t, w.host(projectDir))
	makeDeep(t, w.host(projectDir)+"/d", 900)
	got, err := w.VerifySource(t.Context(), projectDir, strings.Repeat("a", 40), "sha1", "")
	if err != nil || got.Files != 9 || got.Found == "" {
		t.Errorf("source %+v, %v", got, err)
	}
}

func TestVerifySourceDoesNotCrossMounts(t *testing.T) {
	w := newWorkspace(t)
	mustMkdir(t, w.host(projectDir)+"/m")
	if err := unix.Mount("/etc", w.host(projectDir)+"/m", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := w.VerifySource(t.Context(), projectDir, strings.Repeat("a", 40), "sha1", ""); err == nil {
		t.Errorf("source %+v, want an error", got)
	}
}

func TestVerifySourceRefusesItsArguments(t *testing.T) {
	w := newWorkspace(t)
	good := strings.Repeat("a", 40)
	for _, c := range [][3]string{
		{"/etc", good, "sha1"}, {"/builds", good, "sha1"}, {projectDir, good[1:], "sha1"}, {projectDir, strings.ToUpper(good), "sha1"},
		{projectDir, good, "sha256"}, {projectDir, good, "md5"}, {projectDir, "HEAD", "sha1"}, {projectDir, "", "sha1"}, {projectDir, good + "\n", "sha1"},
	} {
		if got, err := w.VerifySource(t.Context(), c[0], c[1], c[2], ""); err == nil {
			t.Errorf("VerifySource(%q) = %+v", c, got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustWrite(t, w.host(projectDir)+"/f", "x")
	if _, err := w.VerifySource(ctx, projectDir, good, "sha1", ""); !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled context: %v", err)
	}
}

func TestShowIsShort(t *testing.T) {
	long := show(strings.Repeat("\x01", 1<<20))
	if len(long) > 4*maxShown+16 {
		t.Errorf("a path of %d bytes is shown", len(long))
	}
}
