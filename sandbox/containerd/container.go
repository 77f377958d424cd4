package containerd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd/initproto"
)

// Times that init gets.
const (
	connectTimeout = 30 * time.Second
	answerTimeout  = 15 * time.Second
	killTimeout    = 30 * time.Second
)

const (
	labelSession = "build.hallmark.session"
	labelRole    = "build.hallmark.role"
)

var (
	errGone   = errors.New("the container ended while it was in use")
	errKilled = errors.New("the container was killed")
)

// A Container is one running container. Its methods may be called from several
// goroutines; stages run one after another.
type Container struct {
	runtime *Runtime
	box     box
	session string

	turn chan struct{} // holds a token while no stage runs
	seq  uint32        // of the last stage; whoever has the token may change it
	link *link         // nil until init has connected

	limits sandbox.Limits

	mu     sync.Mutex
	gauges []gauge
	pidfd  *os.File // of init; nil before it is known
	killed bool

	deleting sync.Mutex
	deleted  bool
}

// Create makes a container. Its init has connected, and the CA is in the trust
// stores, when it returns. Trouble that the image causes is a
// *sandbox.UserError.
func (r *Runtime) Create(ctx context.Context, spec sandbox.Spec) (*Container, error) {
	if err := check(spec); err != nil {
		return nil, fmt.Errorf("container: %w", err)
	}
	r.quiet.RLock()
	defer r.quiet.RUnlock()
	c := &Container{
		runtime: r,
		box:     r.newBox(spec.Session, string(spec.Role)),
		session: spec.Session,
		limits:  spec.Limits,
		turn:    make(chan struct{}, 1),
	}
	// A directory that exists belongs to a container that exists.
	if err := os.Mkdir(c.box.dir, 0o700); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.box.id, err)
	}
	r.held.enter(spec.Session)
	if err := c.build(ctx, spec); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if err := c.Delete(undo); err != nil {
			r.log.Error("container left behind", "container", c.box.id, "error", err)
		}
		return nil, fmt.Errorf("container %s: %w", c.box.id, err)
	}
	c.turn <- struct{}{}
	return c, nil
}

// build does the steps of Create; Delete undoes those that were done.
func (c *Container) build(ctx context.Context, spec sandbox.Spec) error {
	if err := c.box.fill(spec); err != nil {
		return err
	}
	l, err := listen(c.box, spec.IDs)
	if err != nil {
		return err
	}
	defer l.Close()
	task, err := c.launch(ctx, spec)
	if err != nil {
		return err
	}
	if err := c.connect(ctx, task, l, spec.IDs.First); err != nil {
		return err
	}
	return c.setup(ctx, spec)
}

// launch makes the task and starts it. The end of ctx waits until containerd
// has answered: it does not undo a call that was cancelled half way, and what
// such a call goes on to make (a shim, a mount) Delete would look for too early.
func (c *Container) launch(ctx context.Context, spec sandbox.Spec) (client.Task, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	whole, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), launchTimeout, errors.New("containerd: no answer in time"))
	defer cancel()
	task, err := c.runtime.newTask(whole, spec, c.box)
	if err != nil {
		return nil, err
	}
	// The process exists already, and waits to become init.
	fd, err := unix.PidfdOpen(int(task.Pid()), 0)
	if err != nil {
		return nil, fmt.Errorf("task: %w", err)
	}
	c.mu.Lock()
	c.pidfd = os.NewFile(uintptr(fd), "pidfd")
	c.mu.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := task.Start(whole); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return task, nil
}

// newTask makes snapshot, container and task; init does not run yet.
func (r *Runtime) newTask(ctx context.Context, spec sandbox.Spec, b box) (client.Task, error) {
	img, err := r.client.GetImage(ctx, spec.Image)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: spec.IDs.First, Size: spec.IDs.Count}}
	name, opts := r.shim()
	ctr, err := r.client.NewContainer(ctx, b.id,
		client.WithSnapshotter(snapshotter),
		client.WithNewSnapshot(b.id, img, client.WithUserNSRemapperLabels(ids, ids)),
		client.WithRuntime(name, opts),
		client.WithSpec(r.ociSpec(spec, b)),
		client.WithContainerLabels(map[string]string{labelSession: spec.Session, labelRole: string(spec.Role)}),
	)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	root, err := r.rootFS(ctx, spec, b)
	if err != nil {
		return nil, err
	}
	task, err := ctr.NewTask(ctx, cio.NullIO, root...)
	if err != nil {
		return nil, fmt.Errorf("task: %w", err)
	}
	return task, nil
}

