package workspace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

func TestSealIsSeenByEveryContainer(t *testing.T) {
	w := newWorkspace(t)
	build, helper := startContainer(t, w), startContainer(t, w)
	build.must("mkdir -p $B/group/project $B/group/project.tmp $B/other && echo one > $B/group/project/f && ln $B/group/project/f $B/other/alias")
	build.kill()
	seal, err := w.Seal(t.Context(), projectDir)
	if err != nil {
		t.Fatal(err)
	}
	if seal.Directory != projectDir {
		t.Errorf("seal %+v", seal)
	}
	if got := helper.must("cat $B/group/project/f"); got != "one" {
		t.Errorf("content %q", got)
	}
	for _, attack := range []string{
		"echo two > $B/group/project/f",
		"echo two >> $B/other/alias", // a hard link at a place that is not the project's
		"cp $B/other/alias $B/group/project/g",
		"rm $B/group/project/f",
		"mv $B/group/project $B/group/old",
		"mv $B/group $B/g",
		"ln -sfn /etc $B/group/project/link",
		"chmod 777 $B/group/project/f",
		"touch $B/group/project/f",
		"truncate -s 0 $B/group/project/f",
		"setfattr -n user.x -v y $B/group/project/f",
		"mount -o remount,rw $B",
		"mount -o remount,rw,bind $B && echo two > $B/group/project/f",
		"umount -l $B && echo two > $B/group/project/f",
		"ln $B/group/project/f $B/group/project.tmp/alias",
	} {
		helper.cannot(attack)
	}
	// A container with the power to unmount, which ours lack, finds the old
	// scratch directory below the new one: sealed as well.
	helper.run("umount $B/group/project.tmp")
	helper.cannot("touch $B/group/project.tmp/f")
	// A mount over the place changes what is seen in that container alone.
	helper.must("mkdir -p /tmp/fake.$$ && echo two > /tmp/fake.$$/f && mount --bind /tmp/fake.$$ $B/group/project && grep -q two $B/group/project/f; rm -r /tmp/fake.$$")
	if got, err := os.ReadFile(w.host("/builds/group/project/f")); err != nil || string(got) != "one\n" {
		t.Errorf("the sealed file: %q, %v", got, err)
	}
	again := startContainer(t, w)
	again.cannot("echo two > $B/group/project/f")
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Errorf("a second call: %v", err)
	}
	if _, err := w.Seal(t.Context(), "/builds/group/other"); err == nil {
		t.Error("another directory was sealed")
	}
}

// Whoever keeps a way to write keeps the seal from being made.
func TestSealRefusesWriters(t *testing.T) {
	for name, attack := range map[string]string{
		"descriptor":          "exec 7>>$B/group/project/f",
		"read-write":          "exec 7<>$B/group/project/f",
		"elsewhere":           "exec 7>>$B/group/unrelated",
		"hard link elsewhere": "ln $B/group/project/f $B/alias; exec 7>>$B/alias",
		"removed file":        "exec 7>$B/group/project/gone; rm $B/group/project/gone",
		"replaced file":       "exec 7<$B/group/project/f; echo new > $B/new; mv $B/new $B/group/project/f",
		"bind mount":          "mkdir -p $B/second; mount --bind $B/group $B/second; exec 7>>$B/second/project/f",
		"mapping":             pythonMap,
		"socket queue":        pythonQueue,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorkspace(t)
			c := startContainer(t, w)
			c.must("mkdir -p $B/group/project $B/group/project.tmp; echo one > $B/group/project/f")
			if out, code := c.run(attack); code != 0 {
				t.Fatalf("attack: %s", out)
			}
			_, err := w.Seal(t.Context(), projectDir)
			var violation *sandbox.SecurityError
			if !errors.As(err, &violation) {
				t.Fatalf("Seal: %v, want a security error", err)
			}
			if _, err := w.Match(t.Context(), nil, 0, "zip", ""); err == nil {
				t.Error("an unsealed workspace matches")
			}
			c.must("true; touch $B/still-writable")
			c.kill()
			if _, err := w.Seal(t.Context(), projectDir); err != nil {
				t.Errorf("after the container ended: %v", err)
			}
		})
	}
}

// A child keeps a shared mapping without any descriptor.
const pythonMap = `command -v python3 >/dev/null || exit 0
python3 -c '
import mmap, os, sys, time
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 3, mmap.MAP_SHARED)
os.close(f)
print("mapped", flush=True)
time.sleep(600)' $B/group/project/f > $B/group/ready & while ! grep -q mapped $B/group/ready; do sleep 0.02; done`

// A descriptor waits in a socket that nobody reads.
const pythonQueue = `python3 -c '
import array, os, socket, sys, time
a, b = socket.socketpair()
f = os.open(sys.argv[1], os.O_RDWR)
a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f]))])
os.close(f)
print("queued", flush=True)
time.sleep(600)' $B/group/project/f > $B/group/ready & while ! grep -q queued $B/group/ready; do sleep 0.02; done`

func TestSealWaitsForWritersThatEnd(t *testing.T) {
	w := newWorkspace(t)
	mustWrite(t, w.host("/builds/group/project/f"), "x")
	f, err := os.OpenFile(w.host("/builds/group/project/f"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { f.Close() })
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Fatal(err)
	}
}

