package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// crashEnv makes this test binary play a daemon that is about to be killed.
const crashEnv = "HALLMARK_TEST_CRASH"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		playVictim(dir)
		return
	}
	code := m.Run()
	os.Exit(max(code, shared.close()))
}

// A bench is one Runtime with images to run, shared by the package's tests.
type bench struct {
	once    sync.Once
	skip    string
	err     error
	dir     string
	runtime *Runtime
	shelf   *httptest.Server
	images  map[string]string // name to reference
}

var shared bench

func (b *bench) close() int {
	code := 0
	if b.runtime != nil {
		if err := b.runtime.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if b.shelf != nil {
		b.shelf.Close()
	}
	if b.dir != "" {
		unix.Unmount(filepath.Join(b.dir, "s"), unix.MNT_DETACH)
		os.RemoveAll(b.dir)
	}
	return code
}

// start gives the shared Runtime, or skips with the reason.
func start(t testing.TB) *bench {
	t.Helper()
	shared.once.Do(func() { shared.err = shared.open() })
	if shared.skip != "" {
		t.Skip(shared.skip)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return &shared
}

func findBin() string {
	if dir := os.Getenv("HALLMARK_BIN"); dir != "" {
		return dir
	}
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "../../.cache/bin")
}

func (b *bench) open() error {
	if os.Geteuid() != 0 {
		b.skip = "needs root"
		return nil
	}
	if _, err := os.Stat(filepath.Join(findBin(), "containerd")); err != nil {
		b.skip = "needs containerd and runc: set HALLMARK_BIN or run make tools"
		return nil
	}
	if _, err := os.Stat("/bin/busybox"); err != nil {
		b.skip = "needs /bin/busybox: install busybox-static"
		return nil
	}
	var err error
	if b.dir, err = os.MkdirTemp("/tmp", "hm"); err != nil {
		return err
	}
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return err
	}
	for out, pkg := range map[string]string{"hallmark-init": "../../cmd/hallmark-init", "attacker": "./testdata/attacker"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(b.dir, out), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", pkg, err, msg)
		}
	}
	b.shelf = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	if err := b.pushImages(); err != nil {
		return err
	}
	// As /run is on many hosts.
	if err := os.Mkdir(filepath.Join(b.dir, "s"), 0o711); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", filepath.Join(b.dir, "s"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=711"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	level := slog.LevelWarn
	if os.Getenv("HALLMARK_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	b.runtime, err = Start(ctx, b.config("s"), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err != nil {
		return err
	}
	for _, ref := range b.images {
		if err := b.runtime.Pull(ctx, Order{Reference: ref}); err != nil {
			return err
		}
	}
	return nil
}

// config is that of an instance with a directory, and so a namespace, of its own.
func (b *bench) config(sub string) Config {
	dir := filepath.Join(b.dir, sub)
	return Config{
		BinDir: findBin(), Root: dir + "-root", State: dir,
		Namespace: filepath.Base(b.dir) + "-" + sub,
		Init:      filepath.Join(b.dir, "hallmark-init"),
		PlainHTTP: []string{strings.TrimPrefix(b.shelf.URL, "http://")},
	}
}

// second starts another runtime, which has an image as well.
func (b *bench) second(t *testing.T, cfg Config) *Runtime {
	t.Helper()
	r, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Pull(t.Context(), Order{Reference: b.images["base"]}); err != nil {
		t.Fatal(err)
	}
	return r
}

// entry is one file of a test image; data "->x" is a link to x, a name that
// ends in / a directory.
type entry struct {
	name, data string
	mode       int64
	from       string // file of the host to copy
}

