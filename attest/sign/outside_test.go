package sign_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hallmark.build/attest/sign"
)

const (
	identity       = "spiffe://ci.example.com/hallmark-attestd"
	identityIssuer = "https://idp.example.com"
)

// An outside is a certificate authority with a root, as an outside service is.
type outside struct {
	root, leaf       *x509.Certificate
	rootKey, leafKey *ecdsa.PrivateKey
}

func newOutside(t testing.TB, use x509.ExtKeyUsage) *outside {
	t.Helper()
	o := &outside{rootKey: newKey(t), leafKey: newKey(t)}
	o.root = certificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "outside"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{use},
	}, nil, &o.rootKey.PublicKey, o.rootKey)
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		t.Fatal(err)
	}
	o.leaf = certificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "outside leaf"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	}, o.root, &o.leafKey.PublicKey, o.rootKey)
	return o
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func certificate(t testing.TB, template, parent *x509.Certificate, pub any, k crypto.Signer) *x509.Certificate {
	t.Helper()
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(time.Now().UnixNano())
	}
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, k)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// trusted is the entry of a trusted root.
func (o *outside) trusted(chain ...*x509.Certificate) []*trustpb.CertificateAuthority {
	a := &trustpb.CertificateAuthority{
		CertChain: &commonpb.X509CertificateChain{}, ValidFor: &commonpb.TimeRange{Start: timestamppb.New(time.Now().Add(-time.Hour))},
	}
	for _, c := range append(chain, o.root) {
		a.CertChain.Certificates = append(a.CertChain.Certificates, &commonpb.X509Certificate{RawBytes: c.Raw})
	}
	return []*trustpb.CertificateAuthority{a}
}

func extension(t testing.TB, last int, value string) pkix.Extension {
	t.Helper()
	der, err := asn1.MarshalWithParams(value, "utf8")
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, last}, Value: der}
}

// A fakeFulcio answers as Fulcio does, but for what a test changes.
type fakeFulcio struct {
	*outside
	t        testing.TB
	token    string
	requests atomic.Int64
	template func(*x509.Certificate)                                // changes the certificate
	key      func(*ecdsa.PublicKey) *ecdsa.PublicKey                // and its key
	promise  func(without, issuer *x509.Certificate) pkix.Extension // that it will be listed
	answer   func(w http.ResponseWriter, r *http.Request) bool      // answers in its place
	body     func(string) string                                    // changes the JSON
}

