package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"hallmark.build/attest/sign"
	"hallmark.build/config"
)

func openSigner(ctx context.Context, cfg config.Attestd) (*sign.Signer, error) {
	o, err := signOptions(cfg)
	if err != nil {
		return nil, err
	}
	return sign.Open(ctx, o)
}

// signOptions are the keys and outside services of a configuration.
func signOptions(cfg config.Attestd) (sign.Options, error) {
	o := sign.Options{
		Dir: filepath.Join(cfg.StateDir, "keys"), Issuer: cfg.Issuer,
		CAKey: cfg.Keys.CA, TimestampKey: cfg.Keys.Timestamp,
	}
	if cfg.TrustedRoot != "" {
		text, err := os.ReadFile(cfg.TrustedRoot)
		if err != nil {
			return o, fmt.Errorf("trusted_root: %w", err)
		}
		if o.Trusted, err = sign.ParseTrustedRoot(text); err != nil {
			return o, fmt.Errorf("trusted_root: %s: %w", cfg.TrustedRoot, err)
		}
	}
	if f := cfg.Fulcio; f.URL != "" {
		roots, err := pool("fulcio.ca", f.CA)
		if err != nil {
			return o, err
		}
		o.Fulcio = &sign.Fulcio{URL: f.URL, TokenFile: f.TokenFile, Identity: f.Identity, Issuer: f.IdentityIssuer, Roots: roots}
	}
	if t := cfg.Timestamp; t.URL != "" {
		roots, err := pool("timestamp.ca", t.CA)
		if err != nil {
			return o, err
		}
		o.Timestamp = &sign.TimestampService{URL: t.URL, Roots: roots}
	}
	return o, nil
}
