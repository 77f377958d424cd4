package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"k8s.io/klog/v2"

	"hallmark.build/attest/sign"
	"hallmark.build/attest/sign/key"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/tlog"
	"hallmark.build/config"
)

const logUsage = `usage: hallmark-attestd log verify [-config FILE] [-json]
       hallmark-attestd log verify -url URL -trusted-root FILE [-since FILE] [-json]
       hallmark-attestd log checkpoint [-config FILE]
       hallmark-attestd log rotate [-config FILE]`

// logCommand looks after the transparency log. verify and checkpoint work while
// the daemon runs.
func logCommand(ctx context.Context, in invocation) error {
	action := ""
	if len(in.args) > 0 {
		action, in.args = in.args[0], in.args[1:]
	}
	in.command += " " + action
	var err error
	switch action {
	case "verify":
		err = verifyLog(ctx, in)
	case "checkpoint":
		err = printCheckpoint(ctx, in)
	case "rotate":
		err = rotateLog(ctx, in)
	default:
		err = &usageError{msg: fmt.Sprintf("log %q: unknown", action)}
	}
	if wrong, ok := errors.AsType[*usageError](err); ok {
		wrong.usage = logUsage
	}
	return err
}

// verifyLog proves the log.
func verifyLog(ctx context.Context, in invocation) error {
	var (
		asJSON             bool
		at, trusted, since string
	)
	file, _, err := in.parse(0, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "")
		f.StringVar(&at, "url", "", "")
		f.StringVar(&trusted, "trusted-root", "", "")
		f.StringVar(&since, "since", "", "")
	})
	if err != nil {
		return err
	}
	var r *tlog.Report
	switch {
	case at == "" && trusted == "" && since == "":
		r, err = auditOwn(ctx, file)
	case at == "" || trusted == "":
		return &usageError{msg: "log verify: -url and -trusted-root belong together"}
	default:
		r, err = auditURL(ctx, at, trusted, since)
	}
	if err != nil {
		return err
	}
	if err := printReport(in, r, asJSON); err != nil {
		return err
	}
	if !r.Proven() {
		return &refutedError{fmt.Sprintf("the log is not proven: problems found: %d", len(r.Problems))}
	}
	return nil
}

func printReport(in invocation, r *tlog.Report, asJSON bool) error {
	if asJSON {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(in.stdout, "%s\n", text)
		return err
	}
	for _, l := range r.Logs {
		fmt.Fprintf(in.stdout, "log %d %s: %d entries, %d checkpoints, root %s\n", l.Number, l.Origin, l.Entries, l.Checkpoints, l.Root)
	}
	for _, u := range r.Unclaimed {
		fmt.Fprintf(in.stdout, "unclaimed: log %d entry %d: of no bundle in the store; certificate of %s for %s\n", u.Log, u.Entry, u.Issued.Format(time.RFC3339), u.Identity)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(in.stdout, "problem: %s\n", p)
	}
	if r.Proven() {
		fmt.Fprintf(in.stdout, "proven; bundles with their entry: %d\n", r.Bundles)
	}
	return nil
}

func auditOwn(ctx context.Context, file string) (*tlog.Report, error) {
	cfg, err := ownConfig(file)
	if err != nil {
		return nil, err
	}
	o := logPlaces(cfg)
	if cfg.Log.WitnessPolicy != "" {
		if o.WitnessPolicy, err = os.ReadFile(cfg.Log.WitnessPolicy); err != nil {
			return nil, fmt.Errorf("log.witness_policy: %w", err)
		}
	}
	return tlog.Audit(ctx, o, func(ctx context.Context, each func(string, []byte) error) error { return eachBundle(ctx, cfg, each) })
}

