package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/invitation"
	"hallmark.build/attest/store"
)

// Bounds of invitations.
const (
	minInvitation = time.Minute
	maxInvitation = 7 * 24 * time.Hour
	maxRights     = 64       // projects or profiles of a host
	maxGlob       = 512      // bytes
	maxRequest    = 16 << 10 // bytes of a certificate request
	macLength     = 16       // bytes
)

// Enrolment lets hosts in and renews their certificates.
type Enrolment struct {
	authoritypb.UnimplementedEnrolmentServer
	a *Authority
}

// Join turns an invitation into a host.
func (e *Enrolment) Join(ctx context.Context, req *authoritypb.JoinRequest) (*authoritypb.Membership, error) {
	a := e.a
	p, _ := tlsPeerOf(ctx)
	if wait, ok := a.limits.joins.take(p.address); !ok {
		return nil, a.limited(ctx, p.key(), limitJoins, wait, "too many hosts of this address join at a time")
	}
	now := a.now()
	expires, genuine := a.readSecret(req.GetSecret())
	switch {
	case !genuine:
		return nil, a.stranger(ctx, p, EventUnknownInvitation, "the token is not one of this authority's")
	case !now.Before(expires):
		return nil, a.stranger(ctx, p, EventExpiredInvitation, "the token expired at %s: ask for another", expires.Format(time.RFC3339))
	}
	key, err := requestedKey(req.GetRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	sum := sha256.Sum256(key.RawSubjectPublicKeyInfo)
	h, err := a.cfg.Store.Enrol(ctx, invitation.Hash(req.GetSecret()), hex.EncodeToString(sum[:]), now, now.Add(HostLifetime))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, a.stranger(ctx, p, EventUsedInvitation, "the token was used or withdrawn: ask for another")
	case errors.Is(err, store.ErrConflict):
		return nil, a.stranger(ctx, p, EventWrongCertificate, "another host has this key")
	case err != nil:
		return nil, a.unavailable(ctx, "enrol host", err)
	}
	a.audit(ctx, EventJoined, "host", h.Name, "key_sha256", h.KeySHA256, "address", p.address)
	return a.membership(ctx, h, key.PublicKey)
}

// Renew certifies the caller's key for another while. The key stays, so that no
// crash between here and there can lock a host out.
func (e *Enrolment) Renew(ctx context.Context, _ *authoritypb.RenewRequest) (*authoritypb.Membership, error) {
	a := e.a
	c := callerOf(ctx)
	p, ok := tlsPeerOf(ctx)
	if !ok || c.key == "" {
		return nil, status.Error(codes.Unauthenticated, "not an enrolled host")
	}
	err := a.cfg.Store.RenewHost(ctx, c.Host, c.key, c.key, a.now().Add(HostLifetime))
	if errors.Is(err, store.ErrConflict) {
		return nil, a.stranger(ctx, p, EventRevokedHost, "host %s was revoked or joined again", c.Host)
	}
	if err != nil {
		return nil, a.unavailable(ctx, "renew host", err)
	}
	a.audit(ctx, EventRenewed, "host", c.Host, "address", p.address)
	return a.membership(ctx, store.Host{Name: c.Host, Projects: c.Projects, Profiles: c.Profiles}, p.cert.PublicKey)
}

func (a *Authority) membership(ctx context.Context, h store.Host, key any) (*authoritypb.Membership, error) {
	der, expires, err := a.cfg.HostCA.certifyHost(h.Name, key)
	if err != nil {
		return nil, a.unavailable(ctx, "certify host", err)
	}
	return &authoritypb.Membership{
		Host: h.Name, Certificate: der, Authority: a.cfg.HostCA.cert.Raw,
		Projects: h.Projects, Profiles: h.Profiles, Expires: expires.Unix(),
	}, nil
}

// requestedKey reads a certificate request, of which the key is all that is
// used: the request proves that whoever sends it has the key.
func requestedKey(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxRequest {
		return nil, errors.New("certificate request: too large")
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("certificate request: not PKCS #10")
	}
	switch key := req.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, errors.New("certificate request: want a P-256 or Ed25519 key")
		}
	case ed25519.PublicKey:
	default:
		return nil, errors.New("certificate request: want a P-256 or Ed25519 key")
	}
	if err := req.CheckSignature(); err != nil {
		return nil, errors.New("certificate request: not signed by its own key")
	}
	return req, nil
}

// newSecret makes an invitation's secret: when it expires, random bytes, and a code
// by which the authority knows its own. The store has the last word; the code is what
// tells a token that was used from one that never was.
func (a *Authority) newSecret(expires time.Time) (secret [invitation.SecretLength]byte) {
	binary.BigEndian.PutUint64(secret[:8], uint64(expires.Unix()))
	rand.Read(secret[8 : len(secret)-macLength]) // never fails
	copy(secret[len(secret)-macLength:], a.secretCode(secret[:len(secret)-macLength]))
	return secret
}