// shim names the runtime: ours with the private instance; with the admin's the
// one that it finds, which must be of its own version.
func (r *Runtime) shim() (string, *options.Options) {
	if r.daemon == nil {
		return "io.containerd.runc.v2", &options.Options{Root: r.layout.runc}
	}
	return r.bin("containerd-shim-runc-v2"), &options.Options{BinaryName: r.bin("runc"), Root: r.layout.runc}
}

// connect waits until init has connected.
func (c *Container) connect(ctx context.Context, task client.Task, l *net.UnixListener, root uint32) error {
	waiting, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.New("init does not connect"))
	defer cancel()
	died := make(chan error, 1)
	go func() {
		died <- awaitDeath(waiting, int(c.pidfd.Fd()))
		cancel()
	}()
	link, err := accept(waiting, l, int(task.Pid()), root)
	cancel()
	if dead := <-died; err != nil && dead == nil {
		return earlyExit(ctx, task)
	}
	c.link = link
	if err != nil {
		return err
	}
	c.gauges, err = gauges(int(task.Pid()), c.limits)
	return err
}

// earlyExit says why init is gone already.
func earlyExit(ctx context.Context, task client.Task) error {
	s, err := task.Status(ctx)
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	switch s.ExitStatus {
	case initproto.ExitHarden:
		return errors.New("init ended: the kernel does not let it protect itself")
	case initproto.ExitConnect:
		return errors.New("init ended: it could not connect")
	default:
		return fmt.Errorf("init ended with status %d", s.ExitStatus)
	}
}

// setup has init do what comes before any stage.
func (c *Container) setup(ctx context.Context, spec sandbox.Spec) error {
	m := initproto.Setup{CA: spec.CA, MaxID: spec.IDs.Count - 1}
	if !spec.ReadOnly {
		m.Files = append(etcFiles(spec), hashedCA(spec.CA)...)
		m.Dirs = ownDirs(spec)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.New("init does not answer"))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.link.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.link.send(m); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	answer, err := c.link.receive()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	switch a := answer.(type) {
	case initproto.Ready:
		c.runtime.log.Debug("container ready", "container", c.box.id, "trust_stores", len(a.Stores))
		return nil
	case initproto.Failed:
		return refusal(a)
	}
	return errors.New("init: answers out of order")
}

// refusal turns init's words into the error of whoever is to blame.
func refusal(f initproto.Failed) error {
	err := errors.New(printable(f.Text))
	hint := ""
	switch f.Reason {
	case initproto.NoShell:
		hint = "the job's script needs a shell: use an image with bash or sh (distroless images often have a -debug variant with /busybox/sh)"
	case initproto.NoUser:
		hint = "use a user that the image has, or a number, as in 1000:1000"
	case initproto.NoCommand:
		hint = "check the image's entrypoint; it must exist in the image and exec its arguments"
	case initproto.NotRun:
		hint = "check that the image is for this platform and has what the file needs to run (its interpreter or C library), and that the user may execute it"
	case initproto.BadImage:
		hint = "the image has something unusual in /etc: use another base image"
	default:
		return fmt.Errorf("init: %w", err)
	}
	return &sandbox.UserError{Err: err, Hint: hint}
}

// printable keeps a text from the container to one line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\uFFFD' || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// Run runs one process and returns when nothing of the stage is left. When ctx
// ends, every process of the stage gets SIGTERM, and SIGKILL after p.Grace; Run
// then returns how the process ended and the context's cause. A
// *sandbox.UserError says that the image cannot run what was asked for; any
// other error that the container is no longer usable, but for the context's.
func (c *Container) Run(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	select {
	case <-c.turn:
		defer func() { c.turn <- struct{}{} }()
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	}
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	c.seq++
	before := c.oomKills()
	start := initproto.Start{Seq: c.seq, Args: p.Args, Shell: p.Shell, Env: p.Env, Dir: p.Dir, User: p.User}
	if start.Dir == "" {
		start.Dir = "/"
	}
	messages := inPackets(start)
	if err := checkStart(messages); err != nil {
		return sandbox.Exit{}, fmt.Errorf("container %s: %w", c.box.id, err)
	}
	if err := c.begin(messages, p.Stdin, p.Stdout, p.Stderr); err != nil {
		return sandbox.Exit{}, c.fault(err)
	}
	over := make(chan struct{})
	stopped := make(chan bool, 1)
	go func() { stopped <- c.stopWith(ctx, start.Seq, p.Grace, over) }()
	end, err := c.ending(start.Seq)
	close(over)
	if wasStopped := <-stopped; wasStopped {
		if err != nil {
			return sandbox.Exit{}, fmt.Errorf("%w: %w", context.Cause(ctx), c.fault(err))
		}
		return c.exit(end, before), context.Cause(ctx)
	}
	if err != nil {
		return sandbox.Exit{}, c.fault(err)
	}
	return c.exit(end, before), nil
}

