package host

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/record"
)

// Services run beside the build, in its network. Their containers are made with
// the others; their programs start when the work tree has been compared with the
// commit, because they are the tenant's and have the work tree too; the first
// script of the job's waits until they listen; they end before outputs are read.

// ServiceRules are the admin's on services.
type ServiceRules struct {
	Limit     int           // how many a job may have
	Wait      time.Duration // for them to listen; not above 0: not at all
	DebugLogs bool          // jobs may have what they say in the job log
	Limits    sandbox.Limits
}

// serviceGrace is the time that services have from SIGTERM to SIGKILL before the
// work tree is sealed: what they lay down there in the end is an output too.
const serviceGrace = 2 * time.Second

// maxAliases bounds the names of one service that a job chooses.
const maxAliases = 64

// buildName is how services find the build.
const buildName = "build"

// A service is one container beside the build's.
type service struct {
	wanted executor.Image // as the job wrote it
	role   sandbox.Role
	names  []string // that it answers to
	alias  string   // what we call it
	env    []string // what the job gives it

	reference string // of its image, by digest

	dirs    []string // that the image names
	process sandbox.Process
	ports   []int // where it is expected to listen, in order
	said    *serviceLog

	stop context.CancelCauseFunc // nil before it was started
	done chan struct{}
	exit sandbox.Exit // how it ended, once done
	err  error
}

// name is what people know the service by.
func (s *service) name() string {
	if s.alias != "" {
		return s.alias
	}
	return s.names[0]
}

// planServices decides which services a job gets and under which names, before
// anything is made. warnings are for the job's log.
func (h *Host) planServices(j *executor.Job, profile sandbox.Profile) (list []*service, warnings []string, err error) {
	if n := len(j.Services); n > h.cfg.Services.Limit {
		return nil, nil, &sandbox.UserError{Err: fmt.Errorf("too many services requested: %d, only %d allowed", n, h.cfg.Services.Limit),
			Hint: "the runner's admin sets how many (services.limit)"}
	}
	taken := map[string]bool{}
	for i, wanted := range j.Services {
		names, err := h.serviceNames(j, profile, wanted)
		if err != nil {
			return nil, nil, err
		}
		s := &service{wanted: wanted, role: sandbox.ServiceRole(i), env: j.ServiceEnv(wanted, buildsDir, h.cfg.RunnerVersion)}
		for _, name := range names {
			if taken[name] {
				warnings = append(warnings, fmt.Sprintf("service %s: the name %q is another service's already", wanted.Name, name))
				continue
			}
			taken[name] = true
			s.names = append(s.names, name)
			if s.alias == "" && !slices.Contains(derivedNames(wanted.Name), name) {
				s.alias = name
			}
		}
		if len(s.names) == 0 {
			warnings = append(warnings, fmt.Sprintf("service %s is not run: it has no name that is not another service's; give it an alias", wanted.Name))
			continue
		}
		list = append(list, s)
	}
	return list, warnings, nil
}

// serviceNames are those that a service asks for, each once: what follows from
// its image, as far as it can be a host's name, and its aliases.
func (h *Host) serviceNames(j *executor.Job, profile sandbox.Profile, s executor.Image) ([]string, error) {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, derived := range derivedNames(s.Name) {
		if name, ok := hostName(derived); ok && h.kept(j, profile, name) == "" {
			add(name)
		}
	}
	aliases := s.Aliases()
	if len(aliases) > maxAliases {
		return nil, &sandbox.UserError{Err: fmt.Errorf("service %s: %d aliases", s.Name, len(aliases)),
			Hint: fmt.Sprintf("give it %d at most", maxAliases)}
	}
	for _, alias := range aliases {
		name, ok := hostName(alias)
		if !ok {
			return nil, &sandbox.UserError{Err: fmt.Errorf("service %s: the alias %q is no host name", s.Name, joblog.Clean(alias)),
				Hint: "use letters, digits, hyphens and dots"}
		}
		if whose := h.kept(j, profile, name); whose != "" {
			return nil, &sandbox.UserError{Err: fmt.Errorf("service %s: the alias %q is %s", s.Name, name, whose),
				Hint: "choose another alias: the name must go on to mean what it means"}
		}
		add(name)
	}
	return names, nil
}

