package main

import (
	"errors"
	"os"
	"syscall"
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
