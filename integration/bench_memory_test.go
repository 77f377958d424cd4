package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
)

// BenchmarkMemory is the resident memory of each daemon: freshly started, after
// a first job, with ten jobs running at once, and after those; and of what each
// job brings. Rss counts pages that processes share in each of them, Pss shares
// them out.
func BenchmarkMemory(b *testing.B) {
	concurrent(b, crowd)
	if err := theWorld.Stop(); err != nil {
		b.Fatal(err)
	}
	if err := theWorld.Start(); err != nil {
		b.Fatal(err)
	}
	var t memoryTable
	t.take("idle", "started")
	firstJob(b, runners[ours])
	t.take("one-past", "after one job")
	jobs := crowdSleeps(b)
	t.take("ten", "ten running")
	for _, a := range jobs {
		a.Cancel()
	}
	for _, a := range jobs {
		<-ended(b, a)
	}
	t.take("ten-past", "after them")
	b.Log(t.String())
	b.ReportMetric(0, "ns/op")
	for _, name := range []string{"hallmark-sandboxd", "containerd", "hallmark-attestd"} {
		for _, when := range []string{"idle", "ten"} {
			b.ReportMetric(megabytes(t.of(when, name).rss), name+"-"+when+"-MB")
		}
	}
	shims, inits := t.of("ten", "containerd-shim"), t.of("ten", "hallmark-init")
	b.ReportMetric(float64(shims.count)/crowd, "shims/job")
	b.ReportMetric(megabytes(shims.rss)/crowd, "shims-MB/job")
	b.ReportMetric(megabytes(inits.rss)/crowd, "inits-MB/job")
}

// crowdSleeps starts ten jobs and returns once all are at their scripts.
func crowdSleeps(b *testing.B) []*coordinator.Attempt {
	b.Helper()
	var list []*coordinator.Attempt
	for range crowd {
		list = append(list, addJob(b, hermetic("echo now asleep", "sleep 600")))
	}
	for _, a := range list {
		deadline := time.Now().Add(benchTime)
		for !strings.Contains(plain(string(a.TraceBytes())), "\nnow asleep") {
			if time.Now().After(deadline) || a.Ended() {
				b.Fatalf("job %d does not sleep:\n%s\n%s", a.Job.ID, plain(string(a.TraceBytes())), theWorld.Logs())
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return list
}

// ended is closed when the runner has sent its last word on a job.
func ended(b *testing.B, a *coordinator.Attempt) <-chan struct{} {
	b.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := a.Wait(b.Context()); err != nil {
			b.Error(err)
		}
	}()
	return done
}

// use is the memory of all processes of one name, in bytes.
type use struct {
	count    int
	rss, pss int64
}

type memoryTable struct {
	when  []string
	title map[string]string
	uses  map[string]map[string]use // by when and name
}

// watched are the processes that count, by the name of their program's file.
var watched = []string{"hallmark-sandboxd", "containerd", "hallmark-attestd", "gitlab-runner", "containerd-shim", "hallmark-init", "others of jobs"}

// take looks at every process of the world, after a while in which daemons come
// to rest.
func (t *memoryTable) take(when, title string) {
	time.Sleep(2 * time.Second)
	if t.uses == nil {
		t.uses, t.title = map[string]map[string]use{}, map[string]string{}
	}
	t.when = append(t.when, when)
	t.title[when] = title
	t.uses[when] = map[string]use{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		name := programOf(dir)
		if name == "" {
			continue
		}
		u := t.uses[when][name]
		u.count++
		u.rss += kilobytes(filepath.Join(dir, "status"), "VmRSS:") << 10
		u.pss += kilobytes(filepath.Join(dir, "smaps_rollup"), "Pss:") << 10
		t.uses[when][name] = u
	}
}

func (t *memoryTable) of(when, name string) use { return t.uses[when][name] }

// programOf says which row a process belongs to, "" for none.
func programOf(dir string) string {
	pid, _ := strconv.Atoi(filepath.Base(dir))
	if pid == 1 || pid == os.Getpid() {
		return ""
	}
	switch pid {
	case theWorld.Sandboxd.PID():
		return "hallmark-sandboxd"
	case theWorld.Attestd.PID():
		return "hallmark-attestd"
	case theWorld.Runner.PID():
		return "gitlab-runner"
	}
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(line) == 0 {
		return ""
	}
	arg0, _, _ := strings.Cut(string(line), "\x00")
	switch base := filepath.Base(arg0); {
	case base == "containerd":
		return base
	case strings.HasPrefix(base, "containerd-shim"):
		return "containerd-shim"
	case strings.Contains(base, "init"):
		return "hallmark-init"
	}
	return "others of jobs"
}

// kilobytes reads one number of a file in /proc, 0 where it cannot be read.
func kilobytes(file, key string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

func (t *memoryTable) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "MB resident, Rss/Pss (processes), load average %s\n%-20s", loadAverage(), "")
	for _, when := range t.when {
		fmt.Fprintf(&s, " %20s", t.title[when])
	}
	for _, name := range watched {
		fmt.Fprintf(&s, "\n%-20s", name)
		for _, when := range t.when {
			u := t.of(when, name)
			fmt.Fprintf(&s, " %20s", fmt.Sprintf("%.1f/%.1f (%d)", megabytes(u.rss), megabytes(u.pss), u.count))
		}
	}
	return s.String()
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }

// cpuTime is what a process has used of the processors.
func cpuTime(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	const tick = time.Second / 100 // USER_HZ, on every Linux that Go runs on
	return time.Duration(user+system) * tick
}
