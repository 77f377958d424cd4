package authority

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"runtime/debug"
	"slices"
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
	MaxMessage       = 16 << 20 // bytes; package client has the same
	maxStreams       = 128      // calls at a time on one connection
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

// NewServer serves the authority to hosts whose daemons run as one of the
// given users.
func NewServer(a *Authority, hosts []uint32) *grpc.Server {
	s := grpc.NewServer(
		grpc.Creds(peerCredentials{hosts}),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.UnaryInterceptor(guard(a.cfg.Log)),
	)
	authoritypb.RegisterAuthorityServer(s, a)
	return s
}

// guard gives every call an end, and turns a panic into a refusal.
func guard(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (res any, err error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		started := time.Now()
		defer func() {
			if r := recover(); r != nil {
				log.ErrorContext(ctx, "call panicked", "method", info.FullMethod, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
				res, err = nil, status.Error(codes.Internal, "authority: internal error")
			}
			log.DebugContext(ctx, "call", "method", info.FullMethod, "code", status.Code(err).String(),
				"duration_ms", time.Since(started).Milliseconds(), "peer", peerOf(ctx))
		}()
		return handler(ctx, req)
	}
}

func peerOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok || p.AuthInfo == nil {
		return "unknown"
	}
	if id, ok := p.AuthInfo.(Peer); ok {
		return fmt.Sprintf("uid %d pid %d", id.UID, id.PID)
	}
	return p.AuthInfo.AuthType()
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
	// A process of another user namespace shows as the overflow id: nobody.
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
