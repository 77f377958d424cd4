package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reapEvery is how often abandoned jobs are looked for.
const reapEvery = 2 * time.Second

// reap takes down jobs whose runner is gone, until ctx ends.
func (h *Host) reap(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			h.takeAbandoned(now, &wg)
		}
	}
}

// takeAbandoned takes down each abandoned job in a goroutine of its own: one
// that takes its time, or whose call does not end, holds up no other.
func (h *Host) takeAbandoned(now time.Time, wg *sync.WaitGroup) {
	for _, j := range h.all() {
		why := j.abandoned(now)
		if why == nil || !j.reaped.CompareAndSwap(false, true) {
			continue
		}
		wg.Go(func() {
			defer j.reaped.Store(false)
			h.abandon(j, why)
		})
	}
}

func (h *Host) all() []*job {
	h.mu.Lock()
	defer h.mu.Unlock()
	jobs := make([]*job, 0, len(h.jobs))
	for _, j := range h.jobs {
		jobs = append(jobs, j)
	}
	return jobs
}

// A process is one on this host, held by a pidfd so that another one with the
// same number is never mistaken for it.
type process struct{ fd int }

// parentOf is the parent of the driver: the gitlab-runner that the job belongs
// to. It is nil where that cannot be told; then only the other signs count.
func parentOf(pid int) *process {
	ppid, err := parentPID(pid)
	if err != nil || ppid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(ppid, 0)
	if err != nil {
		return nil
	}
	return &process{fd}
}

func (p *process) gone() bool {
	if p == nil {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

func (p *process) close() {
	if p != nil {
		_ = unix.Close(p.fd)
	}
}

// parentPID reads the fourth field of /proc/PID/stat; the second one, the
// command's name, may hold anything, so the search starts behind it.
func parentPID(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat: malformed", pid)
	}
	return strconv.Atoi(string(fields[1]))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil || !os.IsNotExist(err)
}
