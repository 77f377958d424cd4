package verify

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/verify"

	"hallmark.build/attest/internal/sigstore"
	"hallmark.build/attest/policy"
)

// checkTimestamp verifies every timestamp there is, and wants one at least.
func checkTimestamp(b *parsedBundle, trusted *trust) (Check, []time.Time) {
	c := Check{Name: "timestamp", Required: true}
	if b.timestamps == 0 {
		c.Status, c.Detail = Fail, "no RFC 3161 timestamp: nothing tells when it was signed"
		return c, nil
	}
	stamps, err := verify.VerifySignedTimestampWithThreshold(b.entity, trusted.TrustedRoot, b.timestamps)
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
func checkCertificate(b *parsedBundle, trusted *trust, times []time.Time) (Check, policy.Signer) {
	c := Check{Name: "certificate", Required: true}
	if len(times) == 0 {
		c.Status, c.Detail = NotChecked, "no trusted time to check it at"
		return c, policy.Signer{}
	}
	for _, at := range times {
		if _, err := verify.VerifyLeafCertificate(at, b.leaf, trusted.TrustedRoot); err != nil {
			c.Status = Fail
			c.Detail = "no chain to a trusted authority at " + at.Format(time.RFC3339)
			c.Evidence = []string{fmt.Sprintf("serial %x, valid %s to %s, issued by %s", b.leaf.SerialNumber,
				b.leaf.NotBefore.UTC().Format(time.RFC3339), b.leaf.NotAfter.UTC().Format(time.RFC3339), b.leaf.Issuer)}
			c.Evidence = append(c.Evidence, trusted.whoseWindow(b.leaf)...)
			return c, policy.Signer{}
		}
	}
	who, err := readSigner(b.leaf)
	if err != nil {
		c.Status, c.Detail = Fail, oneLine(err)
		return c, policy.Signer{}
	}
	c.Status = Pass
	c.Detail = fmt.Sprintf("for %s, from %s", who.Identity, who.Issuer)
	return c, who
}

// readSigner reads the one identity that a certificate must name, a URI or a
// mail address, and the issuer in the extensions of Fulcio's that hold it. The
// library's parsed URL is not used: it might be spelled differently from the
// bytes.
func readSigner(leaf *x509.Certificate) (policy.Signer, error) {
	if leaf.IsCA {
		return policy.Signer{}, errors.New("is that of an authority")
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return policy.Signer{}, errors.New("is not for signatures")
	}
	var who policy.Signer
	for _, ext := range leaf.Extensions {
		var err error
		switch {
		case ext.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}):
			who.Identity, err = onlyName(ext.Value)
		case ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}):
			who.Issuer, err = utf8String(ext.Value)
		}
		if err != nil {
			return policy.Signer{}, err
		}
	}
	if sigstore.JobClaim(leaf) != "" {
		return policy.Signer{}, errors.New("is that of a CI job: whoever runs in it could have signed")
	}
	if who.Identity == "" {
		return policy.Signer{}, errors.New("names no identity")
	}
	if who.Issuer == "" {
		return policy.Signer{}, errors.New("names no issuer")
	}
	// The older form of the issuer is bare bytes. If it is there it must agree:
	// verifiers differ in which of the two they read.
	for _, ext := range leaf.Extensions {
		if ext.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 1}) && string(ext.Value) != who.Issuer {
			return policy.Signer{}, errors.New("names two different issuers")
		}
	}
	return who, nil
}

// onlyName reads a subject alternative name extension of exactly one URI or
// mail address. The one cannot be taken for the other, for a URI has a scheme.
func onlyName(der []byte) (string, error) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &names); err != nil || len(rest) > 0 {
		return "", errors.New("its names do not parse")
	}
	if len(names) != 1 {
		return "", fmt.Errorf("names %d identities: want exactly one", len(names))
	}
	const rfc822Name, uniformResourceIdentifier = 1, 6
	n, isURI := names[0], names[0].Tag == uniformResourceIdentifier
	if n.Class != asn1.ClassContextSpecific || n.IsCompound || !isURI && n.Tag != rfc822Name {
		return "", errors.New("its identity is neither a URI nor a mail address")
	}
	name := string(n.Bytes)
	if isURI != strings.Contains(name, "://") {
		return "", errors.New("its identity is not of the kind that it says")
	}
	return name, nil
}

func utf8String(der []byte) (string, error) {
	var s string
	if rest, err := asn1.UnmarshalWithParams(der, &s, "utf8"); err != nil || len(rest) > 0 {
		return "", errors.New("its issuer does not parse")
	}
	return s, nil
}

