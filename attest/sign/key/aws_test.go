package key_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"hallmark.build/attest/sign/key"
)

// Keys of the service, by their ids.
const (
	awsCA        = "00000000-0000-4000-8000-000000000001"
	awsOther     = "00000000-0000-4000-8000-000000000002"
	awsP384      = "00000000-0000-4000-8000-000000000003"
	awsRSA       = "00000000-0000-4000-8000-000000000004"
	awsSymmetric = "00000000-0000-4000-8000-000000000005"
	awsNone      = "00000000-0000-4000-8000-000000000006"
)

// TestAWS goes through hallmark-kms, as it is installed, to local-kms, which
// speaks as AWS KMS does, but believes every caller: what AWS says to credentials
// is not shown here.
func TestAWS(t *testing.T) {
	installKMS(t, "awskms")
	mine := testKey(t)
	service := startLocalKMS(t, seedOf(t, mine))
	front := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(service))
	front.Config.ErrorLog = log.New(io.Discard, "", 0) // of who does not trust it
	front.StartTLS()
	defer front.Close()
	awsEnvironment(t, front.Certificate())
	open := func(id string) (key.Key, error) {
		return key.Open(t.Context(), "awskms://"+front.Listener.Addr().String()+"/"+id, key.Options{})
	}

	const arn = "arn:aws:kms:eu-west-2:111122223333:"
	for _, id := range []string{awsCA, "alias/ca", arn + "key/" + awsCA, arn + "alias/ca"} {
		k, err := open(id)
		if err != nil {
			t.Fatal(err)
		}
		conform(t, k, &mine.PublicKey)
	}

	for id, want := range map[string]string{
		awsP384:      "the key is not ECDSA P-256",
		awsRSA:       "the key is not ECDSA P-256",
		awsSymmetric: "UnsupportedOperationException",
		awsNone:      "NotFoundException: Key '" + arn + "key/" + awsNone + "' does not exist",
		"alias/none": "NotFoundException: Alias " + arn + "alias/none is not found",
		"ca":         "kms specification should be in the format awskms://",
	} {
		if _, err := open(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", id, err, want)
		}
	}

	k, err := open("alias/ca")
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, want string) {
		t.Helper()
		if _, err := k.Sign(t.Context(), digest("x")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	askAWS(t, service, "UpdateAlias", `{"AliasName":"alias/ca","TargetKeyId":"`+awsOther+`"}`)
	refused("another key", "not this key's signature")
	askAWS(t, service, "UpdateAlias", `{"AliasName":"alias/ca","TargetKeyId":"`+awsCA+`"}`)
	askAWS(t, service, "DisableKey", `{"KeyId":"`+awsCA+`"}`)
	refused("a disabled key", "DisabledException")
	askAWS(t, service, "EnableKey", `{"KeyId":"`+awsCA+`"}`)
	conform(t, k, &mine.PublicKey)

	t.Setenv("SSL_CERT_FILE", os.DevNull)
	refused("a certificate from nobody", "failed to verify certificate")

	front.Close()
	_, notOpened := open("alias/ca")
	_, notSigned := k.Sign(t.Context(), digest("x"))
	for _, err := range []error{notOpened, notSigned} {
		for _, want := range []string{"sigstore-kms-awskms", "operation error KMS", front.Listener.Addr().String(), "connection refused"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("no service: %v, want %q", err, want)
			}
		}
	}
}

// awsEnvironment is what the AWS libraries take from there, and nothing of the
// machine's.
func awsEnvironment(t *testing.T, root *x509.Certificate) {
	t.Helper()
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"AWS_REGION": "eu-west-2", "AWS_ACCESS_KEY_ID": "hallmark", "AWS_SECRET_ACCESS_KEY": "hallmark-secret", "AWS_SESSION_TOKEN": "",
		"AWS_PROFILE": "", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_MAX_ATTEMPTS": "1",
		"AWS_CA_BUNDLE": "", "AWS_TLS_INSECURE_SKIP_VERIFY": "", "SSL_CERT_FILE": roots,
	} {
		t.Setenv(name, value)
	}
}

// seedOf is local-kms's seed file: YAML, of which JSON is a part.
func seedOf(t *testing.T, ca *ecdsa.PrivateKey) []byte {
	t.Helper()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	type object = map[string]any
	signs := func(id, text string) object {
		return object{"Metadata": object{"KeyId": id, "KeyUsage": "SIGN_VERIFY"}, "PrivateKeyPem": text}
	}
	curve := func(id string, k *ecdsa.PrivateKey) object {
		der, err := x509.MarshalECPrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return signs(id, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
	}
	seed, err := json.Marshal(object{
		"Keys": object{
			"Asymmetric": object{
				"Ecc": []object{curve(awsCA, ca), curve(awsOther, testKey(t)), curve(awsP384, p384)},
				"Rsa": []object{signs(awsRSA, string(pkcs8(t, rsaKey)))},
			},
			"Symmetric": object{
				"Aes": []object{{"Metadata": object{"KeyId": awsSymmetric}, "BackingKeys": []string{strings.Repeat("5c", 32)}}},
			},
		},
		"Aliases": []object{{"AliasName": "alias/ca", "TargetKeyId": awsCA}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return seed
}

// startLocalKMS runs it until the test ends, on a port that the kernel chooses.
func startLocalKMS(t *testing.T, seed []byte) *url.URL {
	t.Helper()
	program, err := filepath.Abs("../../../.cache/bin/local-kms")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	seedFile := filepath.Join(dir, "seed.yaml")
	if err := os.WriteFile(seedFile, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = []string{"PORT=0", "KMS_DATA_PATH=" + filepath.Join(dir, "data"), "KMS_SEED_PATH=" + seedFile}
	// It shall end with us in any case, which the kernel understands as with the
	// thread that started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: run `make peers`", err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the context has ended by then
	started := regexp.MustCompile(`Local KMS started on 0\.0\.0\.0:([0-9]+)`)
	var said strings.Builder
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if m := started.FindStringSubmatch(lines.Text()); m != nil {
			go func() { _, _ = io.Copy(io.Discard, stderr) }() // or it would wait for us
			return &url.URL{Scheme: "http", Host: "127.0.0.1:" + m[1]}
		}
	}
	t.Fatalf("local-kms ended: %s", said.String())
	return nil
}

// askAWS calls a method of the service as its administrator.
func askAWS(t *testing.T, service *url.URL, method, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, service.String()+"/", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "TrentService."+method)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s: %s: %s", method, resp.Status, text)
	}
}
