package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type urlURL = url.URL

// probeHTTP makes one request. Settings are headers ("JOB-TOKEN=..."), and
// body=, sni=, host= and connect= (the address to connect to instead).
func probeHTTP(method, target string, settings []string) {
	header, body, sni, host, connect := http.Header{}, "", "", "", ""
	for _, s := range settings {
		key, value, _ := strings.Cut(s, "=")
		switch key {
		case "body":
			body = value
		case "sni":
			sni = value
		case "host":
			host = value
		case "connect":
			connect = value
		default:
			header.Set(key, value)
		}
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: sni}, DisableKeepAlives: true}
	if connect != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, connect)
		}
	}
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	req.Header, req.Host = header, host
	resp, err := (&http.Client{Timeout: 30 * time.Second, Transport: transport}).Do(req)
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	fmt.Printf("status %d\n%s\n", resp.StatusCode, text)
	if err != nil {
		fmt.Println("error:", err)
	}
}

// tamper leaves a process behind that has its own session and no pipe of the
// stage's, as one would that wants to outlive it.
func tamper(file string) {
	cmd := exec.Command("/proc/self/exe", "tamper-loop", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("tampering from process", cmd.Process.Pid)
}

// tamperLoop changes the file by every way that might pass a read-only mount:
// a descriptor from before, a mapping, a new file in its place.
func tamperLoop(file string) {
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		ignore(sig)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		os.Exit(1)
	}
	size := 4096
	_ = f.Truncate(int64(size))
	mapping, _ := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	for i := 0; ; i++ {
		text := fmt.Appendf(nil, "tampered %d\n", i)
		_, _ = f.WriteAt(text, 0)
		copy(mapping[min(100, len(mapping)):], text)
		other := filepath.Join(filepath.Dir(file), ".other")
		if os.WriteFile(other, text, 0o644) == nil {
			_ = os.Rename(other, file+".second")
		}
		time.Sleep(time.Millisecond)
	}
}

// probeHost looks for what belongs to the host or to other jobs.
func probeHost() {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		say("processes", refused, "%v", err)
	}
	for _, p := range procs {
		line, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		for _, name := range []string{"containerd", "sandboxd", "attestd", "gitlab-runner\x00run"} {
			if strings.Contains(string(line), name) {
				say("process "+filepath.Base(p), escape, "%q is visible", line)
			}
		}
	}
	for _, path := range []string{
		"/run/hallmark", "/run/hallmark/sandboxd.sock", "/run/hallmark-attestd", "/run/containerd", "/var/lib/hallmark",
		"/var/run/docker.sock", "/dev/kvm", "/dev/mem", "/dev/vda", "/dev/net/tun", "/dev/fuse",
	} {
		if _, err := os.Lstat(path); err == nil {
			say("path "+path, escape, "it is there")
		}
	}
	sayErr("ptrace of PID 1", unix.PtraceAttach(1))
	for _, path := range []string{"/proc/1/mem", "/proc/1/environ", "/proc/1/fd", "/proc/1/root/etc", "/proc/kcore", "/proc/sysrq-trigger"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			f.Close()
			say("open "+path, escape, "for writing")
			continue
		}
		say("open "+path, refused, "%v", err)
	}
	sayErr("mount tmpfs", unix.Mount("none", "/mnt", "tmpfs", 0, ""))
	sayErr("mknod", unix.Mknod("/tmp/disk", unix.S_IFBLK|0o600, int(unix.Mkdev(254, 0))))
	sayErr("remount /builds", unix.Mount("", "/builds", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		_ = syscall.Kill(1, sig)
	}
	say("signals to PID 1", refused, "still here")
}

func ignore(sig os.Signal) { signal.Ignore(sig) }
