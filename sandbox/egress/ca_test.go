package egress

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"testing"
	"time"
)

func TestAuthority(t *testing.T) {
	a, err := newAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(a.pem)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) != 0 {
		t.Fatalf("the PEM has more than a certificate: %s", a.pem)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	for host, others := range map[string][]string{
		"example.com": {"www.example.com", "example.org"}, "192.0.2.7": {"192.0.2.8"}, "2001:db8::7": {"2001:db8::8"},
	} {
		c, err := a.leaf(host)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "[" + host + "]"}); err != nil {
			if _, err := c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
		for _, other := range others {
			if c.Leaf.VerifyHostname(other) == nil {
				t.Errorf("the certificate of %s serves %s", host, other)
			}
		}
		if c.Leaf.IsCA || c.Leaf.NotAfter.After(a.cert.NotAfter) || c.Leaf.KeyUsage&x509.KeyUsageCertSign != 0 {
			t.Errorf("certificate of %s: %+v", host, c.Leaf)
		}
		again, err := a.leaf(host)
		if err != nil || again != c {
			t.Errorf("%s: not kept: %v", host, err)
		}
	}
	other, err := newAuthority(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.cert.RawSubject, other.cert.RawSubject) || a.key.Equal(other.key) {
		t.Error("two jobs' authorities are alike")
	}
}

func TestLeavesAreBounded(t *testing.T) {
	a, err := newAuthority(48 * time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxLeaves + 10 {
		c, err := a.leaf(fmt.Sprintf("n%d.example", i))
		if err != nil {
			t.Fatal(err)
		}
		if c.Leaf.NotAfter.After(time.Now().Add(maxLeafLifetime)) {
			t.Fatal("a leaf lives too long")
		}
	}
	if len(a.leaves) > maxLeaves {
		t.Errorf("%d leaves", len(a.leaves))
	}
}
