package sigstore

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
)

// TestPAE has the example of the specification.
func TestPAE(t *testing.T) {
	const want = "DSSEv1 29 http://example.com/HelloWorld 11 hello world"
	if have := PAE("http://example.com/HelloWorld", []byte("hello world")); string(have) != want {
		t.Errorf("got %q, want %q", have, want)
	}
}

func TestJobClaim(t *testing.T) {
	for id, want := range map[string]string{
		"1.3.6.1.4.1.57264.1.1":    "", // the issuer
		"1.3.6.1.4.1.57264.1.8":    "",
		"1.3.6.1.4.1.57264.1.5":    "1.3.6.1.4.1.57264.1.5",  // GitHub's repository
		"1.3.6.1.4.1.57264.1.9":    "1.3.6.1.4.1.57264.1.9",  // build signer
		"1.3.6.1.4.1.57264.1.21":   "1.3.6.1.4.1.57264.1.21", // run
		"1.3.6.1.4.1.57264.1.21.1": "",
		"1.3.6.1.4.1.57264.2.9":    "",
	} {
		oid, err := x509.ParseOID(id)
		if err != nil {
			t.Fatal(err)
		}
		var ext asn1.ObjectIdentifier
		der, err := oid.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := asn1.Unmarshal(append([]byte{asn1.TagOID, byte(len(der))}, der...), &ext); err != nil {
			t.Fatal(err)
		}
		if have := JobClaim(&x509.Certificate{Extensions: []pkix.Extension{{Id: ext}}}); have != want {
			t.Errorf("%s: got %q, want %q", id, have, want)
		}
	}
}