func (c *Container) exit(end initproto.Exited, oomKills int64) sandbox.Exit {
	return sandbox.Exit{Code: int(end.Code), Signal: int(end.Signal), OOM: c.oomKills() > oomKills, Duration: end.Duration}
}

// checkStart refuses what init would end for; it comes from the image or the job.
func checkStart(messages []initproto.Message) error {
	for _, m := range messages {
		b, err := initproto.Encode(m)
		if errors.Is(err, initproto.ErrTooLarge) {
			return &sandbox.UserError{Err: fmt.Errorf("command and environment: %w", err), Hint: "make the entrypoint and the longest variable shorter"}
		}
		if err != nil {
			return err
		}
		if _, err := initproto.Decode(b); err != nil {
			return &sandbox.UserError{Err: errors.New("entrypoint, user or environment: not what a process can be started with"),
				Hint: "check the image's entrypoint and user for empty words and NUL bytes"}
		}
	}
	return nil
}

// inPackets sends as much of a stage's environment ahead as it takes for each
// message to fit into a packet.
func inPackets(start initproto.Start) []initproto.Message {
	if _, err := initproto.Encode(start); err == nil && len(start.Env) <= initproto.MaxStrings {
		return []initproto.Message{start}
	}
	const most = initproto.MaxMessage - 16<<10
	var list []initproto.Message
	for env := start.Env; len(env) > 0; {
		n, size := 0, 0
		for n < min(len(env), initproto.MaxStrings) && (n == 0 || size+len(env[n]) < most) {
			size += len(env[n]) + binary.MaxVarintLen32
			n++
		}
		list = append(list, initproto.Environ{Env: env[:n]})
		env = env[n:]
	}
	start.Env = nil
	return append(list, start)
}

// begin starts a stage; descriptors that are not given are /dev/null.
func (c *Container) begin(messages []initproto.Message, files ...*os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for i := range files {
		if files[i] == nil {
			files[i] = null
		}
	}
	last := len(messages) - 1
	for _, m := range messages[:last] {
		if err := c.link.send(m); err != nil {
			return err
		}
	}
	return c.link.send(messages[last], files...)
}

// ending waits for the stage's end.
func (c *Container) ending(seq uint32) (initproto.Exited, error) {
	m, err := c.link.receive()
	if err != nil {
		return initproto.Exited{}, err
	}
	switch m := m.(type) {
	case initproto.Exited:
		if m.Seq == seq {
			return m, nil
		}
	case initproto.Failed:
		if m.Seq == seq {
			return initproto.Exited{}, refusal(m)
		}
	}
	return initproto.Exited{}, errors.New("init: answers out of order")
}

// stopWith stops the stage when ctx ends before the stage does, and reports
// whether it had to.
func (c *Container) stopWith(ctx context.Context, seq uint32, grace time.Duration, over <-chan struct{}) bool {
	select {
	case <-over:
		return false
	case <-ctx.Done():
	}
	for _, step := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, c.runtime.patience}} {
		if err := c.link.send(initproto.Signal{Seq: seq, Signal: uint8(step.signal)}); err != nil {
			break
		}
		timer := time.NewTimer(step.wait)
		select {
		case <-over:
			timer.Stop()
			return true
		case <-timer.C:
		}
	}
	// Init is trusted for what it says, not for saying something.
	kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if err := c.Kill(kill); err != nil {
		c.runtime.log.Error("container cannot be killed", "container", c.box.id, "error", err)
		c.link.conn.Close()
	}
	return true
}

