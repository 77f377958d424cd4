package containerd

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

var cpuSetForm = regexp.MustCompile(`^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$`)

// ulimits are those that a container may be given, with the kernel's numbers.
// Those of priorities and of open files are not among them: the first need
// capabilities, the second is [sandbox.Limits.OpenFiles].
var ulimits = map[string]int{
	"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nproc": unix.RLIMIT_NPROC,
	"sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

func checkLimits(l sandbox.Limits) error {
	for _, n := range []int64{l.MemoryBytes, l.SwapBytes, l.ReservationBytes, l.CPUShares, l.Pids, l.ShmBytes, l.TmpfsBytes} {
		if n < 0 {
			return errors.New("out of range")
		}
	}
	switch {
	case math.IsNaN(l.CPUs) || l.CPUs < 0 || l.CPUs > 1<<16:
		return errors.New("out of range")
	case l.Pids != 0 && l.Pids < minPids:
		return fmt.Errorf("%d processes: want at least %d", l.Pids, minPids)
	case l.CPUSet != "" && !cpuSetForm.MatchString(l.CPUSet):
		return fmt.Errorf("processors %q: want a list, as 0-3,6", l.CPUSet)
	}
	for _, u := range l.Ulimits {
		if _, ok := ulimits[u.Name]; !ok {
			return fmt.Errorf("ulimit %q: not one that a container can have", u.Name)
		}
	}
	for _, t := range l.Tmpfs {
		own := slices.ContainsFunc([]string{"/dev", "/proc", "/sys"}, func(dir string) bool { return t.Path == dir || strings.HasPrefix(t.Path, dir+"/") })
		if !path.IsAbs(t.Path) || path.Clean(t.Path) != t.Path || t.Path == "/" || own || t.Bytes <= 0 {
			return fmt.Errorf("tmpfs %q: want a clean absolute path outside the runtime's own, and a size", t.Path)
		}
	}
	return nil
}

func (r *Runtime) resources(l sandbox.Limits) *specs.LinuxResources {
	pids := l.Pids
	if pids == 0 {
		pids = defaultPids
	}
	return &specs.LinuxResources{
		// runc adds the devices that it makes in /dev.
		Devices: append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, deviceRules(l)...),
		Pids:    &specs.LinuxPids{Limit: &pids},
		Memory:  r.memory(l),
		CPU:     cpu(l),
	}
}

func (r *Runtime) memory(l sandbox.Limits) *specs.LinuxMemory {
	if l.MemoryBytes == 0 {
		return nil
	}
	m := &specs.LinuxMemory{Limit: &l.MemoryBytes}
	if l.ReservationBytes > 0 {
		m.Reservation = &l.ReservationBytes
	}
	if r.cgroups.swap() {
		both := l.MemoryBytes + l.SwapBytes
		m.Swap = &both
	}
	return m
}

func cpu(l sandbox.Limits) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: l.CPUSet}
	if l.CPUs > 0 {
		period := uint64(cpuPeriod)
		quota := max(int64(l.CPUs*cpuPeriod), 1000)
		c.Quota, c.Period = &quota, &period
	}
	if l.CPUShares > 0 {
		shares := uint64(l.CPUShares)
		c.Shares = &shares
	}
	if c.Quota == nil && c.Shares == nil && c.Cpus == "" {
		return nil
	}
	return c
}

// rlimits bounds each process, as far as this one may hand out.
func rlimits(l sandbox.Limits) []specs.POSIXRlimit {
	files := l.OpenFiles
	if files == 0 {
		files = defaultOpenFiles
	}
	files = attainable(unix.RLIMIT_NOFILE, files)
	list := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: files, Soft: min(files, softOpenFiles)}}
	core := false
	for _, u := range l.Ulimits {
		core = core || u.Name == "core"
		hard := attainable(ulimits[u.Name], u.Hard)
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Hard: hard, Soft: min(u.Soft, hard)})
	}
	if !core {
		list = append(list, specs.POSIXRlimit{Type: "RLIMIT_CORE"})
	}
	return list
}

