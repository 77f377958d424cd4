// Package client connects a runner host to the authority.
//
// It links neither the signer nor the store, so that the host's daemon does not
// either.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/invitation"
)

// MaxMessage bounds each request and answer in bytes. Lines to be appended must
// be divided so that they fit: one of the record's greatest length does.
const MaxMessage = 5 << 20

// Dial connects to the authority's unix socket. It does not wait for the
// authority to be there: calls made while it is not answer UNAVAILABLE, unless
// the caller asks to wait with [grpc.WaitForReady].
func Dial(_ context.Context, socket string) (authoritypb.AuthorityClient, io.Closer, error) {
	conn, err := DialSocket(socket)
	if err != nil {
		return nil, nil, err
	}
	return authoritypb.NewAuthorityClient(conn), conn, nil
}

// DialSocket is Dial for whoever needs another of the authority's services.
func DialSocket(socket string) (*grpc.ClientConn, error) {
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("authority: socket %q is not an absolute path", socket)
	}
	conn, err := grpc.NewClient("passthrough:///hallmark-attestd", append(options(),
		// The kernel says who is on the other end of a unix socket; there is
		// nothing to encrypt on the way.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}))...)
	if err != nil {
		return nil, fmt.Errorf("authority: %s: %w", socket, err)
	}
	return conn, nil
}

// DialHost connects to an authority on another machine as the host that id is.
func DialHost(address string, id *Identity) (*grpc.ClientConn, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	held, err := id.current()
	if err != nil {
		return nil, err
	}
	return dialTLS(address, &reloading{TransportCredentials: credentials.NewTLS(held.config(name)), id: id, serverName: name})
}

func dialPinned(token invitation.Token) (*grpc.ClientConn, error) {
	name, _, err := net.SplitHostPort(token.Address)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return dialTLS(token.Address, credentials.NewTLS(pinned(token, name)))
}

func dialTLS(address string, creds credentials.TransportCredentials) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, append(options(),
		grpc.WithTransportCredentials(creds),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}))...)
	if err != nil {
		return nil, fmt.Errorf("authority: %s: %w", address, err)
	}
	return conn, nil
}

func options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithChainUnaryInterceptor(patiently, InPieces),
	}
}

// maxPatience is for how long a call is repeated that was refused for a limit
// which will pass.
const maxPatience = 30 * time.Second

// patiently repeats a call that was refused for such a limit, after the time
// that the authority asked for.
func patiently(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	for end := time.Now().Add(maxPatience); ; {
		err := invoke(ctx, method, req, reply, conn, opts...)
		wait, passes := RetryAfter(err)
		if !passes || time.Now().Add(wait).After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// RetryAfter is how long to wait before a call is made again that was refused
// for a limit which will pass. Others will not: a record that is too large stays so.
func RetryAfter(err error) (time.Duration, bool) {
	if code(err) != codes.ResourceExhausted {
		return 0, false
	}
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration(), true
		}
	}
	return 0, false
}

// IsSecurity reports whether the authority refused a call because evidence
// contradicts itself. Such a call is never repeated.
func IsSecurity(err error) bool { return code(err) == codes.PermissionDenied }

// IsTemporary reports whether the same call may succeed later.
func IsTemporary(err error) bool {
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.ResourceExhausted:
		_, passes := RetryAfter(err)
		return passes
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// IsUndecided reports whether the call failed without a decision about what it
// was about: who called was not let in, or something went wrong.
func IsUndecided(err error) bool {
	return slices.Contains([]codes.Code{codes.Unauthenticated, codes.Internal, codes.Unknown, codes.Canceled, codes.Aborted}, code(err))
}

// Message is what the authority said, without gRPC's decoration.
func Message(err error) string { return status.Convert(err).Message() }

func code(err error) codes.Code { return status.Code(err) }
