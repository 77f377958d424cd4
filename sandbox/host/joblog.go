package host

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// logPatience is how long the job's log may be full before lines are dropped.
const logPatience = 5 * time.Second

var errLogFull = errors.New("job log: nobody reads it")

// A jobLog is the pipe that the runner reads. It never blocks for long: who
// writes a line holds the job, or a pull that other jobs wait for, and the
// tenant's processes, which write to the same pipe, may leave it full.
//
// A line of joblog's fits where the kernel says that a pipe has room.
type jobLog struct {
	file     *os.File
	patience time.Duration
	full     bool // and was so all the time for the line before
}

func (l *jobLog) Write(line []byte) (int, error) {
	wait := l.patience
	if l.full {
		wait = 0
	}
	if l.full = !writable(l.file, wait); l.full {
		return 0, errLogFull
	}
	return l.file.Write(line)
}

// writable waits until a write does not block, or will fail.
func writable(f *os.File, wait time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(fds, int(wait.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// letReopen lets a stage's processes open their own output again, as they do in
// `echo x >/dev/stderr`. The kernel asks the pipe's inode, which belongs to the
// runner's user: to anyone in the sandbox a stranger. They may write, not read.
// Only a pipe without a name is touched: the driver's user must not have this
// daemon change the mode of a file.
func letReopen(pipe *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(pipe.Fd()), &fs); err != nil {
		return fmt.Errorf("job log: %w", err)
	}
	if fs.Type != unix.PIPEFS_MAGIC {
		return nil
	}
	if err := unix.Fchmod(int(pipe.Fd()), 0o622); err != nil {
		return fmt.Errorf("job log: %w", err)
	}
	return nil
}
