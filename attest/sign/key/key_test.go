package key_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/sign/key"
)

// TestMain is also the test plugins: see plugin_test.go.
func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(filepath.Base(os.Args[0]), "sigstore-kms-"); ok {
		os.Exit(plugin(name))
	}
	os.Exit(m.Run())
}

func digest(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}

// write makes a private file and answers its URI.
func write(t testing.TB, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return key.FileURI(name)
}

func generate(t testing.TB) (pub *ecdsa.PublicKey, data []byte) {
	t.Helper()
	pub, data, err := key.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return pub, data
}

// conform checks what every key must do.
func conform(t *testing.T, k key.Key, want *ecdsa.PublicKey) {
	t.Helper()
	if !k.Public().Equal(want) {
		t.Fatal("another public key")
	}
	d := digest("a statement")
	sig, err := k.Sign(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(want, d, sig) {
		t.Error("the signature does not verify")
	}
	for _, n := range []int{0, 31, 33, 64} {
		if _, err := k.Sign(t.Context(), make([]byte, n)); err == nil {
			t.Errorf("a digest of %d bytes: signed", n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := k.Sign(ctx, d); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	certifies(t, k)
}

// certifies issues a certificate with the key, as the authority does.
func certifies(t *testing.T, k key.Key) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), key.Signer(t.Context(), k))
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		t.Error(err)
	}
	if _, err := key.Signer(t.Context(), k).Sign(rand.Reader, make([]byte, 64), crypto.SHA512); err == nil {
		t.Error("SHA-512: signed")
	}
}

func TestFile(t *testing.T) {
	pub, data := generate(t)
	k, err := key.Open(t.Context(), write(t, data), key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	conform(t, k, pub)
}

func TestFileNameIsEscaped(t *testing.T) {
	pub, data := generate(t)
	name := filepath.Join(t.TempDir(), "a key%3f?#.pem")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := key.Open(t.Context(), key.FileURI(name), key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	conform(t, k, pub)
}

func testKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pkcs8(t *testing.T, k any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func TestFilesThatAreRefused(t *testing.T) {
	_, good := generate(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":       {nil, "not PEM"},
		"rubbish":     {[]byte("hunter2 hunter2"), "not PEM"},
		"P-384":       {pkcs8(t, p384), "not ECDSA P-256"},
		"Ed25519":     {pkcs8(t, edwards), "not ECDSA P-256"},
		"RSA":         {pkcs8(t, rsaKey), "not ECDSA P-256"},
		"certificate": {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), `a "CERTIFICATE"`},
		"SEC 1":       {pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("x")}), "openssl pkcs8"},
		"encrypted":   {pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}), "encrypted"},
		"not PKCS#8":  {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "does not parse"},
		"two keys":    {append(append([]byte{}, good...), good...), "more follows"},
		"too much":    {append(append([]byte{}, good...), make([]byte, 32<<10)...), "more than"},
	} {
		_, err := key.Open(t.Context(), write(t, tt.data), key.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error quotes the file", name)
		}
	}
}

func TestFilesOfOthers(t *testing.T) {
	_, data := generate(t)
	for name, spoil := range map[string]func(string) error{
		"mode": func(f string) error { return os.Chmod(f, 0o640) },
		"link": func(f string) error { return errors.Join(os.Rename(f, f+"~"), os.Symlink(f+"~", f)) },
		"fifo": func(f string) error {
			return errors.Join(os.Remove(f), exec.Command("mkfifo", "-m", "600", f).Run())
		},
		"gone": os.Remove,
		"owner": func(f string) error {
			if os.Geteuid() != 0 {
				return os.Chmod(f, 0o604)
			}
			return os.Chown(f, 4242, 4242)
		},
	} {
		uri := write(t, data)
		if err := spoil(strings.TrimPrefix(uri, "file://")); err != nil {
			t.Fatal(err)
		}
		if _, err := key.Open(t.Context(), uri, key.Options{}); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestURIsThatAreRefused(t *testing.T) {
	for _, uri := range []string{
		"", "/etc/key.pem", "hunter2", "file:key.pem", "file:/etc/key.pem", "file://relative.pem", "file:///a/../b", "file:///a//b", "file:///%zz",
		"FILE:///etc/key.pem", "../x://y", "a/b://c", "a b://c", "PKCS11:token=x", "awskms:alias", "awskms://", "nosuchplugin://x",
	} {
		_, err := key.Open(t.Context(), uri, key.Options{})
		if err == nil {
			t.Errorf("%q: opened", uri)
		} else if uri == "hunter2" && strings.Contains(err.Error(), uri) {
			t.Error("what might be a password is in the error")
		}
	}
}
