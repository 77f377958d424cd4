package authority

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"hallmark.build/attest/authority/authoritypb"
)

// Limits of connections from other machines. Where one is reached the oldest
// connection of whoever has the most goes, so that nobody keeps others out by
// holding connections. Half-open ones cost nothing but their place; finished
// handshakes cost time of the processor. A host has so many of its own, as a
// balancer's address is that of all hosts; the rest go to the account of the address.
const (
	handshakesPerMinute  = 600 // of one address
	handshakeBurst       = 200
	handshakesOfHost     = 120 // a minute
	handshakeBurstOfHost = 60
	maxHandshakes        = 1024
	maxHandshakesFrom    = 256 // one address, which a balancer shares among all hosts
	maxStrangers         = 64  // connections without a certificate of ours
	maxStrangersFrom     = 8
	strangerBytes        = 64 << 10 // that one of them may send
	strangerTime         = 30 * time.Second
	maxHostConnections   = 4096
	maxConnectionsOfHost = 4
	connectionAge        = 10 * time.Minute // after which a host connects anew
)

// NewHostServer serves the authority over TLS, under the given names, to
// runner hosts that have joined, and lets those in that have an invitation.
func NewHostServer(a *Authority, names []string) (*grpc.Server, error) {
	if a.cfg.HostCA == nil || len(names) == 0 {
		return nil, errors.New("authority: serving other hosts needs a host authority and server names")
	}
	creds := &hostCredentials{
		ca: a.cfg.HostCA, config: serverTLS(a.cfg.HostCA, names), failed: a.metrics.handshakeFailed,
		rate:       newRates(handshakesPerMinute, handshakeBurst, time.Now),
		hostRate:   newRates(handshakesOfHost, handshakeBurstOfHost, time.Now),
		handshakes: newCrowd(maxHandshakes, maxHandshakesFrom),
		strangers:  newCrowd(maxStrangers, maxStrangersFrom),
		hosts:      newCrowd(maxHostConnections, maxConnectionsOfHost),
	}
	a.metrics.connections("handshake", creds.handshakes)
	a.metrics.connections("stranger", creds.strangers)
	a.metrics.connections("host", creds.hosts)
	s := grpc.NewServer(append(serverOptions(creds), grpc.KeepaliveParams(keepalive.ServerParameters{
		Time: time.Minute, Timeout: 20 * time.Second, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: callTimeout,
	}))...)
	calls := &service{a: a, identify: a.identifyHost, peer: func(ctx context.Context) string {
		p, _ := tlsPeerOf(ctx)
		return p.key()
	}}
	s.RegisterService(calls.bounded(authoritypb.Authority_ServiceDesc), a)
	s.RegisterService(calls.bounded(authoritypb.Enrolment_ServiceDesc), &Enrolment{a: a})
	return s, nil
}

// hostCredentials take connections in: each proves what key it has, and is
// counted among those that are like it.
type hostCredentials struct {
	ca                           *HostCA
	config                       *tls.Config
	failed                       func()
	rate, hostRate               *rates // of finished handshakes, by address and by host
	handshakes, strangers, hosts *crowd
}

// ServerHandshake is given its deadline by gRPC, on conn.
func (c *hostCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	address := addressOf(conn.RemoteAddr())
	if !c.rate.ready(address) {
		return c.refuse(conn, errors.New("too many connections of this address"))
	}
	defer c.handshakes.enter(address, conn)()
	secure := tls.Server(conn, c.config)
	if err := secure.Handshake(); err != nil {
		return c.refuse(conn, err)
	}
	state := secure.ConnectionState()
	p := tlsPeer{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, address: address}
	if len(state.PeerCertificates) > 0 {
		p.cert = state.PeerCertificates[0]
		p.host, p.wrong = c.ca.hostOf(p.cert)
	}
	if err := c.charge(p); err != nil {
		return c.refuse(conn, err)
	}
	if state.NegotiatedProtocol != "h2" {
		return c.refuse(conn, errors.New("the peer does not speak HTTP/2"))
	}
	if p.host != "" {
		return &countedConn{Conn: secure, leave: c.hosts.enter(p.key(), conn)}, p, nil
	}
	return newStrangerConn(secure, c.strangers.enter(p.key(), conn)), p, nil
}

// charge puts a finished handshake to an account.
func (c *hostCredentials) charge(p tlsPeer) error {
	if p.host == "" {
		c.rate.take(p.address)
		return nil
	}
	if _, ok := c.hostRate.take(p.host); !ok {
		c.rate.take(p.address)
		return fmt.Errorf("too many connections of host %s", p.host)
	}
	return nil
}

func (c *hostCredentials) refuse(conn net.Conn, why error) (net.Conn, credentials.AuthInfo, error) {
	c.failed()
	conn.Close()
	return nil, nil, fmt.Errorf("authority: tls: %w", why)
}

// addressOf is what connections of one machine have in common: its address, or
// its network where a machine has as many addresses as it likes.
func addressOf(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	ip := ap.Addr().Unmap()
	if ip.Is6() {
		if prefix, err := ip.WithZone("").Prefix(64); err == nil {
			return prefix.String()
		}
	}
	return ip.String()
}

// ClientHandshake belongs to the other side.
func (c *hostCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("authority: these credentials are a server's")
}

// Info describes the credentials to gRPC.
func (c *hostCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone shares the counts: they are of the server.
func (c *hostCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName belongs to the other side.
func (c *hostCredentials) OverrideServerName(string) error { return nil }

// A countedConn leaves its crowd when it is closed.
type countedConn struct {
	net.Conn
	leave func()
}

func (c *countedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// A strangerConn can ask to join, and is too small and too short for anything else.
type strangerConn struct {
	countedConn
	room atomic.Int64
	end  *time.Timer
	once sync.Once
}

func newStrangerConn(conn net.Conn, leave func()) *strangerConn {
	s := &strangerConn{countedConn: countedConn{Conn: conn, leave: leave}}
	s.room.Store(strangerBytes)
	s.end = time.AfterFunc(strangerTime, func() { s.Close() })
	return s
}

func (s *strangerConn) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if s.room.Add(-int64(n)) < 0 {
		return 0, errors.New("authority: more than a host has to say in order to join")
	}
	return n, err
}

func (s *strangerConn) Close() (err error) {
	s.once.Do(func() {
		s.end.Stop()
		err = s.countedConn.Close()
	})
	return err
}
