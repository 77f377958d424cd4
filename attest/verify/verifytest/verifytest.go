// Package verifytest makes bundles and trusted roots, sound and forged, for tests of verifiers.
//
// It has a certificate authority, a timestamp authority and a signer of its
// own, and signs whatever it is told to. It shares no code with the authority's
// signer, so that a test of both finds where they differ.
package verifytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/digitorus/timestamp"
)

// What the statements and bundles say unless a test changes it.
const (
	BuilderID = "https://ci.example.com/hallmark/hermetic"
	Issuer    = "https://ci.example.com/hallmark"
	Source    = "https://gitlab.example.com/acme/app.git"
	Ref       = "refs/heads/main"
	Commit    = "4f1c2e9d8b7a6f5e4d3c2b1a09f8e7d6c5b4a392"
	Policy    = `builder_ids = ["` + BuilderID + `"]
issuer = "` + Issuer + `"
source = "` + Source + `"
ref = "` + Ref + `"
`
)

// SignedAt is when bundles were signed unless a test says otherwise.
func SignedAt() time.Time { return time.Date(2026, 11, 22, 10, 4, 5, 0, time.UTC) }

// Artifact is the content of the artifact that statements attest.
func Artifact() []byte { return []byte("the artifact\n") }

// A Pair is a key with its certificate.
type Pair struct {
	Key  *ecdsa.PrivateKey
	Cert *x509.Certificate
}

// An Authority can sign anything.
type Authority struct {
	t testing.TB

	Root         Pair // of certificates
	Intermediate *Pair
	TSARoot      Pair
	TSA          Pair

	// Logs are added to the trusted root as they are.
	Logs []any
}

// New makes an authority whose certificates hold from 2026 for ten years.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{t: t}
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a.Root = a.Issue(ca("test root", x509.ExtKeyUsageCodeSigning, from, from.AddDate(10, 0, 0)), nil)
	a.TSARoot = a.Issue(ca("test time root", x509.ExtKeyUsageTimeStamping, from, from.AddDate(10, 0, 0)), nil)
	a.TSA = a.Issue(TSATemplate(from, from.AddDate(10, 0, 0)), &a.TSARoot)
	return a
}

// WithIntermediate puts an intermediate with the given validity between root
// and leaves.
func (a *Authority) WithIntermediate(from, until time.Time) *Authority {
	p := a.Issue(ca("test intermediate", x509.ExtKeyUsageCodeSigning, from, until), &a.Root)
	a.Intermediate = &p
	return a
}

func ca(name string, use x509.ExtKeyUsage, from, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"Test"}, CommonName: name}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{use}, BasicConstraintsValid: true, IsCA: true,
	}
}

// TSATemplate is a timestamp authority's certificate.
func TSATemplate(from, until time.Time) *x509.Certificate {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		Subject: pkix.Name{Organization: []string{"Test"}, CommonName: "test time"}, NotBefore: from, NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage}},
	}
}

// Issue makes a P-256 key and its certificate; no parent means self-signed.
func (a *Authority) Issue(template *x509.Certificate, parent *Pair) Pair {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	return Pair{key, a.certificate(template, parent, &key.PublicKey, key)}
}

func (a *Authority) certificate(template *x509.Certificate, parent *Pair, pub crypto.PublicKey, own crypto.Signer) *x509.Certificate {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	a.check(err)
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	signerCert, signer := template, own
	if parent != nil {
		signerCert, signer = parent.Cert, parent.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signerCert, pub, signer)
	a.check(err)
	cert, err := x509.ParseCertificate(der)
	a.check(err)
	return cert
}