// fault words an error after which the container is of no use. Those of the
// user's pass through.
func (c *Container) fault(err error) error {
	var user *sandbox.UserError
	if errors.As(err, &user) {
		return err
	}
	c.mu.Lock()
	killed := c.killed
	c.mu.Unlock()
	if killed {
		return fmt.Errorf("container %s: %w", c.box.id, errKilled)
	}
	if c.oomKills() > 0 {
		return fmt.Errorf("container %s: %w, out of memory: %w", c.box.id, errGone, err)
	}
	return fmt.Errorf("container %s: %w: %w", c.box.id, errGone, err)
}

func (c *Container) oomKills() int64 { return c.runtime.cgroups.oomKills(c.box.cgroup) }

// Kill kills every process of the container. All are dead when it returns nil:
// the kernel lets a pid namespace's first process end only after all others.
func (c *Container) Kill(ctx context.Context) error {
	c.mu.Lock()
	c.killed = true
	fd, err := c.init()
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("container %s: kill: %w", c.box.id, err)
	}
	if fd < 0 {
		return c.runtime.killTask(ctx, c.box.id)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("container %s: kill: %w", c.box.id, err)
	}
	if err := awaitDeath(ctx, fd); err != nil {
		return fmt.Errorf("container %s: kill: %w", c.box.id, err)
	}
	return nil
}

// init is a descriptor of init, the caller's to close, or -1 if there is none.
// The caller holds mu.
func (c *Container) init() (int, error) {
	if c.pidfd == nil {
		return -1, nil
	}
	return unix.FcntlInt(c.pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// awaitDeath waits until the process behind a descriptor has ended.
func awaitDeath(ctx context.Context, fd int) error {
	wake, waker, err := os.Pipe()
	if err != nil {
		return err
	}
	defer wake.Close()
	stop := context.AfterFunc(ctx, func() { waker.Close() })
	defer func() {
		if stop() {
			waker.Close()
		}
	}()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return nil
		default:
			return context.Cause(ctx)
		}
	}
}

// killTask kills a task that this process has no descriptor of.
func (r *Runtime) killTask(ctx context.Context, id string) error {
	task, err := r.task(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := client.WithProcessKill(ctx, task); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s: kill: %w", id, err)
	}
	return nil
}

func (r *Runtime) task(ctx context.Context, id string) (client.Task, error) {
	ctr, err := r.client.LoadContainer(ctx, id)
	if err != nil {
		return nil, err
	}
	return ctr.Task(ctx, nil)
}

// Delete kills the container and removes all that belongs to it. It may be
// called again, and on what Create had to leave half-built.
func (c *Container) Delete(ctx context.Context) error {
	c.deleting.Lock()
	defer c.deleting.Unlock()
	if c.deleted {
		return nil
	}
	if err := c.Kill(ctx); err != nil {
		return err
	}
	if c.link != nil {
		c.link.conn.Close()
	}
	c.mu.Lock()
	closeGauges(c.gauges)
	c.gauges = nil
	c.mu.Unlock()
	if err := c.runtime.remove(ctx, c.box); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd != nil {
		c.pidfd.Close()
		// A Kill from now on goes by name, and finds nothing.
		c.pidfd = nil
	}
	c.deleted = true
	c.runtime.held.leave(c.session, c.runtime.cgroups)
	return nil
}

// remove removes task, container, snapshot, cgroup and directory, each as far
// as it is there.
func (r *Runtime) remove(ctx context.Context, b box) error {
	task, err := r.task(ctx, b.id)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s: task: %w", b.id, err)
	}
	if err := r.client.ContainerService().Delete(ctx, b.id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s: %w", b.id, err)
	}
	if err := r.client.SnapshotService(snapshotter).Remove(ctx, b.id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("container %s: snapshot: %w", b.id, err)
	}
	if err := r.cgroups.remove(ctx, b.cgroup); err != nil {
		return fmt.Errorf("container %s: %w", b.id, err)
	}
	if err := os.RemoveAll(filepath.Join(r.layout.runc, r.cfg.Namespace, b.id)); err != nil {
		return fmt.Errorf("container %s: %w", b.id, err)
	}
	if err := os.RemoveAll(b.dir); err != nil {
		return fmt.Errorf("container %s: %w", b.id, err)
	}
	return nil
}
