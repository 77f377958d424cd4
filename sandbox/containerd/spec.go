package containerd

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd/initproto"
)

// Defaults for limits that a Spec leaves at zero; memory and processors are
// then unlimited.
const (
	defaultPids      = 4096
	minPids          = 32 // init's own threads count
	defaultTmpfs     = 64 << 20
	defaultOpenFiles = 1 << 20
	// softOpenFiles is what a process starts with: some programs close every
	// descriptor up to it.
	softOpenFiles = 1 << 16
	cpuPeriod     = 100_000 // microseconds
	minHostID     = 1 << 16 // below are the host's own users
)

var (
	sessionForm  = regexp.MustCompile(`^[0-9a-z]{1,40}$`)
	roleForm     = regexp.MustCompile(`^[a-z]{1,16}[0-9]{0,3}$`)
	hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	byDigest     = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
)

// capabilities are those of a process with the container's user id 0: what
// package managers and servers need, within the container's own user namespace.
// Missing of what containers usually have: NET_RAW, MKNOD, AUDIT_WRITE and
// SYS_CHROOT. Any other user has none.
func capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
		"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
	}
}

// maskedPaths tell of the host, or of its other tenants.
func maskedPaths() []string {
	var list []string
	for _, name := range []string{
		"acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi",
		"kallsyms", "config.gz", "cmdline", "partitions", "diskstats", "swaps", "vmstat", "zoneinfo", "buddyinfo", "slabinfo",
		"schedstat", "key-users", "modules", "pagetypeinfo", "vmallocinfo", "iomem", "ioports", "softirqs", "locks", "mdstat",
		"sysvipc", "driver", "dma", "tty", "kpagecount", "kpageflags", "kpagecgroup",
	} {
		list = append(list, "/proc/"+name)
	}
	return list
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// check refuses a Spec that this package would have to guess about.
func check(s sandbox.Spec) error {
	switch {
	case !sessionForm.MatchString(s.Session):
		return fmt.Errorf("session %q: want lower-case letters and digits", s.Session)
	case !roleForm.MatchString(string(s.Role)):
		return fmt.Errorf("role %q: want lower-case letters, with a number at most", s.Role)
	case !byDigest.MatchString(s.Image):
		return fmt.Errorf("image %q: want a reference by sha256 digest", s.Image)
	case s.Hostname != "" && !hostnameForm.MatchString(s.Hostname):
		return fmt.Errorf("hostname %q: want letters, digits and hyphens", s.Hostname)
	case s.IDs.First < minHostID || s.IDs.Count == 0 || uint64(s.IDs.First)+uint64(s.IDs.Count) > math.MaxUint32:
		return fmt.Errorf("ids: %d from %d: want a range between %d and %d", s.IDs.Count, s.IDs.First, minHostID, uint32(math.MaxUint32-1))
	case s.NetNS != "" && !filepath.IsAbs(s.NetNS):
		return fmt.Errorf("network namespace %q: want an absolute path", s.NetNS)
	case len(s.CA) > initproto.MaxMessage/2:
		return errors.New("ca: too large")
	}
	for _, d := range s.Dirs {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d || strings.ContainsRune(d, 0) {
			return fmt.Errorf("directory %q: want a clean absolute path", d)
		}
	}
	if err := checkLimits(s.Limits); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	for _, m := range s.Mounts {
		if err := checkMount(m); err != nil {
			return err
		}
		for _, other := range s.Mounts {
			// Another container may change what is in there while this one is
			// made, and lead the mount astray.
			if strings.HasPrefix(m.Target, other.Target+"/") {
				return fmt.Errorf("mount at %q: lies inside the mount at %q", m.Target, other.Target)
			}
		}
	}
	return nil
}

// ownDirs are the directories that an image may have made: in its own root file
// system alone, where nothing is shared with another container.
func ownDirs(s sandbox.Spec) []string {
	var list []string
	for _, d := range s.Dirs {
		inside := func(place string) bool { return d == place || strings.HasPrefix(d, place+"/") }
		if d != "/" && !slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, inside) &&
			!slices.ContainsFunc(s.Mounts, func(m sandbox.Mount) bool { return inside(m.Target) }) {
			list = append(list, d)
		}
	}
	return list
}

func checkMount(m sandbox.Mount) error {
	for _, p := range []string{m.Source, m.Target} {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0) {
			return fmt.Errorf("mount %q at %q: want clean absolute paths", m.Source, m.Target)
		}
	}
	for _, own := range []string{"/dev", "/proc", "/sys"} {
		if m.Target == "/" || m.Target == own || strings.HasPrefix(m.Target, own+"/") {
			return fmt.Errorf("mount %q at %q: the place is the runtime's", m.Source, m.Target)
		}
	}
	return nil
}

// A box is the host's side of one container: names and paths.
type box struct {
	id     string
	dir    string // control socket and generated files
	cgroup string
}

func (r *Runtime) newBox(session, role string) box {
	id := session + "-" + role
	return box{id: id, dir: filepath.Join(r.layout.boxes, id), cgroup: r.cgroups.path(session, role)}
}

func (b box) control() string { return filepath.Join(b.dir, "control") }
func (b box) socket() string  { return filepath.Join(b.control(), filepath.Base(initproto.Socket)) }