func (a *Authority) check(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

// TrustedRoot is what verifiers are given, after the edits.
func (a *Authority) TrustedRoot(edits ...func(root map[string]any)) []byte {
	a.t.Helper()
	chain := []*x509.Certificate{a.Root.Cert}
	if a.Intermediate != nil {
		chain = []*x509.Certificate{a.Intermediate.Cert, a.Root.Cert}
	}
	root := map[string]any{
		"mediaType":              "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"certificateAuthorities": []any{entry(chain...)},
		"timestampAuthorities":   []any{entry(a.TSA.Cert, a.TSARoot.Cert)},
	}
	if a.Logs != nil {
		root["tlogs"] = a.Logs
	}
	for _, edit := range edits {
		edit(root)
	}
	return a.json(root)
}

// Authorities are the authority's own entries in a trusted root, of certificates
// and of time, each trusted until a time if that is given.
func (a *Authority) Authorities(until string) (certificates, time map[string]any) {
	certificates, time = entry(a.Root.Cert), entry(a.TSA.Cert, a.TSARoot.Cert)
	if until != "" {
		certificates["validFor"].(map[string]any)["end"] = until
		time["validFor"].(map[string]any)["end"] = until
	}
	return certificates, time
}

func entry(chain ...*x509.Certificate) map[string]any {
	var certs []any
	for _, c := range chain {
		certs = append(certs, map[string]any{"rawBytes": b64(c.Raw)})
	}
	return map[string]any{
		"subject": map[string]any{"organization": "Test", "commonName": chain[0].Subject.CommonName}, "uri": Issuer,
		"certChain": map[string]any{"certificates": certs},
		"validFor":  map[string]any{"start": "2026-01-01T00:00:00Z"},
	}
}

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func (a *Authority) json(v any) []byte {
	a.t.Helper()
	text, err := json.Marshal(v)
	a.check(err)
	return text
}

// A Forgery is all that goes into a bundle, for tests to change.
type Forgery struct {
	PayloadType string
	Identity    string // URI SAN
	SignedAt    time.Time
	Leaf        *x509.Certificate // template
	LeafKey     crypto.Signer
	Parent      *Pair // who issues the leaf
	TSA         *Pair // who signs the time

	// Steps between making and encoding.
	Signature  func(sig []byte) []byte
	Stamped    func(sig []byte) []byte   // what the time is signed over
	Timestamps func(tok []byte) [][]byte // the tokens that go into the bundle
	Payload    func(p []byte) []byte     // what is carried in place of what was signed
	Bundle     func(b map[string]any)    // the bundle before it is encoded
	LogEntries func(f Signed) []any
}

// Signed is what a transparency log would get to see.
type Signed struct {
	Leaf        *x509.Certificate
	PayloadType string
	Payload     []byte
	Signature   []byte
}

// Bundle signs a statement, each edit changing how.
func (a *Authority) Bundle(statement []byte, edits ...func(*Forgery)) []byte {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	f := &Forgery{
		PayloadType: "application/vnd.in-toto+json", Identity: BuilderID, SignedAt: SignedAt(),
		LeafKey: key, Parent: &a.Root, TSA: &a.TSA,
	}
	if a.Intermediate != nil {
		f.Parent = a.Intermediate
	}
	f.Leaf = LeafTemplate(f.Identity, Issuer, f.SignedAt)
	for _, edit := range edits {
		edit(f)
	}
	leaf := a.certificate(f.Leaf, f.Parent, f.LeafKey.Public(), f.LeafKey)
	sig := a.sign(f.LeafKey, f.PayloadType, statement)
	if f.Signature != nil {
		sig = f.Signature(sig)
	}
	stamped := sig
	if f.Stamped != nil {
		stamped = f.Stamped(sig)
	}
	tokens := [][]byte{a.Timestamp(f.TSA, stamped, f.SignedAt)}
	if f.Timestamps != nil {
		tokens = f.Timestamps(tokens[0])
	}
	payload := statement
	if f.Payload != nil {
		payload = f.Payload(statement)
	}
	var stamps []any
	for _, token := range tokens {
		stamps = append(stamps, map[string]any{"signedTimestamp": b64(token)})
	}
	material := map[string]any{
		"certificate":               map[string]any{"rawBytes": b64(leaf.Raw)},
		"timestampVerificationData": map[string]any{"rfc3161Timestamps": stamps},
	}
	if f.LogEntries != nil {
		material["tlogEntries"] = f.LogEntries(Signed{leaf, f.PayloadType, payload, sig})
	}
	bundle := map[string]any{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": material,
		"dsseEnvelope": map[string]any{
			"payload": b64(payload), "payloadType": f.PayloadType,
			"signatures": []any{map[string]any{"sig": b64(sig)}},
		},
	}
	if f.Bundle != nil {
		f.Bundle(bundle)
	}
	return a.json(bundle)
}

// LeafTemplate is the certificate of a signer.
func LeafTemplate(identity, issuer string, at time.Time) *x509.Certificate {
	san, err := url.Parse(identity)
	if err != nil {
		panic(err)
	}
	der, err := asn1.MarshalWithParams(issuer, "utf8")
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		NotBefore: at, NotAfter: at.Add(10 * time.Minute), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, BasicConstraintsValid: true, URIs: []*url.URL{san},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, Value: []byte(issuer)},
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: der},
		},
	}
}