// eachBundle reads the store without keeping the daemon from it.
func eachBundle(ctx context.Context, cfg config.Attestd, each func(digest string, bundle []byte) error) error {
	if cfg.Store.Database == "" {
		return embedded.EachBundle(ctx, storeDir(cfg), each)
	}
	o, err := fleetOptions(cfg)
	if err != nil {
		return err
	}
	s, err := fleet.Open(ctx, o)
	if err != nil {
		return err
	}
	return errors.Join(s.EachBundle(ctx, each), s.Close())
}

func auditURL(ctx context.Context, at, trusted, since string) (*tlog.Report, error) {
	u, err := url.Parse(at)
	if err != nil || u.Host == "" {
		return nil, &usageError{msg: fmt.Sprintf("log verify: -url %q: not a URL", at)}
	}
	root, err := readTrustedRoot(trusted)
	if err != nil {
		return nil, err
	}
	var earlier []byte
	if since != "" {
		if earlier, err = os.ReadFile(since); err != nil {
			return nil, err
		}
	}
	return tlog.AuditURL(ctx, u, root, earlier)
}

// printCheckpoint prints what the log has published last.
func printCheckpoint(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	cfg, err := ownConfig(file)
	if err != nil {
		return err
	}
	text, err := tlog.Latest(ctx, logPlaces(cfg))
	if err != nil {
		return err
	}
	_, err = in.stdout.Write(text)
	return err
}

// rotateLog begins the next log.
func rotateLog(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	cfg, err := keeperConfig(file)
	if err != nil {
		return err
	}
	o, closeKey, err := logOptions(ctx, cfg)
	if err != nil {
		return err
	}
	defer closeKey()
	if err := tlog.Rotate(o); err != nil {
		return err
	}
	number, err := tlog.Number(o.History)
	if err != nil {
		return err
	}
	fmt.Fprintf(in.stdout, "log %d ended, log %d begins\n", number-1, number)
	fmt.Fprintln(in.stderr, "hint: give the new trusted root to whoever verifies: hallmark-attestd trusted-root")
	return nil
}

// trustedLogs are what the trusted root says of logs: of those that the authority
// keeps or kept itself, and of an outside one that it uses.
func trustedLogs(ctx context.Context, cfg config.Attestd) ([]*trustpb.TransparencyLogInstance, error) {
	o, closeKey := logPlaces(cfg), func() error { return nil }
	number, err := tlog.Number(o.History)
	if err == nil && number == 0 && cfg.Log.Kind == config.LogBuiltIn {
		o, closeKey, err = logOptions(ctx, cfg) // the first log begins here
		number = 1
	}
	if err != nil {
		return nil, err
	}
	defer closeKey()
	var logs []*trustpb.TransparencyLogInstance
	if number > 0 {
		if logs, err = tlog.Trusted(ctx, o); err != nil {
			return nil, err
		}
	}
	if cfg.Log.Kind == config.LogRekor {
		root, err := readTrustedRoot(cfg.TrustedRoot)
		if err != nil {
			return nil, err
		}
		logs = append(logs, root.GetTlogs()...)
	}
	return logs, nil
}

func readTrustedRoot(file string) (*trustpb.TrustedRoot, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	root, err := sign.ParseTrustedRoot(text)
	if err != nil {
		return nil, fmt.Errorf("trusted root: %s: %w", file, err)
	}
	return root, nil
}

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
	trusted, err := readTrustedRoot(cfg.TrustedRoot)
	if err != nil {
		return nil, err
	}
	r, err := tlog.NewRekor(tlog.RekorOptions{URL: u, Roots: roots, Trusted: trusted})
	if err != nil {
		return nil, err
	}
	return &openLog{Log: r}, nil
}

// logOptions say where the built-in log is, and what its key is.
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
	return o, func() error { return nil }, nil
}

func logPlaces(cfg config.Attestd) tlog.Options {
	return tlog.Options{
		Tiles: filepath.Join(cfg.StateDir, "log"), History: filepath.Join(cfg.StateDir, "log-history"), Keys: filepath.Join(cfg.StateDir, "keys"),
	}
}