// derivedNames are the names that GitLab Runner derives from an image's: without
// tag, digest and port, with __ or - for each slash.
func derivedNames(image string) []string {
	image, _, _ = strings.Cut(image, "@")
	if slash, colon := strings.LastIndexByte(image, '/'), strings.LastIndexByte(image, ':'); colon > slash {
		image = image[:colon]
	}
	if first, rest, ok := strings.Cut(image, "/"); ok {
		host, _, _ := strings.Cut(first, ":")
		image = host + "/" + rest
	}
	names := []string{strings.ReplaceAll(image, "/", "__")}
	if other := strings.ReplaceAll(image, "/", "-"); other != names[0] {
		names = append(names, other)
	}
	return names
}

// hostName is a name as resolvers look for it, or false for what is none or
// would be read as an address.
func hostName(s string) (string, bool) {
	name, ok := egress.Name(s)
	last := name[strings.LastIndexByte(name, '.')+1:]
	if !ok || strings.HasSuffix(s, ".") || strings.HasPrefix(last, "0x") {
		return "", false
	}
	return name, true
}

// kept says whose a name is that no service may take: who asks for it must get
// what the border makes of it.
func (h *Host) kept(j *executor.Job, profile sandbox.Profile, name string) string {
	switch {
	case name == "localhost" || strings.HasSuffix(name, ".localhost"):
		return "the machine's own"
	case name == jobHostname(j):
		return "the job's own"
	case name == h.cfg.GitLab.Hostname():
		return "GitLab's"
	case profile != sandbox.Firewalled:
		return ""
	}
	for _, rule := range h.cfg.Allow {
		below, all := strings.CutPrefix(rule.Host, "*")
		if name == rule.Host || all && strings.HasSuffix(name, below) {
			return "that of a host which the runner's admin allows (rule " + rule.Name + ")"
		}
	}
	return ""
}

