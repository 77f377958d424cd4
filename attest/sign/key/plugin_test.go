package key_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"hallmark.build/attest/sign/key"
)

// A service signs with the key in the file that the plugin's key id names, for
// the protocol's own library.
type service struct{ signature.SignerVerifier }

func (service) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("not here")
}
func (service) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, errors.New("not here")
}
func (service) SupportedAlgorithms() []string { return []string{"ecdsa-p256"} }
func (service) DefaultAlgorithm() string      { return "ecdsa-p256" }

// SignMessage wants a digest: the data stay at home.
func (s service) SignMessage(r io.Reader, opts ...signature.SignOption) ([]byte, error) {
	var digest []byte
	for _, o := range opts {
		o.ApplyDigest(&digest)
	}
	if len(digest) == 0 {
		return nil, errors.New("no digest")
	}
	return s.SignerVerifier.SignMessage(bytes.NewReader(nil), options.WithDigest(digest))
}

// plugin is the program sigstore-kms-NAME.
func plugin(name string) int {
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	signs := args.MethodName == "signMessage"
	switch {
	case os.Getenv("HALLMARK_PKCS11_PIN") != "":
		_ = handler.WriteErrorResponse(os.Stdout, errors.New("a token's PIN is in the environment"))
		return 1
	case name == "silent" && signs:
		time.Sleep(time.Hour)
	case name == "orphan" && signs:
		// A child keeps standard output open after the plugin is gone.
		child, err := os.StartProcess("/bin/sleep", []string{"sleep", "3600"}, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, nil}})
		if err != nil {
			return 1
		}
		_ = child.Release()
		time.Sleep(time.Hour)
	case name == "endless" && signs:
		for {
			if _, err := os.Stdout.Write(make([]byte, 1<<20)); err != nil {
				return 1
			}
		}
	case name == "quiet":
		return 0
	case name == "garbage" && signs:
		fmt.Print("\x00\xffgarbage")
		return 0
	case name == "other" && signs:
		other := []byte("another digest, of 32 bytes' size")[:32]
		args.SignMessage.SignOptions.MessageOptions.Digest = &other
	case name == "failing" && signs:
		_ = handler.WriteErrorResponse(os.Stdout, errors.New("throttled\nby the service"))
		return 1
	case name == "canned": // says what its id names
		text, err := os.ReadFile(args.InitOptions.KeyResourceID)
		if err != nil {
			return 1
		}
		os.Stdout.Write(text)
		return 0
	}
	text, err := os.ReadFile(args.InitOptions.KeyResourceID)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	b, _ := pem.Decode(text)
	k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	sv, err := signature.LoadSignerVerifier(k, args.InitOptions.HashFunc)
	if err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		return 1
	}
	if _, err := handler.Dispatch(os.Stdout, os.Stdin, args, service{sv}); err != nil {
		return 1
	}
	return 0
}

// installPlugins puts this test's binary on PATH under each name.
func installPlugins(t *testing.T, names ...string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range names {
		if err := os.Symlink(self, filepath.Join(dir, "sigstore-kms-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector holds each process up for a second at its end
}

// TestPlugin speaks to a plugin that is made with the protocol's own library.
func TestPlugin(t *testing.T) {
	installPlugins(t, "good")
	t.Setenv("HALLMARK_PKCS11_PIN", "of a token, and no plugin's business")
	pub, data := generate(t)
	k, err := key.Open(t.Context(), "good://"+strings.TrimPrefix(write(t, data), "file://"), key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	conform(t, k, pub)
}

func TestPluginsThatMisbehave(t *testing.T) {
	_, data := generate(t)
	resource := strings.TrimPrefix(write(t, data), "file://")
	for name, want := range map[string]string{
		"silent":  "no answer within",
		"orphan":  "no answer within",
		"endless": "more than 65536 bytes",
		"garbage": "not what the protocol has",
		"other":   "not this key's signature",
		"failing": `it says: "throttled\nby the service"`,
	} {
		t.Run(name, func(t *testing.T) {
			installPlugins(t, name)
			timeout := time.Minute
			if strings.HasPrefix(want, "no answer") {
				timeout = 5 * time.Second // Open has to be answered within it
			}
			k, err := key.Open(t.Context(), name+"://"+resource, key.Options{Timeout: timeout})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Sign(t.Context(), digest("a statement")); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
	installPlugins(t, "quiet")
	if _, err := key.Open(t.Context(), "quiet://x", key.Options{}); err == nil {
		t.Error("a plugin that says nothing: opened")
	}
}

// TestAnswersThatAreRefused has a plugin say each of them when it is asked for
// its public key.
func TestAnswersThatAreRefused(t *testing.T) {
	installPlugins(t, "canned")
	pub, _ := generate(t)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		text, err := json.Marshal(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	good := `{"publicKey":{"publicKeyPEM":` + block("PUBLIC KEY", der) + `}}`
	say := func(text string) error {
		file := filepath.Join(t.TempDir(), "answer")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := key.Open(t.Context(), "canned://"+file, key.Options{})
		return err
	}
	if err := say(good + "\n"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "null", "[]", "{}", `"x"`, good[:len(good)-1], good + good, good + "x",
		`{"errorMessage":"no"}`,
		strings.Replace(good, "{", `{"errorMessage":"no",`, 1),
		strings.Replace(good, "{", `{"unknown":1,`, 1),
		strings.Replace(good, "{", `{"signMessage":{"signature":"AAAA"},`, 1),
		`{"signMessage":{"signature":"AAAA"}}`,
		`{"publicKey":{"publicKeyPEM":""}}`,
		`{"publicKey":{"publicKeyPEM":"!"}}`,
		`{"publicKey":{"publicKeyPEM":` + block("CERTIFICATE", der) + `}}`,
		`{"publicKey":{"publicKeyPEM":` + block("PUBLIC KEY", der[1:]) + `}}`,
		`{"publicKey":{"publicKeyPEM":` + block("PUBLIC KEY", append(der, 0)) + `}}`,
	} {
		if say(bad) == nil {
			t.Errorf("%.100q: taken", bad)
		}
	}
}
