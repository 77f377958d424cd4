// Command attacker tries what a hostile job would, and prints one line for
// each attempt: its name and the error that the kernel gave, or "ok".
package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	switch os.Args[1] {
	case "probe":
		namespaces()
		mounts()
		surface()
		sockets()
		procfs()
		initProcess()
		limits()
	case "network":
		network()
	case "signals":
		signals()
	case "daemon":
		daemon(os.Args[2])
	case "daemonized":
		daemonized(os.Args[2])
	case "forkbomb":
		forkbomb()
	case "membomb":
		membomb()
	case "foreign":
		foreign()
	case "fds":
		fds()
	case "pause":
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		fmt.Println("here")
		for {
			time.Sleep(time.Hour)
		}
	}
}

// foreign calls the x32 variant of getpid, which is another architecture to the
// filter. It ends the thread that does so.
func foreign() {
	survived := make(chan bool)
	go func() {
		runtime.LockOSThread()
		syscall.RawSyscall(0x40000000+39, 0, 0, 0)
		survived <- true
	}()
	select {
	case <-survived:
		fmt.Println("survived")
	case <-time.After(300 * time.Millisecond):
		fmt.Println("killed")
	}
	os.Exit(0)
}

func say(name string, err error) {
	var e syscall.Errno
	switch {
	case err == nil:
		fmt.Println(name, "ok")
	case errors.As(err, &e):
		fmt.Println(name, unix.ErrnoName(e))
	default:
		fmt.Println(name, "error:", err)
	}
}

func call(name string, nr uintptr, args ...uintptr) {
	var a [6]uintptr
	copy(a[:], args)
	_, _, e := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e == 0 {
		say(name, nil)
		return
	}
	say(name, e)
}

func open(name, path string, flags int) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	say(name, err)
}

