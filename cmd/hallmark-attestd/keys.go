package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"hallmark.build/attest/sign"
	"hallmark.build/config"
)

const keysUsage = "keys list, keys rotate [-after DURATION] ca|timestamp, or keys revoke -lost TIME|never-good ID"

// keysCommand looks after the keyring, also while the authority runs.
func keysCommand(ctx context.Context, in invocation) error {
	if len(in.args) == 0 {
		return &usageError{msg: "keys: want " + keysUsage}
	}
	verb := in.args[0]
	in.command, in.args = "keys "+verb, in.args[1:]
	switch verb {
	case "list":
		return listKeys(in)
	case "rotate":
		return rotateKey(ctx, in)
	case "revoke":
		return revokeKey(in)
	}
	return &usageError{msg: fmt.Sprintf("keys %q: want %s", verb, keysUsage)}
}

// keyring is the configuration of a command that reads or writes keys.
func keyring(file string) (sign.Options, error) {
	cfg, err := keeperConfig(file)
	if err != nil {
		return sign.Options{}, err
	}
	return signOptions(cfg)
}

func listKeys(in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	o, err := keyring(file)
	if err != nil {
		return err
	}
	all, err := sign.Generations(o.Dir)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, g := range all {
		fmt.Fprintf(in.stdout, "%s %s %s %s %s\n", g.ID, g.From.Format(time.RFC3339), g.Until.Format(time.RFC3339), g.State(now), cmp.Or(g.Key, "file"))
	}
	return nil
}

func rotateKey(ctx context.Context, in invocation) error {
	var after time.Duration
	file, args, err := in.parse(1, func(f *flag.FlagSet) { f.DurationVar(&after, "after", 0, "") })
	if err != nil {
		return err
	}
	role := sign.Role(args[0])
	if role != sign.RoleCA && role != sign.RoleTimestamp || after < 0 {
		return &usageError{msg: "keys rotate: want [-after DURATION] ca|timestamp"}
	}
	o, err := keyring(file)
	if err != nil {
		return err
	}
	g, err := sign.Rotate(ctx, o, role, after)
	if err != nil {
		return err
	}
	fmt.Fprintf(in.stdout, "%s signs from %s\n", g.ID, g.From.Format(time.RFC3339))
	fmt.Fprintln(in.stderr, "hint: give the new trusted root to whoever verifies: hallmark-attestd trusted-root")
	return nil
}

// neverGood is written in place of a time.
const neverGood = "never-good"

func revokeKey(in invocation) error {
	var lost string
	file, args, err := in.parse(1, func(f *flag.FlagSet) { f.StringVar(&lost, "lost", "", "") })
	if err != nil {
		return err
	}
	var at time.Time // zero: nothing that it signed is good
	if lost != neverGood {
		if at, err = time.Parse(time.RFC3339, lost); err != nil {
			return &usageError{msg: `keys revoke: want -lost with the time of the loss, as "2026-01-02T15:04:05Z", or never-good`}
		}
	}
	o, err := keyring(file)
	if err != nil {
		return err
	}
	g, err := sign.Revoke(o, args[0], at)
	if err != nil {
		return err
	}
	if g.Trusted() {
		fmt.Fprintf(in.stdout, "%s signs no more; what it signed until %s stays good\n", g.ID, g.Until.Format(time.RFC3339))
	} else {
		fmt.Fprintf(in.stdout, "%s signs no more; nothing that it signed is good\n", g.ID)
	}
	fmt.Fprintln(in.stderr, "hint: give the new trusted root to whoever verifies: hallmark-attestd trusted-root")
	return nil
}

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