func (f *fakeFulcio) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	if f.answer != nil && f.answer(w, r) {
		return
	}
	var in struct {
		Credentials struct{ OIDCIdentityToken string }
		Request     []byte `json:"certificateSigningRequest"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != "/api/v2/signingCert" || r.Method != http.MethodPost {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	if in.Credentials.OIDCIdentityToken != f.token {
		http.Error(w, `{"code":16,"message":"There was an error processing the identity token"}`, http.StatusUnauthorized)
		return
	}
	b, _ := pem.Decode(in.Request)
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	pub := csr.PublicKey.(*ecdsa.PublicKey)
	uri, _ := url.Parse(identity)
	template := &x509.Certificate{
		NotBefore: time.Now().Truncate(time.Second), NotAfter: time.Now().Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		URIs: []*url.URL{uri}, ExtraExtensions: []pkix.Extension{extension(f.t, 8, identityIssuer)},
	}
	if f.template != nil {
		f.template(template)
	}
	if f.key != nil {
		pub = f.key(pub)
	}
	c := certificate(f.t, template, f.root, pub, f.rootKey)
	if f.promise != nil {
		template.ExtraExtensions = append(template.ExtraExtensions, f.promise(c, f.root))
		c = certificate(f.t, template, f.root, pub, f.rootKey)
	}
	chain := []string{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.root.Raw})),
	}
	text, err := json.Marshal(map[string]any{"signedCertificateEmbeddedSct": map[string]any{"chain": map[string]any{"certificates": chain}}})
	if err != nil {
		f.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := string(text)
	if f.body != nil {
		out = f.body(out)
	}
	fmt.Fprint(w, out)
}

// A fakeTSA answers as an RFC 3161 authority does, but for what a test changes.
type fakeTSA struct {
	*outside
	t      testing.TB
	stamp  func(*timestamp.Timestamp)
	answer func(w http.ResponseWriter, r *http.Request) bool
	signer *outside // signs in its place
}

func (f *fakeTSA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.answer != nil && f.answer(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	q, err := timestamp.ParseRequest(body)
	if err != nil || r.Header.Get("Content-Type") != "application/timestamp-query" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	ts := timestamp.Timestamp{
		HashAlgorithm: q.HashAlgorithm, HashedMessage: q.HashedMessage, Nonce: q.Nonce, Time: time.Now().UTC().Truncate(time.Second),
		Policy: asn1.ObjectIdentifier{1, 2, 3}, AddTSACertificate: q.Certificates,
	}
	if f.stamp != nil {
		f.stamp(&ts)
	}
	by := f.outside
	if f.signer != nil {
		by = f.signer
	}
	out, err := ts.CreateResponseWithOpts(by.leaf, by.leafKey, crypto.SHA256)
	if err != nil {
		f.t.Error(err)
	}
	w.Header().Set("Content-Type", "application/timestamp-reply")
	_, _ = w.Write(out)
}

// services is a signer that uses both.
type services struct {
	fulcio *fakeFulcio
	tsa    *fakeTSA
	o      sign.Options
}

func newServices(t testing.TB) *services {
	t.Helper()
	dir := t.TempDir()
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("the-authority's-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &services{
		fulcio: &fakeFulcio{outside: newOutside(t, x509.ExtKeyUsageCodeSigning), t: t, token: "the-authority's-token"},
		tsa:    &fakeTSA{outside: newOutside(t, x509.ExtKeyUsageTimeStamping), t: t},
	}
	fulcio, tsa := httptest.NewTLSServer(s.fulcio), httptest.NewTLSServer(s.tsa)
	t.Cleanup(fulcio.Close)
	t.Cleanup(tsa.Close)
	roots := x509.NewCertPool()
	roots.AddCert(fulcio.Certificate())
	s.o = sign.Options{
		Dir: filepath.Join(dir, "keys"), Issuer: issuer,
		Fulcio:    &sign.Fulcio{URL: fulcio.URL + "/", TokenFile: token, Identity: identity, Issuer: identityIssuer, Roots: roots},
		Timestamp: &sign.TimestampService{URL: tsa.URL, Roots: roots},
		Trusted: &trustpb.TrustedRoot{
			CertificateAuthorities: s.fulcio.trusted(), TimestampAuthorities: s.tsa.trusted(s.tsa.leaf),
		},
	}
	return s
}

func (s *services) sign(t *testing.T) ([]byte, *sign.Signer, error) {
	t.Helper()
	signer, err := sign.Open(t.Context(), s.o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { signer.Close() })
	b, err := signer.Sign(t.Context(), statement(t, job(), builderID))
	return b, signer, err
}

func TestOutsideServices(t *testing.T) {
	s := newServices(t)
	b, signer, err := s.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := check(signer, b, identity, identityIssuer, "content"); err != nil {
		t.Error(err)
	}
	if check(signer, b, builderID, issuer, "content") == nil {
		t.Error("it is signed under the authority's own name, too")
	}
	if found, err := filepath.Glob(filepath.Join(s.o.Dir, "*")); err != nil || len(found) != 0 {
		t.Errorf("keys were made that nobody needs: %v, %v", found, err)
	}
	for _, role := range []sign.Role{sign.RoleCA, sign.RoleTimestamp} {
		if _, err := sign.Rotate(t.Context(), s.o, role, 0); err == nil {
			t.Errorf("%s: rotated", role)
		}
	}
}

// TestOneOutsideService has the rest built in, and what was signed before the
// change stays good.
func TestOneOutsideService(t *testing.T) {
	s := newServices(t)
	builtIn := sign.Options{Dir: s.o.Dir, Issuer: issuer}
	before, err := sign.Open(t.Context(), builtIn)
	if err != nil {
		t.Fatal(err)
	}
	old := signed(t, before)
	for name, change := range map[string]func(*sign.Options){
		"fulcio": func(o *sign.Options) { o.Timestamp = nil }, "timestamp": func(o *sign.Options) { o.Fulcio = nil }, "both": func(*sign.Options) {},
	} {
		t.Run(name, func(t *testing.T) {
			one := *s
			change(&one.o)
			b, signer, err := one.sign(t)
			if err != nil {
				t.Fatal(err)
			}
			who, by := builderID, issuer
			if one.o.Fulcio != nil {
				who, by = identity, identityIssuer
			}
			if err := check(signer, b, who, by, "content"); err != nil {
				t.Error(err)
			}
			if err := check(signer, old, builderID, issuer, "content"); err != nil {
				t.Errorf("signed before: %v", err)
			}
		})
	}
}

func TestTokenIsReadAnew(t *testing.T) {
	s := newServices(t)
	_, signer, err := s.sign(t)
	if err != nil {
		t.Fatal(err)
	}
	st := statement(t, job(), builderID)
	s.fulcio.token = "another"
	_, err = signer.Sign(t.Context(), st)
	if err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "the-authority's-token") {
		t.Errorf("the old token: %v", err)
	}
	s.fulcio.answer = func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "bad token the-authority's-token", http.StatusUnauthorized)
		return true
	}
	if _, err = signer.Sign(t.Context(), st); err == nil || strings.Contains(err.Error(), "the-authority's-token") {
		t.Errorf("an answer that quotes it: %v", err)
	}
	s.fulcio.answer = nil
	if err := os.WriteFile(s.o.Fulcio.TokenFile, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := signer.Sign(t.Context(), st); err != nil {
		t.Errorf("the new one: %v", err)
	}
	if err := os.Chmod(s.o.Fulcio.TokenFile, 0o644); err != nil {
		t.Fatal(err)
	}
	asked := s.fulcio.requests.Load()
	if _, err := signer.Sign(t.Context(), st); err == nil || s.fulcio.requests.Load() != asked {
		t.Errorf("a token that others can read: %v", err)
	}
}

func TestFulciosThatAreNotBelieved(t *testing.T) {
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	template := func(f func(*x509.Certificate)) func(*fakeFulcio) {
		return func(x *fakeFulcio) { x.template = f }
	}
	body := func(f func(string) string) func(*fakeFulcio) { return func(x *fakeFulcio) { x.body = f } }
	for name, tt := range map[string]struct {
		change func(*fakeFulcio)
		want   string
	}{
		"a job's identity": {template(func(c *x509.Certificate) {
			c.URIs = uri("https://gitlab.example.com/group/project//.gitlab-ci.yml@refs/heads/main")
		}), "want \"spiffe://"},
		"a job's claims": {template(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, extension(t, 21, "https://gitlab.example.com/group/project/-/jobs/1"))
		}), "names a job"},
		"a GitHub job": {template(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, extension(t, 5, "group/project"))
		}), "names a job"},
		"a job's project":  {template(func(c *x509.Certificate) { c.ExtraExtensions = append(c.ExtraExtensions, extension(t, 15, "7")) }), "names a job"},
		"two identities":   {template(func(c *x509.Certificate) { c.EmailAddresses = []string{"a@example.com"} }), "alone"},
		"no identity":      {template(func(c *x509.Certificate) { c.URIs = nil }), "it names []"},
		"identity in case": {template(func(c *x509.Certificate) { c.URIs = uri("spiffe://ci.example.com/Hallmark-attestd") }), "alone"},
		"a mail identity":  {template(func(c *x509.Certificate) { c.URIs, c.EmailAddresses = nil, []string{"spiffe@example.com"} }), "alone"},
		"another issuer":   {template(func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{extension(t, 8, identityIssuer+"/")} }), "its issuer is"},
		"no issuer":        {template(func(c *x509.Certificate) { c.ExtraExtensions = nil }), "its issuer is"},
		"two issuers": {template(func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte("https://x")})
		}), "two issuers"},
		"another key":       {func(f *fakeFulcio) { f.key = func(*ecdsa.PublicKey) *ecdsa.PublicKey { return &newKey(t).PublicKey } }, "another key"},
		"another authority": {func(f *fakeFulcio) { f.outside = newOutside(t, x509.ExtKeyUsageCodeSigning) }, "certificate: x509"},
		"not for signing":   {template(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "incompatible key usage"},
		"ended": {template(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), "expired"},
		"not begun": {template(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(5 * time.Minute) }), "and it is"},
		"two chains": {body(func(s string) string {
			return strings.Replace(s, "{", `{"signedCertificateDetachedSct":{"chain":{"certificates":["x"]}},`, 1)
		}), "two chains"},
		"no chain": {body(func(string) string { return `{}` }), "no certificate"},
		"no JSON":  {body(func(string) string { return `<html>` }), "not JSON"},
		"no PEM":   {body(func(string) string { return `{"signedCertificateEmbeddedSct":{"chain":{"certificates":["x"]}}}` }), "not one certificate"},
		"huge":     {body(func(s string) string { return s + strings.Repeat(" ", 1<<20) }), "more than"},
		"an error": {func(f *fakeFulcio) {
			f.answer = func(w http.ResponseWriter, _ *http.Request) bool {
				http.Error(w, "\x1b[2Jdown", http.StatusServiceUnavailable)
				return true
			}
		}, "503 Service Unavailable: [2Jdown"},
		"a redirect": {func(f *fakeFulcio) {
			f.answer = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "https://elsewhere.example.com/", http.StatusTemporaryRedirect)
				return true
			}
		}, "307"},
		"another type": {func(f *fakeFulcio) {
			f.answer = func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "{}"); return true }
		}, "answer of type"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServices(t)
			tt.change(s.fulcio)
			if _, _, err := s.sign(t); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestTimestampAuthoritiesThatAreNotBelieved(t *testing.T) {
	stamp := func(f func(*timestamp.Timestamp)) func(*fakeTSA) { return func(x *fakeTSA) { x.stamp = f } }
	say := func(kind string, text []byte) func(*fakeTSA) {
		return func(x *fakeTSA) {
			x.answer = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Type", kind)
				_, _ = w.Write(text)
				return true
			}
		}
	}
	rejection, err := timestamp.CreateErrorResponse(timestamp.Rejection, timestamp.SystemFailure)
	if err != nil {
		t.Fatal(err)
	}
	const reply = "application/timestamp-reply"
	for name, tt := range map[string]struct {
		change func(*fakeTSA)
		want   string
	}{
		"another nonce":     {stamp(func(ts *timestamp.Timestamp) { ts.Nonce = big.NewInt(1) }), "nonce"},
		"no nonce":          {stamp(func(ts *timestamp.Timestamp) { ts.Nonce = nil }), "nonce"},
		"another hash":      {stamp(func(ts *timestamp.Timestamp) { ts.HashedMessage = bytes.Repeat([]byte{1}, 32) }), "hashed messages don't match"},
		"from the past":     {stamp(func(ts *timestamp.Timestamp) { ts.Time = ts.Time.Add(-10 * time.Minute) }), "its time is"},
		"from the future":   {stamp(func(ts *timestamp.Timestamp) { ts.Time = ts.Time.Add(10 * time.Minute) }), "its time is"},
		"before its window": {stamp(func(ts *timestamp.Timestamp) { ts.Time = ts.Time.Add(-2 * time.Hour) }), "timestamp: "},
		"another authority": {func(f *fakeTSA) { f.signer = newOutside(t, x509.ExtKeyUsageTimeStamping) }, "certificate"},
		"rejection":         {say(reply, rejection), "rejected"},
		"rubbish":           {say(reply, []byte("rubbish")), "asn1"},
		"nothing":           {say(reply, nil), "answer"},
		"huge":              {say(reply, make([]byte, 1<<20)), "more than"},
		"HTML":              {say("text/html", []byte("<html>")), "answer of type"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServices(t)
			tt.change(s.tsa)
			if _, _, err := s.sign(t); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestOutsideServicesThatAreMisconfigured(t *testing.T) {
	for name, change := range map[string]func(*sign.Options){
		"no trusted root":         func(o *sign.Options) { o.Trusted = nil },
		"no trusted certificates": func(o *sign.Options) { o.Trusted.CertificateAuthorities = nil },
		"no trusted timestamps":   func(o *sign.Options) { o.Trusted.TimestampAuthorities = nil },
		"a broken trusted root":   func(o *sign.Options) { o.Trusted.CertificateAuthorities[0].CertChain = nil },
		"no identity":             func(o *sign.Options) { o.Fulcio.Identity = "" },
		"no issuer":               func(o *sign.Options) { o.Fulcio.Issuer = "" },
		"no token file":           func(o *sign.Options) { o.Fulcio.TokenFile = "" },
		"no timestamp URL":        func(o *sign.Options) { o.Timestamp.URL = "" },
	} {
		s := newServices(t)
		change(&s.o)
		if signer, err := sign.Open(t.Context(), s.o); err == nil {
			signer.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

// TestServiceOfAnotherTLSRoot is asked nothing.
func TestServiceOfAnotherTLSRoot(t *testing.T) {
	s := newServices(t)
	s.o.Fulcio.Roots = x509.NewCertPool()
	_, _, err := s.sign(t)
	if unknown := (x509.UnknownAuthorityError{}); !errors.As(err, &unknown) || s.fulcio.requests.Load() != 0 {
		t.Errorf("%v, after %d requests", err, s.fulcio.requests.Load())
	}
}

func TestTrustedRootsThatAreRefused(t *testing.T) {
	good, err := sign.EncodeTrustedRoot(newServices(t).o.Trusted)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sign.ParseTrustedRoot(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "[]", "{", string(good) + "{}", strings.Replace(string(good), "{", `{"trust":1,`, 1), strings.Replace(string(good), `"rawBytes":"MII`, `"rawBytes":"MIJ`, 1), strings.Repeat(" ", 8<<20)} {
		if _, err := sign.ParseTrustedRoot([]byte(bad)); err == nil {
			t.Errorf("%.60q: taken", bad)
		}
	}
}

func TestServiceThatNeverAnswers(t *testing.T) {
	s := newServices(t)
	s.fulcio.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		_, _ = io.Copy(io.Discard, r.Body) // only then is it noticed that nobody waits
		<-r.Context().Done()
		return true
	}
	signer, err := sign.Open(t.Context(), s.o)
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := signer.Sign(ctx, statement(t, job(), builderID)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
