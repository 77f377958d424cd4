package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ports inside a namespace. None of them is in the kernel's ephemeral range.
const (
	steerPort = 61080 // where every captured connection ends
	proxyPort = 3128  // the explicit proxy, on 127.0.0.1
	dnsPort   = 53
)

const selfTestTimeout = 5 * time.Second

// A namespace is one role's network: loopback alone, owned by the host's user
// namespace, with the border's sockets inside.
type namespace struct {
	file    *os.File
	steered []net.Listener // 127.0.0.1 and ::1, steerPort
	proxy   net.Listener
	dnsTCP  []net.Listener
	dns4    *net.UDPConn
	dns6    *net.UDPConn // nil where the host has no IPv6
	tables  []*os.File   // of its TCP sockets, one a family
}

// newNamespace makes the namespace on a thread of its own, which dies with it.
func newNamespace(ctx context.Context) (*namespace, error) {
	type result struct {
		ns  *namespace
		err error
	}
	done := make(chan result)
	go func() {
		// Not unlocked: the runtime ends a thread whose goroutine ends locked, so
		// that no other goroutine ever runs in the namespace.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and /proc/<pid>/ns is its. Keep it
			// busy while another thread does the work.
			ns, err := newNamespace(ctx)
			runtime.UnlockOSThread()
			done <- result{ns, err}
			return
		}
		ns, err := buildNamespace(ctx)
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

// buildNamespace does the steps on the calling thread.
func buildNamespace(ctx context.Context) (_ *namespace, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("network namespace: unshare: %w", err)
	}
	ns := &namespace{}
	defer func() {
		if err != nil {
			ns.close()
		}
	}()
	if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	six := haveIPv6()
	if err := ns.openTables(six); err != nil {
		return nil, err
	}
	if err := tune(six); err != nil {
		return nil, err
	}
	if err := routeEverythingHere(six); err != nil {
		return nil, err
	}
	if err := ns.listen(ctx, six); err != nil {
		return nil, err
	}
	if err := loadRules(); err != nil {
		return nil, err
	}
	if err := ns.selfTest(ctx, six); err != nil {
		return nil, err
	}
	return ns, nil
}

// haveIPv6 reports whether this kernel runs IPv6 at all. If it does not, there
// is nothing to capture.
func haveIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// tune sets what belongs to this namespace alone. Reads and writes below
// /proc/sys/net see the namespace of the calling thread.
func tune(six bool) error {
	settings := [][2]string{
		// Containers run in a user namespace that does not own this network, so
		// their root has no capability to bind low ports.
		{"net/ipv4/ip_unprivileged_port_start", "0"},
	}
	if six {
		settings = append(settings,
			[2]string{"net/ipv6/conf/all/disable_ipv6", "0"},
			[2]string{"net/ipv6/conf/lo/disable_ipv6", "0"})
	}
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys", s[0]), []byte(s[1]), 0); err != nil {
			return fmt.Errorf("network namespace: sysctl: %w", err)
		}
	}
	return nil
}

// routeEverythingHere makes every address of the internet this machine: a
// packet to anywhere is delivered locally, and no other device exists.
func routeEverythingHere(six bool) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("network namespace: loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("network namespace: loopback up: %w", err)
	}
	all := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	if six {
		all = append(all, netip.MustParsePrefix("::/0"))
	}
	for _, p := range all {
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
			Type:      unix.RTN_LOCAL,
			Scope:     netlink.SCOPE_HOST,
			Table:     unix.RT_TABLE_LOCAL,
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("network namespace: local route %s: %w", p, err)
		}
	}
	return nil
}

