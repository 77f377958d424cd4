package workspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCreateGivesTheTenantItsDirectories(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	w := newWorkspace(t)
	for _, m := range w.Mounts() {
		var st unix.Stat_t
		if err := unix.Stat(m.Source, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != testIDs.First || st.Gid != testIDs.First || st.Mode&0o7777 != 0o777 {
			t.Errorf("%s: owner %d:%d, mode %o", m.Target, st.Uid, st.Gid, st.Mode)
		}
	}
	if m := w.Mounts(); !m[0].Follow || m[0].Target != "/builds" || m[1].Target != "/cache" {
		t.Errorf("mounts %+v", m)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(w.host("/builds"), &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Errorf("/builds allows setuid programs or devices: flags %#x", fs.Flags)
	}
}

func TestCreateRefuses(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	for _, name := range []string{"relative", dir, dir + "/a,b", dir + "/a:b", dir + `/a\b`, dir + "/a/../b", dir + "/absent/w"} {
		if w, err := Create(name, testIDs); err == nil {
			w.Close()
			t.Errorf("Create(%q) succeeded", name)
		}
	}
}

func TestWhatIsMountedLaterAppearsInContainersAndNotBack(t *testing.T) {
	w := newWorkspace(t)
	c := startContainer(t, w)
	c.must("mkdir -p $B/late $B/back")
	if err := unix.Mount("tmpfs", w.host("/builds/late"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w.host("/builds/late/seen"), "x")
	c.must("cat $B/late/seen")
	c.must("mount -t tmpfs none $B/back && touch $B/back/hidden")
	if _, err := os.Lstat(w.host("/builds/back/hidden")); !os.IsNotExist(err) {
		t.Errorf("a mount of the container reached the host: %v", err)
	}
	c.kill()
}

func TestContainerSharesTheTreeWithUnprivilegedUsers(t *testing.T) {
	w := newWorkspace(t)
	c := startContainer(t, w)
	c.must("touch $B/by-root; setpriv --reuid 1000 --regid 1000 --clear-groups touch $B/by-user")
}

func TestCloseIsIdempotentAndWorksHalfBuilt(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(publicDir(t), "workspace")
	for _, half := range []func(w *Workspace) error{
		func(w *Workspace) error { return nil },
		func(w *Workspace) error { return os.Mkdir(dir, 0o700) },
		func(w *Workspace) error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return isolate(dir)
		},
		func(w *Workspace) error {
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			return w.build()
		},
	} {
		w := &Workspace{dir: dir, ids: testIDs}
		if err := half(w); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Fatalf("left behind: %v", err)
		}
	}
	w := &Workspace{dir: dir}
	if _, err := w.VerifySource(t.Context(), projectDir, strings.Repeat("a", 40), "sha1", ""); err == nil {
		t.Error("a closed workspace verifies")
	}
	if _, err := w.Seal(t.Context(), projectDir); err == nil {
		t.Error("a closed workspace seals")
	}
	if _, err := w.Match(t.Context(), nil, 0, "zip", ""); err == nil {
		t.Error("a closed workspace matches")
	}
}

func TestCloseRemovesHostileTrees(t *testing.T) {
	w := newWorkspace(t)
	victim := filepath.Join(publicDir(t), "victim")
	mustWrite(t, filepath.Join(victim, "precious"), "x")
	b := w.host("/builds")
	for i, name := range []string{"-rf", "\n", "\xff\xfe", "deep-1", "*", " ", strings.Repeat("n", 255)} {
		mustWrite(t, filepath.Join(b, name, "f"), fmt.Sprint(i))
	}
	for link, target := range map[string]string{"dir": victim, "file": victim + "/precious", "loop": "loop", "root": "/"} {
		if err := os.Symlink(target, filepath.Join(b, link)); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, b, `mkdir -p locked/in && touch locked/in/f && chmod 0 locked/in/f locked/in locked
		mkfifo fifo
		python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")' 2>/dev/null || true`)
	for i := range 1500 {
		mustWrite(t, fmt.Sprintf("%s/wide/%d/d%d/f", b, i%7, i), "x")
	}
	makeDeep(t, filepath.Join(b, "abyss"), 3000)
	sh(t, b, `mkdir fixed && touch fixed/f && chattr +i fixed/f && chattr +a fixed 2>/dev/null || true`)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(victim, "precious")); err != nil {
		t.Errorf("followed a link out of the workspace: %v", err)
	}
}