func TestSealEndsWithItsContext(t *testing.T) {
	w := newWorkspace(t)
	mustWrite(t, w.host("/builds/group/project/f"), "x")
	f, err := os.OpenFile(w.host("/builds/group/project/f"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Seal(ctx, projectDir); !errors.Is(err, context.Canceled) {
		t.Errorf("Seal: %v, want the context's error", err)
	}
}

func TestScratchStaysWritableAndKeepsPlainFiles(t *testing.T) {
	w := newWorkspace(t)
	c := startContainer(t, w)
	c.must(`mkdir -p $B/group/project $B/group/project.tmp/git-template/hooks
		cd $B/group/project.tmp
		echo A=1 > gitlab_runner_env; chmod 600 gitlab_runner_env
		echo hook > git-template/hooks/h; chmod 755 git-template/hooks/h
		ln -s /etc/passwd link; mkfifo fifo; echo x > theirs; chown 1000:1000 theirs
		chmod 750 .`)
	seal := func() {
		t.Helper()
		if _, err := w.Seal(t.Context(), projectDir); err != nil {
			t.Fatal(err)
		}
	}
	seal()
	got := c.must(`cd $B/group/project.tmp && find . | sort | tr '\n' ' ' && stat -c '%n %a %u:%g' . gitlab_runner_env git-template/hooks/h theirs && cat gitlab_runner_env git-template/hooks/h`)
	want := strings.Join([]string{
		"./git-template ./git-template/hooks ./git-template/hooks/h ./gitlab_runner_env ./theirs . 750 0:0",
		"gitlab_runner_env 600 0:0", "git-template/hooks/h 755 0:0", "theirs 644 1000:1000", "A=1", "hook",
	}, "\n")
	if got != ". "+want {
		t.Errorf("scratch directory:\n%s\nwant\n. %s", got, want)
	}
	// What the runner's scripts do.
	c.must(`mkdir -p $B/group/project.tmp; printf %s v > $B/group/project.tmp/FILE; touch $B/group/project.tmp/gitlab_runner_env
		while read -r line; do export "$line"; done < $B/group/project.tmp/gitlab_runner_env; cd $B/group/project`)
	c.cannot("head -c 100M /dev/zero > $B/group/project.tmp/big")
	c.cannot("cp /bin/true $B/group/project.tmp/s && chown 1000 $B/group/project.tmp/s && mknod $B/group/project.tmp/d c 1 3")
	if _, err := os.Lstat(w.host("/builds/group/project.tmp/FILE")); err != nil {
		t.Errorf("the host does not see what the helper wrote: %v", err)
	}
}

func TestScratchIsMadeWhereItIsMissing(t *testing.T) {
	w := newWorkspace(t)
	c := startContainer(t, w)
	if _, err := w.Seal(t.Context(), projectDir); err != nil {
		t.Fatal(err)
	}
	c.must("touch $B/group/project.tmp/f")
	c.cannot("mkdir $B/group/project")
}

func TestSealRefusesTreesThatTheJobBent(t *testing.T) {
	for name, bend := range map[string]func(t *testing.T, b string){
		"scratch is a link": func(t *testing.T, b string) { mustMkdir(t, b+"/group"); link(t, "/etc", b+"/group/project.tmp") },
		"scratch is a file": func(t *testing.T, b string) { mustWrite(t, b+"/group/project.tmp", "x") },
		"parent is a link":  func(t *testing.T, b string) { link(t, "/etc", b+"/group") },
		"parent is a file":  func(t *testing.T, b string) { mustWrite(t, b+"/group", "x") },
		"link inside":       func(t *testing.T, b string) { mustMkdir(t, b+"/real/project.tmp"); link(t, "real", b+"/group") },
		"too many files":    func(t *testing.T, b string) { fill(t, b+"/group/project.tmp", maxCopyEntries+1) },
		"too deep": func(t *testing.T, b string) {
			mustMkdir(t, b+"/group/project.tmp"+strings.Repeat("/d", maxCopyDepth+1))
		},
		"too large a file":    func(t *testing.T, b string) { sparse(t, b+"/group/project.tmp/f", maxCopyBytes+1) },
		"a terabyte of holes": func(t *testing.T, b string) { sparse(t, b+"/group/project.tmp/f", 5<<40) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorkspace(t)
			bend(t, w.host("/builds"))
			_, err := w.Seal(t.Context(), projectDir)
			var user *sandbox.UserError
			if !errors.As(err, &user) || user.Hint == "" {
				t.Fatalf("Seal: %v, want an error of the job's with a hint", err)
			}
			if _, err := os.Lstat("/etc/project.tmp"); err == nil {
				t.Fatal("followed a link out of the workspace")
			}
		})
	}
	for _, dir := range []string{"", "/", "/builds", "/builds/", "/etc", "/builds/../etc", "/builds//p", "builds/p", "/builds/p/", "/builds/a\x00b", "/buildsx/p", "/builds/" + strings.Repeat("a/", 2000) + "b"} {
		w := newWorkspace(t)
		if _, err := w.Seal(t.Context(), dir); err == nil {
			t.Errorf("Seal(%q) succeeded", dir)
		}
	}
}

func link(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func fill(t testing.TB, dir string, n int) {
	t.Helper()
	mustMkdir(t, dir)
	for i := range n {
		mustWrite(t, filepath.Join(dir, "f"+strings.Repeat("x", i%3)+string(rune('a'+i%26))+strconv.Itoa(i)), "")
	}
}

func sparse(t testing.TB, path string, size int64) {
	t.Helper()
	mustWrite(t, path, "")
	if err := unix.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
