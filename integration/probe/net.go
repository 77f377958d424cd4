package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// banner is what every canary answers with.
const banner = "CANARY"

const patience = 2 * time.Second

// probeNet tries to reach the canaries at two addresses and under a name.
func probeNet(v4, v6, name string) {
	for _, port := range []int{1, 22, 53, 80, 443, 9999, 65535} {
		for _, host := range []string{v4, v6} {
			tryTCP(host, port)
		}
	}
	for _, host := range []string{"127.0.0.1", "::1", "169.254.169.254", "fd00:ec2::254", "10.0.0.1", "fe80::1%lo"} {
		tryTCP(host, 9999)
		tryTCP(host, 80)
	}
	for _, port := range []int{53, 123, 443, 9999} {
		for _, host := range []string{v4, v6} {
			tryUDP(host, port)
		}
	}
	tryNames(name, v4)
	tryHTTP(name, v4)
	tryRaw(v4, v6)
	tryFamilies()
	tryAbstract()
	tryNetlink()
	tryNamespaces()
	tryOptions(v4)
}

func tryTCP(host string, port int) {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	name := "tcp " + addr
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		say(name, refused, "%v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = conn.Write([]byte("hello from a job\n"))
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	judge(name, buf[:n], err)
}

// judge looks for the canary's banner in an answer.
func judge(name string, answer []byte, err error) {
	switch {
	case bytes.Contains(answer, []byte(banner)):
		say(name, escape, "the canary answered")
	case len(answer) > 0:
		say(name, refused, "answer %.60q", answer)
	default:
		say(name, open, "no answer: %v", err)
	}
}

func tryUDP(host string, port int) {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	name := "udp " + addr
	conn, err := net.Dial("udp", addr)
	if err != nil {
		say(name, refused, "%v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("hello from a job")); err != nil {
		say(name, refused, "%v", err)
		return
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	if n == 0 && err != nil {
		say(name, refused, "%v", err)
		return
	}
	judge(name, buf[:n], err)
}

// tryNames asks the resolver that the job was given, and a name server of the
// job's own choice. Data can leave in the name that is asked for.
func tryNames(name, server string) {
	for _, n := range []string{name, "secret-data." + name, "example.com"} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		addrs, err := net.DefaultResolver.LookupHost(ctx, n)
		cancel()
		say("dns "+n, refused, "%v %v", addrs, err)
	}
	for _, network := range []string{"udp", "tcp"} {
		label := fmt.Sprintf("dns over %s to %s", network, server)
		answer, err := askTXT(network, net.JoinHostPort(server, "53"), "secret-data."+name+".")
		switch {
		case err != nil:
			say(label, refused, "%v", err)
		case strings.Contains(answer, banner):
			say(label, escape, "the canary answered")
		default:
			say(label, refused, "answer %q", answer)
		}
	}
}

func askTXT(network, server, name string) (string, error) {
	q, err := dnsmessage.NewName(name)
	if err != nil {
		return "", err
	}
	msg := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: q, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}},
	}
	packed, err := msg.Pack()
	if err != nil {
		return "", err
	}
	conn, err := net.DialTimeout(network, server, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if network == "tcp" {
		packed = append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
	}
	if _, err := conn.Write(packed); err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if n == 0 {
		return "", err
	}
	return string(buf[:n]), nil
}

// tryHTTP asks over HTTP and TLS: by name, by address, through whatever proxy
// the environment names, and with a Host that disagrees with the address.
func tryHTTP(name, addr string) {
	for _, url := range []string{"http://" + name + "/", "https://" + name + "/", "http://" + addr + "/", "https://" + addr + "/"} {
		tryGet("get "+url, url, "", http.ProxyFromEnvironment)
		tryGet("get "+url+" without proxy", url, "", nil)
	}
	tryGet("get with a foreign Host", "http://"+addr+"/", "allowed.example.test", nil)
	for _, proxy := range []string{os.Getenv("http_proxy"), os.Getenv("HTTP_PROXY"), os.Getenv("HTTPS_PROXY")} {
		hostport := strings.TrimSuffix(strings.TrimPrefix(proxy, "http://"), "/")
		if hostport == "" {
			continue
		}
		for _, target := range []string{net.JoinHostPort(addr, "443"), net.JoinHostPort(addr, "22"), "127.0.0.1:9999", "[::1]:9999", "169.254.169.254:80"} {
			tryConnect(hostport, target)
		}
		break
	}
}

func tryGet(label, url, host string, proxy func(*http.Request) (*urlURL, error)) {
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		Proxy: proxy, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
	}}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		say(label, refused, "%v", err)
		return
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		say(label, refused, "%v", err)
		return
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	judge(label+" "+resp.Status, append(b.Bytes(), ' '), err)
}