func attainable(resource int, hard uint64) uint64 {
	var own unix.Rlimit
	if err := unix.Getrlimit(resource, &own); err == nil {
		hard = min(hard, own.Max)
	}
	return hard
}

func shmSize(l sandbox.Limits) int64 {
	switch {
	case l.ShmBytes > 0:
		return max(l.ShmBytes, 4096) // 0 would mean unlimited
	case l.TmpfsBytes > 0:
		return max(l.TmpfsBytes, 4096)
	}
	return defaultTmpfs
}

func tmpfsMount(t sandbox.Tmpfs) specs.Mount {
	if t.Exec {
		return tmpfs(t.Path, max(t.Bytes, 4096), "1777")
	}
	return tmpfs(t.Path, max(t.Bytes, 4096), "1777", "noexec")
}

// CheckDevice tells why a device cannot be given to a container.
func CheckDevice(name string) error {
	var st unix.Stat_t
	if !strings.HasPrefix(name, "/dev/") || path.Clean(name) != name {
		return fmt.Errorf("device %s: want a clean path below /dev", name)
	}
	if err := unix.Lstat(name, &st); err != nil {
		return fmt.Errorf("device %s: %w", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
	case unix.S_IFBLK:
		return fmt.Errorf("device %s: a block device: whoever has it has the files of the host, or of other jobs", name)
	default:
		return fmt.Errorf("device %s: not a character device", name)
	}
	if why := forbidden(unix.Major(st.Rdev), unix.Minor(st.Rdev)); why != "" {
		return fmt.Errorf("device %s: %s", name, why)
	}
	// To the host, a container's root is just somebody.
	if st.Mode&0o006 != 0o006 {
		return fmt.Errorf(`device %s: mode %04o keeps containers out: have udev make it, as in KERNEL=="%s", MODE="0666"`,
			name, st.Mode&0o777, path.Base(name))
	}
	return nil
}

// forbidden says why a character device is never given to a container. Numbers
// decide, not names: a name can be given to any device.
func forbidden(major, minor uint32) string {
	const misc = 10
	switch {
	case major == 1 && (minor == 1 || minor == 2 || minor == 4):
		return "the host's memory and ports"
	case major == 1 && minor == 11:
		return "the kernel's log"
	case major == 4 || major == 5 && minor == 1:
		return "a terminal of the host's"
	case major == 5 && minor == 2 || major >= 136 && major <= 143:
		return "terminals are the container's own"
	case major == 13 || major == misc && minor == 223:
		return "keyboards and other input of the host"
	case major == 21:
		return "raw access to disks"
	case major == misc && (minor == 237 || minor == 236 || minor == 234 || minor == 235):
		return "makes disks and file systems of the host"
	case major == misc && (minor == 231 || minor == 203 || minor == 227):
		return "is for the whole host, not for a job"
	case major == misc && minor == 196:
		return "hands out devices that read and write the host's memory"
	}
	return ""
}

// A gone device has no number; the container is then refused by the runtime.
func number(name string) (major, minor int64) {
	var st unix.Stat_t
	if unix.Lstat(name, &st) != nil {
		return 0, 0
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
}

func devices(l sandbox.Limits) []specs.LinuxDevice {
	var list []specs.LinuxDevice
	mode := os.FileMode(0o666)
	for _, name := range l.Devices {
		major, minor := number(name)
		list = append(list, specs.LinuxDevice{Path: name, Type: "c", Major: major, Minor: minor, FileMode: &mode})
	}
	return list
}

// deviceRules let a container read and write its devices, not make others.
func deviceRules(l sandbox.Limits) []specs.LinuxDeviceCgroup {
	var list []specs.LinuxDeviceCgroup
	for _, name := range l.Devices {
		major, minor := number(name)
		list = append(list, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
	}
	return list
}
