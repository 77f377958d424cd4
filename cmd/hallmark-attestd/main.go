// Command hallmark-attestd is the signing authority.
//
//	hallmark-attestd [serve] [-config FILE]        serve hosts and readers
//	hallmark-attestd trusted-root [-config FILE]   print what verifiers must be given
//	hallmark-attestd version                       print the version
//
// It runs as a user of its own, who owns its state directory, and never as
// root. Exit codes: 0 done, 1 failure, 2 wrong usage.
package main

import (
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

const usage = "usage: hallmark-attestd [serve | trusted-root | version] [-config FILE]"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := "serve"
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("hallmark-attestd "+command, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintln(stderr, usage) }
	file := flags.String("config", "/etc/hallmark/attestd.toml", "configuration `file`")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "error: %q: unexpected argument\n%s\n", flags.Arg(0), usage)
		return 2
	}
	var err error
	switch command {
	case "serve":
		err = serve(ctx, *file, slog.New(slog.NewTextHandler(stderr, nil)))
	case "trusted-root":
		err = trustedRoot(ctx, *file, stdout)
	case "version":
		fmt.Fprintln(stdout, "hallmark-attestd", version)
	default:
		fmt.Fprintf(stderr, "error: %q: unknown command\n%s\n", command, usage)
		return 2
	}
	if err != nil {
		report(stderr, err)
		return 1
	}
	return 0
}

// report prints an error, all of a configuration's if it is one, with hints.
func report(w io.Writer, err error) {
	all, ok := errors.AsType[config.Errors](err)
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