// listen opens the border's sockets. They stay in the namespace while ordinary
// threads serve them.
func (ns *namespace) listen(ctx context.Context, six bool) error {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	open := func(network, host string, port int) (net.Listener, error) {
		l, err := lc.Listen(ctx, network, net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
		return l, nil
	}
	loopbacks := [][2]string{{"tcp4", "127.0.0.1"}}
	if six {
		loopbacks = append(loopbacks, [2]string{"tcp6", "::1"})
	}
	for _, lb := range loopbacks {
		l, err := open(lb[0], lb[1], steerPort)
		if err != nil {
			return err
		}
		ns.steered = append(ns.steered, l)
		if l, err = open(lb[0], lb[1], dnsPort); err != nil {
			return err
		}
		ns.dnsTCP = append(ns.dnsTCP, l)
	}
	var err error
	if ns.proxy, err = open("tcp4", "127.0.0.1", proxyPort); err != nil {
		return err
	}
	if ns.dns4, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero, Port: dnsPort}); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if !six {
		return nil
	}
	if ns.dns6, err = net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6zero, Port: dnsPort}); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	return freebind(ns.dns6)
}

// freebind lets a socket answer from any address. For IPv4 the local route is
// enough; IPv6 asks for an address on a device.
func freebind(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	})
	if err = errors.Join(err, optErr); err != nil {
		return fmt.Errorf("network namespace: answer from any address: %w", err)
	}
	return nil
}

// selfTest proves that the rules that were loaded do what they must: a
// connection to an address of the internet ends at our listener, which learns
// where it was meant to go. It runs on the namespace's thread.
func (ns *namespace) selfTest(ctx context.Context, six bool) error {
	tests := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:25")}
	if six {
		tests = append(tests, netip.MustParseAddrPort("[2001:db8::1]:25"))
	}
	for i, want := range tests {
		got, err := captured(ctx, ns.steered[i].(*net.TCPListener), want)
		if err != nil {
			return fmt.Errorf("network namespace: self-test: connection to %s: %w", want, err)
		}
		if got != want {
			return fmt.Errorf("network namespace: self-test: connection to %s arrived as %s", want, got)
		}
	}
	return nil
}

func captured(ctx context.Context, l *net.TCPListener, to netip.AddrPort) (netip.AddrPort, error) {
	deadline := time.Now().Add(selfTestTimeout)
	out, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer out.Close()
	if err := l.SetDeadline(deadline); err != nil {
		return netip.AddrPort{}, err
	}
	in, err := l.Accept()
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer in.Close()
	if err := l.SetDeadline(time.Time{}); err != nil {
		return netip.AddrPort{}, err
	}
	return originalDestination(in)
}

// soOriginalDst is SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const soOriginalDst = 80

// originalDestination is where the client of a captured connection wanted to go.
func originalDestination(c net.Conn) (netip.AddrPort, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return netip.AddrPort{}, errors.New("original destination: not a TCP connection")
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	local, ok := tcp.LocalAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, errors.New("original destination: no local address")
	}
	var dst netip.AddrPort
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if local.IP.To4() != nil {
			// The kernel fills a sockaddr_in: family, port, address.
			var m *unix.IPv6Mreq
			if m, optErr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); optErr == nil {
				b := m.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3]))
			}
			return
		}
		var m *unix.IPv6MTUInfo
		if m, optErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); optErr == nil {
			port := m.Addr.Port<<8 | m.Addr.Port>>8 // network byte order
			dst = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr).Unmap(), port)
		}
	})
	if err = errors.Join(err, optErr); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return dst, nil
}

// path names the namespace for as long as it is open.
func (ns *namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// closeSockets ends every accept loop and every read from the sockets.
func (ns *namespace) closeSockets() {
	for _, l := range append(append([]net.Listener{}, ns.steered...), ns.dnsTCP...) {
		l.Close()
	}
	if ns.proxy != nil {
		ns.proxy.Close()
	}
	for _, u := range []*net.UDPConn{ns.dns4, ns.dns6} {
		if u != nil {
			u.Close()
		}
	}
}

// close releases all that was opened. It works on the half-built, and twice.
func (ns *namespace) close() {
	ns.closeSockets()
	for _, t := range ns.tables {
		t.Close()
	}
	if ns.file != nil {
		ns.file.Close()
	}
}
