package config

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/config/tomlfile"
)

// Limits bound each container, but for Disk, which all containers of a job
// share. A writer of these can let one job starve the others on this host; they
// are stated in the provenance.
type Limits struct {
	// Memory in bytes, written "4GiB". Default "4GiB".
	Memory int64 `toml:"memory,size"`
	// MemorySwap is memory and swap together. Default "0B": as Memory, so that
	// there is no swap.
	MemorySwap int64 `toml:"memory_swap,size"`
	// MemoryReservation is what the kernel tries to leave to a container when
	// the host runs out. Default "0B": nothing.
	MemoryReservation int64 `toml:"memory_reservation,size"`
	// CPUs in whole processors; 1.5 is one and a half. Default 0: all.
	CPUs float64 `toml:"cpus"`
	// CPUShares is a container's part where processors are short, as a number
	// that is compared with others'. Default 0: the kernel's 1024.
	CPUShares int64 `toml:"cpu_shares"`
	// CPUSet are the processors that may be used, as "0-3,6". Default "": all.
	CPUSet string `toml:"cpuset"`
	// Pids is the number of processes and threads, 64 at least: with less, Git and
	// the sandbox's own threads would not leave any to the job. Default 4096.
	Pids int64 `toml:"pids"`
	// Disk is what a job may write, workspace and containers together. Default
	// "32GiB"; "0B" is no limit: then one job can fill this host's disk.
	Disk int64 `toml:"disk,size"`
	// Shm is the size of /dev/shm. Default "512MiB". It counts towards Memory.
	Shm int64 `toml:"shm,size"`
	// Tmpfs is the size of each tmpfs that containers have of themselves.
	// Default "512MiB". It counts towards Memory.
	Tmpfs int64 `toml:"tmpfs,size"`
	// OpenFiles is the number of descriptors a process may have. Default 1048576.
	OpenFiles uint64 `toml:"open_files"`
	// Ulimits are further limits of each process, as "name=soft:hard" or
	// "name=both" in the kernel's units, with "unlimited" for none. Default []:
	// no core files, all else as this daemon has it.
	Ulimits []string `toml:"ulimits"`
	// TmpfsMounts are further directories in memory, in the build container.
	TmpfsMounts []TmpfsMount `toml:"tmpfs_mount"`
	// Devices are devices of this host that build containers get.
	Devices []Device `toml:"device"`
	// Projects have less than the others.
	Projects []ProjectLimits `toml:"project"`
	// Preparing is how many sandboxes are made at once; further jobs wait in
	// turn, a project at a time. Default 0: two for each processor. A writer of
	// this field can make many starting jobs slow.
	Preparing int `toml:"preparing"`
}

// TmpfsMount is one directory in memory. It counts towards Memory.
type TmpfsMount struct {
	// Path in the container; required.
	Path string `toml:"path"`
	// Size in bytes, written "1GiB"; required.
	Size int64 `toml:"size,size"`
	// Exec lets programs be run from it. Default false.
	Exec bool `toml:"exec"`
}

// Device is one line of the allow-list of devices. A writer of these opens parts
// of the host's kernel to tenants. Block devices, memory and what makes devices
// are refused whatever is written here.
type Device struct {
	// Path of a character device, as "/dev/kvm"; required. It must be open to
	// every user of this host.
	Path string `toml:"path"`
	// Projects are globs on the full path of those that get it. Default []: all.
	Projects []string `toml:"projects"`
}

// ProjectLimits tighten limits for some projects; where several match, the
// tightest counts. What is not set, or 0, is as for all. A writer of these can
// only take from projects.
type ProjectLimits struct {
	// Project is a glob on the project's full path, as "group/**"; required.
	Project string `toml:"project"`

	Memory int64   `toml:"memory,size"`
	CPUs   float64 `toml:"cpus"`
	Pids   int64   `toml:"pids"`
	Disk   int64   `toml:"disk,size"`
	Shm    int64   `toml:"shm,size"`
}

