package verify

import (
	"fmt"

	"github.com/sigstore/sigstore-go/pkg/root"

	"hallmark.build/sandbox/record"
)

// parseRoot reads a Sigstore trusted root that can vouch for something: it
// names at least one certificate authority and one timestamp authority.
func parseRoot(text []byte) (*root.TrustedRoot, error) {
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("trusted root: empty")
	case len(text) > MaxTrustedRoot:
		return nil, fmt.Errorf("trusted root: more than %d MiB", MaxTrustedRoot>>20)
	}
	if err := record.CheckJSON(text); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	trusted, err := root.NewTrustedRootFromJSON(text)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	if len(trusted.FulcioCertificateAuthorities()) == 0 {
		return nil, fmt.Errorf("trusted root: trusts no certificate authority")
	}
	if len(trusted.TimestampingAuthorities()) == 0 {
		return nil, fmt.Errorf("trusted root: trusts no timestamp authority")
	}
	return trusted, nil
}
