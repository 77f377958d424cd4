package key_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hallmark.build/attest/sign/key"
)

const pin = "848271-a-pin"

// An hsm is SoftHSM with one token and a file with its PIN.
type hsm struct{ module, pinFile string }

func newHSM(t testing.TB) hsm {
	t.Helper()
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(module); err != nil {
		t.Skip("no SoftHSM: run `make deps`")
	}
	dir := t.TempDir()
	h := hsm{module, filepath.Join(dir, "pin")}
	conf := "directories.tokendir = " + dir + "/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600),
		os.WriteFile(h.pinFile, []byte(pin+"\n"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", filepath.Join(dir, "softhsm2.conf"))
	softhsm(t, "--init-token", "--free", "--label", "hallmark", "--so-pin", "so-pin", "--pin", pin)
	return h
}

func softhsm(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("softhsm2-util", args...).CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %v: %s", err, out)
	}
}

// add puts a key into the token.
func (h hsm) add(t testing.TB, label, id string, data []byte) {
	t.Helper()
	file := strings.TrimPrefix(write(t, data), "file://")
	softhsm(t, "--import", file, "--token", "hallmark", "--label", label, "--id", id, "--pin", pin)
}

func (h hsm) uri(path, query string) string {
	return "pkcs11:" + path + "?module-path=" + h.module + query
}

func (h hsm) withPIN(path string) string { return h.uri(path, "&pin-source=file:"+h.pinFile) }

func TestToken(t *testing.T) {
	h := newHSM(t)
	pub, data := generate(t)
	h.add(t, "ca", "01", data)
	other, data := generate(t)
	h.add(t, "timestamp", "02", data)
	for path, want := range map[string]*ecdsa.PublicKey{
		"token=hallmark;object=ca":                     pub,
		"token=hallmark;object=c%61;type=private":      pub,
		"token=hallmark;id=%01":                        pub,
		"token=hallmark;object=timestamp;id=%02":       other,
		"object=timestamp;type=private;token=hallmark": other,
	} {
		t.Run(path, func(t *testing.T) {
			k, err := key.Open(t.Context(), h.withPIN(path), key.Options{})
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
		k, err := key.Open(t.Context(), h.uri("token=hallmark;object=ca", ""), key.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		conform(t, k, pub)
	})
}

func TestTokensThatAreRefused(t *testing.T) {
	h := newHSM(t)
	_, data := generate(t)
	h.add(t, "ca", "01", data)
	h.add(t, "twice", "02", data)
	_, data = generate(t)
	h.add(t, "twice", "03", data)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h.add(t, "p384", "04", pkcs8(t, p384))
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
		"another token":   {h.withPIN("token=other;object=ca"), "could not find PKCS#11 token"},
		"another key":     {h.withPIN("token=hallmark;object=other"), "0 key pairs"},
		"label, other id": {h.withPIN("token=hallmark;object=ca;id=%02"), "0 key pairs"},
		"two keys":        {h.withPIN("token=hallmark;object=twice"), "2 key pairs"},
		"P-384":           {h.withPIN("token=hallmark;object=p384"), "not ECDSA P-256"},
		"wrong PIN":       {h.uri("token=hallmark;object=ca", "&pin-source="+bad), "CKR_PIN_INCORRECT"},
		"no PIN":          {h.uri("token=hallmark;object=ca", ""), "no PIN"},
		"PIN for all":     {h.uri("token=hallmark;object=ca", "&pin-source="+open), "lets group or others in"},
		"PIN is gone":     {h.uri("token=hallmark;object=ca", "&pin-source=/none/pin"), "no such file"},
		"PIN in the URI":  {h.uri("token=hallmark;object=ca", "&pin-value="+pin), "has no place in a URI"},
		"no module":       {"pkcs11:token=hallmark;object=ca?module-path=/none.so&pin-source=" + h.pinFile, "failed to open module"},
		"not a module":    {"pkcs11:token=hallmark;object=ca?module-path=" + h.pinFile + "&pin-source=" + h.pinFile, "failed to open module"},
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
	h := newHSM(t)
	_, data := generate(t)
	h.add(t, "ca", "01", data)
	k, err := key.Open(t.Context(), h.withPIN("token=hallmark;object=ca"), key.Options{})
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
	h := newHSM(t)
	pub, data := generate(t)
	h.add(t, "ca", "01", data)
	k, err := key.Open(t.Context(), h.withPIN("token=hallmark;object=ca"), key.Options{})
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
	h := newHSM(b)
	h.add(b, "ca", "01", data)
	for name, uri := range map[string]string{"file": write(b, data), "softhsm": h.withPIN("token=hallmark;object=ca")} {
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