// checkLog verifies every log entry there is, and wants as many logs as the
// policy asks for.
func checkLog(b *parsedBundle, trusted *trust, pol policy.Policy, times []time.Time) Check {
	f := asks("log")
	known := trusted.operators()
	asked := pol.LogsAsked(len(known))
	switch {
	case b.logEntries == 0 && asked == 0:
		return f.unasked("no log entry in the bundle, and none is asked for")
	case b.logEntries > 0 && len(times) == 0:
		f.c.Status, f.c.Detail = NotChecked, "no trusted time to check it at"
		return f.c
	}
	logs, err := logsOf(f, b, trusted, times)
	if err != nil {
		return f.fail(0, "%s", oneLine(err))
	}
	if len(logs) < asked {
		f.add("asked for   %d", asked)
		f.add("trusted     %s", cmp.Or(strings.Join(known, ", "), "none"))
		return f.fail(pol.Line("min_logs"), "this signature is in %s", count(len(logs), "trusted log"))
	}
	seen, err := seenBy(f, logs, pol)
	if err != nil {
		return f.fail(0, "%s", oneLine(err))
	}
	if len(seen) < asked {
		f.add("asked for   %d of %s", pol.MinWitnesses, count(len(pol.Witnesses), "witness key"))
		return f.fail(pol.Line("min_witnesses"), "enough witnesses have seen this signature in %s", count(len(seen), "trusted log"))
	}
	return f.pass("this signature is in %s", strings.Join(seen, ", "))
}

// A logged entry is a good one, in words, with the checkpoint that proves it.
type logged struct{ words, log, checkpoint string }

// seenBy are, in words, those entries whose checkpoint as many witnesses have
// cosigned as the policy asks for. All of them are, where it asks for none.
func seenBy(f *finding, logs []logged, pol policy.Policy) ([]string, error) {
	keys, err := pol.WitnessKeys()
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, l := range logs {
		if pol.MinWitnesses == 0 {
			seen = append(seen, l.words)
			continue
		}
		by, err := witnessesOf(l.checkpoint, keys)
		if err != nil {
			return nil, err
		}
		names := strings.Join(by, ", ")
		if len(by) < pol.MinWitnesses {
			f.add("%s was seen by %s", l.log, cmp.Or(names, "none of them"))
			continue
		}
		seen = append(seen, l.words+", seen by "+names)
	}
	return seen, nil
}

// logsOf are the entries of a bundle, each good and in a log of another
// operator: neither two entries of one log, nor two keys of it, nor two logs of
// the same people are two witnesses. A log's key must have been trusted when the
// signature was made, which the library does not ask; a log may be younger by
// what clocks differ.
func logsOf(f *finding, b *parsedBundle, trusted *trust, times []time.Time) ([]logged, error) {
	// The threshold counts keys, not entries: it can be met only if all
	// entries verify and are of different keys.
	if _, err := verify.VerifyTlogEntry(b.entity, trusted.TrustedRoot, b.logEntries, false); err != nil {
		f.add("%s", oneLine(err))
		return nil, errors.New("not each entry is of this signature, in a trusted log of its own")
	}
	entries, err := b.entity.TlogEntries()
	if err != nil {
		return nil, err
	}
	var (
		logs      []logged
		operators []string
	)
	for _, entry := range entries {
		log, ok := trusted.logs[hex.EncodeToString([]byte(entry.LogKeyID()))]
		if !ok {
			return nil, errors.New("an entry is in no trusted log")
		}
		if err := checkOrigin(entry.TransparencyLogEntry(), log.BaseURL); err != nil {
			return nil, err
		}
		open := window{log.ValidityPeriodStart, log.ValidityPeriodEnd}
		for _, at := range times {
			if !open.holds(at, clockSkew) {
				f.add("%s is %s", log.BaseURL, open)
				return nil, fmt.Errorf("the log's key was not trusted at %s", at.Format(time.RFC3339))
			}
		}
		if slices.Contains(operators, log.operator) {
			f.add("%s", log.operator)
			return nil, errors.New("two entries are in logs of one operator")
		}
		logs = append(logs, logged{
			words: fmt.Sprintf("%s as entry %d", log.BaseURL, entry.LogIndex()), log: log.BaseURL,
			checkpoint: entry.TransparencyLogEntry().GetInclusionProof().GetCheckpoint().GetEnvelope(),
		})
		operators = append(operators, log.operator)
	}
	return logs, nil
}

// checkSignature verifies the signature with the certificate's key. If all else
// is well it asks sigstore-go for the whole once more, so that our order of
// its parts is never less than its own. (What has failed already it need not
// refuse again.)
func checkSignature(b *parsedBundle, trusted *trust, who policy.Signer, whole bool) Check {
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
	if err := verify.VerifySignature(content, material, trusted.TrustedRoot); err != nil {
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

func verifyWhole(b *parsedBundle, trusted *trust, who policy.Signer) error {
	options := []verify.VerifierOption{verify.WithSignedTimestamps(b.timestamps), verify.WithoutStatementPredicate()}
	if b.logEntries > 0 {
		options = append(options, verify.WithTransparencyLog(b.logEntries))
	}
	v, err := verify.NewVerifier(trusted.TrustedRoot, options...)
	if err != nil {
		return err
	}
	identity, err := verify.NewShortCertificateIdentity(who.Issuer, "", who.Identity, "")
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
