package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/config"
)

// adminTimeout is for a call to the daemon on this machine.
const adminTimeout = 30 * time.Second

const (
	enrolUsage = "usage: hallmark-attestd enrol NAME -project GLOB... [-profile hermetic]... [-ttl 1h] [-address HOST:PORT] [-config FILE]"
	hostsUsage = "usage: hallmark-attestd hosts [list | revoke NAME] [-config FILE]"
)

// words are the values of a flag that may be given more than once.
type words []string

func (w *words) String() string         { return strings.Join(*w, " ") }
func (w *words) Set(value string) error { *w = append(*w, value); return nil }

// interleaved reads flags, which may stand behind arguments, and at most so many
// of those.
func (in invocation) interleaved(most int, usage string, define func(*flag.FlagSet)) (file string, arguments []string, err error) {
	flags := flag.NewFlagSet("hallmark-attestd "+in.command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&file, "config", defaultConfig, "")
	define(flags)
	for rest := in.args; ; {
		if err := flags.Parse(rest); err != nil {
			return "", nil, &usageError{err.Error(), usage}
		}
		if rest = flags.Args(); len(rest) == 0 {
			return file, arguments, nil
		}
		if len(arguments) == most {
			return "", nil, &usageError{fmt.Sprintf("%q: unexpected argument", rest[0]), usage}
		}
		arguments, rest = append(arguments, rest[0]), rest[1:]
	}
}

// enrolCommand prints a token by which a runner host joins, and nothing else on
// stdout.
func enrolCommand(ctx context.Context, in invocation) error {
	var (
		projects, profiles words
		life               time.Duration
		address            string
	)
	file, names, err := in.interleaved(1, enrolUsage, func(f *flag.FlagSet) {
		f.Var(&projects, "project", "")
		f.Var(&profiles, "profile", "")
		f.DurationVar(&life, "ttl", time.Hour, "")
		f.StringVar(&address, "address", "", "")
	})
	switch {
	case err != nil:
		return err
	case len(names) == 0:
		return &usageError{"the host's name is missing", enrolUsage}
	case len(projects) == 0:
		return &usageError{fmt.Sprintf("-project is missing: which projects may %s attest? 'group/**' is all below group, '**' is all", names[0]), enrolUsage}
	case len(profiles) == 0:
		profiles = words{"hermetic"}
	}
	return admin(ctx, file, func(ctx context.Context, admin authoritypb.AdminClient) error {
		res, err := admin.Invite(ctx, &authoritypb.InviteRequest{
			Host: names[0], Projects: projects, Profiles: profiles, Seconds: int64(life.Seconds()), Address: address,
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(in.stderr, "%s may attest %s under %s, once it has joined\n", names[0], &projects, &profiles)
		fmt.Fprintf(in.stderr, "hint: on %s, before %s, give this token to: hallmark-sandboxd join -\n", names[0], at(res.GetExpires()))
		_, err = fmt.Fprintln(in.stdout, res.GetToken())
		return err
	})
}

func hostsCommand(ctx context.Context, in invocation) error {
	file, words, err := in.interleaved(2, hostsUsage, func(*flag.FlagSet) {})
	switch {
	case err != nil:
		return err
	case len(words) == 0 || len(words) == 1 && words[0] == "list":
		return admin(ctx, file, in.listHosts)
	case words[0] == "revoke" && len(words) == 2:
		return admin(ctx, file, func(ctx context.Context, admin authoritypb.AdminClient) error {
			_, err := admin.RevokeHost(ctx, &authoritypb.RevokeHostRequest{Host: words[1]})
			if err == nil {
				fmt.Fprintf(in.stderr, "%s may not speak any more\n", words[1])
			}
			return err
		})
	case words[0] == "revoke":
		return &usageError{"revoke: the host's name is missing", hostsUsage}
	}
	return &usageError{fmt.Sprintf("%q: neither list nor revoke", words[0]), hostsUsage}
}

func (in invocation) listHosts(ctx context.Context, admin authoritypb.AdminClient) error {
	res, err := admin.ListHosts(ctx, &authoritypb.ListHostsRequest{})
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(in.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "HOST\tSTATE\tEXPIRES\tPROFILES\tPROJECTS")
	for _, h := range res.GetHosts() {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", h.GetName(), hostState(h), at(h.GetExpires()),
			strings.Join(h.GetProfiles(), " "), strings.Join(h.GetProjects(), " "))
	}
	return table.Flush()
}

func hostState(h *authoritypb.Host) string {
	switch {
	case h.GetRevoked() != 0:
		return "revoked"
	case time.Now().Unix() >= h.GetExpires():
		return "expired"
	}
	return "enrolled"
}

func at(unix int64) string { return time.Unix(unix, 0).UTC().Format(time.RFC3339) }

// admin speaks to the daemon on this machine.
func admin(ctx context.Context, file string, do func(context.Context, authoritypb.AdminClient) error) error {
	cfg, err := config.LoadAttestd(file)
	if err != nil {
		return err
	}
	conn, err := client.DialSocket(cfg.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	err = do(ctx, authoritypb.NewAdminClient(conn))
	if client.IsTemporary(err) {
		return &hintedError{fmt.Errorf("%s: %s", cfg.Socket, client.Message(err)), "is hallmark-attestd running, and are you root or its user?"}
	}
	if err != nil {
		return errors.New(client.Message(err))
	}
	return nil
}

// A hostDoor is where hosts on other machines come in. The zero value is shut.
type hostDoor struct {
	listener net.Listener
	ca       *authority.HostCA
	address  string // what tokens tell hosts to connect to
}

// openHostDoor listens for hosts on other machines, if that is asked for.
func openHostDoor(cfg config.Attestd) (hostDoor, error) {
	if cfg.Listen == "" {
		return hostDoor{}, nil
	}
	ca, err := authority.OpenHostCA(filepath.Join(cfg.StateDir, "keys", "hosts.pem"), time.Now)
	if err != nil {
		return hostDoor{}, err
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return hostDoor{}, fmt.Errorf("listen: %w", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil || len(cfg.ServerNames) == 0 {
		return hostDoor{}, errors.Join(errors.New("listen: server_names are missing: by which name do hosts reach it?"), l.Close())
	}
	return hostDoor{l, ca, net.JoinHostPort(cfg.ServerNames[0], port)}, nil
}

func (d hostDoor) close() {
	if d.listener != nil {
		_ = d.listener.Close()
	}
}
