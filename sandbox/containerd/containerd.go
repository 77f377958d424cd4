// Package containerd runs a sandbox spec on containerd.
//
// # One container
//
// A container is an image's snapshot under a user namespace of its own, in a
// network namespace that the caller made and owns, with PID 1 = hallmark-init
// (cmd/hallmark-init). Init connects to the host once, over a socket in a
// directory that is mounted read-only at /dev/hallmark; the host checks by
// SO_PEERCRED that it is the task's first process, and unlinks the socket. From
// then on a stage is one message and three descriptors (package initproto).
// Nothing trusted enters the container's namespaces after tenant code has run,
// and no trusted process opens a path that a tenant can write.
//
// What the tenant finds: no capability that reaches beyond its own processes
// and files, no_new_privs, containerd's default seccomp profile cut to the
// native architecture and four socket families, masked and read-only parts of
// /proc, an empty /sys, no cgroup file system, no device but the usual six,
// limits on memory (swap included), processes, processor time and open files.
// Of an image only the layers are used; its labels, user, volumes and command
// mean nothing here. ImageConfig hands them to the caller as data.
//
// # Ownership
//
// Everything in the containerd namespace, the cgroup of the same name and
// Config.State belongs to one Runtime. Sweep and Close remove what they find
// there, so two Runtimes on one host need different namespaces and directories.
// Whoever can open containerd's socket is root on the host: the private
// instance keeps it in a directory of mode 0700. Config.State itself has mode
// 0711, because a container's root passes through it.
//
// # Crashes
//
// When this program dies, the kernel kills the private containerd with it
// (PDEATHSIG), and each init ends because its connection does. Shims, snapshots
// and cgroups stay; Sweep of the next start removes them. When containerd dies,
// it is started anew, and running stages do not notice.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"hallmark.build/sandbox/image"
)

// Limits on waiting for containerd.
const (
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
	// launchTimeout bounds what a Create waits for containerd, cancelled or not.
	launchTimeout = 2 * time.Minute
	// undoTimeout bounds the removal of what a failed Create has left.
	undoTimeout = 60 * time.Second
)

// maxState bounds the length of Config.State: the shims' sockets lie below it,
// with names of 64 characters in addresses of at most 107.
const maxState = 40

// Config says where the runtime lives.
type Config struct {
	// Address is the socket of a containerd that the admin runs. Empty starts
	// a private one below Root and State, which is the rule.
	Address string
	// BinDir holds containerd, containerd-shim-runc-v2 and runc. Whoever can
	// write there is root.
	BinDir string
	// Root is what outlives a reboot: images, snapshots and a copy of init. It
	// must not be on a file system that is mounted noexec.
	Root string
	// State is sockets and run state, at most 40 characters long; it is best
	// on a tmpfs, and may be noexec as /run often is.
	State string
	// Namespace names containerd's namespace, and begins the name of the parent
	// cgroup. Empty is "hallmark".
	Namespace string
	// Init is the path of hallmark-init. The runtime runs a copy.
	Init string
	// PlainHTTP and CAFile are as in image.Policy.
	PlainHTTP []string
	CAFile    string
	// PullsAtOnce is how many images are pulled at a time; 0 is one.
	PullsAtOnce int
	// Keep says how long images stay.
	Keep Keep
}

const (
	defaultNamespace = "hallmark"
	snapshotter      = "overlayfs"
)

// A Runtime is one containerd with this program as its only client. It is safe
// for concurrent use.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	client  *client.Client
	daemon  *daemon // nil if the admin runs containerd
	lock    *os.File
	version string
	layout  layout
	cgroups cgroups
	pulls   flights
	queue   queue
	holds   holds
	// arrivals are watched lest they fill the disk.
	arrivals arrivals
	untidy   chan struct{} // has one element when there may be images to remove
	// unpacking is held while one of several pulls unpacks what they share.
	unpacking  locks
	collecting sync.Mutex
	// patience is how long after SIGKILL a stage may still be there before its
	// whole container is killed.
	patience time.Duration

	// quiet is held for reading while containers are made, and for writing
	// while leftovers are looked for.
	quiet sync.RWMutex
	held  sessions
}

// layout is where a Runtime keeps what.
type layout struct {
	init    string // the copy of hallmark-init
	store   string // the private instance's images and snapshots
	boxes   string // one directory a container
	runc    string // runc's own state
	tmp     string // containerd's temporary mounts
	api     string // the private instance's sockets
	bundles string // containerd's run state, of the private instance
	socket  string
}

func newLayout(cfg Config) layout {
	l := layout{
		init:   filepath.Join(cfg.Root, "hallmark-init"),
		store:  filepath.Join(cfg.Root, "store"),
		boxes:  filepath.Join(cfg.State, "box"),
		runc:   filepath.Join(cfg.State, "runc"),
		tmp:    filepath.Join(cfg.State, "tmp"),
		api:    filepath.Join(cfg.State, "api"),
		socket: cfg.Address,
	}
	if cfg.Address == "" {
		l.socket = filepath.Join(l.api, "c.sock")
		l.bundles = filepath.Join(cfg.State, "run", "io.containerd.runtime.v2.task", cfg.Namespace)
	}
	return l
}

