// Command hallmark-init is the PID 1 of every sandbox container.
//
// It starts what the host tells it over one socket, kills what a stage leaves
// behind, and ends when the host goes away. The language that it speaks stands
// in package initproto. It runs as the container's root beside hostile
// processes that may be the container's root as well, so it
//
//   - cannot be traced or read: it is not dumpable, and the runtime gives it a
//     binary that the container cannot read, so that its memory belongs to
//     the host's user namespace whatever capabilities a tenant finds;
//   - cannot be signalled: every signal has its default action, and the kernel
//     does not deliver those to the first process of a pid namespace unless
//     they come from outside;
//   - reads nothing of the image but in bounded size, and only regular files;
//   - hands a stage its three descriptors and no other.
//
// It exits with one of the statuses of package initproto, and the kernel then
// kills everything in its pid namespace.
package main

import (
	"os"
	"syscall"

	"hallmark.build/sandbox/containerd/initproto"
)

func main() { os.Exit(run()) }

func run() int {
	if err := harden(); err != nil {
		return initproto.ExitHarden
	}
	host, err := connect(initproto.Socket)
	if err != nil {
		return initproto.ExitConnect
	}
	return serve(host)
}

// connect opens the one connection to the host.
func connect(path string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return -1, err
	}
	return fd, nil
}