// DefaultLimits are those of a file that sets none.
func DefaultLimits() Limits {
	return Limits{Memory: 4 << 30, Pids: 4096, Disk: 32 << 30, Shm: 512 << 20, Tmpfs: 512 << 20, OpenFiles: 1 << 20}
}

// Bounds of what can be set.
const (
	leastMemory = 64 << 20
	mostMemory  = 1 << 50
	leastDisk   = 64 << 20
	mostDisk    = 16 << 40
	leastPids   = 64
	mostPids    = 4 << 20
)

func (l Limits) check(c checker) {
	c.size("limits.memory", l.Memory, leastMemory, mostMemory)
	if l.MemorySwap != 0 {
		c.size("limits.memory_swap", l.MemorySwap, l.Memory, mostMemory)
	}
	c.size("limits.memory_reservation", l.MemoryReservation, 0, l.Memory)
	c.size("limits.shm", l.Shm, 1<<20, mostMemory)
	c.size("limits.tmpfs", l.Tmpfs, 1<<20, mostMemory)
	if l.Memory >= leastMemory && l.Tmpfs > l.Memory {
		c.doc.Report("limits.memory", "a tmpfs counts towards the memory limit",
			"%s is less than limits.tmpfs, %s", tomlfile.FormatSize(l.Memory), tomlfile.FormatSize(l.Tmpfs))
	}
	c.cpus("limits.cpus", l.CPUs, "0 means all processors")
	if l.CPUShares != 0 {
		c.between("limits.cpu_shares", l.CPUShares, 2, 262144)
	}
	c.cpuSet("limits.cpuset", l.CPUSet)
	c.between("limits.pids", l.Pids, leastPids, mostPids)
	if l.Disk != 0 {
		c.size("limits.disk", l.Disk, leastDisk, mostDisk)
	}
	c.between("limits.open_files", int64(min(l.OpenFiles, 1<<62)), 64, 1<<30)
	c.between("limits.preparing", int64(l.Preparing), 0, 4096)
	for i, u := range l.Ulimits {
		if _, err := ParseUlimit(u); err != nil {
			c.doc.Report(at("limits.ulimits", i), `as "stack=8388608" or "memlock=65536:unlimited"`, "%v", err)
		}
	}
	l.checkMounts(c)
	l.checkDevices(c)
	for i, p := range l.Projects {
		p.check(c, at("limits.project", i), l)
	}
}

func (l Limits) checkMounts(c checker) {
	for i, m := range l.TmpfsMounts {
		where := at("limits.tmpfs_mount", i)
		c.path(where+".path", m.Path)
		if m.Size == 0 {
			c.required(where+".size", `as size = "1GiB"`, "")
		} else {
			c.size(where+".size", m.Size, 4096, mostMemory)
		}
		for _, own := range []string{"/dev", "/proc", "/sys", "/builds", "/cache"} {
			if m.Path == own || strings.HasPrefix(m.Path, own+"/") {
				c.doc.Report(where+".path", "", "%q: %s is the sandbox's own", m.Path, own)
			}
		}
		if slices.ContainsFunc(l.TmpfsMounts[:i], func(o TmpfsMount) bool { return o.Path == m.Path }) {
			c.doc.Report(where+".path", "", "%q is there twice", m.Path)
		}
	}
}

// neverDevices are refused for their names already; the daemon looks at what the
// names stand for.
var neverDevices = regexp.MustCompile(`^/dev/(mem|kmem|port|kmsg|core|loop.*|sd.*|hd.*|vd.*|xvd.*|nvme.*|dm-.*|md.*|mapper/.*|disk/.*|sg[0-9]+|vfio/.*|snapshot|input/.*|uinput|console|tty.*|pts/.*|ptmx)$`)

