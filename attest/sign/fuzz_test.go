package sign

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

func FuzzKeyring(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "keys")
	s, err := Open(f.Context(), Options{Dir: dir, Issuer: "https://ci.example.com/hallmark"})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	good, err := os.ReadFile(filepath.Join(dir, keyringFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	// In UTC, these are years that JSON does not have.
	f.Add(regexp.MustCompile(`"until": "[^"]*"`).ReplaceAll(good, []byte(`"until": "0000-01-01T00:00:00+01:00"`)))
	f.Add(regexp.MustCompile(`"from": "[^"]*"`).ReplaceAll(good, []byte(`"from": "9999-12-31T23:59:59-01:00"`)))
	f.Add([]byte(`{"version":1,"generations":[]}`))
	f.Add([]byte(`{"version":1,"generations":[{"id":"ca-00","role":"ca","from":"2026-01-01T00:00:00Z","until":"2027-01-01T00:00:00Z","certificates":[]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseKeyring(text)
		if err != nil {
			return
		}
		again, err := encodeKeyring(all)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseKeyring(again); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

func FuzzFulcioAnswer(f *testing.F) {
	f.Add([]byte(`{"signedCertificateEmbeddedSct":{"chain":{"certificates":["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]}}}`))
	f.Add([]byte(`{"signedCertificateDetachedSct":{"chain":{"certificates":[]}},"signedCertificateEmbeddedSct":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := parseFulcio(text); (c == nil) != (err != nil) {
			t.Error("neither a certificate nor an error")
		}
	})
}

func FuzzTrustedRoot(f *testing.F) {
	f.Add([]byte(`{"mediaType":"x","certificateAuthorities":[{"certChain":{"certificates":[{"rawBytes":"AAAA"}]}}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		root, err := ParseTrustedRoot(text)
		if err != nil {
			return
		}
		if _, err := newVerifier(root); err != nil {
			t.Errorf("taken, and of no use: %v", err)
		}
	})
}
