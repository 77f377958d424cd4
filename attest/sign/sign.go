package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/digitorus/timestamp"
	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hallmark.build/attest"
)

// LeafLifetime is how long a signing certificate is valid.
const LeafLifetime = 10 * time.Minute

// Media types of what is written.
const (
	BundleMediaType      = "application/vnd.dev.sigstore.bundle.v0.3+json"
	TrustedRootMediaType = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
)

// tsaPolicy is the policy under which time is signed: the host's clock, no
// more. It is the object identifier that Sigstore's own authority uses.
func tsaPolicy() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2} }

// Fulcio's names for the issuer in a certificate.
func issuerOIDs() (v1, v2 asn1.ObjectIdentifier) {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
}

// Options of a Signer.
type Options struct {
	Issuer string           // names the authority in certificates and the trusted root
	Now    func() time.Time // the authority's clock; nil means time.Now
}

// A Signer signs statements. It is safe for concurrent use.
type Signer struct {
	id     *identity
	issuer string
	now    func() time.Time
}

// Open reads the keys in dir, a directory for its owner alone, and makes them
// on first use.
func Open(dir string, o Options) (*Signer, error) {
	if o.Issuer == "" {
		return nil, errors.New("sign: issuer is empty")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	id, err := load(dir, o.Now())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return &Signer{id: id, issuer: o.Issuer, now: o.Now}, nil
}

// Sign makes the bundle of a statement that package attest has made. The
// statement's bytes are in it as they are.
func (s *Signer) Sign(ctx context.Context, st attest.Statement) ([]byte, error) {
	if !st.Intact() {
		return nil, errors.New("sign: not a statement made from a record")
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	now := s.now().UTC().Truncate(time.Second)
	leaf, err := s.leaf(st.BuilderID, now)
	if err != nil {
		return nil, fmt.Errorf("sign: certificate: %w", err)
	}
	digest := sha256.Sum256(pae(attest.PayloadType, st.JSON))
	signature, err := ecdsa.SignASN1(rand.Reader, s.id.key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	token, err := s.timestamp(signature, now)
	if err != nil {
		return nil, fmt.Errorf("sign: timestamp: %w", err)
	}
	if err := s.verify(leaf, digest[:], signature, token, now); err != nil {
		return nil, fmt.Errorf("sign: own signature: %w", err)
	}
	return encode(&bundlepb.Bundle{
		MediaType: BundleMediaType,
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content: &bundlepb.VerificationMaterial_Certificate{
				Certificate: &commonpb.X509Certificate{RawBytes: leaf.Raw},
			},
			TimestampVerificationData: &bundlepb.TimestampVerificationData{
				Rfc3161Timestamps: []*commonpb.RFC3161SignedTimestamp{{SignedTimestamp: token}},
			},
		},
		Content: &bundlepb.Bundle_DsseEnvelope{DsseEnvelope: &dssepb.Envelope{
			Payload:     st.JSON,
			PayloadType: attest.PayloadType,
			Signatures:  []*dssepb.Signature{{Sig: signature}},
		}},
	})
}

// pae is DSSE's pre-authentication encoding.
func pae(payloadType string, payload []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(payload) + len(payloadType) + 64)
	b.WriteString("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	b.Write(payload)
	return b.Bytes()
}

// leaf issues the certificate for one signature.
func (s *Signer) leaf(builderID string, now time.Time) (*x509.Certificate, error) {
	san, err := url.Parse(builderID)
	if err != nil || san.Scheme == "" || san.Host == "" || san.String() != builderID {
		return nil, fmt.Errorf("builder id %q is not a canonical absolute URL", builderID)
	}
	if now.Before(s.id.ca.NotBefore) || now.Add(LeafLifetime).After(s.id.ca.NotAfter) {
		return nil, fmt.Errorf("%s is outside the life of the ca", now.Format(time.RFC3339))
	}
	issuer, err := asn1.MarshalWithParams(s.issuer, "utf8")
	if err != nil {
		return nil, err
	}
	v1, v2 := issuerOIDs()
	return issue(&x509.Certificate{
		NotBefore:             now,
		NotAfter:              now.Add(LeafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{san},
		ExtraExtensions: []pkix.Extension{
			{Id: v1, Value: []byte(s.issuer)}, // this one is not DER, by Fulcio's history
			{Id: v2, Value: issuer},
		},
	}, s.id.ca, &s.id.key.PublicKey, s.id.caKey)
}

// timestamp signs the time over a signature. Verifiers want the whole response.
func (s *Signer) timestamp(signature []byte, now time.Time) ([]byte, error) {
	digest := sha256.Sum256(signature)
	t := timestamp.Timestamp{
		HashAlgorithm:     crypto.SHA256,
		HashedMessage:     digest[:],
		Time:              now,
		Accuracy:          time.Second,
		Policy:            tsaPolicy(),
		AddTSACertificate: true,
	}
	return t.CreateResponseWithOpts(s.id.tsa, s.id.tsaKey, crypto.SHA256)
}

// verify checks what was just made: a fault while signing must not leave here.
func (s *Signer) verify(leaf *x509.Certificate, digest, signature, token []byte, now time.Time) error {
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(pub, digest, signature) {
		return errors.New("signature does not verify")
	}
	if err := leaf.CheckSignatureFrom(s.id.ca); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	ts, err := timestamp.ParseResponse(token)
	if err != nil {
		return fmt.Errorf("timestamp: %w", err)
	}
	want := sha256.Sum256(signature)
	if !bytes.Equal(ts.HashedMessage, want[:]) || !ts.Time.Equal(now) {
		return errors.New("timestamp is of another signature or time")
	}
	return nil
}

// TrustedRoot is what verifiers must be given, as Sigstore's trusted_root.json.
// Each authority has the time within which it is trusted.
func (s *Signer) TrustedRoot() ([]byte, error) {
	return encode(&trustpb.TrustedRoot{
		MediaType:              TrustedRootMediaType,
		CertificateAuthorities: []*trustpb.CertificateAuthority{authority(s.issuer, s.id.ca)},
		TimestampAuthorities:   []*trustpb.CertificateAuthority{authority(s.issuer, s.id.tsa, s.id.tsaRoot)},
	})
}

// authority describes a chain that ends in a root.
func authority(uri string, chain ...*x509.Certificate) *trustpb.CertificateAuthority {
	last := chain[len(chain)-1]
	out := &trustpb.CertificateAuthority{
		Subject:   &commonpb.DistinguishedName{Organization: organization, CommonName: last.Subject.CommonName},
		Uri:       uri,
		CertChain: &commonpb.X509CertificateChain{},
		ValidFor: &commonpb.TimeRange{
			Start: timestamppb.New(chain[0].NotBefore), End: timestamppb.New(chain[0].NotAfter),
		},
	}
	for _, c := range chain {
		out.CertChain.Certificates = append(out.CertChain.Certificates, &commonpb.X509Certificate{RawBytes: c.Raw})
	}
	return out
}

// encode writes JSON without protojson's deliberately unstable white space.
func encode(m proto.Message) ([]byte, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