func (a *Authority) readSecret(secret []byte) (expires time.Time, genuine bool) {
	if len(secret) != invitation.SecretLength {
		return time.Time{}, false
	}
	body, code := secret[:len(secret)-macLength], secret[len(secret)-macLength:]
	if subtle.ConstantTimeCompare(code, a.secretCode(body)) != 1 {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint64(body[:8])), 0).UTC(), true
}

func (a *Authority) secretCode(body []byte) []byte {
	mac := hmac.New(sha256.New, a.cfg.Secret)
	mac.Write([]byte("hallmark invitation v1\x00"))
	mac.Write(body)
	return mac.Sum(nil)[:macLength]
}

// Admin rules over hosts.
type Admin struct {
	authoritypb.UnimplementedAdminServer
	a *Authority
}

// Invite makes a token by which one host may join.
func (s *Admin) Invite(ctx context.Context, req *authoritypb.InviteRequest) (*authoritypb.InviteResponse, error) {
	a := s.a
	if a.cfg.HostCA == nil {
		return nil, status.Error(codes.FailedPrecondition, "this authority serves no other hosts: set listen and server_names")
	}
	address := req.GetAddress()
	if address == "" {
		address = a.cfg.Address
	}
	life := time.Duration(req.GetSeconds()) * time.Second
	if err := checkInvitation(req, address, life); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	now := a.now()
	expires := now.Add(life).Truncate(time.Second)
	token := invitation.Token{Address: address, Authority: a.cfg.HostCA.Pin(), Secret: a.newSecret(expires)}
	err := a.cfg.Store.Invite(ctx, store.Invitation{
		TokenSHA256: invitation.Hash(token.Secret[:]), Host: req.GetHost(),
		Projects: req.GetProjects(), Profiles: req.GetProfiles(), Created: now, Expires: expires,
	})
	if err != nil {
		return nil, a.unavailable(ctx, "store invitation", err)
	}
	a.audit(ctx, EventInvited, "host", req.GetHost(), "projects", req.GetProjects(), "profiles", req.GetProfiles(), "by", peerOf(ctx))
	return &authoritypb.InviteResponse{Token: token.String(), Expires: expires.Unix()}, nil
}

func checkInvitation(req *authoritypb.InviteRequest, address string, life time.Duration) error {
	if err := invitation.CheckName(req.GetHost()); err != nil {
		return err
	}
	if err := invitation.CheckAddress(address); err != nil {
		return err
	}
	switch {
	case life < minInvitation || life > maxInvitation:
		return errors.New("an invitation lasts between 1 minute and 7 days")
	case len(req.GetProjects()) == 0 || len(req.GetProjects()) > maxRights:
		return errors.New("projects: want 1 to 64 globs of those that the host may attest")
	case len(req.GetProfiles()) == 0 || len(req.GetProfiles()) > maxRights:
		return errors.New("profiles: want those that the host may attest")
	}
	for _, glob := range req.GetProjects() {
		if glob == "" || len(glob) > maxGlob || !doublestar.ValidatePattern(glob) {
			return errors.New("projects: not a glob of full project paths, as group/**")
		}
	}
	for _, profile := range req.GetProfiles() {
		if !attest.KnownProfile(profile) {
			return errors.New("profiles: unknown")
		}
	}
	return nil
}

// ListHosts lists all that were ever enrolled.
func (s *Admin) ListHosts(ctx context.Context, _ *authoritypb.ListHostsRequest) (*authoritypb.ListHostsResponse, error) {
	hosts, err := s.a.cfg.Store.Hosts(ctx)
	if err != nil {
		return nil, s.a.unavailable(ctx, "read hosts", err)
	}
	res := &authoritypb.ListHostsResponse{}
	for _, h := range hosts {
		res.Hosts = append(res.Hosts, &authoritypb.Host{
			Name: h.Name, Projects: h.Projects, Profiles: h.Profiles,
			Enrolled: h.Enrolled.Unix(), Expires: h.Expires.Unix(), Revoked: unixOrZero(h.Revoked),
		})
	}
	return res, nil
}

func unixOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// RevokeHost ends a host's rights, at its next call.
func (s *Admin) RevokeHost(ctx context.Context, req *authoritypb.RevokeHostRequest) (*authoritypb.RevokeHostResponse, error) {
	a := s.a
	err := a.cfg.Store.RevokeHost(ctx, req.GetHost(), a.now())
	if errors.Is(err, store.ErrNotFound) {
		return nil, status.Errorf(codes.NotFound, "host %q: not known here", req.GetHost())
	}
	if err != nil {
		return nil, a.unavailable(ctx, "revoke host", err)
	}
	a.audit(ctx, EventRevocation, "host", req.GetHost(), "by", peerOf(ctx))
	return &authoritypb.RevokeHostResponse{}, nil
}
