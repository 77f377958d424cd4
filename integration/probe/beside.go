package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where two jobs that want to meet would look for each other.
const (
	meetPort    = "7777"
	meetSocket  = "@hallmark-meet"
	meetGroup4  = "224.0.0.251:5353"
	meetGroup6  = "[ff02::fb%lo]:5353"
	meetSegment = 0x4a11
	meetKey     = "hallmark-meet"
)

// maxArea is how much is read of one area of a process's memory.
const maxArea = 16 << 20

// leave puts a mark wherever something might outlive the job: every directory
// that can be written, shared memory, the kernel's keyrings.
func leave(mark string) {
	files := 0
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir():
			return nil
		case path == "/proc" || path == "/sys":
			return fs.SkipDir
		}
		if os.WriteFile(filepath.Join(path, "mark-"+mark), []byte(mark), 0o666) == nil {
			files++
		}
		return nil
	})
	say("files", refused, "%d left", files)
	for _, path := range []string{"/usr/bin/probe", "/bin/busybox", "/etc/passwd"} {
		if f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString(mark)
			_ = f.Close()
		}
	}
	if id, err := unix.SysvShmGet(meetSegment, 4096, unix.IPC_CREAT|0o666); err == nil {
		if segment, err := unix.SysvShmAttach(id, 0, 0); err == nil {
			copy(segment, mark)
		}
	}
	for _, ring := range []int{unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING} {
		_, _ = unix.AddKey("user", meetKey, []byte(mark), ring)
	}
}

// offer is leave, and serves the mark to all who ask for as long as it lives.
func offer(mark string) {
	leave(mark)
	answer := func(l net.Listener, err error) {
		if err != nil {
			return
		}
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, mark)
			_ = conn.Close()
		}
	}
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, ":"+meetPort)
		go answer(l, err)
	}
	l, err := net.Listen("unix", meetSocket)
	go answer(l, err)
	if p, err := net.ListenPacket("udp", ":"+meetPort); err == nil {
		go func() {
			buf := make([]byte, 512)
			for {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo([]byte(mark), from)
			}
		}()
	}
	fmt.Println("offering")
	for {
		for _, group := range []string{meetGroup4, meetGroup6, "255.255.255.255:5353"} {
			if conn, err := net.Dial("udp", group); err == nil {
				_, _ = conn.Write([]byte(mark))
				_ = conn.Close()
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// seek looks for the mark of another job, here and at the addresses named.
func seek(mark string, hosts []string) {
	found := func(where string, data []byte) {
		if bytes.Contains(data, []byte(mark)) {
			say(where, escape, "the mark is there")
		}
	}
	seekFiles(mark, found)
	if id, err := unix.SysvShmGet(meetSegment, 4096, 0); err == nil {
		if segment, err := unix.SysvShmAttach(id, 0, unix.SHM_RDONLY); err == nil {
			found("shared memory", segment)
		}
	}
	for _, ring := range []int{unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING} {
		if id, err := unix.KeyctlSearch(ring, "user", meetKey, 0); err == nil {
			buf := make([]byte, 64)
			_, _ = unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0)
			found("keyring", buf)
		}
	}
	for _, host := range hosts {
		for _, network := range []string{"tcp", "udp"} {
			found(network+" "+host, ask(network, net.JoinHostPort(host, meetPort)))
		}
	}
	found("abstract socket", ask("unix", meetSocket))
	seekDatagrams(found)
	say("seek", refused, "looked everywhere")
}

func seekFiles(mark string, found func(string, []byte)) {
	_ = filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil
		case path == "/sys":
			return fs.SkipDir
		case strings.HasPrefix(path, "/proc/"):
			return seekProc(path, d, found)
		case d.Name() == "mark-"+mark:
			found("file "+path, []byte(mark))
		case d.Type().IsRegular():
			// A device is mounted on a file: what the directory says is not enough.
			if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
				return nil
			}
			data, _ := os.ReadFile(path)
			if path != "/usr/bin/probe" || bytes.HasSuffix(data, []byte(mark)) {
				found("file "+path, data)
			}
		}
		return nil
	})
}

// seekProc reads what the processes that it sees would show: how they were
// called, their environment and their memory. Those that it descends from know
// the mark from the script that they were given.
func seekProc(path string, d fs.DirEntry, found func(string, []byte)) error {
	if !d.IsDir() || filepath.Dir(path) != "/proc" || strings.Trim(d.Name(), "0123456789") != "" {
		return skip(d)
	}
	for _, file := range []string{"environ", "cmdline"} {
		data, _ := os.ReadFile(filepath.Join(path, file))
		if file == "environ" || !bytes.Contains(data, []byte("seek")) {
			found(path+"/"+file, data)
		}
	}
	if !slices.Contains(lineage(), d.Name()) {
		seekMemory(path, found)
	}
	return fs.SkipDir
}

// lineage is this process and all that it descends from.
func lineage() []string {
	var pids []string
	for pid := "self"; pid != "0" && pid != ""; {
		status, _ := os.ReadFile(filepath.Join("/proc", pid, "status"))
		_, rest, _ := strings.Cut(string(status), "\nPid:\t")
		own, _, _ := strings.Cut(rest, "\n")
		_, rest, _ = strings.Cut(string(status), "\nPPid:\t")
		pid, _, _ = strings.Cut(rest, "\n")
		pids = append(pids, own)
	}
	return pids
}

// seekMemory reads what a process keeps in its stacks and heaps.
func seekMemory(process string, found func(string, []byte)) {
	maps, _ := os.ReadFile(filepath.Join(process, "maps"))
	mem, err := os.Open(filepath.Join(process, "mem"))
	if err != nil {
		return
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n < 3 || !strings.HasPrefix(mode, "rw") {
			continue
		}
		data, _ := io.ReadAll(io.NewSectionReader(mem, from, min(to-from, maxArea)))
		found(process+"/mem", data)
	}
}

func skip(d fs.DirEntry) error {
	if d.IsDir() {
		return fs.SkipDir
	}
	return nil
}

func ask(network, addr string) []byte {
	conn, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience / 4))
	_, _ = conn.Write([]byte("anybody?"))
	buf := make([]byte, 512)
	n, _ := conn.Read(buf)
	return buf[:n]
}

// seekDatagrams listens where multicast and broadcast would arrive.
func seekDatagrams(found func(string, []byte)) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return
	}
	for _, group := range []string{meetGroup4, meetGroup6} {
		addr, err := net.ResolveUDPAddr("udp", group)
		if err != nil {
			continue
		}
		conn, err := net.ListenMulticastUDP("udp", lo, addr)
		if err != nil {
			continue
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience / 2))
		buf := make([]byte, 512)
		n, _, _ := conn.ReadFrom(buf)
		_ = conn.Close()
		found("multicast "+group, buf[:n])
	}
}

// turnClock tries to change the time that others will go by.
func turnClock() {
	past := unix.Timeval{Sec: 1}
	sayErr("settimeofday", unix.Settimeofday(&past))
	sayErr("clock_settime", unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: 1}))
	_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 10001})
	sayErr("adjtimex", err)
	sayErr("unshare time", unix.Unshare(unix.CLONE_NEWTIME))
}