// fill writes the files that a container with a read-only root finds in /etc.
func (b box) fill(s sandbox.Spec) error {
	if !s.ReadOnly {
		return nil
	}
	for _, f := range etcFiles(s) {
		if err := os.WriteFile(filepath.Join(b.dir, filepath.Base(f.Path)), f.Data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// ociSpec says the whole of a container; nothing is taken over from defaults
// that a library may change, but the seccomp profile.
func (r *Runtime) ociSpec(s sandbox.Spec, b box) *specs.Spec {
	caps := capabilities()
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.IDs.First, Size: s.IDs.Count}}
	zero := 0
	o := &specs.Spec{
		Version:  "1.2.0",
		Root:     &specs.Root{Path: "rootfs", Readonly: s.ReadOnly},
		Hostname: hostname(s),
		Mounts:   r.mounts(s, b),
		Process: &specs.Process{
			Args: []string{initproto.Init},
			// Set, so that runc need not look for it in the image's passwd.
			Env:             []string{"HOME=/"},
			Cwd:             "/",
			NoNewPrivileges: true,
			OOMScoreAdj:     &zero,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:         rlimits(s.Limits),
		},
		Linux: &specs.Linux{
			UIDMappings:   ids,
			GIDMappings:   ids,
			CgroupsPath:   b.cgroup,
			Resources:     r.resources(s.Limits),
			Devices:       devices(s.Limits),
			Namespaces:    namespaces(s.NetNS),
			MaskedPaths:   maskedPaths(),
			ReadonlyPaths: readonlyPaths(),
		},
	}
	o.Linux.Seccomp = filter(o)
	return o
}

func hostname(s sandbox.Spec) string {
	if s.Hostname == "" {
		return string(s.Role)
	}
	return s.Hostname
}

func namespaces(netns string) []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.UserNamespace},
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace, Path: netns},
	}
}

// filter is containerd's default profile, made stricter: system calls of the
// native architecture alone, sockets of four families, and resource limits of
// the calling process alone: the container's root has init's user id, and could
// otherwise take its descriptors and processor time away.
func filter(o *specs.Spec) *specs.LinuxSeccomp {
	p := seccomp.DefaultProfile(o)
	switch runtime.GOARCH {
	case "amd64":
		p.Architectures = []specs.Arch{specs.ArchX86_64}
	case "arm64":
		p.Architectures = []specs.Arch{specs.ArchAARCH64}
	}
	var calls []specs.LinuxSyscall
	for _, c := range p.Syscalls {
		c.Names = slices.DeleteFunc(slices.Clone(c.Names), func(name string) bool { return name == "socket" || name == "prlimit64" })
		if len(c.Names) > 0 {
			calls = append(calls, c)
		}
	}
	only := func(name string, first uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{
			Names: []string{name}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: first, Op: specs.OpEqualTo}},
		}
	}
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		calls = append(calls, only("socket", family))
	}
	p.Syscalls = append(calls, only("prlimit64", 0))
	return p
}

// tmpfs is bounded in bytes and in inodes.
func tmpfs(target string, size int64, mode string, more ...string) specs.Mount {
	inodes := max(size/4096, 16)
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: append([]string{
		"nosuid", "nodev", "mode=" + mode, "size=" + strconv.FormatInt(size, 10), "nr_inodes=" + strconv.FormatInt(inodes, 10),
	}, more...)}
}

func bind(source, target string, options ...string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: append([]string{"nosuid", "nodev"}, options...)}
}

const (
	trustBytes = 32 << 20 // the tmpfs with the roots
	devBytes   = 1 << 20
)

func (r *Runtime) mounts(s sandbox.Spec, b box) []specs.Mount {
	size := s.Limits.TmpfsBytes
	if size == 0 {
		size = defaultTmpfs
	}
	size = max(size, 4096) // 0 would mean unlimited
	list := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{
			"nosuid", "noexec", "strictatime", "mode=755", "size=" + strconv.Itoa(devBytes), "nr_inodes=512",
		}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev/shm", shmSize(s.Limits), "1777", "noexec"),
		// A network namespace of the host's has no sysfs for the container.
		tmpfs("/sys", 4096, "555", "noexec", "ro"),
		tmpfs(initproto.Dir, trustBytes, "755", "noexec"),
		bind(b.control(), initproto.Control, "bind", "ro", "noexec"),
		bind(r.layout.init, initproto.Init, "bind", "ro"),
	}
	if s.ReadOnly {
		list = append(list, tmpfs("/run", size, "755"), tmpfs("/tmp", size, "1777"))
		for _, f := range etcFiles(s) {
			list = append(list, bind(filepath.Join(b.dir, filepath.Base(f.Path)), f.Path, "bind", "ro", "noexec"))
		}
	}
	for _, m := range s.Mounts {
		list = append(list, hostMount(m))
	}
	for _, t := range s.Limits.Tmpfs {
		list = append(list, tmpfsMount(t))
	}
	return list
}

func hostMount(m sandbox.Mount) specs.Mount {
	how, access := []string{"bind", "rprivate"}, "rw"
	if m.Follow {
		how = []string{"rbind", "rslave"}
	}
	if m.ReadOnly {
		access = "ro"
	}
	return bind(m.Source, m.Target, append(how, access)...)
}

// etcFiles are what every container has in /etc, unless the Spec mounts them:
// names are asked of the border, which answers on every address.
func etcFiles(s sandbox.Spec) []initproto.File {
	name := hostname(s)
	all := []initproto.File{
		{Path: "/etc/hostname", Data: []byte(name + "\n")},
		{Path: "/etc/hosts", Data: []byte("127.0.0.1\tlocalhost " + name + "\n::1\tlocalhost ip6-localhost ip6-loopback\n")},
		{Path: "/etc/resolv.conf", Data: []byte("nameserver 127.0.0.1\n")},
	}
	var list []initproto.File
	for _, f := range all {
		mounted := false
		for _, m := range s.Mounts {
			mounted = mounted || m.Target == f.Path || m.Target == "/etc"
		}
		if !mounted {
			list = append(list, f)
		}
	}
	return list
}
