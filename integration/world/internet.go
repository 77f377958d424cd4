package world

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses. Those of packages and canary are public, since the border refuses
// all others whatever a rule says.
const (
	gitlabAddr   = "192.0.2.10"
	registryAddr = "192.0.2.20"
	storageAddr  = "192.0.2.30"
	packagesAddr = "1.2.3.30"
	gitAddr      = "1.2.3.40"
	objectsAddr  = "1.2.3.41"
	canary4      = "1.2.3.50"
	canary6      = "2a00:db8:0:50::50"

	hostAddr   = "1.2.4.2"
	routerAddr = "1.2.4.1"
	hostAddr6  = "2a00:db8:0:1::2"
	router6    = "2a00:db8:0:1::1"
)

// Names.
const (
	GitLabName   = "gitlab.example.test"
	RegistryName = "registry.example.test"
	// PrivateRegistry is the one that wants logins.
	PrivateRegistry = RegistryName + ":5001"
	PackagesName    = "packages.example.test"
	GitName         = "git.example.test"     // repositories that are not GitLab's
	ObjectsName     = "objects.example.test" // what GitLab keeps of Git LFS
	StorageName     = "storage.example.test" // for caches
	CanaryName      = "canary.example.test"
)

var servers = []struct{ addr, name string }{
	{gitlabAddr, GitLabName}, {registryAddr, RegistryName}, {packagesAddr, PackagesName}, {gitAddr, GitName}, {objectsAddr, ObjectsName}, {storageAddr, StorageName}, {canary4, CanaryName},
}

// internet is the namespace beyond the runner host's interface.
type internet struct {
	do   chan func() // carried out on the thread that is inside
	file *os.File    // the namespace
}

// connect makes the internet and the way to it from this namespace.
func connect() (*internet, error) {
	n := &internet{do: make(chan func())}
	ready := make(chan error)
	go n.live(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("internet: %w", err)
	}
	if err := n.wire(); err != nil {
		return nil, fmt.Errorf("internet: %w", err)
	}
	return n, nil
}

// live owns the namespace: its thread is never given back.
func (n *internet) live(ready chan<- error) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		ready <- err
		return
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	n.file = f
	ready <- err
	for f := range n.do {
		f()
	}
}

// inside runs a function in the namespace.
func (n *internet) inside(f func() error) error {
	done := make(chan error)
	n.do <- func() { done <- f() }
	return <-done
}

// wire sets up both ends.
func (n *internet) wire() error {
	if err := up("lo"); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(n.file.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := addresses("eth0", hostAddr+"/24", hostAddr6+"/64"); err != nil {
		return err
	}
	err := n.inside(func() error {
		if err := up("lo"); err != nil {
			return err
		}
		if err := addresses("lo", gitlabAddr+"/32", registryAddr+"/32", storageAddr+"/32", packagesAddr+"/32", gitAddr+"/32", objectsAddr+"/32", canary4+"/32", canary6+"/128"); err != nil {
			return err
		}
		return addresses("eth0", routerAddr+"/24", router6+"/64")
	})
	if err != nil {
		return err
	}
	for _, gateway := range []string{routerAddr, router6} {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
			return fmt.Errorf("default route by %s: %w", gateway, err)
		}
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s up: %w", name, err)
	}
	return nil
}

// addresses gives an interface addresses that count at once: nobody else can
// have them, so duplicates are not looked for.
func addresses(name string, list ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, a := range list {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("%s: address %s: %w", name, a, err)
		}
	}
	return up(name)
}

// listen opens a TCP listener on the internet.
func (n *internet) listen(addr string) (l net.Listener, err error) {
	err = n.inside(func() error {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
		return err
	})
	return l, err
}

// listenPacket opens a UDP socket on the internet.
func (n *internet) listenPacket(addr string) (c net.PacketConn, err error) {
	err = n.inside(func() error {
		c, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", addr)
		return err
	})
	return c, err
}

// routeBack tells the internet that a network lies behind the runner host.
func (n *internet) routeBack(network string) error {
	_, dst, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	return n.inside(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Gw: net.ParseIP(hostAddr)})
	})
}
