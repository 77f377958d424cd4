package key

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"

	"hallmark.build/attest/sign/key/token"
)

// A remote key is in another process, which is not believed.
type remote struct {
	public *ecdsa.PublicKey
	sign   func(ctx context.Context, digest []byte) ([]byte, error)
	close  func() error
}

func (r remote) Public() *ecdsa.PublicKey { return r.public }
func (r remote) Close() error             { return r.close() }

func (r remote) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkDigest(digest)); err != nil {
		return nil, err
	}
	signature, err := r.sign(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if !ecdsa.VerifyASN1(r.public, digest, signature) {
		return nil, errors.New("key: what came back is not this key's signature of the digest")
	}
	return signature, nil
}

func openToken(ctx context.Context, uri string, o Options) (Key, error) {
	c, err := token.Open(ctx, uri, o.Timeout)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	public, err := p256(c.Public())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("key: pkcs11: %w", err), c.Close())
	}
	return remote{public, c.Sign, c.Close}, nil
}
