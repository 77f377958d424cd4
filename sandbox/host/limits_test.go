package host

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

func payloadOf(project string, vars ...string) *executor.Job {
	p := &executor.Job{}
	p.Info.ProjectFullPath = project
	for _, v := range vars {
		key, value, _ := strings.Cut(v, "=")
		p.Variables = append(p.Variables, executor.Variable{Key: key, Value: value})
	}
	return p
}

func limitsHost() *Host {
	return &Host{cfg: Config{
		Limits: sandbox.Limits{MemoryBytes: 4 << 30, Pids: 4096, DiskBytes: 32 << 30, ShmBytes: 512 << 20},
		Projects: []ProjectLimits{
			{Project: "group/**", MemoryBytes: 2 << 30, CPUs: 2},
			{Project: "group/small", MemoryBytes: 1 << 30, DiskBytes: 1 << 30},
			// A writer of the configuration cannot get past its check, and no further here either.
			{Project: "greedy", MemoryBytes: 64 << 30},
		},
		Devices: []Device{{Path: "/dev/kvm", Projects: []string{"group/*"}}, {Path: "/dev/fuse"}},
	}}
}

func TestLimitsAreOnlyLowered(t *testing.T) {
	type want struct {
		memory, pids, disk int64
		cpus               float64
		setBy              string // of memory
		devices            int
	}
	const admin, variable = "by the runner's admin for projects ", "by the job's variable HALLMARK_MEMORY"
	for name, tt := range map[string]struct {
		payload *executor.Job
		want    want
	}{
		"others":             {payloadOf("other/x"), want{4 << 30, 4096, 32 << 30, 0, "", 1}},
		"group":              {payloadOf("group/x"), want{2 << 30, 4096, 32 << 30, 2, admin + `"group/**"`, 2}},
		"the tightest":       {payloadOf("group/small"), want{1 << 30, 4096, 1 << 30, 2, admin + `"group/small"`, 2}},
		"greedy":             {payloadOf("greedy"), want{4 << 30, 4096, 32 << 30, 0, "", 1}},
		"a job's less":       {payloadOf("other/x", "HALLMARK_MEMORY=512MiB", "HALLMARK_CPUS=0.5", "HALLMARK_PIDS=64"), want{512 << 20, 64, 32 << 30, 0.5, variable, 1}},
		"a job's more":       {payloadOf("group/x", "HALLMARK_MEMORY=8GiB", "HALLMARK_CPUS=64", "HALLMARK_PIDS=100000"), want{2 << 30, 4096, 32 << 30, 2, admin + `"group/**"`, 2}},
		"the last one":       {payloadOf("other/x", "HALLMARK_MEMORY=nonsense", "HALLMARK_MEMORY=1GiB"), want{1 << 30, 4096, 32 << 30, 0, variable, 1}},
		"an empty one":       {payloadOf("other/x", "HALLMARK_MEMORY="), want{4 << 30, 4096, 32 << 30, 0, "", 1}},
		"disk is the host's": {payloadOf("other/x", "HALLMARK_DISK=1MiB"), want{4 << 30, 4096, 32 << 30, 0, "", 1}},
	} {
		b, err := limitsHost().boundsOf(tt.payload)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := want{b.MemoryBytes, b.Pids, b.DiskBytes, b.CPUs, b.setBy["memory"], len(b.Devices)}
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(want{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestVariablesOfLimitsAreReadStrictly(t *testing.T) {
	for _, v := range []string{
		"HALLMARK_MEMORY=512", "HALLMARK_MEMORY=512MB", "HALLMARK_MEMORY=-1GiB", "HALLMARK_MEMORY=1MiB", "HALLMARK_MEMORY= 1GiB", "HALLMARK_MEMORY=$M",
		"HALLMARK_CPUS=0", "HALLMARK_CPUS=0.05", "HALLMARK_CPUS=1e3", "HALLMARK_CPUS=inf", "HALLMARK_CPUS=-1", "HALLMARK_CPUS=1.", "HALLMARK_CPUS=01",
		"HALLMARK_PIDS=63", "HALLMARK_PIDS=0x80", "HALLMARK_PIDS=+80", "HALLMARK_PIDS=9999999999",
	} {
		_, err := limitsHost().boundsOf(payloadOf("group/x", v))
		user, ok := errors.AsType[*sandbox.UserError](err)
		if !ok || !strings.Contains(user.Error(), strings.Split(v, "=")[0]) || user.Hint == "" {
			t.Errorf("%s: %v", v, err)
		}
	}
}

// FuzzLimitVariables: whatever a job writes, it gets no more than it had.
func FuzzLimitVariables(f *testing.F) {
	f.Add("512MiB", "1.5", "100")
	f.Add("8EiB", "NaN", "-0")
	f.Fuzz(func(t *testing.T, memory, cpus, pids string) {
		h := limitsHost()
		had, err := h.boundsOf(payloadOf("group/x"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := h.boundsOf(payloadOf("group/x", "HALLMARK_MEMORY="+memory, "HALLMARK_CPUS="+cpus, "HALLMARK_PIDS="+pids))
		if err != nil {
			return
		}
		if b.MemoryBytes > had.MemoryBytes || b.MemoryBytes < leastMemory || b.Pids > had.Pids || b.Pids < leastPids || !(b.CPUs > 0 && b.CPUs <= had.CPUs) {
			t.Errorf("%q, %q, %q: %+v", memory, cpus, pids, b.Limits)
		}
	})
}

func TestHitsInWords(t *testing.T) {
	b, err := limitsHost().boundsOf(payloadOf("group/x", "HALLMARK_PIDS=64"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		hit  record.Hit
		want string
	}{
		{record.Hit{Role: "build", Limit: "memory", Max: 2 << 30, Count: 1}, `memory: the build container reached 2GiB, and 1 process was ended for it; set by the runner's admin for projects "group/**"`},
		{record.Hit{Role: "helper", Limit: "pids", Max: 64, Count: 9}, "processes: the helper container had all of its 64, and 9 further ones were refused; set by the job's variable HALLMARK_PIDS"},
		{record.Hit{Limit: "disk", Max: 1 << 30, Used: 1000 << 20}, "disk: the job's 1GiB were full, with 1000MiB of files in it; set by the runner's admin (limits.disk)"},
		{record.Hit{Limit: "files", Max: 4096}, "disk: the job had all of its 4096 files; set by the runner's admin (limits.disk)"},
		{record.Hit{Role: "build", Limit: "tmpfs", Path: "/dev/shm", Max: 1 << 20, Used: 1 << 20}, "tmpfs: /dev/shm of the build container was full, with 1024KiB; set by the runner's admin (limits.shm, limits.tmpfs_mount)"},
	} {
		if got := hitInWords(tt.hit) + "; " + b.of(tt.hit.Limit); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

// TestGateTakesProjectsInTurns: one project's many jobs do not hold up another's
// one, and none is forgotten.
func TestGateTakesProjectsInTurns(t *testing.T) {
	g := newGate(1)
	leave, err := g.enter(t.Context(), "first", func(int) { t.Error("waits at an open gate") })
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	entered := make(chan string)
	waiting := make(chan int)
	goOn := make(chan struct{})
	var wg sync.WaitGroup
	for _, project := range []string{"many", "many", "many", "one", "other", "one"} {
		wg.Go(func() {
			leave, err := g.enter(context.Background(), project, func(others int) { waiting <- others })
			if err != nil {
				t.Error(err)
				return
			}
			entered <- project
			<-goOn
			leave()
			leave() // once is enough, twice no harm
		})
		<-waiting
	}
	// One that gives up while it waits takes no place, and keeps none.
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := g.enter(ctx, "impatient", func(others int) { waiting <- others })
		gone <- err
	}()
	if others := <-waiting; others != 6 {
		t.Errorf("%d others wait, want 6", others)
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	leave()
	for range 6 {
		order = append(order, <-entered)
		goOn <- struct{}{}
	}
	wg.Wait()
	if diff := cmp.Diff([]string{"many", "one", "other", "many", "one", "many"}, order); diff != "" {
		t.Error(diff)
	}
	if leave, err = g.enter(t.Context(), "last", func(int) { t.Error("a place was lost") }); err != nil {
		t.Fatal(err)
	}
	leave()
	if g.free != 1 || g.count != 0 || len(g.waiting) != 0 || len(g.order) != 0 {
		t.Errorf("left over: %+v", g)
	}
}

// TestGateLeavesOnePlaceToWhoEnters: what may as well wait never has others wait.
func TestGateLeavesOnePlaceToWhoEnters(t *testing.T) {
	g := newGate(2)
	leave, ok := g.tryEnter()
	if !ok {
		t.Fatal("two places are free, and none can be had")
	}
	if _, ok := g.tryEnter(); ok {
		t.Error("took the last place")
	}
	if _, err := g.enter(t.Context(), "project", func(int) { t.Error("waits at an open gate") }); err != nil {
		t.Fatal(err)
	}
	leave()
	leave()
	if g.free != 1 {
		t.Errorf("%d places are free, want 1", g.free)
	}
}
