package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"hallmark.build/attest/sign/key"
)

// A Role is what a key is for.
type Role string

const (
	RoleCA        Role = "ca"        // issues signing certificates
	RoleTimestamp Role = "timestamp" // signs time
)

const (
	organization = "Hallmark" // of every certificate but a leaf
	rootLifetime = 10 * 365 * 24 * time.Hour
)

// A Generation is one key of a role and the time for which it is trusted.
type Generation struct {
	ID      string    // the role and the start of the public key's SHA-256
	Role    Role      //
	Key     string    // its URI; "" is a file in the keyring's directory
	From    time.Time // the first moment that it may sign
	Until   time.Time // the last one
	Revoked bool      // signs no more; was trusted from From until Until, if that is later

	chain []*x509.Certificate // ca: itself; timestamp: leaf, root
}

// Trusted reports whether there is a moment at which the key's signatures
// count.
func (g Generation) Trusted() bool { return g.Until.After(g.From) }

// State is one word for what the key does.
func (g Generation) State(now time.Time) string {
	switch {
	case g.Revoked:
		return "revoked"
	case now.Before(g.From):
		return "next"
	case now.After(g.Until):
		return "retired"
	}
	return "signs"
}

// usable reports whether the key may sign now.
func (g Generation) usable(now time.Time) bool {
	return !g.Revoked && !now.Before(g.From) && !now.After(g.Until)
}

// over reports whether the key never signs again.
func (g Generation) over(now time.Time) bool { return g.Revoked || now.After(g.Until) }

func (g Generation) public() *ecdsa.PublicKey {
	pub, _ := g.chain[0].PublicKey.(*ecdsa.PublicKey)
	return pub
}

// newGeneration certifies a key from a moment on.
func newGeneration(ctx context.Context, role Role, k key.Key, uri string, from time.Time) (Generation, error) {
	from = from.UTC().Truncate(time.Second)
	g := Generation{ID: generationID(role, k.Public()), Role: role, Key: uri, From: from, Until: from.Add(rootLifetime)}
	var err error
	switch role {
	case RoleCA:
		g.chain, err = certifyCA(ctx, k, g)
	case RoleTimestamp:
		g.chain, err = certifyTimestamp(ctx, k, g)
	default:
		err = fmt.Errorf("role %q: want %q or %q", role, RoleCA, RoleTimestamp)
	}
	return g, err
}

func generationID(role Role, pub *ecdsa.PublicKey) string {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "" // not for a P-256 key
	}
	sum := sha256.Sum256(der)
	return string(role) + "-" + hex.EncodeToString(sum[:8])
}

func certifyCA(ctx context.Context, k key.Key, g Generation) ([]*x509.Certificate, error) {
	ca, err := issue(root("Hallmark authority "+g.ID, x509.ExtKeyUsageCodeSigning, g), nil, k.Public(), key.Signer(ctx, k))
	return []*x509.Certificate{ca}, err
}

// certifyTimestamp makes a root for one certificate and forgets its key:
// RFC 3161 wants a timestamp authority that is not a certificate authority.
func certifyTimestamp(ctx context.Context, k key.Key, g Generation) ([]*x509.Certificate, error) {
	probe := sha256.Sum256([]byte("does this key sign?"))
	if _, err := k.Sign(ctx, probe[:]); err != nil {
		return nil, err
	}
	once, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	top, err := issue(root("Hallmark timestamp root "+g.ID, x509.ExtKeyUsageTimeStamping, g), nil, &once.PublicKey, once)
	if err != nil {
		return nil, err
	}
	leaf, err := issue(timestampTemplate(g), top, k.Public(), once)
	return []*x509.Certificate{leaf, top}, err
}

func root(name string, use x509.ExtKeyUsage, g Generation) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: name},
		NotBefore:             g.From,
		NotAfter:              g.Until,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
}

// timestampTemplate marks the extended key usage critical, as RFC 3161
// section 2.3 demands; the standard library would not.
func timestampTemplate(g Generation) *x509.Certificate {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		panic(err) // constants
	}
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Hallmark timestamp authority " + g.ID},
		NotBefore:             g.From,
		NotAfter:              g.Until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage},
		},
	}
}

// issue signs a certificate; a nil parent means self-signed.
func issue(template, parent *x509.Certificate, pub crypto.PublicKey, k crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, k)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// check finds what newGeneration and the changes of a window never make.
func (g Generation) check() error {
	want := map[Role]int{RoleCA: 1, RoleTimestamp: 2}[g.Role]
	if want == 0 {
		return fmt.Errorf("role %q: unknown", g.Role)
	}
	if len(g.chain) != want {
		return fmt.Errorf("%d certificates: want %d", len(g.chain), want)
	}
	top := g.chain[want-1]
	pub := g.public()
	switch {
	case pub == nil || pub.Curve != elliptic.P256():
		return errors.New("the key is not ECDSA P-256")
	case g.ID != generationID(g.Role, pub):
		return errors.New("the id is not that of the key")
	case top.CheckSignatureFrom(top) != nil:
		return errors.New("the root is not self-signed")
	case g.chain[0].CheckSignatureFrom(top) != nil:
		return errors.New("the certificate is not from the root")
	case g.From.Before(g.chain[0].NotBefore) || g.Until.After(g.chain[0].NotAfter):
		return errors.New("the window is wider than the certificate's life")
	case g.From.Year() > 9999 || g.Until.Year() < 0:
		// In UTC: it could be read, with an offset, and not be written again.
		return errors.New("the window has a year that is not one of 0 to 9999")
	}
	return nil
}
