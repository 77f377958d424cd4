package sign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"hallmark.build/attest/internal/private"
	"hallmark.build/attest/internal/sigstore"
)

// Fulcio is a certificate authority of Sigstore's, at which the authority has
// an OIDC identity of its own.
type Fulcio struct {
	URL       string
	TokenFile string         // the authority's token, read anew for each certificate
	Identity  string         // what the certificate must name: a URI, or an e-mail address
	Issuer    string         // the OIDC issuer that it must name
	Roots     *x509.CertPool // for the service's TLS; nil means the host's
}

const (
	maxToken  = 64 << 10
	maxAnswer = 256 << 10
)

type fulcioClient struct {
	o       Fulcio
	http    *http.Client
	trusted *verifier
}

func newFulcio(o Fulcio, trusted *verifier) (*fulcioClient, error) {
	if o.URL == "" || o.TokenFile == "" || o.Identity == "" || o.Issuer == "" {
		return nil, errors.New("fulcio: want a URL, a token file, an identity and its issuer")
	}
	if len(trusted.certificates) == 0 {
		return nil, errors.New("fulcio: the trusted root trusts no certificate authority")
	}
	return &fulcioClient{o, httpClient(o.Roots), trusted}, nil
}

// The parts of Fulcio's API, version 2, that are used.
type (
	fulcioRequest struct {
		Credentials fulcioCredentials `json:"credentials"`
		Request     []byte            `json:"certificateSigningRequest"`
	}
	fulcioCredentials struct {
		Token string `json:"oidcIdentityToken"`
	}
	fulcioAnswer struct {
		Embedded *fulcioChain `json:"signedCertificateEmbeddedSct"`
		Detached *fulcioChain `json:"signedCertificateDetachedSct"`
	}
	fulcioChain struct {
		Chain struct {
			Certificates []string `json:"certificates"`
		} `json:"chain"`
	}
)

// certify asks for a certificate of a key. The request is signed by that key,
// which proves that we have it.
func (f *fulcioClient) certify(ctx context.Context, once *ecdsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	text, err := private.ReadFile(f.o.TokenFile, maxToken)
	if err != nil {
		return nil, fmt.Errorf("fulcio: token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return nil, fmt.Errorf("fulcio: token: %s is empty", f.o.TokenFile)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, once)
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	body, err := json.Marshal(fulcioRequest{
		Credentials: fulcioCredentials{token},
		Request:     pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	})
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	answer, err := post(ctx, f.http, strings.TrimSuffix(f.o.URL, "/")+"/api/v2/signingCert", "application/json", "application/json", body)
	if err != nil && strings.Contains(err.Error(), token) {
		return nil, errors.New("fulcio: it answers with an error that quotes the token")
	}
	if err != nil {
		return nil, fmt.Errorf("fulcio: %w", err)
	}
	leaf, err := parseFulcio(answer)
	if err != nil {
		return nil, fmt.Errorf("fulcio: answer: %w", err)
	}
	if err := f.check(leaf, &once.PublicKey, now); err != nil {
		return nil, fmt.Errorf("fulcio: certificate: %w", err)
	}
	return leaf, nil
}

// parseFulcio takes the leaf; the rest of the chain is in the trusted root. The
// service may add members to its answers, so unknown ones are let be.
func parseFulcio(text []byte) (*x509.Certificate, error) {
	var answer fulcioAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return nil, errors.New("not JSON as it should be")
	}
	var all []string
	for _, c := range []*fulcioChain{answer.Embedded, answer.Detached} {
		if c != nil && all != nil {
			return nil, errors.New("two chains")
		}
		if c != nil {
			all = c.Chain.Certificates
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no certificate")
	}
	b, rest := pem.Decode([]byte(all[0]))
	if b == nil || b.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("its first is not one certificate in PEM")
	}
	return x509.ParseCertificate(b.Bytes)
}

// check wants a certificate of our key and our identity, and of no job's.
func (f *fulcioClient) check(leaf *x509.Certificate, once *ecdsa.PublicKey, now time.Time) error {
	if !once.Equal(leaf.PublicKey) {
		return errors.New("it is of another key")
	}
	names := slices.Concat(leaf.EmailAddresses, leaf.DNSNames)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	if len(names) != 1 || names[0] != f.o.Identity || len(leaf.IPAddresses) > 0 {
		return fmt.Errorf("it names %q: want %q alone", names, f.o.Identity)
	}
	if job := sigstore.JobClaim(leaf); job != "" {
		return fmt.Errorf("it names a job (%s): the authority signs under an identity of its own", job)
	}
	issuer, err := issuerOf(leaf)
	if err != nil {
		return err
	}
	if issuer != f.o.Issuer {
		return fmt.Errorf("its issuer is %q: want %q", issuer, f.o.Issuer)
	}
	at := now
	if at.Before(leaf.NotBefore) { // by a second or so: clocks differ
		at = leaf.NotBefore
	}
	if at.Sub(now) > maxSkew {
		return fmt.Errorf("it starts at %s, and it is %s here", leaf.NotBefore.UTC().Format(time.RFC3339), now.Format(time.RFC3339))
	}
	chain, err := f.trusted.certificate(leaf, at)
	if err != nil {
		return err
	}
	return f.trusted.logged(chain)
}

// maxSkew is how far the clocks of outside services may be from ours.
const maxSkew = time.Minute

// issuerOf reads the issuer in both of Fulcio's forms, which must agree.
func issuerOf(leaf *x509.Certificate) (string, error) {
	v1, v2 := issuerOIDs()
	var old, issuer string
	for _, ext := range leaf.Extensions {
		switch {
		case ext.Id.Equal(v1):
			old = string(ext.Value)
		case ext.Id.Equal(v2):
			if rest, err := asn1.UnmarshalWithParams(ext.Value, &issuer, "utf8"); err != nil || len(rest) > 0 {
				return "", errors.New("its issuer does not parse")
			}
		}
	}
	if old != "" && old != issuer {
		return "", errors.New("it names two issuers")
	}
	return issuer, nil
}
