package authority

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/authority/authoritypb"
)

// Limits of the connection with hosts.
const (
	MaxMessage       = 5 << 20  // bytes; package client has the same
	MaxPiece         = 16 << 10 // bytes of one piece of a request; package client has the same
	maxStreams       = 64       // calls at a time on one connection
	streamWindow     = 64 << 10 // bytes of a request that wait unread
	maxHeader        = 16 << 10
	handshakeTimeout = 5 * time.Second
	callTimeout      = 2 * time.Minute
)

// Listen makes the unix socket. A socket that nobody listens on any more is
// replaced. Everybody may connect: who may speak is decided by the kernel's
// word on who connected, see [NewServer].
func Listen(path string) (*net.UnixListener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("authority: socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("authority: socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("authority: socket: %w", err), l.Close())
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: there is something else than a socket", path)
	}
	c, err := net.DialTimeout("unix", path, handshakeTimeout)
	if err == nil {
		c.Close()
		return fmt.Errorf("%s: another process listens there", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// serverOptions are the bounds that every server of the authority has.
func serverOptions(creds credentials.TransportCredentials) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(MaxPiece),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeTimeout),
		// What lies here unread of a stream does not grow with the peer's speed.
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(1 << 20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second}),
		grpc.InTapHandle(withDeadline),
		grpc.ForceServerCodecV2(newFrugal()),
	}
}

// NewServer serves the authority on its socket: to hosts whose daemons run as one
// of the given users, and to the authority's admin.
func NewServer(a *Authority, hosts []uint32) *grpc.Server {
	admins := []uint32{0, uint32(os.Geteuid())}
	s := grpc.NewServer(append(serverOptions(peerCredentials{slices.Concat(hosts, admins)}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}))...)
	calls := &service{a: a, identify: a.identifyUser(hosts, admins), peer: func(ctx context.Context) string {
		p, _ := unixPeerOf(ctx)
		return fmt.Sprintf("uid %d", p.UID)
	}}
	s.RegisterService(calls.bounded(authoritypb.Authority_ServiceDesc), a)
	s.RegisterService(calls.bounded(authoritypb.Admin_ServiceDesc), &Admin{a: a})
	return s
}

// identifyUser lets users speak as a host of this machine, or as an admin.
func (a *Authority) identifyUser(hosts, admins []uint32) func(context.Context, string) (Caller, error) {
	admin := "/" + authoritypb.Admin_ServiceDesc.ServiceName + "/"
	return func(ctx context.Context, method string) (Caller, error) {
		p, ok := unixPeerOf(ctx)
		if !ok {
			return Caller{}, status.Error(codes.Unauthenticated, "not a unix socket")
		}
		if strings.HasPrefix(method, admin) {
			if !slices.Contains(admins, p.UID) {
				return Caller{}, a.wrongUser(ctx, p, EventNotAdmin, "user %d may not rule over hosts: be root or the authority's own user", p.UID)
			}
			return Caller{}, nil
		}
		if !slices.Contains(hosts, p.UID) {
			return Caller{}, a.wrongUser(ctx, p, EventUnknownHost, "user %d may not speak as a host", p.UID)
		}
		return Caller{}, nil
	}
}

func (a *Authority) wrongUser(ctx context.Context, p Peer, event Event, format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	a.auditSparingly(ctx, fmt.Sprintf("uid %d", p.UID), event, "why", why, "uid", p.UID)
	return status.Error(codes.Unauthenticated, why)
}

func unixPeerOf(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	u, ok := p.AuthInfo.(Peer)
	return u, ok
}

// peerOf is who is at the other end, for logs.
func peerOf(ctx context.Context) string {
	if p, ok := unixPeerOf(ctx); ok {
		return fmt.Sprintf("uid %d pid %d", p.UID, p.PID)
	}
	if p, ok := tlsPeerOf(ctx); ok {
		return p.address + " " + p.host
	}
	return "unknown"
}

// A Peer is the process at the other end of the socket.
type Peer struct {
	credentials.CommonAuthInfo
	UID uint32
	PID int32
}

// AuthType names the way by which the peer is known.
func (Peer) AuthType() string { return "unix-peer" }

// peerCredentials lets only processes of the given users in. The kernel took
// down who they are when they connected.
type peerCredentials struct{ allowed []uint32 }

func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("authority: not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("authority: peer: %w", err)
	}
	var (
		cred    *unix.Ucred
		credErr error
	)
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, nil, fmt.Errorf("authority: peer: %w", err)
	}
	if credErr != nil {
		return nil, nil, fmt.Errorf("authority: peer: %w", credErr)
	}
	// A user that this namespace does not map shows as the overflow id, 65534 by
	// default, which must not be among those allowed.
	if cred.Uid == math.MaxUint32 || !slices.Contains(c.allowed, cred.Uid) {
		return nil, nil, fmt.Errorf("authority: user %d may not speak as a host", cred.Uid)
	}
	return conn, Peer{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		UID:            cred.Uid, PID: cred.Pid,
	}, nil
}

func (c peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("authority: these credentials are a server's")
}

func (c peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials {
	return peerCredentials{slices.Clone(c.allowed)}
}

func (c peerCredentials) OverrideServerName(string) error { return nil }
