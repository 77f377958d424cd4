package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"hallmark.build/executor"
)

func listening(t testing.TB) (*net.UnixListener, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l, socket
}

// BenchmarkStart measures from the start of the driver's process to the first
// byte of its request at the daemon's socket, and for comparison a process that
// does nothing.
func BenchmarkStart(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "hallmark-executor")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	env, _ := runnerEnv(b)
	b.Run("prepare", func(b *testing.B) {
		l, socket := listening(b)
		defer l.Close()
		var took []time.Duration
		for b.Loop() {
			cmd := exec.Command(bin, "-socket", socket, "prepare")
			cmd.Env = env
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			nc, err := l.AcceptUnix()
			if err != nil {
				b.Fatal(err)
			}
			raw, err := nc.SyscallConn()
			if err != nil {
				b.Fatal(err)
			}
			raw.Read(func(fd uintptr) bool { // returns once there is something to read
				n, waiting := peek(int(fd))
				return n > 0 || !waiting
			})
			took = append(took, time.Since(start))
			c, err := executor.Accept(nc)
			if err != nil {
				b.Fatal(err)
			}
			c.Reply(executor.Reply{Outcome: executor.OK})
			c.Close()
			out.Close()
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
		}
		report(b, took, "start-to-request")
	})
	b.Run("config", func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			cmd := exec.Command(bin, "config")
			cmd.Env = env
			start := time.Now()
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		report(b, took, "start-to-exit")
	})
	b.Run("true", func(b *testing.B) {
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			if err := exec.Command("/bin/true").Run(); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(start))
		}
		report(b, took, "start-to-exit")
	})
}

func report(b *testing.B, took []time.Duration, what string) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms-"+what)
	b.ReportMetric(float64(took[len(took)*9/10].Microseconds())/1000, "p90-ms-"+what)
	b.ReportMetric(0, "ns/op")
}

// peek looks for readable bytes without taking them, or the descriptors that
// come with them.
func peek(fd int) (n int, waiting bool) {
	n, _, err := syscall.Recvfrom(fd, make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err == syscall.EAGAIN
}