func str(s string) uintptr {
	b := append([]byte(s), 0)
	pinned = append(pinned, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

var pinned [][]byte

func buf(n int) uintptr {
	b := make([]byte, n)
	pinned = append(pinned, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func namespaces() {
	for name, flag := range map[string]uintptr{
		"user": unix.CLONE_NEWUSER, "net": unix.CLONE_NEWNET, "mount": unix.CLONE_NEWNS, "pid": unix.CLONE_NEWPID,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME,
	} {
		call("unshare-"+name, unix.SYS_UNSHARE, flag)
	}
	call("clone-user", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD))
	call("clone3", unix.SYS_CLONE3, buf(88), 88)
	for _, ns := range []string{"user", "net", "mnt", "pid"} {
		open("open-init-ns-"+ns, "/proc/1/ns/"+ns, unix.O_RDONLY)
		fd, err := unix.Open("/proc/self/ns/"+ns, unix.O_RDONLY, 0)
		if err == nil {
			err = unix.Setns(fd, 0)
		}
		say("setns-"+ns, err)
	}
	say("write-uid-map", os.WriteFile("/proc/self/uid_map", []byte("0 0 4294967295"), 0))
	say("setuid-unmapped", syscall.Setresuid(-1, 70000, -1))
}

func mounts() {
	say("mount-tmpfs", unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	say("mount-bind", unix.Mount("/", "/tmp", "", unix.MS_BIND, ""))
	say("mount-remount", unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	say("mount-proc", unix.Mount("proc", "/tmp", "proc", 0, ""))
	say("mount-cgroup", unix.Mount("cgroup", "/tmp", "cgroup", 0, "memory"))
	say("umount-mask", unix.Unmount("/proc/kcore", unix.MNT_DETACH))
	say("umount-init", unix.Unmount("/dev/hallmark/init", unix.MNT_DETACH))
	say("umount-control", unix.Unmount("/dev/hallmark/control", unix.MNT_DETACH))
	call("fsopen", unix.SYS_FSOPEN, str("tmpfs"), 0)
	call("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), str("/"), 1)
	call("move_mount", unix.SYS_MOVE_MOUNT, ^uintptr(99), str("/tmp"), ^uintptr(99), str("/root"), 0)
	call("mount_setattr", unix.SYS_MOUNT_SETATTR, ^uintptr(99), str("/"), 0, buf(32), 32)
	call("pivot_root", unix.SYS_PIVOT_ROOT, str("/"), str("/tmp"))
	say("chroot", unix.Chroot("/tmp"))
	call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, buf(64), 0)
	say("mknod-char", unix.Mknod("/tmp/c", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 1))))
	say("mknod-block", unix.Mknod("/tmp/b", unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))))
	for _, dev := range []string{"kvm", "fuse", "net/tun", "vda", "mem", "kmsg", "console", "vhost-net", "loop-control"} {
		open("device-"+filepath.Base(dev), "/dev/"+dev, unix.O_RDWR)
	}
}

func surface() {
	call("bpf", unix.SYS_BPF, 0, buf(128), 128)
	call("perf_event_open", unix.SYS_PERF_EVENT_OPEN, buf(128), 0, ^uintptr(0), ^uintptr(0), 0)
	call("userfaultfd", unix.SYS_USERFAULTFD, 0)
	call("io_uring_setup", unix.SYS_IO_URING_SETUP, 8, buf(128))
	call("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(2), 0)
	call("add_key", unix.SYS_ADD_KEY, str("user"), str("x"), str("x"), 1, ^uintptr(2))
	call("request_key", unix.SYS_REQUEST_KEY, str("user"), str("x"), 0, ^uintptr(2))
	call("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0)
	call("init_module", unix.SYS_INIT_MODULE, buf(8), 8, str(""))
	call("finit_module", unix.SYS_FINIT_MODULE, 0, str(""), 0)
	call("reboot", unix.SYS_REBOOT, 0xfee1dead, 672274793, 0, 0)
	call("swapon", unix.SYS_SWAPON, str("/tmp"), 0)
	call("acct", unix.SYS_ACCT, str("/tmp"))
	call("quotactl", unix.SYS_QUOTACTL, 0, str("/"), 0, 0)
	call("iopl", unix.SYS_IOPL, 3)
	call("syslog", unix.SYS_SYSLOG, 3, buf(64), 64)
	call("clock_settime", unix.SYS_CLOCK_SETTIME, 0, buf(16))
	call("settimeofday", unix.SYS_SETTIMEOFDAY, buf(16), 0)
	say("sethostname", unix.Sethostname([]byte("evil")))
	call("personality", unix.SYS_PERSONALITY, 0x40000)
	call("fanotify_init", unix.SYS_FANOTIFY_INIT, 0, 0)
	call("kcmp", unix.SYS_KCMP, 1, uintptr(os.Getpid()), 0, 0, 0)
	call("vhangup", unix.SYS_VHANGUP)
	call("lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, 0, buf(8), 8)
	call("nfsservctl", 180, 0, 0, 0)
	call("vmsplice-pidfd", unix.SYS_PIDFD_GETFD, pidfd(1), 0, 0)
}

func pidfd(pid int) uintptr {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return ^uintptr(0)
	}
	return uintptr(fd)
}

func sockets() {
	for name, f := range map[string]int{
		"alg": 38, "vsock": 40, "packet": 17, "xdp": 44, "key": 15, "can": 29, "tipc": 30, "smc": 43, "rds": 21,
		"kcm": 41, "qipcrtr": 42, "bluetooth": 31, "ax25": 3, "x25": 9, "llc": 26, "nfc": 39, "phonet": 35, "mctp": 45,
	} {
		fd, err := unix.Socket(f, unix.SOCK_DGRAM, 0)
		if err == nil {
			unix.Close(fd)
		}
		say("socket-"+name, err)
	}
	_, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	say("socket-raw", err)
	_, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	say("socket-raw6", err)
	_, err = net.Dial("unixpacket", "/dev/hallmark/control/socket")
	say("control-socket", err)
}

func procfs() {
	for _, f := range []string{"core_pattern", "hostname", "randomize_va_space", "modprobe", "ns_last_pid"} {
		say("write-"+f, os.WriteFile("/proc/sys/kernel/"+f, []byte("1"), 0))
	}
	say("write-sysrq", os.WriteFile("/proc/sysrq-trigger", []byte("h"), 0))
	say("write-oom", os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0))
	say("write-drop_caches", os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0))
	for _, f := range []string{"kcore", "kallsyms", "config.gz", "cmdline", "keys", "timer_list", "interrupts", "partitions", "modules", "slabinfo", "vmstat"} {
		b := make([]byte, 64)
		fd, err := unix.Open("/proc/"+f, unix.O_RDONLY, 0)
		n := 0
		if err == nil {
			n, _ = unix.Read(fd, b)
			unix.Close(fd)
		}
		if n > 0 {
			say("read-"+f, nil)
		} else {
			fmt.Println("read-"+f, "nothing")
		}
	}
	entries, _ := os.ReadDir("/sys")
	fmt.Println("sys-entries", len(entries))
	say("write-sys", os.WriteFile("/sys/x", nil, 0o644))
	mountList, _ := os.ReadFile("/proc/self/mountinfo")
	fmt.Println("cgroup-mounts", strings.Count(string(mountList), " - cgroup"))
	cg, _ := os.ReadFile("/proc/self/cgroup")
	outside := 0
	for line := range strings.Lines(string(cg)) {
		if p := strings.SplitN(strings.TrimSpace(line), ":", 3); len(p) == 3 && p[2] != "/" {
			outside++
		}
	}
	fmt.Println("cgroup-paths", outside)
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 2 && (f[0] == "NoNewPrivs:" || f[0] == "Seccomp:" || f[0] == "CapEff:" || f[0] == "CapBnd:" || f[0] == "CapAmb:" || f[0] == "CapInh:") {
			fmt.Println(strings.ToLower(strings.TrimSuffix(f[0], ":")), f[1])
		}
	}
}

