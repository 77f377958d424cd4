package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"k8s.io/klog/v2"

	"hallmark.build/attest/sign"
	"hallmark.build/attest/sign/key"
	"hallmark.build/attest/tlog"
	"hallmark.build/config"
)

// An openLog is the transparency log of a configuration.
type openLog struct {
	tlog.Log
	handler http.Handler // for readers; nil if the log is somewhere else
	closers []func() error
}

func (l *openLog) Close(ctx context.Context) error {
	err := l.Log.Close(ctx)
	for _, c := range l.closers {
		err = errors.Join(err, c())
	}
	return err
}

// newLog opens the log; it is nil if there is none.
func newLog(ctx context.Context, cfg config.Attestd, log *slog.Logger) (*openLog, error) {
	switch cfg.Log.Kind {
	case config.LogBuiltIn:
		return newBuiltInLog(ctx, cfg, log)
	case config.LogRekor:
		return newRekor(cfg)
	}
	return nil, nil
}

func newBuiltInLog(ctx context.Context, cfg config.Attestd, log *slog.Logger) (*openLog, error) {
	o, closeKey, err := logOptions(ctx, cfg)
	if err != nil {
		return nil, err
	}
	klog.SetSlogLogger(log.With("component", "log"))
	l, err := tlog.Open(ctx, o)
	if err != nil {
		return nil, errors.Join(err, closeKey())
	}
	return &openLog{Log: l, handler: l.Handler(), closers: []func() error{closeKey}}, nil
}

func newRekor(cfg config.Attestd) (*openLog, error) {
	u, err := url.Parse(cfg.Log.URL)
	if err != nil {
		return nil, fmt.Errorf("log.url: %w", err)
	}
	roots, err := pool("log.ca", cfg.Log.CA)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(cfg.TrustedRoot)
	if err != nil {
		return nil, fmt.Errorf("trusted_root: %w", err)
	}
	trusted, err := sign.ParseTrustedRoot(text)
	if err != nil {
		return nil, fmt.Errorf("trusted_root: %s: %w", cfg.TrustedRoot, err)
	}
	r, err := tlog.NewRekor(tlog.RekorOptions{URL: u, Roots: roots, Trusted: trusted})
	if err != nil {
		return nil, err
	}
	return &openLog{Log: r}, nil
}

// logOptions say where the built-in log is. Without a URI, each log has a key in
// a file of its own.
func logOptions(ctx context.Context, cfg config.Attestd) (o tlog.Options, closeKey func() error, err error) {
	o = logPlaces(cfg)
	base := cfg.PublicURL
	if base == "" {
		base = cfg.BuilderURI
	}
	u, err := url.Parse(base)
	if err != nil {
		return o, nil, fmt.Errorf("public_url: %w", err)
	}
	o.BaseURL = u.JoinPath("log")
	if cfg.Log.WitnessPolicy != "" {
		if o.WitnessPolicy, err = os.ReadFile(cfg.Log.WitnessPolicy); err != nil {
			return o, nil, fmt.Errorf("log.witness_policy: %w", err)
		}
	}
	if cfg.Keys.Log != "" {
		k, err := key.Open(ctx, cfg.Keys.Log, key.Options{})
		if err != nil {
			return o, nil, fmt.Errorf("keys.log: %w", err)
		}
		o.Key = tlog.DigestKey(k)
		return o, k.Close, nil
	}
	number, err := tlog.Number(o.History)
	if err != nil {
		return o, nil, err
	}
	o.Key, err = tlog.FileKey(logKeyFile(cfg, number))
	return o, func() error { return nil }, err
}

// trustedLogs is what readers must be given to believe the log. The daemon may
// have it open meanwhile; before the first use it is made.
func trustedLogs(ctx context.Context, cfg config.Attestd) ([]*trustpb.TransparencyLogInstance, error) {
	if cfg.Log.Kind == config.LogBuiltIn {
		known, err := tlog.TrustedLogs(logPlaces(cfg).History)
		if err != nil || len(known) > 0 {
			return known, err
		}
	}
	l, err := newLog(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil || l == nil {
		return nil, err
	}
	return l.Trusted(), l.Close(ctx)
}

func logPlaces(cfg config.Attestd) tlog.Options {
	return tlog.Options{Tiles: filepath.Join(cfg.StateDir, "log"), History: filepath.Join(cfg.StateDir, "log-history")}
}

func logKeyFile(cfg config.Attestd, number int) string {
	return filepath.Join(cfg.StateDir, "keys", "log-"+strconv.Itoa(number)+".pem")
}
