// Command hallmark-attestd is the signing authority.
//
//	hallmark-attestd [serve] [-config FILE]        serve hosts and readers
//	hallmark-attestd enrol NAME -project GLOB      print a token by which a runner host joins
//	hallmark-attestd hosts [list|revoke NAME]      show the runner hosts, or end one's rights
//	hallmark-attestd trusted-root [-config FILE]   print what verifiers must be given
//	hallmark-attestd keys list|rotate|revoke       look after the keys that sign
//	hallmark-attestd backup [-config FILE] DIR     copy the embedded store, also while it is served
//	hallmark-attestd restored [-config FILE]       make a restored store fit to serve
//	hallmark-attestd check [-config FILE]          look through the whole store
//	hallmark-attestd log verify|checkpoint|rotate  prove the transparency log, or begin the next
//	hallmark-attestd version                       print the version
//
// It runs as a user of its own, who owns its state directory, and never as
// root; enrol and hosts speak to it over its socket, as that user or as root.
// Exit codes: 0 done, 1 failure, 2 wrong usage, 3 what was to be proven is not so.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"hallmark.build/config"
)

// version is set by the linker.
var version = "devel"

const defaultConfig = "/etc/hallmark/attestd.toml"

const usage = "usage: hallmark-attestd [serve | enrol | hosts | trusted-root | keys | backup | restored | check | log | version] [-config FILE]"

// A subcommand gets what follows its name.
type subcommand func(ctx context.Context, in invocation) error

func commands() map[string]subcommand {
	return map[string]subcommand{
		"serve":        serveCommand,
		"trusted-root": trustedRootCommand,
		"keys":         keysCommand,
		"enrol":        enrolCommand,
		"hosts":        hostsCommand,
		"backup":       backupCommand,
		"restored":     restoredCommand,
		"check":        checkCommand,
		"log":          logCommand,
		"version":      versionCommand,
	}
}

// An invocation is a command line.
type invocation struct {
	command        string
	args           []string
	stdout, stderr io.Writer
}

// A usageError is a command line that makes no sense.
type usageError struct {
	msg   string
	usage string // of the command; empty: the program's
}

func (e *usageError) Error() string { return e.msg }

// parse reads flags, -config among them and wherever they stand, and wants so
// many arguments besides.
func (in invocation) parse(arguments int, define func(*flag.FlagSet)) (file string, args []string, err error) {
	flags := flag.NewFlagSet("hallmark-attestd "+in.command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&file, "config", defaultConfig, "")
	if define != nil {
		define(flags)
	}
	for left := in.args; ; left = flags.Args()[1:] {
		if err := flags.Parse(left); err != nil {
			return "", nil, &usageError{msg: err.Error()}
		}
		if flags.NArg() == 0 {
			break
		}
		args = append(args, flags.Arg(0))
	}
	switch {
	case len(args) > arguments:
		return "", nil, &usageError{msg: fmt.Sprintf("%q: unexpected argument", args[arguments])}
	case len(args) < arguments:
		return "", nil, &usageError{msg: in.command + ": an argument is missing"}
	}
	return file, args, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	in := invocation{"serve", args, stdout, stderr}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		in.command, in.args = args[0], args[1:]
	}
	do, ok := commands()[in.command]
	if !ok {
		fmt.Fprintf(stderr, "error: %q: unknown command\n%s\n", in.command, usage)
		return 2
	}
	err := do(ctx, in)
	if wrong, ok := errors.AsType[*usageError](err); ok {
		fmt.Fprintf(stderr, "error: %v\n%s\n", wrong, cmp.Or(wrong.usage, usage))
		return 2
	}
	if err != nil {
		report(stderr, err)
		if _, ok := errors.AsType[*refutedError](err); ok {
			return 3
		}
		return 1
	}
	return 0
}

// A refutedError means that evidence contradicts what was to be proven.
type refutedError struct{ msg string }

func (e *refutedError) Error() string { return e.msg }

func serveCommand(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	return serve(ctx, file, slog.New(slog.NewTextHandler(in.stderr, nil)))
}

func trustedRootCommand(ctx context.Context, in invocation) error {
	file, _, err := in.parse(0, nil)
	if err != nil {
		return err
	}
	return trustedRoot(ctx, file, in.stdout)
}

func versionCommand(_ context.Context, in invocation) error {
	if _, _, err := in.parse(0, nil); err != nil {
		return err
	}
	_, err := fmt.Fprintln(in.stdout, "hallmark-attestd", version)
	return err
}

// report prints an error, all of a configuration's if it is one, with hints.
func report(w io.Writer, err error) {
	all, ok := errors.AsType[config.Errors](err)
	if one, is := errors.AsType[*config.Error](err); is && !ok {
		all, ok = config.Errors{one}, true
	}
	if !ok {
		fmt.Fprintf(w, "error: %v\n", err)
		if h, ok := errors.AsType[*hintedError](err); ok {
			fmt.Fprintf(w, "hint: %s\n", h.hint)
		}
		return
	}
	for _, e := range all {
		fmt.Fprintf(w, "error: %v\n", e)
		if e.Hint != "" {
			fmt.Fprintf(w, "hint: %s\n", e.Hint)
		}
	}
}

// A hintedError tells what the reader can do.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() }
func (e *hintedError) Unwrap() error { return e.err }