// Start starts the private containerd, or connects to the admin's.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Runtime, error) {
	if cfg.Namespace == "" {
		cfg.Namespace = defaultNamespace
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	r := &Runtime{
		cfg: cfg, log: log, layout: newLayout(cfg), patience: answerTimeout,
		queue: queue{most: cfg.PullsAtOnce}, untidy: make(chan struct{}, 1),
	}
	r.arrivals.squeeze, r.arrivals.large = r.nearlyFull, leastFree
	if err := r.start(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

var (
	safePath      = regexp.MustCompile(`^(/[A-Za-z0-9._+-]+)+$`)
	safeNamespace = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
)

func (c Config) check() error {
	paths := map[string]string{"bin_dir": c.BinDir, "root": c.Root, "state": c.State, "init": c.Init}
	if c.Address != "" {
		paths["address"] = c.Address
	}
	for name, path := range paths {
		if !safePath.MatchString(path) || filepath.Clean(path) != path {
			return fmt.Errorf("containerd: %s %q: want a clean absolute path of plain characters", name, path)
		}
	}
	if len(c.State) > maxState {
		return fmt.Errorf("containerd: state %s: longer than %d characters", c.State, maxState)
	}
	if !safeNamespace.MatchString(c.Namespace) {
		return fmt.Errorf("containerd: namespace %q: want lower-case letters, digits and hyphens", c.Namespace)
	}
	return nil
}

// start does the steps of Start; Close undoes those that were done.
func (r *Runtime) start(ctx context.Context) error {
	if err := refuseDumps(); err != nil {
		return err
	}
	if err := r.makeState(); err != nil {
		return err
	}
	var err error
	if r.cgroups, err = ownCgroups(r.cfg); err != nil {
		return err
	}
	if r.cfg.Address == "" {
		if r.daemon, err = startDaemon(r.cfg, r.layout, r.log); err != nil {
			return err
		}
	}
	r.client, err = client.New(r.layout.socket,
		client.WithDefaultNamespace(r.cfg.Namespace),
		// After a crash of containerd, calls wait for the next one.
		client.WithCallOpts([]grpc.CallOption{grpc.WaitForReady(true)}))
	if err != nil {
		return fmt.Errorf("containerd: connect: %w", err)
	}
	if err := r.greet(ctx); err != nil {
		return err
	}
	return r.dropLeases(ctx)
}

// greet waits until containerd answers, and learns the versions.
func (r *Runtime) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errors.New("containerd: no answer in time"))
	defer cancel()
	if r.daemon != nil {
		defer r.daemon.onEarlyExit(cancel)()
	}
	v, err := r.client.Version(ctx)
	if err != nil {
		if r.daemon != nil {
			return fmt.Errorf("containerd: start: %w: %s", err, r.daemon.lastWords())
		}
		return fmt.Errorf("containerd: version: %w", err)
	}
	out, err := exec.CommandContext(ctx, r.bin("runc"), "--version").Output()
	if err != nil {
		return fmt.Errorf("containerd: runc: version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	r.version = "containerd " + v.Version + ", runc " + strings.TrimPrefix(line, "runc version ")
	return nil
}

// refuseDumps checks the one setting under which the kernel would make init
// traceable again whenever a stage drops its privileges.
func refuseDumps() error {
	b, err := os.ReadFile("/proc/sys/fs/suid_dumpable")
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	if strings.TrimSpace(string(b)) == "1" {
		return errors.New("containerd: sysctl fs.suid_dumpable is 1, which lets tenants trace init: set it to 0 or 2")
	}
	return nil
}

// makeState makes the directories, takes the lock on them and installs init.
func (r *Runtime) makeState() error {
	if err := ownDir(r.cfg.State, 0o711); err != nil {
		return err
	}
	if err := passable(r.cfg.State); err != nil {
		return err
	}
	for _, d := range []string{r.cfg.Root, r.layout.boxes, r.layout.runc, r.layout.tmp, r.layout.api} {
		if err := ownDir(d, 0o700); err != nil {
			return err
		}
	}
	lock, err := os.OpenFile(filepath.Join(r.cfg.State, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	r.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("containerd: state %s: in use by another process", r.cfg.State)
	}
	return installInit(r.cfg.Init, r.layout.init)
}

// ownDir makes a directory of this user with exactly this mode.
func ownDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("containerd: %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("containerd: %s: not a directory of this user", dir)
	}
	if err := os.Chmod(dir, mode); err != nil {
		return fmt.Errorf("containerd: %w", err)
	}
	return nil
}

// passable checks that a container's root, which is an ordinary user of the
// host, can pass through to its own root file system.
func passable(dir string) error {
	for ; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("containerd: %s: containers cannot pass through it to their files: chmod o+x", dir)
		}
	}
	return nil
}

// installInit copies hallmark-init to a file that containers can execute but
// not read. From a binary that it could not read the kernel makes a process
// that nobody in the container's user namespace can trace, whatever its
// capabilities. The copy also lets an upgrade replace the original.
func installInit(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("containerd: init: %w", err)
	}
	defer src.Close()
	tmp := to + ".new"
	os.Remove(tmp)
	dst, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return fmt.Errorf("containerd: init: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Chmod(0o711), dst.Close()); err != nil {
		return fmt.Errorf("containerd: init: %w", err)
	}
	if err := os.Rename(tmp, to); err != nil {
		return fmt.Errorf("containerd: init: %w", err)
	}
	return nil
}

func (r *Runtime) bin(name string) string { return filepath.Join(r.cfg.BinDir, name) }

// Version names containerd and runc with their versions.
func (r *Runtime) Version() string { return r.version }

// policy is how registries are reached.
func (r *Runtime) policy() image.Policy {
	return image.Policy{PlainHTTP: r.cfg.PlainHTTP, CAFile: r.cfg.CAFile}
}

// Close ends the private instance; containers that were not deleted stay for
// the next start's Sweep. It is safe on a Runtime that was started halfway.
func (r *Runtime) Close() error {
	var errs []error
	if r.client != nil {
		errs = append(errs, r.client.Close())
	}
	if r.daemon != nil {
		errs = append(errs, r.daemon.stop())
	}
	if r.lock != nil {
		errs = append(errs, r.lock.Close())
	}
	return errors.Join(errs...)
}