func initProcess() {
	runtime.LockOSThread()
	say("ptrace-attach", unix.PtraceAttach(1))
	say("ptrace-seize", unix.PtraceSeize(1))
	for _, f := range []string{"mem", "environ", "maps", "auxv", "stack", "syscall", "pagemap", "io", "clear_refs"} {
		open("init-"+f, "/proc/1/"+f, unix.O_RDONLY)
	}
	open("init-mem-write", "/proc/1/mem", unix.O_RDWR)
	for _, l := range []string{"exe", "cwd", "root", "fd/0", "ns/net"} {
		_, err := os.Readlink("/proc/1/" + l)
		say("init-link-"+strings.ReplaceAll(l, "/", "-"), err)
	}
	_, err := os.ReadDir("/proc/1/fd")
	say("init-fds", err)
	_, err = os.ReadDir("/proc/1/task/1/fd")
	say("init-task-fds", err)
	open("init-exe-read", "/proc/1/exe", unix.O_RDONLY)
	open("init-exe-write", "/proc/1/exe", unix.O_WRONLY)
	open("init-root-etc", "/proc/1/root/etc/passwd", unix.O_RDONLY)
	say("init-oom", os.WriteFile("/proc/1/oom_score_adj", []byte("1000"), 0))
	say("init-comm", os.WriteFile("/proc/1/comm", []byte("x"), 0))
	local := make([]byte, 8)
	vec := []unix.Iovec{{Base: &local[0], Len: 8}}
	far := []unix.RemoteIovec{{Base: 0x400000, Len: 8}}
	_, err = unix.ProcessVMReadv(1, vec, far, 0)
	say("init-vm-readv", err)
	_, err = unix.ProcessVMWritev(1, vec, far, 0)
	say("init-vm-writev", err)
	var lim unix.Rlimit
	say("init-prlimit", unix.Prlimit(1, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1, Max: 1}, &lim))
	open("init-binary-read", "/dev/hallmark/init", unix.O_RDONLY)
	open("init-binary-write", "/dev/hallmark/init", unix.O_WRONLY)
	open("init-binary-truncate", "/dev/hallmark/init", unix.O_WRONLY|unix.O_TRUNC)
	say("init-binary-unlink", unix.Unlink("/dev/hallmark/init"))
	say("init-binary-chmod", unix.Chmod("/dev/hallmark/init", 0o777))
	say("init-binary-chown", unix.Chown("/dev/hallmark/init", 0, 0))
	say("init-binary-rename", unix.Rename("/dev/hallmark/init", "/dev/hallmark/x"))
	say("init-dir-rename", unix.Rename("/dev/hallmark", "/dev/x"))
	say("control-create", os.WriteFile("/dev/hallmark/control/x", nil, 0o644))
}

func limits() {
	say("nofile-raise", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 21, Max: 1 << 21}))
	say("core-raise", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}))
	say("nice", unix.Setpriority(unix.PRIO_PROCESS, 0, -10))
	call("realtime", unix.SYS_SCHED_SETSCHEDULER, 0, 1, str("\x01\x00\x00\x00"))
	var lim unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &lim)
	fmt.Println("nofile", lim.Max)
}

