package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/config"
)

func storeDir(cfg config.Attestd) string { return filepath.Join(cfg.StateDir, "store") }

// openStore opens the store that the configuration asks for.
func openStore(ctx context.Context, cfg config.Attestd) (store.Store, error) {
	if cfg.Store.Database == "" {
		s, err := embedded.Open(ctx, storeDir(cfg))
		return orNone(s, err)
	}
	o, err := fleetOptions(cfg)
	if err != nil {
		return nil, err
	}
	s, err := fleet.Open(ctx, o)
	return orNone(s, err)
}

// orNone keeps a nil pointer from looking like a store, and says what to do
// about a store that was restored.
func orNone[S store.Store](s S, err error) (store.Store, error) {
	if errors.Is(err, store.ErrRestored) {
		return nil, &hintedError{err, "run hallmark-attestd restored, once: attempts that the backup has as open must end without being signed again"}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func fleetOptions(cfg config.Attestd) (fleet.Options, error) {
	c := cfg.Store
	o := fleet.Options{Database: c.Database, Endpoint: c.Endpoint, Region: c.Region, Bucket: c.Bucket}
	if err := o.ReadSecrets(c.DatabasePasswordFile, c.CredentialsFile); err != nil {
		return fleet.Options{}, err
	}
	var err error
	o.Roots, err = pool("store.endpoint_ca", c.EndpointCA)
	return o, err
}

// backupCommand copies the embedded store, while another process serves it or
// not.
func backupCommand(ctx context.Context, in invocation) error {
	file, args, err := in.parse(1, nil)
	if err != nil {
		return err
	}
	cfg, err := ownConfig(file)
	if err != nil {
		return err
	}
	if cfg.Store.Database != "" {
		return &hintedError{
			errors.New("the store is a database and a bucket, which have tools of their own"),
			"first pg_dump the database, then copy the bucket's bundles/, in this order",
		}
	}
	sum, err := embedded.Backup(ctx, storeDir(cfg), args[0])
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(in.stdout, "backed up %d attempts, %d bundles, %d records, %d bytes\n", sum.Attempts, sum.Bundles, sum.Records, sum.Bytes)
	return err
}

// restoredCommand makes a restored store fit to serve.
func restoredCommand(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	cfg, err := ownConfig(file)
	if err != nil {
		return err
	}
	ended, err := restored(ctx, cfg)
	if err != nil {
		return err
	}
	for _, id := range ended {
		fmt.Fprintln(in.stdout, "ended", id)
	}
	_, err = fmt.Fprintf(in.stdout, "ended %d open attempts; the store may serve\n", len(ended))
	return err
}

func restored(ctx context.Context, cfg config.Attestd) ([]string, error) {
	if cfg.Store.Database == "" {
		return embedded.Restored(ctx, storeDir(cfg), time.Now())
	}
	o, err := fleetOptions(cfg)
	if err != nil {
		return nil, err
	}
	return fleet.Restored(ctx, o, time.Now())
}

// checkCommand looks through the whole store.
func checkCommand(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	cfg, err := ownConfig(file)
	if err != nil {
		return err
	}
	st, err := openStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer st.Close()
	if err := st.Check(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintln(in.stdout, "the store is whole")
	return err
}
