package authority_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/authority/invitation"
	"hallmark.build/attest/store"
)

// fleet is an authority that serves hosts on other machines, at the real time
// and some more.
type fleet struct {
	*world
	later   atomic.Int64
	frozen  atomic.Int64 // nanoseconds since 1970 at which the clock stands; 0: it runs
	address string
	admin   authoritypb.AdminClient
}

func newFleet(t testing.TB, change ...func(*authority.Limits)) *fleet {
	t.Helper()
	return newFleetWith(t, func(w *world) {
		for _, c := range change {
			c(&w.limits)
		}
	})
}

func newFleetWith(t testing.TB, change func(*world)) *fleet {
	t.Helper()
	f := &fleet{}
	dir := t.TempDir()
	ca, err := authority.OpenHostCA(filepath.Join(dir, "keys", "hosts.pem"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	f.world = newWorldWith(t, func(w *world) {
		w.hostCA = ca
		change(w)
		w.clock = func() time.Time {
			now := time.Now()
			if at := f.frozen.Load(); at != 0 {
				now = time.Unix(0, at)
			}
			return now.Add(time.Duration(f.later.Load()))
		}
	})
	f.address = f.listenTLS()
	conn, err := client.DialSocket(f.listen(uint32(os.Getuid())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f.admin = authoritypb.NewAdminClient(conn)
	return f
}

func (f *fleet) listenTLS() string {
	f.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := authority.NewHostServer(f.a, []string{"127.0.0.1", "localhost"})
	if err != nil {
		f.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	f.t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String()
}

func (f *fleet) invite(name string, projects ...string) invitation.Token {
	f.t.Helper()
	if len(projects) == 0 {
		projects = []string{"group/**"}
	}
	res, err := f.admin.Invite(f.t.Context(), &authoritypb.InviteRequest{
		Host: name, Projects: projects, Profiles: []string{"hermetic"}, Seconds: 3600, Address: f.address,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	token, err := invitation.Parse(res.GetToken())
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

// host is a runner host that has joined.
type host struct {
	dir  string
	id   *client.Identity
	conn *grpc.ClientConn
	authoritypb.AuthorityClient
	authoritypb.EnrolmentClient
}

func (f *fleet) join(name string, projects ...string) *host {
	f.t.Helper()
	dir := filepath.Join(f.t.TempDir(), "authority")
	if _, err := client.Join(f.t.Context(), dir, f.invite(name, projects...)); err != nil {
		f.t.Fatal(err)
	}
	return f.dial(dir)
}

func (f *fleet) dial(dir string) *host {
	f.t.Helper()
	id, err := client.OpenIdentity(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	conn, err := client.DialHost(f.address, id)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return &host{dir, id, conn, authoritypb.NewAuthorityClient(conn), authoritypb.NewEnrolmentClient(conn)}
}

func requestFor(job int64) *authoritypb.OpenRequest {
	req := openRequest()
	req.Job.Id = job
	return req
}

// recordOf is the sample job as a host would write it now.
func (f *fleet) recordOf(res *authoritypb.OpenResponse, job int64) [][]byte {
	f.t.Helper()
	o := opened(res)
	o.Job.ID = job
	lines, err := attesttest.Lines(f.time(), attesttest.JobOf(o))
	if err != nil {
		f.t.Fatal(err)
	}
	return lines
}

// attest takes a job through its life, as a host.
func (f *fleet) attest(ctx context.Context, stub authoritypb.AuthorityClient, job int64) (*authoritypb.CloseResponse, error) {
	req, err := f.record(ctx, stub, job)
	if err != nil {
		return nil, err
	}
	return stub.Close(ctx, req)
}

// record opens an attempt and appends its record: what is left is to close it.
func (f *fleet) record(ctx context.Context, stub authoritypb.AuthorityClient, job int64) (*authoritypb.CloseRequest, error) {
	res, err := stub.Open(ctx, requestFor(job))
	if err != nil {
		return nil, err
	}
	head := ""
	lines := f.recordOf(res, job)
	for _, part := range [][][]byte{lines[:5], lines[5:]} {
		sum, err := stub.Append(ctx, &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: part})
		if err != nil {
			return nil, err
		}
		head = sum.GetHead()
	}
	return &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head}, nil
}

func TestJoin(t *testing.T) {
	f := newFleet(t)
	dir := filepath.Join(t.TempDir(), "authority")
	token := f.invite("runner-1", "group/**", "other/app")
	member, err := client.Join(t.Context(), dir, token)
	if err != nil {
		t.Fatal(err)
	}
	if member.GetHost() != "runner-1" || strings.Join(member.GetProjects(), " ") != "group/** other/app" || strings.Join(member.GetProfiles(), " ") != "hermetic" {
		t.Errorf("granted: %v", member)
	}
	if days := time.Until(time.Unix(member.GetExpires(), 0)).Hours() / 24; days < 89 || days > 90 {
		t.Errorf("expires in %v days", days)
	}
	info, err := os.Stat(filepath.Join(dir, "identity.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	out, err := f.attest(t.Context(), f.dial(dir), 4242)
	if err != nil || len(out.GetAttestations()) != 1 {
		t.Fatalf("%v, %v", out, err)
	}
	all, err := f.store.AttemptsOfJob(t.Context(), 4242)
	if err != nil || len(all) != 1 || all[0].Host != "runner-1" {
		t.Errorf("%v, %v", all, err)
	}
	if n := f.contains(f.dir, token.Secret[:]); n > 0 || f.contains(f.dir, []byte(token.String())) > 0 || strings.Contains(f.log.String(), token.String()) {
		t.Errorf("the secret is in %d files", n)
	}
}

// contains is how many files below dir contain text.
func (f *fleet) contains(dir string, text []byte) (n int) {
	f.t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, text) {
			n++
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return n
}

// TestBadTokens has every token that must not let anybody in.
func TestBadTokens(t *testing.T) {
	for name, c := range map[string]struct {
		event   authority.Event
		message string
		spoil   func(f *fleet, token *invitation.Token)
	}{
		"used": {authority.EventUsedInvitation, "the token was used or withdrawn", func(f *fleet, token *invitation.Token) {
			if _, err := client.Join(f.t.Context(), filepath.Join(f.t.TempDir(), "first"), *token); err != nil {
				f.t.Fatal(err)
			}
		}},
		"withdrawn": {authority.EventUsedInvitation, "the token was used or withdrawn", func(f *fleet, token *invitation.Token) {
			f.join("runner-1")
			if _, err := f.admin.RevokeHost(f.t.Context(), &authoritypb.RevokeHostRequest{Host: "runner-1"}); err != nil {
				f.t.Fatal(err)
			}
		}},
		"expired":      {authority.EventExpiredInvitation, "the token expired at", func(f *fleet, _ *invitation.Token) { f.later.Store(int64(2 * time.Hour)) }},
		"guessed":      {authority.EventUnknownInvitation, "is not one of this authority's", func(_ *fleet, token *invitation.Token) { rand.Read(token.Secret[:]) }},
		"longer life":  {authority.EventUnknownInvitation, "is not one of this authority's", func(_ *fleet, token *invitation.Token) { token.Secret[6]++ }},
		"other random": {authority.EventUnknownInvitation, "is not one of this authority's", func(_ *fleet, token *invitation.Token) { token.Secret[12]++ }},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			token := f.invite("runner-1")
			c.spoil(f, &token)
			dir := filepath.Join(t.TempDir(), "authority")
			f.refused(c.event, c.message, func() error {
				_, err := client.Join(t.Context(), dir, token)
				wantCode(t, err, codes.Unauthenticated)
				return err
			})
			if _, err := os.Stat(filepath.Join(dir, "identity.pem")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("an identity was left: %v", err)
			}
		})
	}
}

// TestTokenOnce has many take the same token at once.
func TestTokenOnce(t *testing.T) {
	f := newFleet(t)
	token := f.invite("runner-1")
	results := make(chan error, 8)
	for range cap(results) {
		dir := filepath.Join(t.TempDir(), "authority")
		go func() {
			_, err := client.Join(t.Context(), dir, token)
			results <- err
		}()
	}
	joined := 0
	for range cap(results) {
		if err := <-results; err == nil {
			joined++
		}
	}
	if joined != 1 {
		t.Errorf("%d joined by one token", joined)
	}
}

// TestJoinPins holds that a host gives its token to the authority that it is
// from, and to nobody who stands between.
func TestJoinPins(t *testing.T) {
	f, other := newFleet(t), newFleet(t)
	token := f.invite("runner-1")
	token.Address = other.address
	_, err := client.Join(t.Context(), filepath.Join(t.TempDir(), "authority"), token)
	if err == nil || !strings.Contains(err.Error(), "the server is not the authority that the token is from") {
		t.Errorf("%v", err)
	}
	// A host of the very authority, which has a certificate of its own.
	token.Address = serveAs(t, f.join("runner-2").keyPair(t, f.hostCA.Cert().Raw))
	_, err = client.Join(t.Context(), filepath.Join(t.TempDir(), "authority"), token)
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("joined at another host: %v", err)
	}
	if _, err := client.Join(t.Context(), filepath.Join(t.TempDir(), "authority"), f.invite("runner-1")); err != nil {
		t.Errorf("the token is not usable any more: %v", err)
	}
}

// TestHostIsNoServer holds that a host which was taken over cannot play the
// authority towards others.
func TestHostIsNoServer(t *testing.T) {
	f := newFleet(t)
	victim, attacker := f.join("runner-1"), f.join("runner-2")
	address := serveAs(t, attacker.keyPair(t, f.hostCA.Cert().Raw))
	conn, err := client.DialHost(address, victim.id)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = authoritypb.NewAuthorityClient(conn).Open(t.Context(), openRequest())
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("%v", err)
	}
}

// keyPair is the host's own identity, with other certificates behind its own.
func (h *host) keyPair(t testing.TB, more ...[]byte) tls.Certificate {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir, "identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	pair.Certificate = append(pair.Certificate[:1:1], more...)
	return pair
}

// serveAs accepts TLS connections with a certificate, until they end.
func serveAs(t testing.TB, cert tls.Certificate) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// with calls as a peer that shows some certificate.
func (f *fleet) with(pair ...tls.Certificate) authoritypb.AuthorityClient {
	f.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(f.hostCA.Cert())
	conn, err := grpc.NewClient(f.address, grpc.WithUnaryInterceptor(client.InPieces), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		RootCAs: roots, MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(pair) == 0 {
				return &tls.Certificate{}, nil
			}
			return &pair[0], nil
		},
	})))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return authoritypb.NewAuthorityClient(conn)
}

// forge is a certificate for a host's name by somebody else.
func forge(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, Issuer: pkix.Name{CommonName: "Hallmark runner hosts"},
		URIs:      []*url.URL{{Scheme: "urn", Opaque: "hallmark:host:" + name}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// issued is a certificate by the authority's own hand.
func (f *fleet) issued(name string) tls.Certificate {
	f.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	der, err := f.hostCA.Certify(name, key.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestBadCertificates has everybody who must not speak as a host: each its own
// message, one audit event, one count.
func TestBadCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		event   authority.Event
		message string
		peer    func(f *fleet) authoritypb.AuthorityClient
	}{
		"none": {authority.EventNoCertificate, "no certificate was shown", func(f *fleet) authoritypb.AuthorityClient { return f.with() }},
		"of another authority": {authority.EventWrongCertificate, "is not a runner host's of this authority",
			func(f *fleet) authoritypb.AuthorityClient { return f.with(forge(f.t, "runner-1")) }},
		"of another fleet": {authority.EventWrongCertificate, "is not a runner host's of this authority",
			func(f *fleet) authoritypb.AuthorityClient { return f.with(newFleet(f.t).issued("runner-1")) }},
		"the server's own": {authority.EventWrongCertificate, "is not a runner host's of this authority",
			func(f *fleet) authoritypb.AuthorityClient {
				cert, err := f.hostCA.Server("runner-1")
				if err != nil {
					f.t.Fatal(err)
				}
				return f.with(*cert)
			}},
		"of no known host": {authority.EventUnknownHost, "host runner-9 is not known here",
			func(f *fleet) authoritypb.AuthorityClient { return f.with(f.issued("runner-9")) }},
		"of an earlier enrolment": {authority.EventWrongCertificate, "is of an earlier enrolment",
			func(f *fleet) authoritypb.AuthorityClient {
				first := f.join("runner-1")
				f.join("runner-1")
				return first
			}},
		"expired on a live connection": {authority.EventExpiredCertificate, "the certificate of host runner-1 expired at",
			func(f *fleet) authoritypb.AuthorityClient {
				h := f.join("runner-1")
				f.works(h)
				f.later.Store(int64(authority.HostLifetime + time.Hour))
				return h
			}},
		"not valid yet": {authority.EventWrongCertificate, "is not valid before",
			func(f *fleet) authoritypb.AuthorityClient {
				h := f.join("runner-1")
				f.works(h)
				f.later.Store(int64(-24 * time.Hour))
				return h
			}},
		"revoked on a live connection": {authority.EventRevokedHost, "host runner-1 was revoked at",
			func(f *fleet) authoritypb.AuthorityClient {
				h := f.join("runner-1")
				f.works(h)
				if _, err := f.admin.RevokeHost(f.t.Context(), &authoritypb.RevokeHostRequest{Host: "runner-1"}); err != nil {
					f.t.Fatal(err)
				}
				return h
			}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFleet(t)
			f.join("runner-1")
			peer := c.peer(f)
			asked := len(f.gitlab.asked)
			f.refused(c.event, c.message, func() error {
				_, err := peer.Open(t.Context(), requestFor(1))
				wantCode(t, err, codes.Unauthenticated)
				return err
			})
			if len(f.gitlab.asked) != asked {
				t.Error("GitLab was asked")
			}
		})
	}
}

func (f *fleet) works(h *host) {
	f.t.Helper()
	if _, err := h.Open(f.t.Context(), openRequest()); err != nil {
		f.t.Fatal(err)
	}
}

// TestStolenCertificate holds that a certificate is nothing without its key.
func TestStolenCertificate(t *testing.T) {
	f := newFleet(t)
	stolen := f.join("runner-1").keyPair(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen.PrivateKey, stolen.Leaf = key, nil
	if _, err := f.with(stolen).Open(t.Context(), openRequest()); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestRights(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1", "other/**", "group/project/*")
	f.refused(authority.EventNotPermitted, "host runner-1 may not attest project group/project", func() error {
		_, err := h.Open(t.Context(), openRequest())
		wantCode(t, err, codes.PermissionDenied)
		return err
	})
	f.log.b.Reset()
	asked := len(f.gitlab.asked)
	f.refused(authority.EventNotPermitted, "host runner-1 may not attest profile firewalled", func() error {
		req := openRequest()
		req.Profile = "firewalled"
		_, err := h.Open(t.Context(), req)
		return err
	})
	if len(f.gitlab.asked) != asked {
		t.Error("the job's token was used for a profile that the host does not have")
	}
}

// TestRightsOfAnOpenAttempt has a host join again with fewer rights, while it has
// an attempt open.
func TestRightsOfAnOpenAttempt(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	closing, err := f.record(t.Context(), h, 4242)
	if err != nil {
		t.Fatal(err)
	}
	h = f.join("runner-1", "other/**")
	for what, call := range map[string]func() error{
		"append": func() error {
			_, err := h.Append(t.Context(), &authoritypb.AppendRequest{Attempt: closing.GetAttempt()})
			return err
		},
		"close": func() error { _, err := h.Close(t.Context(), closing); return err },
		"provenance": func() error {
			_, err := h.Provenance(t.Context(), &authoritypb.ProvenanceRequest{Attempt: closing.GetAttempt(), JobId: 1})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied || client.Message(err) != "host runner-1 may not attest project group/project" {
			t.Errorf("%s: %v", what, err)
		}
	}
	h = f.join("runner-1")
	if out, err := h.Close(t.Context(), closing); err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("with its rights again: %v, %v", out, err)
	}
}

// TestRightsWhileItWaits has an attempt wait for GitLab whose host is revoked, or
// loses its right to the project, before GitLab answers.
func TestRightsWhileItWaits(t *testing.T) {
	for event, change := range map[authority.Event]func(*fleet){
		authority.EventRevokedHost: func(f *fleet) {
			if err := f.store.RevokeHost(t.Context(), "runner-1", f.time()); err != nil {
				t.Fatal(err)
			}
		},
		authority.EventNotPermitted: func(f *fleet) { f.join("runner-1", "other/**") },
		"":                          func(*fleet) {},
	} {
		t.Run(string(event), func(t *testing.T) {
			f := newFleetWith(t, func(w *world) { w.change = spool })
			f.gitlab.set(func(g *fakeGitLab) { g.ended = errors.New("connection refused") })
			h := f.join("runner-1")
			if out, err := f.attest(t.Context(), h, 4242); err != nil || !out.GetPending() {
				t.Fatalf("%v, %v", out, err)
			}
			change(f)
			f.gitlab.set(func(g *fakeGitLab) { g.ended = nil })
			f.resume()
			f.resume()
			all, err := f.store.AttemptsOfJob(t.Context(), 4242)
			if err != nil || len(all) != 1 {
				t.Fatalf("%d attempts, %v", len(all), err)
			}
			want := store.StateRefused
			if event == "" {
				want = store.StateClosed
			}
			if all[0].State != want || !strings.Contains(f.log.String(), "event="+string(event)) {
				t.Errorf("%s: %s", all[0].State, all[0].Reason)
			}
		})
	}
}

// TestForeignAttempts holds that no host can touch another's attempt, nor learn
// that there is one.
func TestForeignAttempts(t *testing.T) {
	f := newFleet(t)
	owner, other := f.join("runner-1"), f.join("runner-2")
	res, err := owner.Open(t.Context(), requestFor(4242))
	if err != nil {
		t.Fatal(err)
	}
	lines := f.recordOf(res, 4242)
	sum, err := owner.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: lines})
	if err != nil {
		t.Fatal(err)
	}
	local := localStub(t, f.listen(uint32(os.Getuid())))
	for name, stub := range map[string]authoritypb.AuthorityClient{"another host": other, "the authority's own machine": local} {
		for what, call := range map[string]func(id string) error{
			"append": func(id string) error {
				_, err := stub.Append(t.Context(), &authoritypb.AppendRequest{Attempt: id, Lines: [][]byte{[]byte(`{"seq":7}`)}})
				return err
			},
			"close": func(id string) error {
				_, err := stub.Close(t.Context(), &authoritypb.CloseRequest{Attempt: id, Head: sum.GetHead()})
				return err
			},
		} {
			f.log.b.Reset()
			none := strings.Repeat("0", 32)
			want := strings.Replace(call(none).Error(), none, res.GetAttempt(), 1)
			f.refused(authority.EventForeignAttempt, want, func() error { return call(res.GetAttempt()) })
			if t.Failed() {
				t.Fatalf("%s: %s", name, what)
			}
		}
	}
	f.log.b.Reset()
	if have := f.state(res); have != store.StateOpen {
		t.Errorf("the attempt is %s", have)
	}
	out, err := owner.Close(t.Context(), &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: sum.GetHead()})
	if err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}

func localStub(t testing.TB, socket string) authoritypb.AuthorityClient {
	t.Helper()
	stub, closer, err := client.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closer.Close() })
	return stub
}

// TestTakenJob has a host open a job that another host is about to run.
func TestTakenJob(t *testing.T) {
	f := newFleet(t)
	owner, other := f.join("runner-1"), f.join("runner-2")
	first, err := owner.Open(t.Context(), requestFor(4242))
	if err != nil {
		t.Fatal(err)
	}
	f.refused(authority.EventSecondOpening, "another host has it open", func() error {
		_, err := other.Open(t.Context(), requestFor(4242))
		return err
	})
	if have := f.state(first); have != store.StateOpen {
		t.Errorf("the first is %s", have)
	}
}

func TestRenew(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	before := h.keyPair(t)
	for _, age := range []time.Duration{0, 30 * 24 * time.Hour, 59 * 24 * time.Hour} {
		if renewed, err := h.id.Renew(t.Context(), h, time.Now().Add(age)); renewed || err != nil {
			t.Errorf("after %v: %v, %v", age, renewed, err)
		}
	}
	if renewed, err := h.id.Renew(t.Context(), h, time.Now().Add(61*24*time.Hour)); !renewed || err != nil {
		t.Fatalf("%v, %v", renewed, err)
	}
	after := h.keyPair(t)
	if after.Leaf.SerialNumber.Cmp(before.Leaf.SerialNumber) == 0 || !after.Leaf.PublicKey.(*ecdsa.PublicKey).Equal(before.Leaf.PublicKey) {
		t.Error("want another certificate for the same key")
	}
	f.works(h)             // on the old connection
	f.works(f.dial(h.dir)) // on a new one
	if _, err := f.admin.RevokeHost(t.Context(), &authoritypb.RevokeHostRequest{Host: "runner-1"}); err != nil {
		t.Fatal(err)
	}
	if renewed, err := h.id.Renew(t.Context(), h, time.Now().Add(61*24*time.Hour)); renewed || err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a revoked host renewed: %v, %v", renewed, err)
	}
}

// TestReload holds that an identity which is replaced is used at the next
// connection, without a restart.
func TestReload(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	f.works(h)
	if _, err := client.Join(t.Context(), h.dir, f.invite("runner-1")); err != nil {
		t.Fatal(err)
	}
	_, err := h.Open(t.Context(), openRequest())
	wantCode(t, err, codes.Unauthenticated) // the connection is still the old one
	again, err := client.DialHost(f.address, h.id)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := authoritypb.NewAuthorityClient(again).Open(t.Context(), openRequest()); err != nil {
		t.Errorf("%v", err)
	}
	// A file that others can read is not used.
	if err := os.Chmod(filepath.Join(h.dir, "identity.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := client.OpenIdentity(h.dir); err == nil || !strings.Contains(err.Error(), "lets group or others in") {
		t.Errorf("%v", err)
	}
}

func TestHostsList(t *testing.T) {
	f := newFleet(t)
	f.join("runner-2")
	f.join("runner-1", "a/**")
	if _, err := f.admin.RevokeHost(t.Context(), &authoritypb.RevokeHostRequest{Host: "runner-2"}); err != nil {
		t.Fatal(err)
	}
	res, err := f.admin.ListHosts(t.Context(), &authoritypb.ListHostsRequest{})
	if err != nil || len(res.GetHosts()) != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	a, b := res.GetHosts()[0], res.GetHosts()[1]
	if a.GetName() != "runner-1" || a.GetRevoked() != 0 || a.GetProjects()[0] != "a/**" || b.GetName() != "runner-2" || b.GetRevoked() == 0 {
		t.Errorf("%v", res)
	}
	_, err = f.admin.RevokeHost(t.Context(), &authoritypb.RevokeHostRequest{Host: "runner-3"})
	wantCode(t, err, codes.NotFound)
}

func TestInviteRefusals(t *testing.T) {
	f := newFleet(t)
	for name, change := range map[string]func(*authoritypb.InviteRequest){
		"no name":          func(r *authoritypb.InviteRequest) { r.Host = "" },
		"name with a path": func(r *authoritypb.InviteRequest) { r.Host = "../a" },
		"name with quotes": func(r *authoritypb.InviteRequest) { r.Host = `a",code="OK` },
		"no project":       func(r *authoritypb.InviteRequest) { r.Projects = nil },
		"bad glob":         func(r *authoritypb.InviteRequest) { r.Projects = []string{"a/["} },
		"many projects":    func(r *authoritypb.InviteRequest) { r.Projects = make([]string, 65) },
		"no profile":       func(r *authoritypb.InviteRequest) { r.Profiles = nil },
		"unknown profile":  func(r *authoritypb.InviteRequest) { r.Profiles = []string{"open"} },
		"no time":          func(r *authoritypb.InviteRequest) { r.Seconds = 0 },
		"a year":           func(r *authoritypb.InviteRequest) { r.Seconds = 365 * 86400 },
		"overflow":         func(r *authoritypb.InviteRequest) { r.Seconds = 1 << 62 },
		"no address":       func(r *authoritypb.InviteRequest) { r.Address = "" },
		"bad address":      func(r *authoritypb.InviteRequest) { r.Address = "a/b:1" },
	} {
		req := &authoritypb.InviteRequest{Host: "runner-1", Projects: []string{"group/**"}, Profiles: []string{"hermetic"}, Seconds: 60, Address: f.address}
		change(req)
		_, err := f.admin.Invite(t.Context(), req)
		if wantCode(t, err, codes.InvalidArgument); t.Failed() {
			t.Fatal(name)
		}
	}
	w := newWorld(t)
	conn, err := client.DialSocket(w.listen(uint32(os.Getuid())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = authoritypb.NewAdminClient(conn).Invite(t.Context(), &authoritypb.InviteRequest{Host: "runner-1"})
	wantCode(t, err, codes.FailedPrecondition)
}

// TestServicesApart holds that each way in leads to its own services alone.
func TestServicesApart(t *testing.T) {
	f := newFleet(t)
	h := f.join("runner-1")
	_, err := authoritypb.NewAdminClient(h.conn).ListHosts(t.Context(), &authoritypb.ListHostsRequest{})
	wantCode(t, err, codes.Unimplemented)
	conn, err := client.DialSocket(f.listen(uint32(os.Getuid())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = authoritypb.NewEnrolmentClient(conn).Join(t.Context(), &authoritypb.JoinRequest{})
	wantCode(t, err, codes.Unimplemented)
	plain, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, err = authoritypb.NewAuthorityClient(plain).Open(t.Context(), openRequest())
	wantCode(t, err, codes.Unavailable)
	old, err := tls.Dial("tcp", f.address, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	if err == nil {
		old.Close()
		t.Error("TLS 1.2 was spoken")
	}
}

func TestHostCA(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys", "hosts.pem")
	first, err := authority.OpenHostCA(file, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	again, err := authority.OpenHostCA(file, time.Now)
	if err != nil || again.Pin() != first.Pin() {
		t.Errorf("another key after a restart: %v", err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(rest) == 0 {
		t.Fatal("no key and certificate")
	}
	for name, spoil := range map[string]func() error{
		"no key":   func() error { return os.WriteFile(file, rest, 0o600) },
		"no cert":  func() error { return os.WriteFile(file, pem.EncodeToMemory(block), 0o600) },
		"rubbish":  func() error { return os.WriteFile(file, []byte("x"), 0o600) },
		"readable": func() error { return errors.Join(os.WriteFile(file, text, 0o600), os.Chmod(file, 0o640)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := authority.OpenHostCA(file, time.Now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// request is a certificate request for a key of some kind.
func request(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCertificateRequests(t *testing.T) {
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	large, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := authority.RequestedKey(request(t, good)); err != nil || !good.PublicKey.Equal(key) {
		t.Errorf("%v, %v", key, err)
	}
	unsigned := request(t, good)
	unsigned[len(unsigned)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing": nil, "P-384": request(t, large), "RSA": request(t, weak), "signature of another": unsigned,
		"followed by more": append(request(t, good), 0), "large": make([]byte, 20<<10),
	} {
		if _, err := authority.RequestedKey(der); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzCertificateRequest holds that no request makes the authority panic, or is
// taken with another kind of key.
func FuzzCertificateRequest(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request(f, key))
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		public, err := authority.RequestedKey(der)
		if err != nil {
			return
		}
		switch public.(type) {
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			t.Errorf("%T", public)
		}
	})
}