func tryConnect(proxy, target string) {
	label := "connect " + target
	conn, err := net.DialTimeout("tcp", proxy, patience)
	if err != nil {
		say(label, refused, "%v", err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\nhello from a job\n", target, target)
	buf := make([]byte, 2048)
	total := 0
	for total < len(buf) {
		n, err := conn.Read(buf[total:])
		total += n
		if err != nil {
			break
		}
	}
	judge(label, buf[:total], nil)
}

// tryRaw sends what is neither TCP nor UDP.
func tryRaw(v4, v6 string) {
	dest4 := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(v4).To4())}
	dest6 := &unix.SockaddrInet6{Addr: [16]byte(net.ParseIP(v6).To16())}
	echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	for _, c := range []struct {
		name                  string
		family, kind, proto   int
		dest                  unix.Sockaddr
		replyMeansOnlyLoopack bool
	}{
		{"ping socket v4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, dest4, true},
		{"ping socket v6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6, dest6, true},
		{"raw icmp v4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP, dest4, false},
		{"raw icmp v6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, dest6, false},
		{"raw ip", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, dest4, false},
		{"raw gre", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_GRE, dest4, false},
		{"sctp", unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP, dest4, false},
		{"udplite", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, dest4, true},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0x0300, nil, false},
	} {
		fd, err := unix.Socket(c.family, c.kind, c.proto)
		if err != nil {
			say(c.name, refused, "socket: %v", err)
			continue
		}
		if c.dest != nil {
			err = unix.Sendto(fd, echo, 0, c.dest)
		}
		_ = unix.Close(fd)
		switch {
		case err != nil:
			say(c.name, refused, "send: %v", err)
		case c.replyMeansOnlyLoopack:
			say(c.name, open, "sent, on a namespace that has loopback alone")
		default:
			say(c.name, escape, "the socket was opened")
		}
	}
}

// tryFamilies opens a socket of every address family. Four are a job's business.
func tryFamilies() {
	fine := map[int]bool{unix.AF_UNIX: true, unix.AF_INET: true, unix.AF_INET6: true, unix.AF_NETLINK: true}
	for family := range unix.AF_MAX {
		if fine[family] {
			continue
		}
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			fd, err := unix.Socket(family, kind, 0)
			if err == nil {
				_ = unix.Close(fd)
				say(fmt.Sprintf("family %d type %d", family, kind), escape, "the socket was opened")
			}
		}
	}
	say("families", refused, "tried all %d", unix.AF_MAX)
}

// tryAbstract looks for unix sockets without a file: they belong to a network
// namespace, so the host's must not be there.
func tryAbstract() {
	conn, err := net.DialTimeout("unix", "@hallmark-canary", patience)
	if err == nil {
		conn.Close()
	}
	sayErr("abstract socket of the host", err)
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		say("list of unix sockets", refused, "%v", err)
		return
	}
	// The name of a socket that once was passed in may be listed; what counts
	// is whether it leads anywhere.
	found := 0
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		name := fields[len(fields)-1]
		if !strings.HasPrefix(name, "@") && !strings.HasPrefix(name, "/") {
			continue
		}
		found++
		conn, err := net.DialTimeout("unix", name, patience)
		if err == nil {
			conn.Close()
		}
		sayErr("unix socket "+name, err)
	}
	say("list of unix sockets", refused, "%d with a name", found)
}

func tryNetlink() {
	ifaces, err := net.Interfaces()
	if err != nil {
		say("interfaces", refused, "%v", err)
	}
	for _, i := range ifaces {
		if i.Name != "lo" {
			say("interface "+i.Name, escape, "there is more than loopback")
		}
	}
	sayErr("netlink: lo down", rtnetlink(unix.RTM_NEWLINK, 0, ifinfo(1, 0, unix.IFF_UP)))
	sayErr("netlink: new dummy", rtnetlink(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, append(ifinfo(0, 0, 0), linkKind("dummy")...)))
	sayErr("netlink: new address", rtnetlink(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		append([]byte{unix.AF_INET, 32, 0, 0, 1, 0, 0, 0}, attribute(unix.IFA_LOCAL, []byte{192, 0, 2, 99})...)))
	sayErr("netlink: new route", rtnetlink(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		append([]byte{unix.AF_INET, 24, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_LINK, unix.RTN_UNICAST, 0, 0, 0, 0},
			append(attribute(unix.RTA_DST, []byte{198, 51, 100, 0}), attribute(unix.RTA_OIF, []byte{1, 0, 0, 0})...)...)))
	sayErr("netlink: delete the border's rules", nftDeleteTables())
}

func ifinfo(index int32, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func linkKind(kind string) []byte {
	return append(attribute(unix.IFLA_IFNAME, []byte("way0\x00")),
		attribute(unix.IFLA_LINKINFO, attribute(unix.IFLA_INFO_KIND, []byte(kind)))...)
}

func rtnetlink(kind, flags uint16, body []byte) error {
	return netlinkAsk(unix.NETLINK_ROUTE, message(kind, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK, 1, body))
}

func message(kind, flags uint16, seq uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, body...)
}

// netlinkAsk sends messages and returns the first error that the kernel answers.
func netlinkAsk(proto int, messages []byte) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// nftDeleteTables asks for every nftables table of the namespace to go, in the
// batch that the subsystem demands.
func nftDeleteTables() error {
	gen := func(resource uint16) []byte { return []byte{unix.AF_UNSPEC, 0, byte(resource >> 8), byte(resource)} }
	const begin, end = unix.NFNL_MSG_BATCH_BEGIN, unix.NFNL_MSG_BATCH_END
	deltable := uint16(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE)
	batch := message(begin, unix.NLM_F_REQUEST, 1, gen(unix.NFNL_SUBSYS_NFTABLES))
	batch = append(batch, message(deltable, unix.NLM_F_REQUEST|unix.NLM_F_ACK, 2, gen(0))...)
	batch = append(batch, message(end, unix.NLM_F_REQUEST, 3, gen(unix.NFNL_SUBSYS_NFTABLES))...)
	return netlinkAsk(unix.NETLINK_NETFILTER, batch)
}

// tryNamespaces tries to leave the namespace, or to make one of its own in
// which it is master.
func tryNamespaces() {
	for _, path := range []string{"/proc/1/ns/net", "/proc/self/ns/net"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		sayErr("setns "+path, err)
	}
	sayErr("unshare net", unix.Unshare(unix.CLONE_NEWNET))
	sayErr("unshare user", unix.Unshare(unix.CLONE_NEWUSER))
}

func tryOptions(v4 string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		say("socket options", refused, "%v", err)
		return
	}
	defer unix.Close(fd)
	sayErr("SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1))
	sayErr("IP_TRANSPARENT", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
}
