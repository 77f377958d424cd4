package key_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hallmark.build/attest/sign/key"
	"hallmark.build/attest/sign/key/keytest"
)

const pin = keytest.PIN

func TestToken(t *testing.T) {
	h := keytest.New(t)
	pub, data := generate(t)
	h.Import("ca", "01", data)
	other, data := generate(t)
	h.Import("timestamp", "02", data)
	for path, want := range map[string]*ecdsa.PublicKey{
		"token=hallmark;object=ca":                     pub,
		"token=hallmark;object=c%61;type=private":      pub,
		"token=hallmark;id=%01":                        pub,
		"token=hallmark;object=timestamp;id=%02":       other,
		"object=timestamp;type=private;token=hallmark": other,
	} {
		t.Run(path, func(t *testing.T) {
			k, err := key.Open(t.Context(), h.URI(path), key.Options{})
			if err != nil {
				t.Fatal(err)
			}
			conform(t, k, want)
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("PIN in the environment", func(t *testing.T) {
		t.Setenv("HALLMARK_PKCS11_PIN", pin)
		k, err := key.Open(t.Context(), h.Without("token=hallmark;object=ca"), key.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		conform(t, k, pub)
	})
}

func TestTokensThatAreRefused(t *testing.T) {
	h := keytest.New(t)
	_, data := generate(t)
	h.Import("ca", "01", data)
	h.Import("twice", "02", data)
	_, data = generate(t)
	h.Import("twice", "03", data)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h.Import("p384", "04", pkcs8(t, p384))
	const wrong = "000000-wrong"
	bad := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(bad, []byte(wrong), 0o600); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte(pin), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ uri, want string }{
		"another token":   {h.URI("token=other;object=ca"), "0 tokens of this name"},
		"another key":     {h.URI("token=hallmark;object=other"), "0 key pairs"},
		"label, other id": {h.URI("token=hallmark;object=ca;id=%02"), "0 key pairs"},
		"two keys":        {h.URI("token=hallmark;object=twice"), "2 key pairs"},
		"P-384":           {h.URI("token=hallmark;object=p384"), "not ECDSA P-256"},
		"wrong PIN":       {h.Without("token=hallmark;object=ca") + "&pin-source=" + bad, "CKR_PIN_INCORRECT"},
		"no PIN":          {h.Without("token=hallmark;object=ca"), "no PIN"},
		"PIN for all":     {h.Without("token=hallmark;object=ca") + "&pin-source=" + open, "lets group or others in"},
		"PIN is gone":     {h.Without("token=hallmark;object=ca") + "&pin-source=/none/pin", "no such file"},
		"PIN in the URI":  {h.Without("token=hallmark;object=ca") + "&pin-value=" + pin, "has no place in a URI"},
		"no module":       {"pkcs11:token=hallmark;object=ca?module-path=/none.so&pin-source=" + h.PINFile, "not a PKCS#11 module"},
		"not a module":    {"pkcs11:token=hallmark;object=ca?module-path=" + h.PINFile + "&pin-source=" + h.PINFile, "not a PKCS#11 module"},
	} {
		_, err := key.Open(t.Context(), tt.uri, key.Options{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), pin) || strings.Contains(err.Error(), wrong)) {
			t.Errorf("%s: the PIN is in the error", name)
		}
	}
}

// TestPINIsNowhere looks at what others can see of the process with the token.
func TestPINIsNowhere(t *testing.T) {
	h := keytest.New(t)
	_, data := generate(t)
	h.Import("ca", "01", data)
	k, err := key.Open(t.Context(), h.URI("token=hallmark;object=ca"), key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := k.Sign(t.Context(), digest("x")); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, pid := range children(t, os.Getpid()) {
		found++
		for _, name := range []string{"cmdline", "environ"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%s/%s", pid, name))
			if err == nil && strings.Contains(string(text), pin) {
				t.Errorf("the PIN is in %s", name)
			}
		}
	}
	if found == 0 {
		t.Error("no process with the token")
	}
}

func children(t *testing.T, pid int) []string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil {
			out = append(out, strings.Fields(string(text))...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestTokenSignsForMany(t *testing.T) {
	h := keytest.New(t)
	pub, data := generate(t)
	h.Import("ca", "01", data)
	k, err := key.Open(t.Context(), h.URI("token=hallmark;object=ca"), key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 10 {
				d := digest(fmt.Sprint(i, j))
				sig, err := k.Sign(t.Context(), d)
				if err != nil || !ecdsa.VerifyASN1(pub, d, sig) {
					t.Errorf("%d.%d: %v, or of another digest", i, j, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkKey(b *testing.B) {
	_, data := generate(b)
	h := keytest.New(b)
	h.Import("ca", "01", data)
	for name, uri := range map[string]string{"file": write(b, data), "softhsm": h.URI("token=hallmark;object=ca")} {
		b.Run(name, func(b *testing.B) {
			k, err := key.Open(b.Context(), uri, key.Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			d := digest("x")
			b.Run("one", func(b *testing.B) {
				for b.Loop() {
					if _, err := k.Sign(b.Context(), d); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run("many", func(b *testing.B) {
				b.SetParallelism(16)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := k.Sign(b.Context(), d); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		})
	}
}