func (a *Authority) sign(key crypto.Signer, payloadType string, payload []byte) []byte {
	a.t.Helper()
	digest := sha256.Sum256(pae(payloadType, payload))
	sig, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	a.check(err)
	return sig
}

func pae(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// Timestamp signs the time over a signature.
func (a *Authority) Timestamp(tsa *Pair, signature []byte, at time.Time) []byte {
	a.t.Helper()
	digest := sha256.Sum256(signature)
	t := timestamp.Timestamp{
		HashAlgorithm: crypto.SHA256, HashedMessage: digest[:], Time: at, Accuracy: time.Second,
		Policy: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}, AddTSACertificate: true,
	}
	token, err := t.CreateResponseWithOpts(tsa.Cert, tsa.Key, crypto.SHA256)
	a.check(err)
	return token
}

// Statement is a sound statement about [Artifact], changed by each edit. Edits
// see it as JSON is decoded, with numbers as float64.
func Statement(edits ...func(s map[string]any)) []byte {
	var s map[string]any
	if err := json.Unmarshal([]byte(statement(sha256.Sum256(Artifact()))), &s); err != nil {
		panic(err)
	}
	for _, edit := range edits {
		edit(s)
	}
	text, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return text
}

// At returns the object at the path of keys within a statement.
func At(s map[string]any, path ...string) map[string]any {
	for _, key := range path {
		s = s[key].(map[string]any)
	}
	return s
}

func statement(digest [sha256.Size]byte) string {
	return fmt.Sprintf(`{
 "_type": "https://in-toto.io/Statement/v1",
 "subject": [
  {"name": "artifacts.zip", "digest": {"sha256": "1111111111111111111111111111111111111111111111111111111111111111"}},
  {"name": "dist/app", "digest": {"sha256": "%x"}}
 ],
 "predicateType": "https://slsa.dev/provenance/v1",
 "predicate": {
  "buildDefinition": {
   "buildType": "https://hallmark.build/gitlab-job/v1",
   "externalParameters": {
    "source": "https://gitlab.example.com/acme/app.git", "ref": "refs/heads/main", "project": "acme/app",
    "jobName": "build", "jobStage": "build", "profile": "hermetic",
    "image": {"name": "registry.example.com/ci/go:1"},
    "variables": [{"name": "CI", "value": "true", "public": true}, {"name": "TOKEN", "commitment": "00", "masked": true}],
    "steps": [{"name": "script", "digest": "00"}]
   },
   "internalParameters": {
    "executorVersion": "1", "kernel": "6.1",
    "gitlab": {"url": "https://gitlab.example.com", "jobId": "4711", "sha": "%[2]s", "refType": "branch", "protected": true}
   },
   "resolvedDependencies": [
    {"name": "source", "uri": "git+https://gitlab.example.com/acme/app.git@refs/heads/main",
     "digest": {"gitCommit": "%[2]s", "gitTree": "%[2]s"}},
    {"name": "registry.example.com/ci/go@sha256:2222222222222222222222222222222222222222222222222222222222222222",
     "uri": "pkg:oci/go@sha256%%3A2222222222222222222222222222222222222222222222222222222222222222?repository_url=registry.example.com%%2Fci%%2Fgo",
     "digest": {"sha256": "2222222222222222222222222222222222222222222222222222222222222222"}, "annotations": {"kind": "image"}},
    {"uri": "https://proxy.example.com/mod.zip", "digest": {"sha256": "3333333333333333333333333333333333333333333333333333333333333333"}}
   ]
  },
  "runDetails": {
   "builder": {"id": "https://ci.example.com/hallmark/hermetic", "version": {"hallmark-attestd": "1"}},
   "metadata": {"invocationId": "https://ci.example.com/hallmark/attempts/1",
    "startedOn": "2026-11-22T10:00:00.000000Z", "finishedOn": "2026-11-22T10:04:00.000000Z"},
   "byproducts": []
  },
  "hallmark_completeness": {"sources": "hermetic", "images": "hermetic", "packages": "hermetic", "files": "hermetic",
   "artifacts": "border", "caches": "border"},
  "hallmark_result": {"result": "success", "exitCode": 0, "stages": []},
  "hallmark_source": {"outcome": "match", "commit": "%[2]s", "files": 3, "bytes": 30}
 }
}`, digest, Commit)
}