// network tries to change the namespace that it is in.
func network() {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		say("lo", err)
		return
	}
	addr, _ := netlink.ParseAddr("10.1.2.3/24")
	_, all, _ := net.ParseCIDR("10.0.0.0/8")
	say("link-down", netlink.LinkSetDown(lo))
	say("link-mtu", netlink.LinkSetMTU(lo, 1280))
	say("link-add", netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "d0"}}))
	say("addr-add", netlink.AddrAdd(lo, addr))
	say("route-add", netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}))
	say("rule-add", netlink.RuleAdd(netlink.NewRule()))
	for name, proto := range map[string]int{"netfilter": unix.NETLINK_NETFILTER, "xfrm": unix.NETLINK_XFRM, "audit": unix.NETLINK_AUDIT} {
		say("netlink-"+name, push(proto))
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	say("tcp-socket", err)
	say("so-mark", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1))
	say("ip-transparent", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	say("bind-device", unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"))
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	say("ping-socket", err)
	for _, to := range []string{"192.0.2.1:443", "169.254.169.254:80", "[2001:db8::1]:443", "8.8.8.8:53"} {
		c, err := net.DialTimeout("tcp", to, time.Second)
		if err == nil {
			c.Close()
		}
		say("dial-"+to, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	say("listen", err)
	if err == nil {
		l.Close()
	}
}

// push sends a message that an admin may send.
func push(proto int) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A header with NLM_F_REQUEST|NLM_F_ACK; the type means "new table",
	// "new state" or "set" to the one or the other.
	msgType := map[int]uint16{unix.NETLINK_NETFILTER: 10 << 8, unix.NETLINK_XFRM: 0x10, unix.NETLINK_AUDIT: 1001}[proto]
	b := make([]byte, 64)
	*(*uint32)(unsafe.Pointer(&b[0])) = uint32(len(b))
	*(*uint16)(unsafe.Pointer(&b[4])) = msgType
	*(*uint16)(unsafe.Pointer(&b[6])) = 5
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	r := make([]byte, 256)
	n, _, err := unix.Recvfrom(fd, r, 0)
	if err != nil {
		return err
	}
	if n >= 20 && *(*uint16)(unsafe.Pointer(&r[4])) == unix.NLMSG_ERROR {
		if e := *(*int32)(unsafe.Pointer(&r[16])); e != 0 {
			return syscall.Errno(-e)
		}
	}
	return nil
}

// signals sends init every signal in every way that the kernel lets it.
func signals() {
	refused, sent := 0, 0
	count := func(e syscall.Errno) {
		if e != 0 {
			refused++
			return
		}
		sent++
	}
	fd := pidfd(1)
	for round := 0; round < 3; round++ {
		for sig := uintptr(1); sig <= 64; sig++ {
			_, _, e := syscall.RawSyscall(unix.SYS_KILL, 1, sig, 0)
			count(e)
			_, _, e = syscall.RawSyscall(unix.SYS_TGKILL, 1, 1, sig)
			count(e)
			_, _, e = syscall.RawSyscall6(unix.SYS_PIDFD_SEND_SIGNAL, fd, sig, 0, 0, 0, 0)
			count(e)
			// Queued signals can claim to come from a timer or a fault in I/O.
			for _, code := range []int32{-1, -2, -3, -4, -5, -60} {
				info := make([]byte, 128)
				*(*int32)(unsafe.Pointer(&info[0])) = int32(sig)
				*(*int32)(unsafe.Pointer(&info[8])) = code
				_, _, e = syscall.RawSyscall(unix.SYS_RT_SIGQUEUEINFO, 1, sig, uintptr(unsafe.Pointer(&info[0])))
				count(e)
				_, _, e = syscall.RawSyscall6(unix.SYS_RT_TGSIGQUEUEINFO, 1, 1, sig, uintptr(unsafe.Pointer(&info[0])), 0, 0)
				count(e)
			}
		}
		// Other threads of init than the first.
		tasks, _ := os.ReadDir("/proc/1/task")
		for _, t := range tasks {
			tid, _ := strconv.Atoi(t.Name())
			for sig := uintptr(1); sig <= 64; sig++ {
				syscall.RawSyscall(unix.SYS_TGKILL, 1, uintptr(tid), sig)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Println("sent", sent > 0, "refused", refused > 0)
	state, _ := os.ReadFile("/proc/1/stat")
	fmt.Println("state", strings.Fields(string(state[strings.LastIndexByte(string(state), ')')+1:]))[0])
}

// daemon leaves a process behind in every way known, which writes to a file.
func daemon(file string) {
	self := "/proc/self/exe"
	cmd := exec.Command(self, "daemonized", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		say("daemon", err)
		return
	}
	for range 100 {
		if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
			fmt.Println("daemon ok")
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Println("daemon silent")
}

func daemonized(file string) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	if os.Getppid() != 1 && len(os.Args) < 4 {
		cmd := exec.Command("/proc/self/exe", "daemonized", file, "again")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Start()
	}
	for i := 0; ; i++ {
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
		if err == nil {
			f.WriteString("x")
			f.Close()
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func forkbomb() {
	var errno error
	started := 0
	for range 5000 {
		cmd := exec.Command("/proc/self/exe", "pause")
		if err := cmd.Start(); err != nil {
			errno = err
			break
		}
		started++
	}
	fmt.Println("started", started > 0)
	say("fork", errno)
}

func membomb() {
	var keep [][]byte
	for {
		b := make([]byte, 16<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		keep = append(keep, b)
	}
}

// fds lists what is open, but for what the Go runtime has opened itself.
func fds() {
	w := bufio.NewWriter(os.Stdout)
	defer w.Flush()
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || strings.HasPrefix(to, "anon_inode:") || strings.HasPrefix(to, "/proc/") {
			continue
		}
		kind, _, _ := strings.Cut(to, ":")
		fmt.Fprintln(w, e.Name(), kind)
	}
}
