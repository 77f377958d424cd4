package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/authority/invitation"
	"hallmark.build/config"
)

const (
	joinUsage   = "usage: hallmark-sandboxd join [-config FILE] TOKEN | -"
	joinTimeout = 30 * time.Second
)

// joinCommand makes this host known to the authority that a token is from, and
// prints what belongs into the configuration. It returns what run does.
func joinCommand(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("hallmark-sandboxd join", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { _, _ = fmt.Fprintln(stderr, joinUsage) }
	file := flags.String("config", defaultConfig, "configuration `file`")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() != 1 {
		_, _ = fmt.Fprintf(stderr, "error: want one token, or - to read it from standard input\n%s\n", joinUsage)
		return 2
	}
	if err := join(ctx, *file, flags.Arg(0), stdin, stdout, stderr); err != nil {
		report(stderr, err)
		return 1
	}
	return 0
}

func join(ctx context.Context, file, text string, stdin io.Reader, stdout, stderr io.Writer) error {
	conf, err := config.LoadSandboxd(file)
	if err != nil {
		return err
	}
	if text == "-" {
		if text, err = readToken(stdin); err != nil {
			return err
		}
	}
	token, err := invitation.Parse(text)
	if err != nil {
		return &hintedError{err, "it is what `hallmark-attestd enrol` printed, in one line"}
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	member, err := client.Join(ctx, identityDir(conf), token)
	if err != nil {
		return errors.New(client.Message(err))
	}
	_, _ = fmt.Fprintf(stderr, "this host is %s: it may attest %s under %s\n", member.GetHost(),
		strings.Join(member.GetProjects(), " "), strings.Join(member.GetProfiles(), " "))
	if conf.Authority.Address == token.Address {
		return nil
	}
	_, _ = fmt.Fprintf(stderr, "hint: put this into %s, then restart hallmark-sandboxd\n", file)
	_, err = fmt.Fprintf(stdout, "[authority]\naddress = %q\n", token.Address)
	return err
}

// readToken reads one line.
func readToken(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, invitation.MaxToken+2))
	return strings.TrimSuffix(string(text), "\n"), err
}

func identityDir(conf config.Sandboxd) string { return filepath.Join(conf.StateDir, "authority") }

// dial connects to the authority that the configuration names, and renews this
// host's certificate for as long as the connection is there.
func dial(conf config.Sandboxd, log *slog.Logger) (conn *grpc.ClientConn, hangUp func(), err error) {
	if conf.Authority.Address == "" {
		conn, err = client.DialSocket(conf.Authority.Socket)
		return conn, func() { _ = conn.Close() }, err
	}
	id, err := client.OpenIdentity(identityDir(conf))
	if err != nil {
		return nil, nil, &hintedError{err, "this host has to join: run `hallmark-attestd enrol` where the authority is, then `hallmark-sandboxd join TOKEN` here"}
	}
	if conn, err = client.DialHost(conf.Authority.Address, id); err != nil {
		return nil, nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	var renewing sync.WaitGroup
	renewing.Go(func() { id.KeepFresh(ctx, pb.NewEnrolmentClient(conn), log) })
	return conn, func() {
		stop()
		renewing.Wait()
		_ = conn.Close()
	}, nil
}
