package egress

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	dnsTTL         = 5 // seconds; names outlive it, clients need not know
	maxDNSMessage  = 4096
	dnsIdleTimeout = 10 * time.Second
)

// answer makes the reply to one DNS message, or nil where there is none to make.
// Nothing is ever asked of anyone else. Each name has one IPv4 address; every
// other type is empty, so that clients come over IPv4 and learn of no encrypted
// client hello, no HTTP/3 and no other port.
func (n *names) answer(query []byte) []byte {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return nil
	}
	reply := dnsmessage.Header{ID: h.ID, Response: true, OpCode: h.OpCode, RecursionDesired: h.RecursionDesired, RecursionAvailable: true}
	q, err := p.Question()
	switch {
	case err != nil:
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, nil, nil)
	case h.OpCode != 0:
		reply.RCode = dnsmessage.RCodeNotImplemented
		return pack(reply, &q, nil)
	case q.Class != dnsmessage.ClassINET:
		reply.RCode = dnsmessage.RCodeRefused
		return pack(reply, &q, nil)
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		reply.RCode = dnsmessage.RCodeFormatError
		return pack(reply, nil, nil)
	}
	name, ok := Name(q.Name.String())
	if !ok {
		reply.RCode = dnsmessage.RCodeNameError
		return pack(reply, &q, nil)
	}
	addr, ok := n.resolve(name, q.Type)
	if !ok {
		reply.RCode = dnsmessage.RCodeServerFailure
		return pack(reply, &q, nil)
	}
	return pack(reply, &q, addr)
}

// resolve returns the address to answer with, nil for an empty answer, or false
// when there are too many names. localhost is the machine itself (RFC 6761).
func (n *names) resolve(name string, qtype dnsmessage.Type) (dnsmessage.ResourceBody, bool) {
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		switch qtype {
		case dnsmessage.TypeA:
			return &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}, true
		case dnsmessage.TypeAAAA:
			return &dnsmessage.AAAAResource{AAAA: netip.IPv6Loopback().As16()}, true
		}
		return nil, true
	}
	if qtype != dnsmessage.TypeA {
		return nil, true
	}
	if slices.Contains(n.local, name) {
		return &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}, true
	}
	addr, ok := n.address(name)
	if !ok {
		if n.full != nil {
			n.full()
		}
		return nil, false
	}
	return &dnsmessage.AResource{A: addr.As4()}, true
}

func pack(h dnsmessage.Header, q *dnsmessage.Question, body dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: h}
	if q != nil {
		m.Questions = []dnsmessage.Question{*q}
	}
	if body != nil {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: dnsTTL},
			Body:   body,
		}}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}

// serveDNS4 answers datagrams until the socket is closed. The reply comes from
// the address that was asked, whichever that was.
func (n *names) serveDNS4(c *net.UDPConn) {
	pc := ipv4.NewPacketConn(c)
	if err := pc.SetControlMessage(ipv4.FlagDst, true); err != nil {
		return
	}
	buf := make([]byte, maxDNSMessage)
	for {
		size, cm, from, err := pc.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || cm == nil:
			continue
		}
		if reply := n.answer(buf[:size]); reply != nil {
			// A client that went away is no one's failure.
			_, _ = pc.WriteTo(reply, &ipv4.ControlMessage{Src: cm.Dst}, from)
		}
	}
}

// serveDNS6 is serveDNS4 for IPv6.
func (n *names) serveDNS6(c *net.UDPConn) {
	pc := ipv6.NewPacketConn(c)
	if err := pc.SetControlMessage(ipv6.FlagDst, true); err != nil {
		return
	}
	buf := make([]byte, maxDNSMessage)
	for {
		size, cm, from, err := pc.ReadFrom(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil || cm == nil:
			continue
		}
		if reply := n.answer(buf[:size]); reply != nil {
			_, _ = pc.WriteTo(reply, &ipv6.ControlMessage{Src: cm.Dst}, from)
		}
	}
}

// serveDNSStream answers the messages of one TCP connection.
func (n *names) serveDNSStream(c net.Conn, r io.Reader) {
	for {
		if err := c.SetDeadline(time.Now().Add(dnsIdleTimeout)); err != nil {
			return
		}
		var length [2]byte
		if _, err := io.ReadFull(r, length[:]); err != nil {
			return
		}
		size := int(binary.BigEndian.Uint16(length[:]))
		if size > maxDNSMessage {
			return
		}
		query := make([]byte, size)
		if _, err := io.ReadFull(r, query); err != nil {
			return
		}
		reply := n.answer(query)
		if reply == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}
