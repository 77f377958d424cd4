package authority

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
)

// A tlsPeer is the other end of a TLS connection. That it has the
// certificate's key is proved; whether it may still speak is asked at each call.
type tlsPeer struct {
	credentials.CommonAuthInfo
	cert    *x509.Certificate // nil: it showed none
	host    string            // empty: the certificate is none of ours
	wrong   error             // why not
	address string            // without the port
}

// AuthType names the way by which the peer is known.
func (tlsPeer) AuthType() string { return "tls" }

// key is what the peer's connections and calls are counted under. One that has
// no certificate of ours is counted by its address.
func (p tlsPeer) key() string {
	if p.host == "" {
		return "address " + p.address
	}
	return "host " + p.host + " " + keyHash(p.cert)
}

// keyHash is how the store knows a host's key.
func keyHash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

func tlsPeerOf(ctx context.Context) (tlsPeer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return tlsPeer{}, false
	}
	t, ok := p.AuthInfo.(tlsPeer)
	return t, ok
}

// identifyHost proves that a call comes from a host that is enrolled now.
// Anybody may ask to join.
func (a *Authority) identifyHost(ctx context.Context, method string) (Caller, error) {
	p, ok := tlsPeerOf(ctx)
	if !ok {
		return Caller{}, status.Error(codes.Unauthenticated, "not a TLS connection")
	}
	if method == authoritypb.Enrolment_Join_FullMethodName {
		return Caller{Host: joining}, nil
	}
	now := a.now()
	switch {
	case p.cert == nil:
		return Caller{}, a.stranger(ctx, p, EventNoCertificate, "no certificate was shown: has this host joined?")
	case p.wrong != nil:
		return Caller{}, a.stranger(ctx, p, EventWrongCertificate, "%v", p.wrong)
	case now.Before(p.cert.NotBefore):
		return Caller{}, a.stranger(ctx, p, EventWrongCertificate, "the certificate of host %s is not valid before %s", p.host, p.cert.NotBefore.Format(time.RFC3339))
	case !now.Before(p.cert.NotAfter):
		return Caller{}, a.stranger(ctx, p, EventExpiredCertificate, "the certificate of host %s expired at %s: let it join again", p.host, p.cert.NotAfter.Format(time.RFC3339))
	}
	h, err := a.cfg.Store.Host(ctx, p.host)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Caller{}, a.stranger(ctx, p, EventUnknownHost, "host %s is not known here", p.host)
	case err != nil:
		return Caller{}, a.unavailable(ctx, "read host", err)
	case !h.Revoked.IsZero():
		return Caller{}, a.stranger(ctx, p, EventRevokedHost, "host %s was revoked at %s", p.host, h.Revoked.Format(time.RFC3339))
	case h.KeySHA256 != keyHash(p.cert):
		return Caller{}, a.stranger(ctx, p, EventWrongCertificate, "the certificate of host %s is of an earlier enrolment", p.host)
	}
	return Caller{Host: h.Name, Projects: h.Projects, Profiles: h.Profiles, key: h.KeySHA256}, nil
}

// joining stands for a host that has no name yet.
const joining = "(joining)"

// stranger refuses a call for who makes it.
func (a *Authority) stranger(ctx context.Context, p tlsPeer, event Event, format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	a.auditSparingly(ctx, p.key(), event, "why", why, "host", p.host, "address", p.address)
	return status.Error(codes.Unauthenticated, why)
}

// mayAttest refuses what the admin did not permit to a host. A project is known
// only once GitLab has confirmed it; until then it is empty.
func (a *Authority) mayAttest(ctx context.Context, profile, project string) error {
	c := callerOf(ctx)
	switch {
	case c.Host == "":
		return nil
	case !slices.Contains(c.Profiles, profile):
		return a.notPermitted(ctx, "host %s may not attest profile %s", c.Host, profile)
	case project != "" && !matchesAny(c.Projects, project):
		return a.notPermitted(ctx, "host %s may not attest project %s", c.Host, project)
	}
	return nil
}

// stillMay condemns an attempt whose host was revoked, or lost its right to it,
// since it closed the attempt. No caller is there to be refused.
func (a *Authority) stillMay(ctx context.Context, at *store.Attempt) (bool, error) {
	if at.Host == "" {
		return true, nil
	}
	h, err := a.cfg.Store.Host(ctx, at.Host)
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return false, a.unavailable(ctx, "read host", err)
	case err != nil || !h.Revoked.IsZero():
		_ = a.condemn(ctx, EventRevokedHost, at, "host %s was revoked", at.Host)
	case !slices.Contains(h.Profiles, at.Profile) || !matchesAny(h.Projects, at.Job.Project):
		_ = a.condemn(ctx, EventNotPermitted, at, "host %s may not attest project %s in profile %s any more", at.Host, at.Job.Project, at.Profile)
	default:
		return true, nil
	}
	return false, nil
}

func (a *Authority) notPermitted(ctx context.Context, format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	a.auditSparingly(ctx, callerOf(ctx).Host, EventNotPermitted, "why", why, "host", callerOf(ctx).Host)
	return status.Error(codes.PermissionDenied, why)
}

func matchesAny(globs []string, name string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		ok, err := doublestar.Match(glob, name)
		return err == nil && ok
	})
}

// ownAttempt refuses an attempt that another host opened, in the words for one that
// does not exist: its name is nothing that the caller should know. It also refuses
// one that the host might not open any more.
func (a *Authority) ownAttempt(ctx context.Context, at *store.Attempt) error {
	c := callerOf(ctx)
	if at.Host == c.Host {
		return a.mayAttest(ctx, at.Profile, at.Job.Project)
	}
	a.auditSparingly(ctx, c.Host, EventForeignAttempt, append(attemptFields(at), "host", hostName(c.Host))...)
	return noAttempt(at.ID)
}

func noAttempt(id string) error { return status.Errorf(codes.NotFound, "attempt %s: not found", id) }
