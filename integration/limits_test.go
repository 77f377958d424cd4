package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/sandbox/record"
)

// smallLimits makes everything a job can use small, until the test ends, and
// checks then that nothing of any job is left.
func smallLimits(t *testing.T) {
	t.Helper()
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", func(old string) string {
		before, after, _ := strings.Cut(old, "[limits]\n")
		_, after, _ = strings.Cut(after, "\n\n")
		return before + `[limits]
memory = "256MiB"
pids = 256
disk = "128MiB"
shm = "32MiB"
tmpfs = "64MiB"
open_files = 256
ulimits = ["stack=4194304"]

[[limits.tmpfs_mount]]
path = "/ram"
size = "16MiB"
exec = true

[[limits.project]]
project = "group/*"
cpus = 1.5

` + after
	})
	t.Cleanup(func() {
		if leaks := theWorld.Leaks(); len(leaks) > 0 {
			t.Errorf("left behind:\n%s", lines(leaks))
		}
	})
}

// neighbour is a job that does a little of everything again and again, and
// fails if it once cannot.
func neighbour(t *testing.T) *coordinator.Attempt {
	t.Helper()
	a := harness.Begin(t, hermetic(
		"round() { head -c 1000000 /dev/zero > f && head -c 1000000 /dev/zero > /f && head -c 1000000 /dev/zero > /dev/shm/f && cat f /f /dev/shm/f | wc -c && rm f /f /dev/shm/f && (sleep 0.1); }",
		`n=0; while round > /sum && [ "$(cat /sum)" = 3000000 ]; do n=$((n+1)); echo neighbour fine $n; done; echo neighbour harmed; exit 1`))
	waitTrace(t, a, "O neighbour fine 1")
	return a
}

// fine waits until the neighbour has come through another round.
func fine(t *testing.T, a *coordinator.Attempt) {
	t.Helper()
	n := strings.Count(plain(string(a.TraceBytes())), "neighbour fine")
	for deadline := time.Now().Add(time.Minute); strings.Count(plain(string(a.TraceBytes())), "neighbour fine") < n+2; time.Sleep(50 * time.Millisecond) {
		if a.Ended() || time.Now().After(deadline) {
			t.Fatalf("the job beside does not go on:\n%s", plain(string(a.TraceBytes())))
		}
	}
}

// TestAttacksOnLimitsEndNamedAndHarmNoNeighbour: each script goes for one limit
// and swallows what it is told. The log says which it was all the same, and so
// does the record.
func TestAttacksOnLimitsEndNamedAndHarmNoNeighbour(t *testing.T) {
	smallLimits(t)
	beside := neighbour(t)
	const admin = "; set by the runner's admin (limits."
	for _, attack := range []struct {
		name, script string
		says         []string // in the log
		limit        string   // on record; "" for what only the process itself can see
	}{
		{"processes", "bomb() { bomb & bomb & }; bomb; sleep 1", []string{"limit    processes: the build container had all of its 256, and ", admin + "pids)"}, "pids"},
		{"memory", "(tail /dev/zero) || true", []string{"limit    memory: the build container reached 256MiB, and ", admin + "memory)"}, "memory"},
		{"directories in memory", "dd if=/dev/zero of=/dev/shm/x bs=64k || true; dd if=/dev/zero of=/ram/x bs=64k || true",
			[]string{"limit    tmpfs: /dev/shm of the build container was full", admin + "shm", "limit    tmpfs: /ram of the build container was full, with 16MiB"}, "tmpfs"},
		{"files in memory", `i=0; while : > /dev/shm/$i; do i=$((i+1)); done 2>/dev/null || true`, []string{"limit    tmpfs: /dev/shm of the build container was full"}, "tmpfs"},
		{"work tree", "dd if=/dev/zero of=x bs=64k || true", []string{"No space left on device", "limit    disk: the job's 128MiB were full", admin + "disk)"}, "disk"},
		// One disk bounds every place that a job can write to.
		{"other places", "for x in /builds/x /cache/x /x; do if dd if=/dev/zero of=$x bs=64k; then echo $x has no end; exit 1; fi; [ $x = /x ] || rm $x; done",
			[]string{"limit    disk: the job's 128MiB were full", "went on"}, "disk"},
		{"file without a name", "exec 3>x; rm x; (dd if=/dev/zero bs=64k >&3) || true; sleep 1", []string{"limit    disk: the job's 128MiB were full"}, "disk"},
		{"many files", `i=0; while : > f$i; do i=$((i+1)); done 2>/dev/null || true`, []string{"limit    disk: the job had all of its 8192 files", admin + "disk)"}, "files"},
		// These only the process itself can see. A file that is all hole is none.
		{"the rest", "truncate -s 1000000000000 x && du -k x | cut -f1 && rm x\n" +
			`for i in $(seq 400); do : > n$i; done; timeout 3 tail -f n* 2>&1 | grep -m1 "Too many open files" || true` + "\n" +
			`export X="$(head -c 3000000 /dev/zero | tr '\0' x)"; /bin/busybox true || echo cannot; unset X`, []string{"\n0\n", "Too many open files", "cannot", "went on"}, ""},
	} {
		t.Run(attack.name, func(t *testing.T) {
			r := wait(t, harness.Begin(t, hermetic(attack.script, "echo went on")))
			if r.FailureReason == "runner_system_failure" {
				t.Error("the attack became the platform's failure")
			}
			mention(t, r, attack.says...)
			never(t, r, "neighbour")
			found := attack.limit == ""
			for _, h := range dataOf[record.Hit](t, evidence(t, r), record.LimitHit) {
				if h.Limit != attack.limit {
					t.Errorf("on record: %+v", h)
				}
				found = h.Stage == "step_script" || h.Stage == "build_script"
			}
			if !found {
				t.Errorf("%s is not on record", attack.limit)
			}
			fine(t, beside)
		})
	}
	beside.Cancel()
	r := wait(t, beside)
	never(t, r, "\nneighbour harmed")
	if hits := dataOf[record.Hit](t, evidence(t, r), record.LimitHit); len(hits) > 0 {
		t.Errorf("the job beside ran into limits of its own: %+v", hits)
	}
}

