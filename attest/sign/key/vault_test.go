package key_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"hallmark.build/attest/sign/key"
)

// A vault stands in for the transit engine of Vault or OpenBao: the two calls
// that are made of it, as its API documentation has them.
type vault struct {
	t     *testing.T
	key   atomic.Pointer[ecdsa.PrivateKey]
	token string
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("X-Vault-Token") != v.token {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"errors":["permission denied"]}`))
		return
	}
	k := v.key.Load()
	var data map[string]any
	switch r.URL.Path {
	case "/v1/transit/keys/ca":
		der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			v.t.Error(err)
		}
		text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		data = map[string]any{"latest_version": 1, "type": "ecdsa-p256", "keys": map[string]any{"1": map[string]any{"name": "P-256", "public_key": text}}}
	case "/v1/transit/sign/ca/sha2-256":
		var in struct {
			Input     []byte `json:"input"`
			Prehashed bool   `json:"prehashed"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !in.Prehashed || len(in.Input) != 32 {
			v.t.Errorf("%v, prehashed %t, %d bytes", err, in.Prehashed, len(in.Input))
		}
		sig, err := ecdsa.SignASN1(rand.Reader, k, in.Input)
		if err != nil {
			v.t.Error(err)
		}
		text, err := json.Marshal(sig)
		if err != nil {
			v.t.Error(err)
		}
		data = map[string]any{"key_version": 1, "signature": "vault:v1:" + strings.Trim(string(text), `"`)}
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[]}`))
		return
	}
	if err := json.NewEncoder(w).Encode(map[string]any{"data": data}); err != nil {
		v.t.Error(err)
	}
}

// installKMS puts hallmark-kms on PATH as the plugin of each name.
func installKMS(t *testing.T, names ...string) (program string) {
	t.Helper()
	program, err := filepath.Abs("../../../bin/hallmark-kms")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run `make build`", err)
	}
	dir := t.TempDir()
	for _, name := range names {
		if err := os.Symlink(program, filepath.Join(dir, "sigstore-kms-"+name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return program
}

// TestHashiVault goes through hallmark-kms, as it is installed.
func TestHashiVault(t *testing.T) {
	program := installKMS(t, "hashivault", "other")
	v := &vault{t: t, token: "hvs.the-token"}
	mine := testKey(t)
	v.key.Store(mine)
	server := httptest.NewServer(v)
	defer server.Close()
	t.Setenv("VAULT_ADDR", server.URL)
	t.Setenv("VAULT_TOKEN", v.token)

	k, err := key.Open(t.Context(), "hashivault://ca", key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	conform(t, k, &mine.PublicKey)

	for _, uri := range []string{"hashivault://none", "hashivault://../ca", "other://ca"} {
		if _, err := key.Open(t.Context(), uri, key.Options{}); err == nil {
			t.Errorf("%s: opened", uri)
		}
	}
	v.key.Store(testKey(t)) // as when it is rotated there
	if _, err := k.Sign(t.Context(), digest("x")); err == nil || !strings.Contains(err.Error(), "not this key's signature") {
		t.Errorf("another key: %v", err)
	}
	t.Setenv("VAULT_TOKEN", "hvs.another")
	if _, err := k.Sign(t.Context(), digest("x")); err == nil || !strings.Contains(err.Error(), "permission denied") || strings.Contains(err.Error(), "hvs.another") {
		t.Errorf("another token: %v", err)
	}
	if err := exec.Command(program, "v1", "{}").Run(); err == nil {
		t.Error("under its own name: done")
	}
}
