package verify

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"

	"hallmark.build/sandbox/record"
)

// A trust is a trusted root that can vouch for something.
type trust struct {
	*root.TrustedRoot
	logs map[string]trustedLog // by key id, in lower-case hex
}

type trustedLog struct {
	*root.TransparencyLog
	operator string
}

// parseRoot reads a Sigstore trusted root. It must name at least one
// certificate authority and one timestamp authority, and no log's key twice,
// because of two windows for one key the library would heed the last.
func parseRoot(text []byte) (*trust, error) {
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("trusted root: empty")
	case len(text) > MaxTrustedRoot:
		return nil, fmt.Errorf("trusted root: more than %d MiB", MaxTrustedRoot>>20)
	}
	if err := record.CheckJSON(text); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	parsed, err := root.NewTrustedRootProtobuf(text)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	trusted, err := root.NewTrustedRootFromProtobuf(parsed)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	switch {
	case len(trusted.FulcioCertificateAuthorities()) == 0:
		return nil, fmt.Errorf("trusted root: trusts no certificate authority")
	case len(trusted.TimestampingAuthorities()) == 0:
		return nil, fmt.Errorf("trusted root: trusts no timestamp authority")
	case len(trusted.RekorLogs()) < len(parsed.GetTlogs()):
		return nil, fmt.Errorf("trusted root: names the key of a transparency log twice")
	}
	logs := map[string]trustedLog{}
	for _, log := range parsed.GetTlogs() {
		id := hex.EncodeToString(log.GetLogId().GetKeyId())
		logs[id] = trustedLog{trusted.RekorLogs()[id], cmp.Or(log.GetOperator(), log.GetBaseUrl())}
	}
	return &trust{trusted, logs}, nil
}

// operators are whose logs are trusted. One who has several, as after a
// rotation, is one; where the trusted root names no operators, each name of a log
// stands for one.
func (t *trust) operators() []string {
	names := map[string]bool{}
	for _, log := range t.logs {
		names[log.operator] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// window says when something is trusted.
type window struct{ start, end time.Time }

// holds reports whether the window is open at a time; lead is how much sooner
// it may be taken to open.
func (w window) holds(at time.Time, lead time.Duration) bool {
	return !at.Before(w.start.Add(-lead)) && (w.end.IsZero() || !at.After(w.end))
}

func (w window) String() string {
	text := "trusted"
	if !w.start.IsZero() {
		text += " from " + w.start.UTC().Format(time.RFC3339)
	}
	if !w.end.IsZero() {
		text += " until " + w.end.UTC().Format(time.RFC3339)
	}
	return text
}

// whoseWindow lists the certificate authorities whose key made the leaf, and
// when they are trusted: what there is to say when none of them will do.
func (t *trust) whoseWindow(leaf *x509.Certificate) []string {
	var lines []string
	for _, trusted := range t.FulcioCertificateAuthorities() {
		ca, ok := trusted.(*root.FulcioCertificateAuthority)
		if !ok {
			continue
		}
		issued := func(c *x509.Certificate) bool { return leaf.CheckSignatureFrom(c) == nil }
		if len(lines) < maxEvidence && slices.ContainsFunc(append(slices.Clone(ca.Intermediates), ca.Root), issued) {
			lines = append(lines, fmt.Sprintf("%s is %s", ca.Root.Subject.CommonName, window{ca.ValidityPeriodStart, ca.ValidityPeriodEnd}))
		}
	}
	return lines
}