// TestLimitsStandInLogAndStatement: who lowered what, and what was applied.
func TestLimitsStandInLogAndStatement(t *testing.T) {
	smallLimits(t)
	job := hermetic("ulimit -n; ulimit -s; df -k /builds / /cache | tail -n 3 | awk '{print $2}' | sort -u | wc -l", "(tail /dev/zero) || true", "echo x > out")
	job.Variables = []coordinator.Variable{
		{Key: "HALLMARK_MEMORY", Value: "96MiB"}, {Key: "HALLMARK_PIDS", Value: "100000"}, {Key: "HALLMARK_CPUS", Value: "1"},
	}
	job.Artifacts = coordinator.Archive("out")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "limits  96MiB memory, 1 processors, 256 processes, 128MiB disk", "memory was lowered by the job's variable HALLMARK_MEMORY",
		"cpus was lowered by the job's variable HALLMARK_CPUS", "256\n4096\n1\n",
		"limit    memory: the build container reached 96MiB, and 1 process was ended for it; set by the job's variable HALLMARK_MEMORY")
	never(t, r, "pids was lowered")
	for _, want := range []string{
		`"memoryBytes":100663296,"cpuMillis":1000,"pids":256,"limits":{"swapBytes":0,"reservationBytes":0,"cpuShares":0,"cpuSet":"",` +
			`"diskBytes":134217728,"shmBytes":33554432,"openFiles":256,"ulimits":[{"name":"stack","soft":4194304,"hard":4194304}],` +
			`"tmpfs":[{"path":"/ram","bytes":16777216,"exec":true}]}`,
		`"limits-hit"`,
	} {
		if s := attested(t, r).Statement; !strings.Contains(s.Raw, want) {
			t.Errorf("the statement does not say %s:\n%s", want, s.Raw)
		}
	}

	job.Variables = []coordinator.Variable{{Key: "HALLMARK_MEMORY", Value: "lots"}}
	r = run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	mention(t, r, `variable HALLMARK_MEMORY: "lots" is no limit`, `write it as "512MiB"`)
}

// TestFullHostStopsJobsBeforeTheyStart: disks of jobs promise more than there is.
func TestFullHostStopsJobsBeforeTheyStart(t *testing.T) {
	r := runOnFull(t, "/var/lib/hallmark/sandboxd", "64m", hermetic("echo not reached"))
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "the runner host's disk is full")
	never(t, r, "\nnot reached")
}

// TestKilledDaemonLeavesNoDisk: what a job has written goes with it, however the
// daemon ended.
func TestKilledDaemonLeavesNoDisk(t *testing.T) {
	a := start(t, hermetic("head -c 50000000 /dev/urandom > x", "echo written", "sleep 60"))
	waitTrace(t, a, "O written")
	if err := theWorld.Sandboxd.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := theWorld.Sandboxd.Start(); err != nil {
		t.Fatal(err)
	}
	r := wait(t, a)
	expect(t, r, coordinator.Failed, "runner_system_failure")
	names, err := os.ReadDir("/var/lib/hallmark/sandboxd/jobs")
	if err != nil || len(names) > 0 {
		t.Errorf("left in jobs: %v, %v", fmt.Sprint(names), err)
	}
}
