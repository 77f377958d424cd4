// Package key opens signing keys by URI.
//
// # Where keys are
//
//	file:///PATH       a PEM file with a PKCS#8 private key, for its owner alone
//	pkcs11:…           a token, by RFC 7512; see package token
//	NAME://ID          a key management service, through Sigstore's plugin
//	                   sigstore-kms-NAME; see below
//
// Every key is ECDSA P-256 and signs SHA-256 digests: what Sigstore's verifiers
// agree on.
//
// # Whom this trusts
//
// The authority's process holds the bytes of a file's key, and nothing of the
// others. A token's library and a service's client are code of other people and
// run as processes of their own: hallmark-pkcs11 for as long as the key is
// open, a plugin once for each signature. Both are found on PATH, whose writer
// can therefore have another program asked. None of them is believed. A
// signature is verified with the public key that was there when the key was
// opened, before anybody gets it; and that public key is the one in a
// certificate which the trusted root names.
//
// # Plugins
//
// The protocol is that of github.com/sigstore/sigstore, pkg/signature/kms/cliplugin,
// version 1: one process for each method, the arguments as JSON in argv, the
// answer as JSON on standard output. An answer is bounded in size and time, and
// read strictly: unknown members, a missing answer or two of them are errors.
// The plugin's own secrets reach it through its environment.
package key

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// A Key signs. It is safe for concurrent use.
type Key interface {
	// Public is always an ECDSA P-256 key.
	Public() *ecdsa.PublicKey
	// Sign signs a SHA-256 digest and answers an ASN.1 signature that verifies
	// with Public.
	Sign(ctx context.Context, digest []byte) ([]byte, error)
	// Close lets go of what the key holds. No Sign may be in flight.
	Close() error
}

// Options of Open.
type Options struct {
	// Timeout bounds each signature by another process. Default 30 seconds.
	Timeout time.Duration
}

const defaultTimeout = 30 * time.Second

// Open opens the key that a URI names. The context bounds the opening alone.
func Open(ctx context.Context, uri string, o Options) (Key, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	scheme, rest, ok := strings.Cut(uri, ":")
	switch {
	case !ok:
		return nil, errors.New(`key: no URI: want "file:///PATH", "pkcs11:…" or "NAME://…"`) // it might be a PIN
	case scheme == "file":
		return openFile(rest)
	case scheme == "pkcs11":
		return openToken(ctx, uri, o)
	case !pluginName(scheme):
		return nil, errors.New("key: the URI's scheme is not a plugin's name: want lower-case letters, digits and dashes")
	}
	return openPlugin(ctx, scheme, rest, o)
}

// pluginName keeps what is looked up on PATH to plain names.
func pluginName(s string) bool {
	plain := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) })
}

// Signer adapts a key to the standard library, for one use: ctx bounds it.
func Signer(ctx context.Context, k Key) crypto.Signer { return signer{ctx, k} }

type signer struct {
	ctx context.Context
	key Key
}

func (s signer) Public() crypto.PublicKey { return s.key.Public() }

func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("key: hash %v: want SHA-256", opts.HashFunc())
	}
	return s.key.Sign(s.ctx, digest)
}

func checkDigest(digest []byte) error {
	if len(digest) != sha256.Size {
		return fmt.Errorf("key: digest of %d bytes: want %d", len(digest), sha256.Size)
	}
	return nil
}

// p256 wants a public key of the one kind that is used.
func p256(pub crypto.PublicKey) (*ecdsa.PublicKey, error) {
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not ECDSA P-256")
	}
	return key, nil
}