func layer(entries []entry) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Typeflag: tar.TypeReg, Size: int64(len(e.data))}
		data := []byte(e.data)
		switch to, link := strings.CutPrefix(e.data, "->"); {
		case link:
			h.Typeflag, h.Linkname, h.Size, data = tar.TypeSymlink, to, 0, nil
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag = tar.TypeDir
		case e.from != "":
			var err error
			if data, err = os.ReadFile(e.from); err != nil {
				return nil, err
			}
			h.Size = int64(len(data))
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

func (b *bench) pushImages() error {
	base := []entry{
		{name: "bin/", mode: 0o755}, {name: "bin/busybox", mode: 0o755, from: "/bin/busybox"},
		{name: "etc/", mode: 0o755}, {name: "tmp/", mode: 0o1777}, {name: "root/", mode: 0o700},
		{name: "etc/passwd", mode: 0o644, data: "root:x:0:0:root:/root:/bin/sh\ndev:x:1000:1001:dev:/home/dev:/bin/sh\n"},
		{name: "etc/group", mode: 0o644, data: "root:x:0:\nwheel:x:10:root,dev\nstaff:x:50:\ndev:x:1001:\n"},
	}
	for _, applet := range []string{"sh", "cat", "ls", "id", "sleep", "true", "false", "mkdir", "rm", "mount", "umount", "env", "ps", "kill", "stat", "touch", "readlink", "nohup", "setsid", "wc", "head", "dd", "grep", "ln", "hostname", "mv", "chown", "ulimit", "tr", "seq"} {
		base = append(base, entry{name: "bin/" + applet, data: "->busybox", mode: 0o777})
	}
	attack := entry{name: "attacker", mode: 0o755, from: filepath.Join(b.dir, "attacker")}
	b.images = map[string]string{}
	for name, spec := range map[string]struct {
		entries []entry
		config  v1.Config
	}{
		"base": {append(base[:len(base):len(base)], attack), v1.Config{
			Env: []string{"PATH=/bin", "LANG=C"}, Entrypoint: []string{"/bin/env"}, Cmd: []string{"sh"}, User: "dev", WorkingDir: "/root",
			Labels: map[string]string{"containerd.io/restart.loguri": "binary:///bin/false"},
		}},
		"trust": {append(base[:len(base):len(base)],
			entry{name: "etc/ssl/", mode: 0o755}, entry{name: "etc/ssl/certs/", mode: 0o755},
			entry{name: "etc/ssl/certs/ca-certificates.crt", mode: 0o444, data: string(otherRoot())},
			entry{name: "etc/ssl/cert.pem", data: "->certs/ca-certificates.crt", mode: 0o777},
			entry{name: "etc/pki/tls/certs/", mode: 0o755}, entry{name: "etc/pki/tls/certs/ca-bundle.crt", mode: 0o644, data: "# none"},
			entry{name: "etc/resolv.conf", data: "->../run/resolv.conf", mode: 0o777},
		), v1.Config{}},
		"noshell": {[]entry{attack}, v1.Config{}},
		"kaniko":  {[]entry{{name: "busybox/", mode: 0o755}, {name: "busybox/sh", mode: 0o755, from: "/bin/busybox"}}, v1.Config{}},
		"links": {append(base[:len(base):len(base)],
			entry{name: "dev", data: "->/etc", mode: 0o777}, entry{name: "proc", data: "->/etc", mode: 0o777},
			entry{name: "sys", data: "->/etc", mode: 0o777}), v1.Config{WorkingDir: "/proc/self/fd/7"}},
		"fifo": {append(base[:len(base):len(base)], entry{name: "etc/ssl/", mode: 0o755}, entry{name: "etc/ssl/certs", data: "->/proc/self/fd", mode: 0o777},
			entry{name: "etc/ssl/cert.pem/", mode: 0o755}), v1.Config{}},
	} {
		ref, err := b.push(name, spec.entries, spec.config)
		if err != nil {
			return fmt.Errorf("image %s: %w", name, err)
		}
		b.images[name] = ref
	}
	return nil
}

func (b *bench) push(repo string, entries []entry, config v1.Config) (string, error) {
	l, err := layer(entries)
	if err != nil {
		return "", err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return "", err
	}
	img, err = mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, Config: config, RootFS: must(img.ConfigFile()).RootFS})
	if err != nil {
		return "", err
	}
	ref, err := name.ParseReference(strings.TrimPrefix(b.shelf.URL, "http://") + "/test/" + repo)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img); err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	return ref.Context().Name() + "@" + digest.String(), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var names struct {
	sync.Mutex
	n int
}

