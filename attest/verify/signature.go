package verify

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// A signer is who signed, by the certificate.
type signer struct {
	identity string // the URI, byte for byte
	issuer   string
}

// checkTimestamp verifies every timestamp there is, and wants one at least.
func checkTimestamp(b *parsedBundle, trusted *root.TrustedRoot) (Check, []time.Time) {
	c := Check{Name: "timestamp", Required: true}
	if b.timestamps == 0 {
		c.Status, c.Detail = Fail, "no RFC 3161 timestamp: nothing tells when it was signed"
		return c, nil
	}
	stamps, err := verify.VerifySignedTimestampWithThreshold(b.entity, trusted, b.timestamps)
	if err != nil {
		c.Status, c.Detail = Fail, "not of this signature by a trusted authority"
		if b.timestamps > 1 {
			c.Detail = fmt.Sprintf("not each of %d is of this signature, by a trusted authority of its own", b.timestamps)
		}
		c.Evidence = []string{oneLine(err)}
		return c, nil
	}
	var times []time.Time
	var words []string
	for _, stamp := range stamps {
		times = append(times, stamp.Time.UTC())
		words = append(words, stamp.Time.UTC().Format(time.RFC3339)+" by "+orUnnamed(stamp.URI))
	}
	c.Status, c.Detail = Pass, strings.Join(words, ", ")
	return c, times
}

func orUnnamed(uri string) string {
	if uri == "" {
		return "an authority without a name"
	}
	return uri
}

// checkCertificate verifies the chain at each time at which it was signed.
func checkCertificate(b *parsedBundle, trusted *root.TrustedRoot, times []time.Time) (Check, signer) {
	c := Check{Name: "certificate", Required: true}
	if len(times) == 0 {
		c.Status, c.Detail = NotChecked, "no trusted time to check it at"
		return c, signer{}
	}
	for _, at := range times {
		if _, err := verify.VerifyLeafCertificate(at, b.leaf, trusted); err != nil {
			c.Status = Fail
			c.Detail = "no chain to a trusted authority at " + at.Format(time.RFC3339)
			c.Evidence = []string{fmt.Sprintf("serial %x, valid %s to %s, issued by %s", b.leaf.SerialNumber,
				b.leaf.NotBefore.UTC().Format(time.RFC3339), b.leaf.NotAfter.UTC().Format(time.RFC3339), b.leaf.Issuer)}
			return c, signer{}
		}
	}
	who, err := readSigner(b.leaf)
	if err != nil {
		c.Status, c.Detail = Fail, oneLine(err)
		return c, signer{}
	}
	c.Status = Pass
	c.Detail = fmt.Sprintf("for %s, from %s", who.identity, who.issuer)
	return c, who
}

// readSigner reads the one identity that a certificate must name, and the
// issuer in the extensions of Fulcio's that hold it. The library's parsed URL is
// not used: it might be spelled differently from the bytes.
func readSigner(leaf *x509.Certificate) (signer, error) {
	if leaf.IsCA {
		return signer{}, errors.New("is that of an authority")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return signer{}, errors.New("is not for signatures")
	}
	var who signer
	for _, ext := range leaf.Extensions {
		var err error
		switch {
		case ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}):
			who.identity, err = onlyURI(ext.Value)
		case ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}):
			who.issuer, err = utf8String(ext.Value)
		}
		if err != nil {
			return signer{}, err
		}
	}
	if who.identity == "" {
		return signer{}, errors.New("names no identity")
	}
	if who.issuer == "" {
		return signer{}, errors.New("names no issuer")
	}
	// The older form of the issuer is bare bytes. If it is there it must agree:
	// verifiers differ in which of the two they read.
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}) && string(ext.Value) != who.issuer {
			return signer{}, errors.New("names two different issuers")
		}
	}
	return who, nil
}

// onlyURI reads a subject alternative name extension of exactly one URI.
func onlyURI(der []byte) (string, error) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 {
		return "", errors.New("its names do not parse")
	}
	if len(names) != 1 {
		return "", fmt.Errorf("names %d identities: want exactly one", len(names))
	}
	const uniformResourceIdentifier = 6
	if n := names[0]; n.Class != asn1.ClassContextSpecific || n.Tag != uniformResourceIdentifier || n.IsCompound {
		return "", errors.New("its identity is not a URI")
	}
	return string(names[0].Bytes), nil
}

func utf8String(der []byte) (string, error) {
	var s string
	if rest, err := asn1.UnmarshalWithParams(der, &s, "utf8"); err != nil || len(rest) > 0 {
		return "", errors.New("its issuer does not parse")
	}
	return s, nil
}

// checkLog verifies every log entry there is. None is asked for.
func checkLog(b *parsedBundle, trusted *root.TrustedRoot) Check {
	c := Check{Name: "log"}
	if b.logEntries == 0 {
		c.Status, c.Detail = NotChecked, "no log entry in the bundle, and none is asked for"
		return c
	}
	c.Required = true
	// The threshold counts logs, not entries: it can be met only if all
	// entries verify and are from different logs.
	if _, err := verify.VerifyTlogEntry(b.entity, trusted, b.logEntries, false); err != nil {
		c.Status, c.Detail = Fail, "not each entry is of this signature, in a trusted log of its own"
		c.Evidence = []string{oneLine(err)}
		return c
	}
	c.Status, c.Detail = Pass, "this signature is in "+count(b.logEntries, "trusted log")
	return c
}

// checkSignature verifies the signature with the certificate's key. If all else
// is well it asks sigstore-go for the whole once more, so that our order of
// its parts is never less than its own. (What has failed already it need not
// refuse again.)
func checkSignature(b *parsedBundle, trusted *root.TrustedRoot, who signer, whole bool) Check {
	c := Check{Name: "signature", Required: true}
	key, ok := b.leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		c.Status, c.Detail = Fail, "the key is not ECDSA P-256"
		return c
	}
	content, err := b.entity.SignatureContent()
	if err != nil {
		c.Status, c.Detail = Fail, oneLine(err)
		return c
	}
	material, err := b.entity.VerificationContent()
	if err != nil {
		c.Status, c.Detail = Fail, oneLine(err)
		return c
	}
	if err := verify.VerifySignature(content, material, trusted); err != nil {
		c.Status, c.Detail = Fail, "does not verify with the certificate's key"
		c.Evidence = []string{oneLine(err)}
		return c
	}
	if whole {
		if err := verifyWhole(b, trusted, who); err != nil {
			c.Status, c.Detail = Fail, "sigstore-go refuses the bundle"
			c.Evidence = []string{oneLine(err)}
			return c
		}
	}
	c.Status, c.Detail = Pass, "ECDSA P-256 with SHA-256, by the certificate's key"
	return c
}

func verifyWhole(b *parsedBundle, trusted *root.TrustedRoot, who signer) error {
	options := []verify.VerifierOption{verify.WithSignedTimestamps(b.timestamps), verify.WithoutStatementPredicate()}
	if b.logEntries > 0 {
		options = append(options, verify.WithTransparencyLog(b.logEntries))
	}
	v, err := verify.NewVerifier(trusted, options...)
	if err != nil {
		return err
	}
	identity, err := verify.NewShortCertificateIdentity(who.issuer, "", who.identity, "")
	if err != nil {
		return err
	}
	// The artifact is compared by checkSubject, more strictly.
	_, err = v.Verify(b.entity, verify.NewPolicy(verify.WithoutArtifactUnsafe(), verify.WithCertificateIdentity(identity)))
	return err
}

// oneLine bounds an error of another package for display.
func oneLine(err error) string {
	const most = 300
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
