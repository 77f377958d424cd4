// Package keytest gives tests a PKCS#11 token, SoftHSM, and the program that speaks to it.
package keytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// PIN of every token here.
const PIN = "848271-a-pin"

// Module is where Debian has SoftHSM.
const Module = "/usr/lib/softhsm/libsofthsm2.so"

// A Token is an initialised one.
type Token struct {
	t       testing.TB
	PINFile string
	Conf    string // the value of SOFTHSM2_CONF
}

// New makes a token named hallmark, and builds hallmark-pkcs11 onto PATH. Both
// are this test's alone, by its environment.
func New(t testing.TB) *Token {
	t.Helper()
	if _, err := os.Stat(Module); err != nil {
		t.Skip("no SoftHSM: run `make deps`")
	}
	dir := t.TempDir()
	k := &Token{t, filepath.Join(dir, "pin"), filepath.Join(dir, "softhsm2.conf")}
	conf := "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(k.Conf, []byte(conf), 0o600),
		os.WriteFile(k.PINFile, []byte(PIN+"\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", k.Conf)
	k.run("softhsm2-util", "--init-token", "--free", "--label", "hallmark", "--so-pin", "so-pin", "--pin", PIN)
	k.run("go", "build", "-o", dir, "hallmark.build/cmd/hallmark-pkcs11")
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return k
}

func (k *Token) run(name string, args ...string) {
	k.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		k.t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// Import puts a private key, in PKCS#8 and PEM, into the token.
func (k *Token) Import(label, id string, data []byte) {
	k.t.Helper()
	file := filepath.Join(k.t.TempDir(), "key.pem")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		k.t.Fatal(err)
	}
	k.run("softhsm2-util", "--import", file, "--token", "hallmark", "--label", label, "--id", id, "--pin", PIN)
}

// Generate puts a new key into the token and answers its URI.
func (k *Token) Generate(label, id string) string {
	k.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		k.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		k.t.Fatal(err)
	}
	k.Import(label, id, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return k.URI("token=hallmark;object=" + label)
}

// URI is that of a key in the token, with its PIN.
func (k *Token) URI(path string) string { return k.Without(path) + "&pin-source=file:" + k.PINFile }

// Without is the URI without the PIN.
func (k *Token) Without(path string) string {
	return "pkcs11:" + strings.TrimPrefix(path, "pkcs11:") + "?module-path=" + Module
}
