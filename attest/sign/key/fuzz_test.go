package key

import (
	"crypto/elliptic"
	"testing"
)

func FuzzPluginAnswer(f *testing.F) {
	for _, seed := range []string{
		`{"publicKey":{"publicKeyPEM":"LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0K"}}`, `{"signMessage":{"signature":"MEQCIA=="}}`,
		`{"errorMessage":"no"}`, `{}`, `{"publicKey":null}`, `[1]`, `{"signMessage":{}}{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := parseAnswer(text)
		if err != nil {
			return
		}
		if pub, err := a.public(); err == nil && pub.Curve != elliptic.P256() {
			t.Error("a key that is not P-256")
		}
	})
}

func FuzzFile(f *testing.F) {
	_, good, err := Generate()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := parseFile(text); err == nil && k.Curve != elliptic.P256() {
			t.Error("a key that is not P-256")
		}
	})
}
