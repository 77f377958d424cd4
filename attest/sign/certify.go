package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/url"
	"time"

	"github.com/digitorus/timestamp"

	"hallmark.build/attest/sign/key"
)

// timestampPolicy is the policy under which time is signed: the host's clock, no
// more. It is the object identifier that Sigstore's own authority uses.
func timestampPolicy() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 2}
}

// Fulcio's names for the issuer in a certificate.
func issuerOIDs() (v1, v2 asn1.ObjectIdentifier) {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}, asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}
}

// certify gets the certificate for one key and one signature.
func (s *Signer) certify(ctx context.Context, r *ring, builderID string, once *ecdsa.PrivateKey) (*x509.Certificate, error) {
	if s.fulcio != nil {
		return s.fulcio.certify(ctx, once, s.now())
	}
	now := s.now()
	g, ca, err := s.signing(ctx, r, RoleCA)
	if err != nil {
		return nil, err
	}
	template, err := leafTemplate(s.o.Issuer, builderID, now)
	if err != nil {
		return nil, err
	}
	return issue(template, g.chain[0], &once.PublicKey, key.Signer(ctx, ca))
}

// leafTemplate names the builder id as Fulcio would name who signed.
func leafTemplate(issuer, builderID string, now time.Time) (*x509.Certificate, error) {
	san, err := url.Parse(builderID)
	if err != nil || san.Scheme == "" || san.Host == "" || san.String() != builderID {
		return nil, fmt.Errorf("builder id %q is not a canonical absolute URL", builderID)
	}
	issuerDER, err := asn1.MarshalWithParams(issuer, "utf8")
	if err != nil {
		return nil, err
	}
	v1, v2 := issuerOIDs()
	return &x509.Certificate{
		NotBefore:             now,
		NotAfter:              now.Add(LeafLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{san},
		ExtraExtensions: []pkix.Extension{
			{Id: v1, Value: []byte(issuer)}, // this one is not DER, by Fulcio's history
			{Id: v2, Value: issuerDER},
		},
	}, nil
}

// stamp gets the time signed over a signature. Verifiers want the whole
// response.
func (s *Signer) stamp(ctx context.Context, r *ring, signature []byte) ([]byte, error) {
	if s.timestamp != nil {
		return s.timestamp.stamp(ctx, signature)
	}
	now := s.now()
	g, k, err := s.signing(ctx, r, RoleTimestamp)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(signature)
	t := timestamp.Timestamp{
		HashAlgorithm:     crypto.SHA256,
		HashedMessage:     digest[:],
		Time:              now,
		Accuracy:          time.Second,
		Policy:            timestampPolicy(),
		AddTSACertificate: true,
	}
	return t.CreateResponseWithOpts(g.chain[0], key.Signer(ctx, k), crypto.SHA256)
}
