package egress

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
)

// openTables opens the kernel's tables of TCP sockets. It runs on the
// namespace's thread; what is open stays the namespace's.
func (ns *namespace) openTables(six bool) error {
	names := []string{"tcp"}
	if six {
		names = append(names, "tcp6")
	}
	for _, name := range names {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		ns.tables = append(ns.tables, f)
	}
	return nil
}

// listening returns the TCP ports on which anything but the border listens.
func (ns *namespace) listening() (map[int]bool, error) {
	ports := map[int]bool{}
	for _, f := range ns.tables {
		if err := addListening(ports, io.NewSectionReader(f, 0, 1<<62)); err != nil {
			return nil, fmt.Errorf("tcp sockets: %w", err)
		}
	}
	maps.DeleteFunc(ports, func(port int, _ bool) bool { return Taken(port) != "" })
	return ports, nil
}

// Taken says what the border itself does on a port of 127.0.0.1, or "".
func Taken(port int) string {
	switch port {
	case dnsPort:
		return "answers names"
	case proxyPort:
		return "is the proxy"
	case steerPort:
		return "takes what goes out"
	}
	return ""
}

// addListening reads a table of the kernel's (proc_net_tcp(5)) as far as its
// listening sockets, which come first.
func addListening(ports map[int]bool, table io.Reader) error {
	const listening = "0A"
	s := bufio.NewScanner(table)
	s.Scan() // the header
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 4 || f[3] != listening {
			break
		}
		_, port, _ := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		if err != nil {
			return fmt.Errorf("port %q", port)
		}
		ports[int(n)] = true
	}
	return s.Err()
}
