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

// A Token is an initialised one, in a directory.
type Token struct {
	t       testing.TB
	Dir     string
	PINFile string
}

// New makes a token that this process and its children find by its environment.
func New(t testing.TB) *Token {
	t.Helper()
	k := In(t, t.TempDir())
	for name, value := range k.Env() {
		t.Setenv(name, value)
	}
	return k
}

// In makes a token named hallmark in an empty directory, and builds
// hallmark-pkcs11 there.
func In(t testing.TB, dir string) *Token {
	t.Helper()
	if _, err := os.Stat(Module); err != nil {
		t.Skip("no SoftHSM: run `make deps`")
	}
	k := &Token{t, dir, filepath.Join(dir, "pin")}
	conf := "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600),
		os.WriteFile(k.PINFile, []byte(PIN+"\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	k.run("softhsm2-util", "--init-token", "--free", "--label", "hallmark", "--so-pin", "so-pin", "--pin", PIN)
	k.run("go", "build", "-o", dir, "hallmark.build/cmd/hallmark-pkcs11")
	return k
}

// Env is the environment in which the token is found.
func (k *Token) Env() map[string]string {
	return map[string]string{
		"SOFTHSM2_CONF": filepath.Join(k.Dir, "softhsm2.conf"),
		"PATH":          k.Dir + ":" + os.Getenv("PATH"),
	}
}

func (k *Token) run(name string, args ...string) {
	k.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+k.Env()["SOFTHSM2_CONF"])
	if out, err := cmd.CombinedOutput(); err != nil {
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
