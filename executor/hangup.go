package executor

import (
	"context"
	"os"
	"sync"
	"syscall"
)

// untilHangup returns a context that ends with ctx, or when nobody can read
// what is written to out any more. The runner is at the other end of out: when
// it is killed, nothing else tells the driver so.
func untilHangup(ctx context.Context, out *os.File) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return ctx, cancel // without the watch, SIGTERM still works
	}
	var wake [2]int
	if err := syscall.Pipe2(wake[:], syscall.O_CLOEXEC); err != nil {
		syscall.Close(epoll)
		return ctx, cancel
	}
	fd, err := descriptor(out)
	if err == nil {
		// No events asked for: errors and hang-ups are always reported. A
		// regular file cannot be watched, and has no reader either.
		err = syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{})
	}
	var watching sync.WaitGroup
	if err == nil {
		syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, wake[0], &syscall.EpollEvent{})
		watching.Go(func() {
			defer cancel()
			for {
				_, err := syscall.EpollWait(epoll, make([]syscall.EpollEvent, 1), -1)
				if err != syscall.EINTR {
					return
				}
			}
		})
	}
	return ctx, func() {
		syscall.Close(wake[1]) // hangs up wake[0]
		watching.Wait()
		syscall.Close(wake[0])
		syscall.Close(epoll)
		cancel()
	}
}
