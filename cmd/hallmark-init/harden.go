package main

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	prGetDumpable = 3
	prSetDumpable = 4
	lastSignal    = 64
)

// harden closes the ways in which another process of the container could get
// at this one. No such process exists yet.
func harden() error {
	if os.Getpid() != 1 {
		return errors.New("not the first process of a pid namespace")
	}
	if err := hide(); err != nil {
		return err
	}
	if err := deafen(); err != nil {
		return err
	}
	if err := warmUp(); err != nil {
		return err
	}
	os.Clearenv()
	syscall.Umask(0o022)
	return nil
}

// hide makes this process untraceable, and its directory in /proc unreadable.
func hide() error {
	if _, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, prSetDumpable, 0, 0); e != 0 {
		return e
	}
	if v, _, e := syscall.RawSyscall(syscall.SYS_PRCTL, prGetDumpable, 0, 0); e != 0 || v != 0 {
		return errors.New("still dumpable")
	}
	return nil
}

// deafen takes away the handlers that the Go runtime has put on every signal:
// a handler is what makes a signal from inside the pid namespace arrive at its
// first process, and some of the runtime's end the program. The runtime wakes
// its own threads by SIGURG and needs no other.
func deafen() error {
	// The kernel's struct sigaction, all zero: default action, nothing masked.
	var dfl [4]uint64
	for sig := uintptr(1); sig <= lastSignal; sig++ {
		switch syscall.Signal(sig) {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGURG:
			continue
		}
		if _, _, e := syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0); e != 0 {
			return e
		}
	}
	return nil
}

// threads is more than this program ever runs at once: one reads, one waits,
// one acts, and the runtime collects garbage on as many as procs.
const (
	procs    = 2
	threads  = 10
	patience = 10_000 // looks, a tenth of a millisecond apart
)

// warmUp makes the Go runtime start the threads that it will need, which it
// then keeps. When a stage has used up the container's processes, a thread
// more could not be started, and the runtime would end the program.
func warmUp() error {
	runtime.GOMAXPROCS(procs)
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	var blocked sync.WaitGroup
	for range threads {
		blocked.Go(func() { syscall.Read(pipe[0], make([]byte, 1)) })
	}
	// Each read occupies a thread until the pipe has something, or ends.
	for range patience {
		if running() >= threads {
			break
		}
		time.Sleep(100 * time.Microsecond)
	}
	syscall.Close(pipe[1])
	blocked.Wait()
	return syscall.Close(pipe[0])
}

// running counts this program's threads.
func running() int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return threads
	}
	return len(entries)
}
