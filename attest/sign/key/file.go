package key

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"hallmark.build/attest/internal/private"
)

const maxFile = 16 << 10

// A file is a key in memory.
type file struct{ key *ecdsa.PrivateKey }

func (f file) Public() *ecdsa.PublicKey { return &f.key.PublicKey }
func (f file) Close() error             { return nil }

func (f file) Sign(ctx context.Context, digest []byte) ([]byte, error) {
	if err := errors.Join(ctx.Err(), checkDigest(digest)); err != nil {
		return nil, err
	}
	return ecdsa.SignASN1(rand.Reader, f.key, digest)
}

// FileURI is the URI of the key in a file.
func FileURI(name string) string { return (&url.URL{Scheme: "file", Path: name}).String() }

// openFile opens what follows "file:".
func openFile(rest string) (Key, error) {
	path, ok := strings.CutPrefix(rest, "//")
	name, err := url.PathUnescape(path)
	if !ok || err != nil || !filepath.IsAbs(name) || filepath.Clean(name) != name {
		return nil, errors.New(`key: file: want "file:///PATH" with a clean path`)
	}
	data, err := private.ReadFile(name, maxFile)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	parsed, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("key: %s: %w", name, err)
	}
	return file{parsed}, nil
}

// parseFile reads exactly what Generate writes. No error quotes the bytes.
func parseFile(data []byte) (*ecdsa.PrivateKey, error) {
	b, rest := pem.Decode(data)
	switch {
	case b == nil:
		return nil, errors.New("not PEM")
	case b.Type == "ENCRYPTED PRIVATE KEY" || len(b.Headers) > 0:
		return nil, errors.New("encrypted, and nobody is there to type the password: use a token or a key management service")
	case b.Type != "PRIVATE KEY":
		return nil, fmt.Errorf(`a %q: want a "PRIVATE KEY" in PKCS#8; openssl pkcs8 -topk8 -nocrypt makes one`, b.Type)
	case len(rest) > 0:
		return nil, errors.New("more follows the private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, errors.New("the private key does not parse")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the private key is not ECDSA P-256")
	}
	return key, nil
}

// Generate makes a key and the file in which Open finds it.
func Generate() (*ecdsa.PublicKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return &key.PublicKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