func (l Limits) checkDevices(c checker) {
	for i, d := range l.Devices {
		where := at("limits.device", i)
		switch {
		case !strings.HasPrefix(d.Path, "/dev/") || path.Clean(d.Path) != d.Path || control(d.Path):
			c.doc.Report(where+".path", `as "/dev/kvm"`, "%q is not a path below /dev", d.Path)
		case neverDevices.MatchString(d.Path):
			c.doc.Report(where+".path", "", "%q: memory, disks, terminals and what makes devices are never a job's", d.Path)
		}
		if slices.ContainsFunc(l.Devices[:i], func(o Device) bool { return o.Path == d.Path }) {
			c.doc.Report(where+".path", "name all projects in one place", "%q is there twice", d.Path)
		}
		c.globs(where+".projects", d.Projects)
	}
}

// check refuses what would give a project more than the others.
func (p ProjectLimits) check(c checker, where string, all Limits) {
	c.required(where+".project", `as project = "group/**"`, p.Project)
	if p.Project != "" {
		c.globs(where+".project", []string{p.Project})
	}
	if p.Memory != 0 {
		c.size(where+".memory", p.Memory, leastMemory, all.Memory)
	}
	if p.CPUs != 0 {
		c.cpus(where+".cpus", p.CPUs, "")
		if all.CPUs != 0 && p.CPUs > all.CPUs {
			c.doc.Report(where+".cpus", "a project can only have less than the others", "%v is more than limits.cpus, %v", p.CPUs, all.CPUs)
		}
	}
	if p.Pids != 0 {
		c.between(where+".pids", p.Pids, leastPids, all.Pids)
	}
	if p.Disk != 0 {
		most := all.Disk
		if most == 0 {
			most = mostDisk
		}
		c.size(where+".disk", p.Disk, leastDisk, most)
	}
	if p.Shm != 0 {
		c.size(where+".shm", p.Shm, 1<<20, all.Shm)
	}
}

func (c checker) cpus(where string, value float64, hint string) {
	if !(value == 0 || value >= 0.01 && value <= 4096) {
		c.doc.Report(where, hint, "%v is not between 0.01 and 4096", value)
	}
}

var cpuSetForm = regexp.MustCompile(`^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$`)

func (c checker) cpuSet(where, value string) {
	if value != "" && (len(value) > 1024 || !cpuSetForm.MatchString(value)) {
		c.doc.Report(where, `as "0-3,6"`, "%q is not a list of processors", value)
	}
}

// A Ulimit is one of [Limits.Ulimits]; math.MaxUint64 is none.
type Ulimit struct {
	Name       string
	Soft, Hard uint64
}

var ulimitNames = []string{"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nproc", "sigpending", "stack"}

// ParseUlimit reads one of [Limits.Ulimits].
func ParseUlimit(text string) (Ulimit, error) {
	name, values, ok := strings.Cut(text, "=")
	switch {
	case !ok:
		return Ulimit{}, fmt.Errorf("%q is not a ulimit", text)
	case name == "nofile":
		return Ulimit{}, fmt.Errorf("ulimit nofile: set limits.open_files")
	case !slices.Contains(ulimitNames, name):
		return Ulimit{}, fmt.Errorf("ulimit %q: want %s", name, strings.Join(ulimitNames, ", "))
	}
	soft, hard, both := strings.Cut(values, ":")
	if !both {
		hard = soft
	}
	u := Ulimit{Name: name}
	var err error
	if u.Soft, err = ulimitValue(soft); err == nil {
		u.Hard, err = ulimitValue(hard)
	}
	if err != nil {
		return Ulimit{}, fmt.Errorf("ulimit %s: %w", name, err)
	}
	if u.Soft > u.Hard {
		return Ulimit{}, fmt.Errorf("ulimit %s: the soft limit lies above the hard one", name)
	}
	return u, nil
}

func ulimitValue(text string) (uint64, error) {
	if text == "unlimited" {
		return ^uint64(0), nil
	}
	n, err := strconv.ParseUint(text, 10, 53)
	if err != nil || strconv.FormatUint(n, 10) != text {
		return 0, fmt.Errorf("%q is not a number below 2^53, nor unlimited", text)
	}
	return n, nil
}
