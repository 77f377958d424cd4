package authority

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"hallmark.build/attest/authority/invitation"
	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

// Lifetimes of certificates between hosts.
const (
	HostLifetime   = 90 * 24 * time.Hour
	serverLifetime = 30 * 24 * time.Hour
	backdate       = MaxSkew // before now, for clocks that are behind
)

// hostPrefix begins the URI that names a host in its certificate.
const hostPrefix = "urn:hallmark:host:"

// A HostCA certifies runner hosts and the server they speak to. It has nothing
// to do with signatures of statements.
type HostCA struct {
	key  crypto.Signer
	cert *x509.Certificate
	now  func() time.Time
}

// OpenHostCA reads the certificate authority of hosts, and makes it on first
// use, with its directory: both are for their owner alone. Replicas share the
// file. A reader of it can speak as any host that is enrolled, and to hosts as the
// authority; it cannot sign statements.
func OpenHostCA(file string, now func() time.Time) (*HostCA, error) {
	if err := private.Dir(filepath.Dir(file)); err != nil {
		return nil, fmt.Errorf("authority: host authority: %w", err)
	}
	text, err := private.ReadFile(file, 16<<10)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createHostCA(file, now()); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("authority: host authority: %w", err)
		}
		text, err = private.ReadFile(file, 16<<10)
	}
	if err != nil {
		return nil, fmt.Errorf("authority: host authority: %w", err)
	}
	ca, err := parseHostCA(text)
	if err != nil {
		return nil, fmt.Errorf("authority: host authority: %s: %w", file, err)
	}
	ca.now = now
	return ca, nil
}

func createHostCA(file string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "Hallmark runner hosts"},
		NotBefore:    now.Add(-24 * time.Hour),
		// It ends when the admin replaces it: RFC 5280, 4.1.2.5.
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})...)
	return durable.Create(file, text, 0o600)
}

func parseHostCA(text []byte) (*HostCA, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || len(pair.Certificate) != 1 || !pair.Leaf.IsCA {
		return nil, errors.New("want one key and the certificate of an authority")
	}
	return &HostCA{key: key, cert: pair.Leaf}, nil
}

// Pin is what invitations say of this authority.
func (ca *HostCA) Pin() [32]byte { return invitation.Pin(ca.cert) }

// certifyHost issues a host's certificate.
func (ca *HostCA) certifyHost(name string, key crypto.PublicKey) (der []byte, expires time.Time, err error) {
	id, err := url.Parse(hostPrefix + name)
	if err != nil {
		return nil, time.Time{}, err
	}
	now := ca.now().UTC().Truncate(time.Second)
	der, err = ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		URIs:        []*url.URL{id},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(HostLifetime),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
	return der, now.Add(HostLifetime), err
}

func (ca *HostCA) issue(template *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	template.SerialNumber = serial()
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	return x509.CreateCertificate(rand.Reader, template, ca.cert, key, ca.key)
}

// hostOf is the name in a certificate that this authority issued to a host.
// Whether it is still valid is for the caller to ask.
func (ca *HostCA) hostOf(cert *x509.Certificate) (string, error) {
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		CurrentTime: cert.NotBefore, // times are judged at each call
	})
	if err != nil {
		return "", errors.New("the certificate is not a runner host's of this authority")
	}
	if len(cert.URIs) != 1 {
		return "", errors.New("the certificate does not name one host")
	}
	name, ok := strings.CutPrefix(cert.URIs[0].String(), hostPrefix)
	if !ok || name != cert.Subject.CommonName || invitation.CheckName(name) != nil {
		return "", errors.New("the certificate does not name a host")
	}
	return name, nil
}

// A serverCert is the authority's own certificate towards hosts. Its key
// is in memory alone, and it is replaced when a third of its life is left.
type serverCert struct {
	ca    *HostCA
	names []string

	mu   sync.Mutex
	held *tls.Certificate
}

func (s *serverCert) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.ca.now()
	if s.held != nil && now.Before(s.held.Leaf.NotAfter.Add(-serverLifetime/3)) {
		return s.held, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "hallmark-attestd"},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(serverLifetime),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range s.names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := s.ca.issue(template, key.Public())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// The authority's certificate goes along: a host that joins knows its hash alone.
	s.held = &tls.Certificate{Certificate: [][]byte{der, s.ca.cert.Raw}, PrivateKey: key, Leaf: leaf}
	return s.held, nil
}

// serverTLS asks for a host's certificate and takes whatever comes: that the
// peer has its key is proved here, and every call is judged by what it says, so
// that a refusal has words.
func serverTLS(ca *HostCA, names []string) *tls.Config {
	cert := &serverCert{ca: ca, names: names}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		GetCertificate:         cert.get,
		ClientAuth:             tls.RequestClientCert,
		NextProtos:             []string{"h2"},
		SessionTicketsDisabled: true, // a resumed session would not prove the key again
	}
}

func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
