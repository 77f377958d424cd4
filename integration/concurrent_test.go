package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/sandbox/record"
)

// multitude is how many jobs run at once in the test of many.
const multitude = 50

// TestFiftyJobsAtOnce: each has its own files, output, artifact, record and
// statement, and nothing is left of any.
func TestFiftyJobsAtOnce(t *testing.T) {
	before, err := theWorld.Concurrent(multitude)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := theWorld.Concurrent(before); err != nil {
			t.Error(err)
		}
		if leaks := theWorld.Leaks(); len(leaks) > 0 {
			t.Errorf("left behind:\n%s", lines(leaks))
		}
	})
	// The first job brings in what stays: images, connections, code.
	expect(t, run(t, hermetic("echo first")), coordinator.Success, "")
	atRest := useOf(t)

	var jobs []*coordinator.Attempt
	for i := range multitude {
		job := hermetic(
			fmt.Sprintf("echo it is %d-%d > own; cp own /own; cp own /dev/shm/own; echo started", i, i),
			"while [ ! -e /dev/shm/enough ]; do sleep 1; n=$((n+1)); [ $n -gt 20 ] && : > /dev/shm/enough; done",
			"cat own /own /dev/shm/own; ls /builds/group",
		)
		job.Name = fmt.Sprintf("job-%d-of-many", i)
		job.Artifacts = coordinator.Archive("own")
		jobs = append(jobs, harness.Begin(t, job))
	}
	most := useOf(t)
	for done := false; !done; time.Sleep(500 * time.Millisecond) {
		most = most.max(useOf(t))
		done = true
		for _, a := range jobs {
			done = done && a.Ended()
		}
	}
	attempts := map[string]bool{}
	for i, a := range jobs {
		r := wait(t, a)
		own := fmt.Sprintf("it is %d-%d", i, i)
		expect(t, r, coordinator.Success, "")
		mention(t, r, strings.Repeat(own+"\n", 3)+"project")
		if n := strings.Count(plain(r.Trace), "\nit is "); n != 3 {
			t.Errorf("job %d: %d lines where 3 are its own", r.ID, n)
		}
		if got := archive(t, r)["own"]; got != own+"\n" {
			t.Errorf("job %d uploaded %q, want %q", r.ID, got, own)
		}
		at := attested(t, r)
		if attempts[at.Attempt] || !strings.Contains(at.Statement.Raw, `"jobName":"`+a.Job.Name+`"`) || !strings.Contains(at.Statement.Raw, fmt.Sprintf(`"jobId":"%d"`, r.ID)) {
			t.Errorf("job %d: its statement is of another", r.ID)
		}
		attempts[at.Attempt] = true
		if opened := dataOf[record.Opened](t, evidence(t, r), record.JobOpened); len(opened) != 1 || opened[0].Job.ID != r.ID || opened[0].Job.Name != a.Job.Name {
			t.Errorf("job %d: its record is of another: %+v", r.ID, opened)
		}
	}
	if leaks := theWorld.Leaks(); len(leaks) > 0 {
		t.Errorf("left behind:\n%s", lines(leaks))
	}
	// Descriptors, goroutines and memory go back to what one job left behind.
	var after daemonUse
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		after = useOf(t)
		if after.files <= atRest.files+20 && after.goroutines <= atRest.goroutines+20 || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("sandboxd with no job: %v; with %d: at most %v; after them: %v", atRest, multitude, most, after)
	if after.files > atRest.files+20 {
		t.Errorf("sandboxd keeps descriptors: %d before, %d after", atRest.files, after.files)
	}
	if after.goroutines > atRest.goroutines+20 {
		t.Errorf("sandboxd keeps goroutines: %d before, %d after", atRest.goroutines, after.goroutines)
	}
	if grown := after.memory - atRest.memory; grown > 128<<20 {
		t.Errorf("sandboxd keeps %d MB", grown>>20)
	}
}

// daemonUse is what the sandbox daemon has in use.
type daemonUse struct {
	memory     int64 // bytes, resident
	files      int   // descriptors
	goroutines int
}

func (u daemonUse) String() string {
	return fmt.Sprintf("%d MB, %d descriptors, %d goroutines", u.memory>>20, u.files, u.goroutines)
}

func (u daemonUse) max(o daemonUse) daemonUse {
	return daemonUse{max(u.memory, o.memory), max(u.files, o.files), max(u.goroutines, o.goroutines)}
}

func useOf(t *testing.T) daemonUse {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", theWorld.Sandboxd.PID())
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return daemonUse{memory: kilobytes(filepath.Join(dir, "status"), "VmRSS:") << 10, files: len(files), goroutines: goroutinesOf(t)}
}

// goroutinesOf asks the sandbox daemon, which answers in its log.
func goroutinesOf(t *testing.T) int {
	t.Helper()
	const answer = "msg=\"in use\" goroutines="
	daemon := theWorld.Sandboxd
	before := strings.Count(daemon.Log(), answer)
	if err := daemon.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		parts := strings.Split(daemon.Log(), answer)
		line, _, whole := strings.Cut(parts[len(parts)-1], "\n")
		if len(parts)-1 <= before || !whole {
			continue
		}
		n, err := strconv.Atoi(line)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatal("sandboxd does not say what it has in use")
	return 0
}
