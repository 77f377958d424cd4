package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// playInside plays a program of the job's. It prints what it met.
func playInside(what string, args []string) int {
	programs := map[string]func([]string) error{
		"send": insideSend, "udp": insideUDP, "raw": insideRaw, "netlink": insideNetlink, "unix": insideUnix,
		"talk": insideTalk,
	}
	for i, a := range args {
		plain, err := strconv.Unquote(a)
		if err != nil {
			fmt.Println("error:", err)
			return 1
		}
		args[i] = plain
	}
	if err := programs[what](args); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// insideSend connects, sends text and prints what comes back until the
// connection ends.
func insideSend(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	return readAnswer(c)
}

// readAnswer prints what comes until the connection ends, or rests for a while
// after something came.
func readAnswer(c net.Conn) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		os.Stdout.Write(buf[:n])
		if err != nil {
			return err
		}
		if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
	}
}

// insideTalk sends pieces with pauses and prints what comes back.
func insideTalk(args []string) error {
	c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	for _, piece := range args[1:] {
		if _, err := io.WriteString(c, piece); err != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return readAnswer(c)
}

// insideUDP sends a datagram and prints the answer.
func insideUDP(args []string) error {
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	n, err := c.Read(buf)
	fmt.Printf("%q\n", buf[:n])
	return err
}

// insideRaw tries sockets that see or make packets.
func insideRaw([]string) error {
	for _, s := range []struct {
		name             string
		domain, typ, pro int
	}{
		{"raw icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"raw ip", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW},
		{"raw icmp6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, int(0x0300)},
		{"ping", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
	} {
		fd, err := unix.Socket(s.domain, s.typ, s.pro)
		if err == nil {
			unix.Close(fd)
		}
		fmt.Printf("%s: %v\n", s.name, err)
	}
	return nil
}

// insideNetlink tries to change the network.
func insideNetlink([]string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	fmt.Println("links:", len(links))
	route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(9, 9, 9, 0).To4(), Mask: net.CIDRMask(24, 32)}}
	for _, try := range []struct {
		name string
		do   func() error
	}{
		{"lo down", func() error { return netlink.LinkSetDown(lo) }},
		{"add route", func() error { return netlink.RouteAdd(route) }},
		{"add dummy", func() error { return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "x0"}}) }},
		{"add veth", func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "x1"}, PeerName: "x2", PeerNamespace: netlink.NsPid(1)})
		}},
		{"add tun", func() error {
			return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "x3"}, Mode: netlink.TUNTAP_MODE_TUN})
		}},
		{"delete rules", deleteRules},
	} {
		fmt.Printf("%s: %v\n", try.name, try.do())
	}
	return nil
}

// insideUnix connects to an abstract socket.
func insideUnix(args []string) error {
	c, err := net.Dial("unix", "@"+args[0])
	if errors.Is(err, syscall.ECONNREFUSED) {
		fmt.Println("refused")
		return nil
	}
	if err != nil {
		return err
	}
	c.Close()
	fmt.Println("connected")
	return nil
}

func lines(parts ...string) string { return strings.Join(parts, "\r\n") + "\r\n\r\n" }