// freshSession is a session that no other test uses.
func freshSession() string {
	names.Lock()
	defer names.Unlock()
	names.n++
	return fmt.Sprintf("%032x", names.n)
}

func testIDs(n int) sandbox.IDs { return sandbox.IDs{First: 300000000 + uint32(n)*65536, Count: 65536} }

// spec is a container's with everything at its usual value.
func (b *bench) spec(image string) sandbox.Spec {
	return sandbox.Spec{
		Session: freshSession(), Role: sandbox.Build, Image: b.images[image], IDs: testIDs(0),
		Limits: sandbox.Limits{MemoryBytes: 256 << 20, Pids: 100, TmpfsBytes: 8 << 20, OpenFiles: 2048},
	}
}

// create makes a container that is removed, with nothing left of it, when the
// test ends.
func (b *bench) create(t testing.TB, s sandbox.Spec) *Container {
	t.Helper()
	c, err := b.runtime.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.Background()); err != nil {
			t.Error(err)
		}
		b.clean(t, s.Session)
	})
	return c
}

// clean checks that nothing of a session is left on the host.
func (b *bench) clean(t testing.TB, session string) {
	t.Helper()
	for _, trace := range traces(b.runtime, session) {
		t.Errorf("left behind: %s", trace)
	}
}

// traces finds what is left of a session, by looking rather than by asking.
func traces(r *Runtime, session string) []string {
	var found []string
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, session) {
				found = append(found, "mount "+line)
			}
		}
	}
	for _, root := range r.cgroups.roots {
		found = append(found, existing(filepath.Join(root, r.cgroups.parent, session))...)
	}
	found = append(found, existing(filepath.Join(r.layout.boxes, session+"-*"))...)
	found = append(found, existing(filepath.Join(r.layout.runc, "*", session+"-*"))...)
	found = append(found, existing(filepath.Join(r.layout.bundles, session+"-*"))...)
	found = append(found, existing(filepath.Join(r.layout.tmp, "*"))...)
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), session) && !strings.Contains(string(b), "-test.") {
			found = append(found, "process "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

func existing(pattern string) []string {
	list, _ := filepath.Glob(pattern)
	return list
}

// said is what a stage did.
type said struct {
	out, err string
	exit     sandbox.Exit
}

// process is a shell script as a stage.
func shell(script string) sandbox.Process {
	return sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Dir: "/"}
}

// run runs a stage and collects what it prints.
func run(t testing.TB, c *Container, p sandbox.Process) said {
	t.Helper()
	s, err := try(t.Context(), t, c, p)
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", p.Args, err, s.out, s.err)
	}
	return s
}

func try(ctx context.Context, t testing.TB, c *Container, p sandbox.Process) (said, error) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if p.Stdin == nil {
		p.Stdin = null
	}
	var out, errs bytes.Buffer
	var wg sync.WaitGroup
	var writers []*os.File
	for _, b := range []*bytes.Buffer{&out, &errs} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
		wg.Go(func() {
			defer r.Close()
			io.Copy(b, io.LimitReader(r, 1<<20))
		})
	}
	p.Stdout, p.Stderr = writers[0], writers[1]
	exit, err := c.Run(ctx, p)
	for _, w := range writers {
		w.Close()
	}
	wg.Wait()
	return said{out.String(), errs.String(), exit}, err
}

// hostNetNS makes a network namespace as the border does: the host's, with
// loopback alone, and every address local.
func hostNetNS(t testing.TB) string {
	t.Helper()
	type made struct {
		fd  int
		err error
	}
	ch := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ch <- made{-1, err}
			return
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		fd, openErr := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = openErr
		}
		ch <- made{fd, err}
	}()
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { unix.Close(m.fd) })
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.fd)
}
