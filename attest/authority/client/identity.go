package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/invitation"
	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

const (
	identityFile  = "identity.pem"
	identityLimit = 64 << 10
	renewEvery    = time.Hour // is asked whether it is due
)

// An Identity is how a host is known to an authority on another machine: a key,
// its certificate, and the certificate of the authority that issued it, in one
// file for its owner alone, so that all three change at once. It is read anew
// whenever the file has changed. It is safe for concurrent use.
type Identity struct {
	dir string

	mu   sync.Mutex
	held *identity
	file os.FileInfo // of which held was read
}

// identity is what the file holds.
type identity struct {
	pair      tls.Certificate
	authority *x509.Certificate
}

// OpenIdentity reads the identity that [Join] left in a directory.
func OpenIdentity(dir string) (*Identity, error) {
	id := &Identity{dir: dir}
	if _, err := id.current(); err != nil {
		return nil, err
	}
	return id, nil
}

func (id *Identity) path() string { return filepath.Join(id.dir, identityFile) }

func (id *Identity) current() (*identity, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	info, err := os.Lstat(id.path())
	if err != nil {
		return nil, fmt.Errorf("authority: identity: %w", err)
	}
	// The file is replaced, never changed in place.
	if id.held != nil && os.SameFile(info, id.file) && info.ModTime().Equal(id.file.ModTime()) {
		return id.held, nil
	}
	text, err := private.ReadFile(id.path(), identityLimit)
	if err != nil {
		return nil, fmt.Errorf("authority: identity: %w", err)
	}
	held, err := parseIdentity(text)
	if err != nil {
		return nil, fmt.Errorf("authority: identity: %s: %w", id.path(), err)
	}
	id.held, id.file = held, info
	return held, nil
}

// parseIdentity reads a key, its certificate and its authority's.
func parseIdentity(text []byte) (*identity, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	if len(pair.Certificate) != 2 {
		return nil, fmt.Errorf("%d certificates, want the host's and its authority's", len(pair.Certificate))
	}
	authority, err := x509.ParseCertificate(pair.Certificate[1])
	if err != nil {
		return nil, err
	}
	pair.Certificate = pair.Certificate[:1] // the server knows its own
	return &identity{pair: pair, authority: authority}, nil
}

// store replaces the file.
func (id *Identity) store(key *ecdsa.PrivateKey, host, authority *x509.Certificate) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, cert := range []*x509.Certificate{host, authority} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	if err := durable.Replace(id.path(), text, 0o600); err != nil {
		return fmt.Errorf("authority: identity: %w", err)
	}
	return nil
}

// Expires is when the certificate ends.
func (id *Identity) Expires() (time.Time, error) {
	held, err := id.current()
	if err != nil {
		return time.Time{}, err
	}
	return held.pair.Leaf.NotAfter, nil
}

// due reports whether a third of the certificate's life, or less, is left.
func due(cert *x509.Certificate, now time.Time) bool {
	return !now.Before(cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3))
}

// Renew has the certificate renewed if a third of its life is left. It reports
// whether it did.
func (id *Identity) Renew(ctx context.Context, stub authoritypb.EnrolmentClient, now time.Time) (bool, error) {
	held, err := id.current()
	if err != nil || !due(held.pair.Leaf, now) {
		return false, err
	}
	key, ok := held.pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return false, errors.New("authority: identity: the key is not ECDSA")
	}
	res, err := stub.Renew(ctx, &authoritypb.RenewRequest{})
	if err != nil {
		return false, fmt.Errorf("authority: renew: %s", Message(err))
	}
	host, authority, err := checkMembership(res, key, invitation.Pin(held.authority))
	if err != nil {
		return false, err
	}
	return true, id.store(key, host, authority)
}

// KeepFresh renews the certificate whenever it is due, until ctx ends.
func (id *Identity) KeepFresh(ctx context.Context, stub authoritypb.EnrolmentClient, log *slog.Logger) {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		renewed, err := id.Renew(ctx, stub, time.Now())
		switch {
		case err != nil && ctx.Err() == nil:
			log.ErrorContext(ctx, "certificate not renewed", "error", err)
		case renewed:
			log.InfoContext(ctx, "certificate renewed")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// checkMembership refuses an answer that is not about our key, or is from another
// authority than the pinned one.
func checkMembership(res *authoritypb.Membership, key *ecdsa.PrivateKey, pin [32]byte) (host, authority *x509.Certificate, err error) {
	host, err = x509.ParseCertificate(res.GetCertificate())
	if err != nil {
		return nil, nil, fmt.Errorf("authority: certificate: %w", err)
	}
	authority, err = x509.ParseCertificate(res.GetAuthority())
	if err != nil {
		return nil, nil, fmt.Errorf("authority: its own certificate: %w", err)
	}
	if invitation.Pin(authority) != pin {
		return nil, nil, errors.New("authority: its key is not the one that this host trusts")
	}
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	if _, err := host.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, CurrentTime: host.NotBefore}); err != nil {
		return nil, nil, fmt.Errorf("authority: certificate: %w", err)
	}
	if public, ok := host.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, nil, errors.New("authority: the certificate is for another key")
	}
	return host, authority, nil
}

// reloading are TLS credentials that use the identity as it is at each
// handshake, and trust the identity's authority alone.
type reloading struct {
	credentials.TransportCredentials // as they were at the start, for what does not change
	id                               *Identity
	serverName                       string
}

func (r *reloading) ClientHandshake(ctx context.Context, name string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	held, err := r.id.current()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(held.config(r.serverName)).ClientHandshake(ctx, name, conn)
}

func (r *reloading) Clone() credentials.TransportCredentials {
	return &reloading{TransportCredentials: r.TransportCredentials.Clone(), id: r.id, serverName: r.serverName}
}

func (i *identity) config(serverName string) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(i.authority)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName, RootCAs: roots,
		// Whatever the server says that it accepts, there is one to show.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &i.pair, nil },
	}
}

// Join makes a key that never leaves dir, has it certified by the authority that
// the token names, and keeps both. An earlier identity is replaced once that
// succeeded.
func Join(ctx context.Context, dir string, token invitation.Token) (*authoritypb.Membership, error) {
	if err := private.Dir(dir); err != nil {
		return nil, fmt.Errorf("authority: identity: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	conn, err := dialPinned(token)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	res, err := authoritypb.NewEnrolmentClient(conn).Join(ctx, &authoritypb.JoinRequest{Secret: token.Secret[:], Request: request})
	if err != nil {
		return nil, err
	}
	host, authority, err := checkMembership(res, key, token.Authority)
	if err != nil {
		return nil, err
	}
	return res, (&Identity{dir: dir}).store(key, host, authority)
}

// pinned verifies a server whose authority is known by its key's hash alone.
func pinned(token invitation.Token, serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		InsecureSkipVerify: true, // VerifyConnection does, with the authority that the token names
		VerifyConnection: func(state tls.ConnectionState) error {
			for _, authority := range state.PeerCertificates[1:] {
				if invitation.Pin(authority) != token.Authority {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(authority)
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
					Roots: roots, DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
				})
				return err
			}
			return errors.New("the server is not the authority that the token is from")
		},
	}
}
