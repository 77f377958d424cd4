package host

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/bmatcuk/doublestar/v4"

	"hallmark.build/config/tomlfile"
	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// ProjectLimits are what some projects have less than others; zero is as for all.
type ProjectLimits struct {
	Project     string // glob on the full path
	MemoryBytes int64
	CPUs        float64
	Pids        int64
	DiskBytes   int64
	ShmBytes    int64
}

// A Device is one of this host's that some projects' build containers get.
type Device struct {
	Path     string
	Projects []string // globs; none is all
}

// bounds are a job's limits, and who set those that are not for all jobs.
type bounds struct {
	sandbox.Limits
	setBy map[string]string // by the record's word for the limit
}

// boundsOf works out a job's limits. Everyone can only take: the admin for a
// project from what all have, the job from that.
func (h *Host) boundsOf(p *executor.Job) (bounds, error) {
	b := bounds{Limits: h.cfg.Limits, setBy: map[string]string{}}
	project := p.Info.ProjectFullPath
	for _, l := range h.cfg.Projects {
		if doublestar.MatchUnvalidated(l.Project, project) {
			b.tighten(l)
		}
	}
	b.Devices = nil
	for _, d := range h.cfg.Devices {
		if d.open(project) {
			b.Devices = append(b.Devices, d.Path)
		}
	}
	return b, b.obey(p.Variables)
}

func (d Device) open(project string) bool {
	for _, glob := range d.Projects {
		if doublestar.MatchUnvalidated(glob, project) {
			return true
		}
	}
	return len(d.Projects) == 0
}

func (b *bounds) tighten(l ProjectLimits) {
	by := fmt.Sprintf("by the runner's admin for projects %q", l.Project)
	lower(b, "memory", &b.MemoryBytes, l.MemoryBytes, by)
	lower(b, "cpus", &b.CPUs, l.CPUs, by)
	lower(b, "pids", &b.Pids, l.Pids, by)
	lower(b, "disk", &b.DiskBytes, l.DiskBytes, by)
	lower(b, "shm", &b.ShmBytes, l.ShmBytes, by)
}

// lower sets a limit if that makes it tighter, where 0 is none.
func lower[T int64 | float64](b *bounds, name string, have *T, want T, by string) {
	if want > 0 && (*have == 0 || want < *have) {
		*have = want
		b.setBy[name] = by
	}
}

// Variables with which a job takes less than it may have.
const (
	memoryVariable = "HALLMARK_MEMORY"
	cpusVariable   = "HALLMARK_CPUS"
	pidsVariable   = "HALLMARK_PIDS"
)

// With less than this a container does not get to its script.
const (
	leastMemory = 64 << 20
	leastPids   = 64
)

// obey takes what the job asks for by variables, of which the last of a name
// counts.
func (b *bounds) obey(vars []executor.Variable) error {
	asked := map[string]string{}
	for _, v := range vars {
		asked[v.Key] = v.Value
	}
	if text := asked[memoryVariable]; text != "" {
		n, err := tomlfile.ParseSize(text)
		if err != nil || n < leastMemory {
			return badLimit(memoryVariable, text, "512MiB", "64MiB")
		}
		lower(b, "memory", &b.MemoryBytes, n, byVariable(memoryVariable))
		b.ReservationBytes = min(b.ReservationBytes, b.MemoryBytes)
	}
	if text := asked[cpusVariable]; text != "" {
		n, err := parseCPUs(text)
		if err != nil {
			return badLimit(cpusVariable, text, "1.5", "0.1")
		}
		lower(b, "cpus", &b.CPUs, n, byVariable(cpusVariable))
	}
	if text := asked[pidsVariable]; text != "" {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < leastPids || strconv.FormatInt(n, 10) != text {
			return badLimit(pidsVariable, text, "512", strconv.Itoa(leastPids))
		}
		lower(b, "pids", &b.Pids, n, byVariable(pidsVariable))
	}
	return nil
}

func byVariable(name string) string { return "by the job's variable " + name }

func badLimit(name, text, example, least string) error {
	return &sandbox.UserError{
		Err:  fmt.Errorf("variable %s: %q is no limit", name, text),
		Hint: fmt.Sprintf("write it as %q; %s is the least", example, least),
	}
}

var cpusForm = regexp.MustCompile(`^(0|[1-9][0-9]{0,3})(\.[0-9]{1,3})?$`)

func parseCPUs(text string) (float64, error) {
	if !cpusForm.MatchString(text) {
		return 0, fmt.Errorf("%q is not a number of processors", text)
	}
	n, err := strconv.ParseFloat(text, 64)
	if err == nil && n < 0.1 {
		err = fmt.Errorf("%q is too little", text)
	}
	return n, err
}

// inWords is the line for the job's log.
func (b bounds) inWords() string {
	cpus := "all processors"
	if b.CPUs > 0 {
		cpus = strconv.FormatFloat(b.CPUs, 'g', 4, 64) + " processors"
	}
	disk := "disk without limit"
	if b.DiskBytes > 0 {
		disk = tomlfile.FormatSize(b.DiskBytes) + " disk"
	}
	return fmt.Sprintf("%s memory, %s, %d processes, %s", tomlfile.FormatSize(b.MemoryBytes), cpus, b.Pids, disk)
}

// tightened says which of them are lower than other jobs', and by whom.
func (b bounds) tightened() []string {
	var lines []string
	for _, name := range []string{"memory", "cpus", "pids", "disk", "shm"} {
		if by := b.setBy[name]; by != "" {
			lines = append(lines, name+" was lowered "+by)
		}
	}
	return lines
}

// of is who set a limit.
func (b bounds) of(limit string) string {
	if limit == "files" {
		limit = "disk"
	}
	if by := b.setBy[limit]; by != "" {
		return "set " + by
	}
	if limit == "tmpfs" {
		limit = "shm, limits.tmpfs_mount"
	}
	return "set by the runner's admin (limits." + limit + ")"
}

// stated are the limits as the record has them.
func (b bounds) stated() *record.Limits {
	l := &record.Limits{
		SwapBytes: b.SwapBytes, ReservationBytes: b.ReservationBytes, CPUShares: b.CPUShares, CPUSet: b.CPUSet,
		DiskBytes: b.DiskBytes, ShmBytes: b.ShmBytes, OpenFiles: int64(b.OpenFiles), Devices: b.Devices,
	}
	for _, u := range b.Ulimits {
		l.Ulimits = append(l.Ulimits, record.Ulimit{Name: u.Name, Soft: finite(u.Soft), Hard: finite(u.Hard)})
	}
	for _, t := range b.Tmpfs {
		l.Tmpfs = append(l.Tmpfs, record.TmpfsMount{Path: t.Path, Bytes: t.Bytes, Exec: t.Exec})
	}
	return l
}

func finite(n uint64) int64 {
	if n == sandbox.Unlimited {
		return -1
	}
	return int64(n)
}

// forRole are the limits of one container: devices and further directories in
// memory are the build container's alone.
func (b bounds) forRole(role sandbox.Role) sandbox.Limits {
	l := b.Limits
	if role != sandbox.Build {
		l.Devices, l.Tmpfs = nil, nil
	}
	return l
}