// TestEmptyEndsWithItsContext: a service that fills /cache as fast as it is emptied
// must not keep its job for ever.
func TestEmptyEndsWithItsContext(t *testing.T) {
	w := newWorkspace(t)
	dir, err := w.Cache()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var filler sync.WaitGroup
	ended := make(chan struct{})
	filler.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			default:
			}
			_ = dir.MkdirAll(fmt.Sprintf("%d/a/b", i), 0o777)
			if i == 200 {
				cancel()
			}
		}
	})
	for err == nil {
		err = Empty(ctx, dir) // it may catch up
	}
	close(ended)
	filler.Wait()
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Empty(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(w.path(cacheName)); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
}

// makeDeep nests directories deeper than any path reaches.
func makeDeep(t *testing.T, top string, depth int) {
	t.Helper()
	mustMkdir(t, top)
	fd, err := unix.Open(top, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		if err := unix.Mkdirat(fd, "deeper", 0o777); err != nil {
			t.Fatalf("depth %d: %v", i, err)
		}
		next, err := unix.Openat(fd, "deeper", unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
		if i%100 == 0 {
			file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_CLOEXEC, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(file)
		}
	}
	unix.Close(fd)
}

func TestCloseDetachesWhatIsBusy(t *testing.T) {
	w := newWorkspace(t)
	mustWrite(t, w.host("/builds/f"), "x")
	busy, err := os.Open(w.host("/builds/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCreateBehindALink(t *testing.T) {
	needRoot(t)
	real := publicDir(t)
	alias := filepath.Join(publicDir(t), "alias")
	link(t, real, alias)
	for _, end := range []func(w *Workspace) error{
		(*Workspace).Close,
		func(w *Workspace) error {
			w.builds.Close()
			return Sweep(alias, func(string) bool { return false })
		},
	} {
		mustMkdir(t, filepath.Join(real, "session"))
		w, err := Create(filepath.Join(alias, "session", "workspace"), testIDs)
		if err != nil {
			t.Fatal(err)
		}
		if err := end(w); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(filepath.Join(real, "session")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestSweepRemovesLeftovers(t *testing.T) {
	needRoot(t)
	root := publicDir(t)
	keep, drop := strings.Repeat("a", 32), strings.Repeat("b", 32)
	made := map[string]*Workspace{}
	for _, session := range []string{keep, drop} {
		mustMkdir(t, filepath.Join(root, session))
		w, err := Create(filepath.Join(root, session, "workspace"), testIDs)
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, w.host("/builds/group/project/f"), "x")
		if _, err := w.Seal(t.Context(), projectDir); err != nil {
			t.Fatal(err)
		}
		made[session] = w
		t.Cleanup(func() { w.Close() })
	}
	made[drop].builds.Close() // the daemon was killed
	mustWrite(t, filepath.Join(root, "stray"), "x")
	if err := os.Symlink("/etc", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Sweep(root, func(s string) bool { return s == keep }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, drop, "workspace")); !os.IsNotExist(err) {
		t.Errorf("leftover stays: %v", err)
	}
	if _, err := os.Lstat(made[keep].host("/builds/group/project/f")); err != nil {
		t.Errorf("a running attempt was swept: %v", err)
	}
	if err := Sweep(filepath.Join(root, "absent"), func(string) bool { return false }); err != nil {
		t.Errorf("no root at all: %v", err)
	}
}
