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
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/authority/authoritypb"
)

// MaxMessage bounds each request and answer in bytes. Lines to be appended must
// be divided so that they fit.
const MaxMessage = 16 << 20

// AppendBytes is how many bytes of lines to put into one Append: two lines of
// the record's greatest length fit, and MaxMessage is far.
const AppendBytes = 8 << 20

// Dial connects to the authority's unix socket. It does not wait for the
// authority to be there: calls made while it is not answer UNAVAILABLE, unless
// the caller asks to wait with [grpc.WaitForReady].
func Dial(_ context.Context, socket string) (authoritypb.AuthorityClient, io.Closer, error) {
	if !filepath.IsAbs(socket) {
		return nil, nil, fmt.Errorf("authority: socket %q is not an absolute path", socket)
	}
	conn, err := grpc.NewClient("passthrough:///hallmark-attestd",
		// The kernel says who is on the other end of a unix socket; there is
		// nothing to encrypt on the way.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("authority: %s: %w", socket, err)
	}
	return authoritypb.NewAuthorityClient(conn), conn, nil
}

// IsSecurity reports whether the authority refused a call because evidence
// contradicts itself. Such a call is never repeated.
func IsSecurity(err error) bool { return code(err) == codes.PermissionDenied }

// IsTemporary reports whether the same call may succeed later.
func IsTemporary(err error) bool {
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// Message is what the authority said, without gRPC's decoration.
func Message(err error) string { return status.Convert(err).Message() }

func code(err error) codes.Code { return status.Code(err) }
