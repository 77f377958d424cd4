package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"path/filepath"
	"time"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

const (
	identityFile = "identity.pem"
	maxIdentity  = 64 << 10

	organization = "Hallmark" // of every certificate but a leaf
	rootLifetime = 10 * 365 * 24 * time.Hour
)

// An identity is what the file holds.
type identity struct {
	caKey   *ecdsa.PrivateKey
	ca      *x509.Certificate
	key     *ecdsa.PrivateKey
	tsaKey  *ecdsa.PrivateKey
	tsa     *x509.Certificate
	tsaRoot *x509.Certificate
}

// The blocks of the file, in this order.
const (
	roleHeader = "Hallmark-Role"

	roleCA      = "ca"
	roleSigning = "signing"
	roleTSA     = "tsa"
	roleTSARoot = "tsa-root"
)

// load reads the identity in dir, or makes one if there is none.
func load(dir string, now time.Time) (*identity, error) {
	if err := private.Dir(dir); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, identityFile)
	data, err := private.ReadFile(name, maxIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(name, now); err != nil {
			return nil, err
		}
		data, err = private.ReadFile(name, maxIdentity)
	}
	if err != nil {
		return nil, err
	}
	id, err := parseIdentity(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return id, nil
}

// create makes a new identity. If another process was faster, its identity
// stays.
func create(name string, now time.Time) error {
	id, err := generate(now)
	if err != nil {
		return err
	}
	data, err := id.encode()
	if err != nil {
		return err
	}
	if err := durable.Create(name, data, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return nil
}

func generate(now time.Time) (*identity, error) {
	var (
		id   identity
		keys [4]*ecdsa.PrivateKey
	)
	for i := range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		keys[i] = k
	}
	id.caKey, id.key, id.tsaKey = keys[0], keys[1], keys[2]
	tsaRootKey := keys[3]
	from, until := now.UTC().Truncate(time.Second), now.UTC().Truncate(time.Second).Add(rootLifetime)
	var err error
	id.ca, err = issue(root("Hallmark authority", x509.ExtKeyUsageCodeSigning, from, until), nil, &id.caKey.PublicKey, id.caKey)
	if err != nil {
		return nil, err
	}
	id.tsaRoot, err = issue(root("Hallmark timestamp root", x509.ExtKeyUsageTimeStamping, from, until), nil, &tsaRootKey.PublicKey, tsaRootKey)
	if err != nil {
		return nil, err
	}
	id.tsa, err = issue(tsaTemplate(from, until), id.tsaRoot, &id.tsaKey.PublicKey, tsaRootKey)
	if err != nil {
		return nil, err
	}
	return &id, nil
}

func root(name string, use x509.ExtKeyUsage, from, until time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: name},
		NotBefore:             from,
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{use},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
}

// tsaTemplate marks the extended key usage critical, as RFC 3161 section 2.3
// demands; the standard library would not.
func tsaTemplate(from, until time.Time) *x509.Certificate {
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{{1, 3, 6, 1, 5, 5, 7, 3, 8}})
	if err != nil {
		panic(err) // constants
	}
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Hallmark timestamp authority"},
		NotBefore:             from,
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Critical: true, Value: usage},
		},
	}
}

// issue signs a certificate; a nil parent means self-signed.
func issue(template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (id *identity) encode() ([]byte, error) {
	var out []byte
	addKey := func(role string, key *ecdsa.PrivateKey) error {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		out = append(out, block("PRIVATE KEY", role, der)...)
		return nil
	}
	err := errors.Join(addKey(roleCA, id.caKey), addKey(roleSigning, id.key), addKey(roleTSA, id.tsaKey))
	if err != nil {
		return nil, err
	}
	out = append(out, block("CERTIFICATE", roleCA, id.ca.Raw)...)
	out = append(out, block("CERTIFICATE", roleTSA, id.tsa.Raw)...)
	return append(out, block("CERTIFICATE", roleTSARoot, id.tsaRoot.Raw)...), nil
}

func block(kind, role string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Headers: map[string]string{roleHeader: role}, Bytes: der})
}

// parseIdentity reads exactly what encode writes, and checks that keys and
// certificates belong together.
func parseIdentity(data []byte) (*identity, error) {
	var id identity
	for _, want := range []struct {
		role string
		key  **ecdsa.PrivateKey
		cert **x509.Certificate
	}{
		{role: roleCA, key: &id.caKey}, {role: roleSigning, key: &id.key}, {role: roleTSA, key: &id.tsaKey},
		{role: roleCA, cert: &id.ca}, {role: roleTSA, cert: &id.tsa}, {role: roleTSARoot, cert: &id.tsaRoot},
	} {
		var b *pem.Block
		b, data = pem.Decode(data)
		if b == nil || b.Headers[roleHeader] != want.role {
			return nil, fmt.Errorf("block of role %q is missing", want.role)
		}
		var err error
		if want.key != nil {
			*want.key, err = parseKey(b)
		} else {
			*want.cert, err = parseCertificate(b)
		}
		if err != nil {
			return nil, fmt.Errorf("block of role %q: %w", want.role, err)
		}
	}
	if len(data) > 0 {
		return nil, errors.New("more follows the last block")
	}
	return &id, id.check()
}

func parseKey(b *pem.Block) (*ecdsa.PrivateKey, error) {
	if b.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("a %s instead of a private key", b.Type)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, errors.New("private key does not parse") // the cause might quote it
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("private key is not ECDSA P-256")
	}
	return key, nil
}

func parseCertificate(b *pem.Block) (*x509.Certificate, error) {
	if b.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("a %s instead of a certificate", b.Type)
	}
	return x509.ParseCertificate(b.Bytes)
}

func (id *identity) check() error {
	switch {
	case !id.caKey.PublicKey.Equal(id.ca.PublicKey):
		return errors.New("ca key and certificate do not belong together")
	case !id.tsaKey.PublicKey.Equal(id.tsa.PublicKey):
		return errors.New("tsa key and certificate do not belong together")
	case id.ca.CheckSignatureFrom(id.ca) != nil:
		return errors.New("ca certificate is not self-signed")
	case id.tsa.CheckSignatureFrom(id.tsaRoot) != nil:
		return errors.New("tsa certificate is not from the tsa root")
	}
	return nil
}
