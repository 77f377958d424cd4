package world

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// CanaryPorts are where canaries sit, on TCP and UDP, besides 53.
var CanaryPorts = []int{1, 22, 80, 123, 443, 9999, 65535}

// A Canary is everything that a job must not reach: servers on the internet, on
// the runner host's own addresses, and an abstract unix socket. It answers all
// who come, so that a job knows too, and remembers them.
type Canary struct {
	mu     sync.Mutex
	visits []string
	closes []io.Closer
	wg     sync.WaitGroup
}

// Visits are all that came since the last call.
func (c *Canary) Visits() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.visits
	c.visits = nil
	return out
}

func (c *Canary) note(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.visits = append(c.visits, fmt.Sprintf(format, args...))
}

// newCanary puts canaries on the internet and on the host.
func newCanary(n *internet) (*Canary, error) {
	c := &Canary{}
	for _, host := range []string{canary4, canary6} {
		for _, port := range append(slices.Clone(CanaryPorts), 53) {
			addr := net.JoinHostPort(host, strconv.Itoa(port))
			l, err := n.listen(addr)
			if err != nil {
				return nil, err
			}
			c.serve(l, "tcp "+addr)
			p, err := n.listenPacket(addr)
			if err != nil {
				return nil, err
			}
			c.servePacket(p, "udp "+addr, port == 53)
		}
	}
	for _, addr := range []string{"127.0.0.1:9999", "[::1]:9999", hostAddr + ":9999", "[" + hostAddr6 + "]:9999"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		c.serve(l, "tcp "+addr+" of the runner host")
	}
	l, err := net.Listen("unix", "@hallmark-canary")
	if err != nil {
		return nil, err
	}
	c.serve(l, "abstract unix socket of the runner host")
	return c, nil
}

func (c *Canary) serve(l net.Listener, what string) {
	c.closes = append(c.closes, l)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.note("%s from %s", what, conn.RemoteAddr())
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = io.WriteString(conn, "CANARY\n")
			_ = conn.Close()
		}
	}()
}

func (c *Canary) servePacket(p net.PacketConn, what string, dns bool) {
	c.closes = append(c.closes, p)
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		buf := make([]byte, 4096)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			answer := []byte("CANARY")
			if dns {
				var question string
				answer, question = noSuchName(buf[:n])
				c.note("%s from %s asks for %s", what, from, question)
			} else {
				c.note("%s from %s", what, from)
			}
			_, _ = p.WriteTo(answer, from)
		}
	}()
}

// noSuchName answers every question alike.
func noSuchName(query []byte) (answer []byte, question string) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) == 0 {
		return []byte("CANARY"), "no name"
	}
	question = m.Questions[0].Name.String()
	m.Response, m.RCode = true, dnsmessage.RCodeNameError
	m.Additionals = nil
	answer, err := m.Pack()
	if err != nil {
		return []byte("CANARY"), question
	}
	return answer, question
}

// Close ends the canaries.
func (c *Canary) Close() error {
	var errs []error
	for _, x := range c.closes {
		errs = append(errs, x.Close())
	}
	c.wg.Wait()
	return errors.Join(errs...)
}
