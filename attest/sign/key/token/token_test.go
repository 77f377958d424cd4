package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain is also the program, with a key from a file in place of a token.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != program {
		os.Exit(m.Run())
	}
	der, err := os.ReadFile(os.Getenv("TOKEN_TEST_KEY"))
	if err != nil {
		_ = Fail(os.Stdout, err)
		os.Exit(1)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		os.Exit(1)
	}
	if err := Serve(os.Stdin, os.Stdout, k.(crypto.Signer), 4); err != nil {
		os.Exit(1)
	}
}

const goodURI = "pkcs11:token=t;object=ca?module-path=/lib/m.so"

func TestParse(t *testing.T) {
	u, err := Parse("pkcs11:serial=12%20%41;id=%00%ff;type=private?module-path=/lib/m%2dx.so&pin-source=file:///etc/p%20in")
	if err != nil {
		t.Fatal(err)
	}
	if u.Serial != "12 A" || !bytes.Equal(u.ID, []byte{0, 255}) || u.Module != "/lib/m-x.so" || u.PINSource != "/etc/p in" || u.Slot != nil {
		t.Errorf("%+v", u)
	}
	if u, err := Parse("pkcs11:slot-id=0;object=ca?pin-source=/p&module-path=/m"); err != nil || *u.Slot != 0 || u.PINSource != "/p" {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestParseRefuses(t *testing.T) {
	const secret = "s3cret-848271"
	for _, bad := range []string{
		"", "pkcs11:", "pkcs12:token=t;object=ca?module-path=/m", goodURI + "&", goodURI + "&x", goodURI + "&module-path=/n",
		"pkcs11:token=t?module-path=/m", "pkcs11:object=ca?module-path=/m", "pkcs11:token=t;object=ca", "pkcs11:token=t;object=ca?module-path=m.so",
		"pkcs11:token=t;serial=1;object=ca?module-path=/m", "pkcs11:token=;object=ca?module-path=/m", "pkcs11:token=%zz;object=ca?module-path=/m",
		"pkcs11:token=a%00b;object=ca?module-path=/m", "pkcs11:slot-id=-1;object=ca?module-path=/m", "pkcs11:slot-id=x;object=ca?module-path=/m",
		"pkcs11:token=t;object=ca;type=cert?module-path=/m", "pkcs11:token=t;object=ca;manufacturer=x?module-path=/m",
		goodURI + "&pin-source=pin", goodURI + "&pin-source=|cat", goodURI + "&module-name=x", goodURI + "&pin-value=" + secret, goodURI + "&" + secret,
		goodURI + "&" + secret + "=x", "pkcs11:" + secret + "?module-path=/m", goodURI + "&pin-source=" + strings.Repeat("x", 8192),
	} {
		_, err := Parse(bad)
		if err == nil {
			t.Errorf("%.80q: taken", bad)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%.80q: the error quotes it: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(goodURI)
	f.Add("pkcs11:slot-id=0;id=%01?pin-source=file:/p&module-path=/m")
	f.Fuzz(func(t *testing.T, text string) {
		if u, err := Parse(text); err == nil && u.check() != nil {
			t.Error("taken, and not sound")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	var b bytes.Buffer
	if err := (answer{id: 7, status: failed, value: []byte("no")}).write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 0, 0, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := readAnswer(bytes.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := a.write(&out); err != nil || !bytes.HasPrefix(text, out.Bytes()) {
			t.Error("is read and written differently")
		}
	})
}

func testKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestServe(t *testing.T) {
	k := testKey(t)
	var in, out bytes.Buffer
	for i := range uint32(20) {
		if err := (request{id: i + 1, digest: [32]byte{byte(i)}}).write(&in); err != nil {
			t.Fatal(err)
		}
	}
	if err := Serve(&in, &out, k, 4); err != nil {
		t.Fatal(err)
	}
	if hello, err := readAnswer(&out); err != nil || hello.id != 0 || hello.status != done {
		t.Fatalf("%+v, %v", hello, err)
	}
	seen := map[uint32]bool{}
	for range 20 {
		a, err := readAnswer(&out)
		if err != nil {
			t.Fatal(err)
		}
		d := [32]byte{byte(a.id - 1)}
		if seen[a.id] || !ecdsa.VerifyASN1(&k.PublicKey, d[:], a.value) {
			t.Errorf("answer %d: twice, or of another digest", a.id)
		}
		seen[a.id] = true
	}
}

func TestServeRefusesHalfARequest(t *testing.T) {
	if err := Serve(strings.NewReader("half"), io.Discard, testKey(t), 2); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

// brokenSigner is a token that has been pulled out.
type brokenSigner struct{ *ecdsa.PrivateKey }

func (brokenSigner) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("CKR_DEVICE_REMOVED\x1b[31m" + strings.Repeat("!", 2000))
}

func TestErrorsArePlain(t *testing.T) {
	var in, out bytes.Buffer
	if err := (request{id: 1}).write(&in); err != nil {
		t.Fatal(err)
	}
	if err := Serve(&in, &out, brokenSigner{testKey(t)}, 1); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a, err := readAnswer(&out)
		if err != nil {
			t.Fatal(err)
		}
		if a.id == 0 {
			continue
		}
		if _, err := a.result(); err == nil || !strings.HasPrefix(err.Error(), "CKR_DEVICE_REMOVED [31m") || len(err.Error()) > maxValue {
			t.Errorf("%v", err)
		}
	}
}

// install puts a shell script in the program's place.
func install(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, program), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestProgramsThatMisbehave(t *testing.T) {
	for name, tt := range map[string]struct{ script, want string }{
		"ends":       {"exit 0", "has ended"},
		"silent":     {"exec sleep 3600", "no answer within"},
		"garbage":    {"echo garbage garbage garbage; exec cat", "has ended"},
		"huge":       {`printf '\000\000\000\000\000\377\377'; exec cat /dev/zero`, "has ended"},
		"no key":     {`printf '\000\000\000\000\000\000\001x'; exec cat`, "does not parse"},
		"says no":    {`printf '\000\000\000\000\001\000\002no'`, "no"},
		"other id":   {`printf '\000\000\000\007\000\000\001x'; exec cat`, "has ended"},
		"bad status": {`printf '\000\000\000\000\002\000\001x'; exec cat`, "has ended"},
	} {
		t.Run(name, func(t *testing.T) {
			install(t, tt.script)
			timeout := time.Minute
			if name == "silent" {
				timeout = time.Second
			}
			if _, err := Open(t.Context(), goodURI, timeout); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestNoProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Open(t.Context(), goodURI, time.Minute); err == nil || !strings.Contains(err.Error(), "install it") {
		t.Errorf("%v", err)
	}
}

// TestProgramThatDies is started again after a while, but never with another key.
func TestProgramThatDies(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "key")
	put := func(k *ecdsa.PrivateKey) {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err := errors.Join(err, os.WriteFile(file, der, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	k := testKey(t)
	put(k)
	if err := os.Symlink(self, filepath.Join(dir, program)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	t.Setenv("TOKEN_TEST_KEY", file)
	c, err := Open(t.Context(), goodURI, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kill := func() {
		if err := c.process.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-c.process.ended
	}
	d := make([]byte, 32)
	sign := func() error {
		sig, err := c.Sign(t.Context(), d)
		if err == nil && !ecdsa.VerifyASN1(&k.PublicKey, d, sig) {
			t.Error("another key signed")
		}
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	c.pause = time.Hour
	kill()
	if err := sign(); err == nil || !strings.Contains(err.Error(), "it is started again in") {
		t.Errorf("at once: %v", err)
	}
	c.pause = 0
	if err := sign(); err != nil {
		t.Errorf("after a while: %v", err)
	}
	kill()
	put(testKey(t))
	if err := sign(); err == nil || !strings.Contains(err.Error(), "another key now") {
		t.Errorf("with another key: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := sign(); err == nil {
		t.Error("without its key: signed")
	}
	put(k)
	if err := sign(); err != nil {
		t.Errorf("with its key again: %v", err)
	}
}
