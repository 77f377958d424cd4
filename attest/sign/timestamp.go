package sign

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"time"

	"github.com/digitorus/timestamp"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"
)

// TimestampService is an RFC 3161 timestamp authority.
type TimestampService struct {
	URL   string
	Roots *x509.CertPool // for the service's TLS; nil means the host's
}

type timestampClient struct {
	url     string
	http    *http.Client
	trusted *verifier
}

func newTimestampClient(o TimestampService, trusted *verifier) (*timestampClient, error) {
	if o.URL == "" {
		return nil, errors.New("timestamp: want a URL")
	}
	if len(trusted.timestamps) == 0 {
		return nil, errors.New("timestamp: the trusted root trusts no timestamp authority")
	}
	return &timestampClient{o.URL, httpClient(o.Roots), trusted}, nil
}

// stamp gets the time signed over a signature. The nonce makes the answer one
// to this very request.
func (c *timestampClient) stamp(ctx context.Context, signature []byte) ([]byte, error) {
	nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(signature)
	query := timestamp.Request{HashAlgorithm: crypto.SHA256, HashedMessage: digest[:], Nonce: nonce, Certificates: true}
	body, err := query.Marshal()
	if err != nil {
		return nil, err
	}
	asked := time.Now()
	token, err := post(ctx, c.http, c.url, "application/timestamp-query", "application/timestamp-reply", body)
	if err != nil {
		return nil, err
	}
	answered := time.Now()
	at, err := c.trusted.timestamp(token, signature, verification.VerifyOpts{Nonce: nonce})
	if err != nil {
		return nil, fmt.Errorf("%s: answer: %w", c.url, err)
	}
	if at.Before(asked.Add(-maxSkew)) || at.After(answered.Add(maxSkew)) {
		return nil, fmt.Errorf("%s: answer: its time is %s, and it is %s here", c.url, at.Format(time.RFC3339), answered.UTC().Format(time.RFC3339))
	}
	return token, nil
}