// fetchServices makes the services' images present, all at once, and records them
// in the job's order.
func (h *Host) fetchServices(ctx context.Context, j *job, out *joblog.Log) error {
	found := make([]image.Image, len(j.services))
	g, gctx := errgroup.WithContext(ctx)
	for i, s := range j.services {
		w, err := h.wish(ctx, j, s.role, s.wanted, out)
		if err != nil {
			return errors.Join(fmt.Errorf("service %s: %w", s.name(), err), g.Wait())
		}
		g.Go(func() (err error) {
			if found[i], err = w.come(gctx); err != nil {
				return fmt.Errorf("service %s: %w", s.name(), err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, s := range j.services {
		if err := j.noteImage(record.Image{Role: "service", Name: s.wanted.Name, Names: s.names}, found[i]); err != nil {
			return err
		}
		config, err := h.runtime.ImageConfig(ctx, found[i].Reference)
		if err != nil {
			return fmt.Errorf("service %s: %w", s.name(), err)
		}
		if err := h.equip(j, s, config); err != nil {
			return err
		}
		s.reference = found[i].Reference
		out.Printf("service %s  as %s", s.reference, strings.Join(s.names, ", "))
	}
	return nil
}

// equip decides what a service's program is started with.
func (h *Host) equip(j *job, s *service, config containerd.ImageConfig) error {
	wanted := s.wanted
	if h.cfg.Images.KeepEntrypoint {
		wanted.Entrypoint = nil
	}
	args := serviceCommand(config, wanted)
	if len(args) == 0 {
		return &sandbox.UserError{Err: fmt.Errorf("service %s: neither its image nor the job gives it a command", s.name()),
			Hint: "set `command:` of the service"}
	}
	user := config.User
	if u := s.wanted.ExecutorOpts.Docker.User; u != "" {
		user = j.payload.ExpandAll(u, buildsDir, h.cfg.RunnerVersion)
	}
	env := merged(environment(config.Env, ""), s.env)
	s.dirs = dirsOf(config)
	s.process = sandbox.Process{Args: args, Env: env, Dir: config.WorkingDir, User: user, Grace: serviceGrace}
	var err error
	if s.ports, err = expectedPorts(env, config.ExposedPorts); err != nil {
		return &sandbox.UserError{Err: fmt.Errorf("service %s: %w", s.name(), err), Hint: "want a number, 1 to 65535"}
	}
	return nil
}

// serviceCommand is a container's command as Docker puts it together: an
// entrypoint of the job's own takes the image's command away, and one that is an
// empty word stands for none.
func serviceCommand(config containerd.ImageConfig, wanted executor.Image) []string {
	entrypoint, command := config.Entrypoint, config.Cmd
	if len(wanted.Entrypoint) > 0 {
		entrypoint, command = wanted.Entrypoint, nil
	}
	if len(wanted.Command) > 0 {
		command = wanted.Command
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil
	}
	return slices.Concat(entrypoint, command)
}

// merged gives each variable once; the later list counts. What no process can
// have in its environment is left out.
func merged(lists ...[]string) []string {
	values := map[string]string{}
	var order []string
	for _, kv := range slices.Concat(lists...) {
		name, value, _ := strings.Cut(kv, "=")
		if name == "" || strings.ContainsRune(kv, 0) {
			continue
		}
		if _, again := values[name]; !again {
			order = append(order, name)
		}
		values[name] = value
	}
	env := make([]string, 0, len(order))
	for _, name := range order {
		env = append(env, name+"="+values[name])
	}
	return env
}

// maxPorts is how many of an image's exposed ports are looked at.
const maxPorts = 20

// expectedPorts are the ports on one of which a service is expected to listen:
// the one that the variable HEALTHCHECK_TCP_PORT names, or the lowest of those
// that its image exposes.
func expectedPorts(env []string, exposed map[string]struct{}) ([]int, error) {
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.EqualFold(name, "HEALTHCHECK_TCP_PORT") {
			continue
		}
		port, ok := portNumber(value)
		if !ok {
			return nil, fmt.Errorf("HEALTHCHECK_TCP_PORT is %q", joblog.Clean(value))
		}
		return []int{port}, nil
	}
	ports := map[int]bool{}
	for word := range exposed {
		number, protocol, _ := strings.Cut(word, "/")
		first, last, isRange := strings.Cut(number, "-")
		if !isRange {
			last = first
		}
		from, ok1 := portNumber(first)
		to, ok2 := portNumber(last)
		if ok1 && ok2 && (protocol == "" || protocol == "tcp") {
			for p := from; p <= min(to, from+maxPorts-1); p++ { // the lowest alone count
				ports[p] = true
			}
		}
	}
	list := slices.Sorted(maps.Keys(ports))
	return list[:min(len(list), maxPorts)], nil
}

func portNumber(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n > 0
}

// serviceSpec is a service's container: the build's network, files as the build
// has them, limits of its own.
func (h *Host) serviceSpec(j *job, s *service) (sandbox.Spec, error) {
	name := string(s.role)
	for _, n := range s.names {
		if !strings.ContainsAny(n, "._") && strings.Trim(n, "-") == n {
			name = n
			break
		}
	}
	mounts, err := j.mounts(s.role, name)
	if err != nil {
		return sandbox.Spec{}, err
	}
	spec := h.spec(j, s.role, s.reference, mounts)
	spec.Dirs = s.dirs
	spec.Hostname, spec.Limits, spec.ReadOnly = name, j.limits.ofService(s.role, h.cfg.Services.Limits), false
	return spec, nil
}

// ofService are a service's limits: those that the admin gives services, and the
// job's where there are none. What was lowered for the project or by the job is
// lowered for its services too.
func (b bounds) ofService(role sandbox.Role, own sandbox.Limits) sandbox.Limits {
	l := b.forRole(role)
	l.MemoryBytes = ownLimit(l.MemoryBytes, own.MemoryBytes, b.setBy["memory"])
	l.CPUs = ownLimit(l.CPUs, own.CPUs, b.setBy["cpus"])
	l.Pids = ownLimit(l.Pids, own.Pids, b.setBy["pids"])
	if most := l.MemoryBytes; most > 0 {
		l.ReservationBytes, l.ShmBytes, l.TmpfsBytes = min(l.ReservationBytes, most), min(l.ShmBytes, most), min(l.TmpfsBytes, most)
	}
	return l
}

func ownLimit[T int64 | float64](job, own T, lowered string) T {
	if own == 0 || lowered != "" && job < own {
		return job
	}
	return own
}

// localNames are those that the build's namespace answers itself.
func (j *job) localNames() []string {
	if len(j.services) == 0 {
		return nil
	}
	names := []string{buildName}
	for _, s := range j.services {
		names = append(names, s.names...)
	}
	return names
}

// startServices starts what runs beside the build, once the work tree is known.
func (h *Host) startServices(ctx context.Context, j *job) error {
	if len(j.services) == 0 {
		return nil
	}
	if err := j.pump.acknowledged(ctx); err != nil {
		return err
	}
	j.serving = true
	j.border.Begin(sandbox.Build, sandbox.Services)
	live := h.cfg.Services.DebugLogs && j.payload.Switch("CI_DEBUG_SERVICES")
	mask := maskOf(masked(j.payload.Variables))
	for _, s := range j.services {
		s.said = &serviceLog{source: strings.Join(s.names, "-"), mask: mask, news: &j.news, live: live}
		if err := s.start(j.container(s.role), &j.news); err != nil {
			return fmt.Errorf("service %s: %w", s.name(), err)
		}
	}
	return nil
}

var errServiceOver = errors.New("the service was ended")

// start starts the program and listens to it until it has ended.
func (s *service) start(c container, news *serviceNews) error {
	r, w, err := outputPipe()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(context.Background())
	s.stop, s.done = stop, make(chan struct{})
	p := s.process
	p.Stdout, p.Stderr = w, w
	go func() {
		defer close(s.done)
		defer stop(nil)
		var reading sync.WaitGroup
		reading.Go(func() { s.said.read(r) })
		s.exit, s.err = c.Run(ctx, p)
		_ = w.Close()
		// Nothing of the service is left, but it may have given its output away.
		_ = r.SetReadDeadline(time.Now().Add(time.Second))
		reading.Wait()
		_ = r.Close()
		if ctx.Err() == nil {
			news.ended(s)
		}
	}()
	return nil
}

// outputPipe is a pipe whose end for the service is as programs expect it: it
// waits when it is full, and can be opened again as /dev/stdout.
func outputPipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	nonblock := unix.SetNonblock(fds[0], true) // so that reading it can have a deadline
	r, w = os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output")
	if err := errors.Join(nonblock, letReopen(w)); err != nil {
		_, _ = r.Close(), w.Close()
		return nil, nil, err
	}
	return r, w, nil
}

// over reports whether the program has ended.
func (s *service) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// stopServices ends all services and their permission at the border. It may be
// called again.
func (j *job) stopServices(ctx context.Context) error {
	if !j.serving {
		return nil
	}
	for _, s := range j.services {
		if s.stop != nil {
			s.stop(errServiceOver)
		}
	}
	var errs []error
	for _, s := range j.services {
		if s.done != nil {
			<-s.done
		}
		errs = append(errs, j.container(s.role).Kill(ctx))
	}
	j.serving = false
	return errors.Join(append(errs, j.border.End(sandbox.Build))...)
}

// nextPermission is what a role may do when its stage has ended.
func (j *job) nextPermission(role sandbox.Role) sandbox.Stage {
	if j.serving && role == sandbox.Build {
		return sandbox.Services
	}
	return ""
}
