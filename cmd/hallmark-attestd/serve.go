package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"hallmark.build/attest/authority"
	"hallmark.build/attest/sign"
	"hallmark.build/config"
)

const (
	stopGrace = 30 * time.Second // for calls in flight, when told to stop
	tidyEvery = time.Hour
)

// hide keeps the keys in memory from other processes of the same user, and out
// of core dumps.
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("non-dumpable: %w", err)
	}
	return nil
}

// refuseRoot keeps keys out of reach of whatever else root runs by mistake,
// and files in the state directory with one owner.
func refuseRoot() error {
	if os.Geteuid() != 0 {
		return nil
	}
	return &hintedError{
		errors.New("the authority does not run as root"),
		"run it as its own user, the owner of its state directory: runuser -u hallmark-attestd -- hallmark-attestd ...",
	}
}

// ownConfig reads the configuration for a command that works on the authority's
// files, and so as its user.
func ownConfig(file string) (config.Attestd, error) {
	if err := refuseRoot(); err != nil {
		return config.Attestd{}, err
	}
	return config.LoadAttestd(file)
}

// keeperConfig is ownConfig for a command that has keys in its memory.
func keeperConfig(file string) (config.Attestd, error) {
	if err := errors.Join(refuseRoot(), hide()); err != nil {
		return config.Attestd{}, err
	}
	return config.LoadAttestd(file)
}

func trustedRoot(ctx context.Context, file string, stdout io.Writer) error {
	cfg, err := keeperConfig(file)
	if err != nil {
		return err
	}
	signer, err := openSigner(ctx, cfg)
	if err != nil {
		return err
	}
	defer signer.Close()
	root, err := signer.Trusted()
	if err != nil {
		return err
	}
	logs, err := trustedLogs(ctx, cfg)
	if err != nil {
		return err
	}
	root.Tlogs = append(root.Tlogs, logs...)
	text, err := sign.EncodeTrustedRoot(root)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "%s\n", text)
	return err
}

// serve wires the parts and answers until ctx ends.
func serve(ctx context.Context, file string, log *slog.Logger) error {
	cfg, err := keeperConfig(file)
	if err != nil {
		return err
	}
	hosts, err := userIDs(cfg.Hosts)
	if err != nil {
		return err
	}
	secret, err := authority.Secret(filepath.Join(cfg.StateDir, "commitment.key"))
	if err != nil {
		return err
	}
	signer, err := openSigner(ctx, cfg)
	if err != nil {
		return err
	}
	defer signer.Close()
	asker, idTokens, err := openGitLab(cfg)
	if err != nil {
		return err
	}
	st, err := openStore(ctx, cfg)
	if err != nil {
		return err
	}
	defer st.Close()
	door, err := openHostDoor(cfg)
	if err != nil {
		return err
	}
	defer door.close()
	if err := agree(ctx, cfg, st, secret, door); err != nil {
		return err
	}
	parts := authority.Config{
		Store: st, Signer: signer, GitLab: asker, IDTokens: idTokens, Spool: cfg.GitLabUnavailable == "spool", Background: cfg.Log.Background,
		GitLabURL: cfg.GitLabURL.String(), BuilderURI: cfg.BuilderURI, PublicURL: cfg.PublicURL, Version: version, Secret: secret, Log: log,
		HostCA: door.ca, Address: door.address,
		Limits: authority.Limits{Calls: cfg.Limits.Calls, OpenAttempts: cfg.Limits.OpenAttempts, OpensPerMinute: cfg.Limits.OpensPerMinute},
	}
	transparency, err := newLog(ctx, cfg, log)
	if err != nil {
		return err
	}
	if transparency != nil {
		defer closeLog(ctx, transparency, log)
		parts.Transparency, parts.LogHandler = transparency, transparency.handler
	}
	a, err := authority.New(parts)
	if err != nil {
		return err
	}
	return listen(ctx, cfg, a, hosts, door, log)
}

// closeLog lets the log publish what was entered, also when told to stop.
func closeLog(ctx context.Context, l *openLog, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
	defer cancel()
	if err := l.Close(ctx); err != nil {
		log.ErrorContext(ctx, "log not closed", "error", err)
	}
}

func listen(ctx context.Context, cfg config.Attestd, a *authority.Authority, hosts []uint32, door hostDoor, log *slog.Logger) error {
	socket, err := authority.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	defer socket.Close()
	readers, err := authority.ListenHTTP(cfg.HTTP)
	if err != nil {
		return err
	}
	defer readers.Close()
	servers := []*grpc.Server{authority.NewServer(a, hosts)}
	if door.listener != nil {
		remote, err := authority.NewHostServer(a, cfg.ServerNames)
		if err != nil {
			return err
		}
		servers = append(servers, remote)
	}
	httpServer := authority.NewHTTPServer(a.HTTP())
	log.InfoContext(ctx, "ready", "socket", cfg.Socket, "hosts", door.address, "http", readers.Addr().String(), "builder_uri", cfg.BuilderURI,
		"config_sha256", cfg.Digest, "version", version)
	notify("READY=1")

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return servers[0].Serve(socket) })
	if door.listener != nil {
		g.Go(func() error { return servers[1].Serve(door.listener) })
	}
	g.Go(func() error {
		if err := httpServer.Serve(readers); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error { tidy(ctx, a, log); return nil })
	g.Go(func() error { a.Resume(ctx); return nil })
	g.Go(func() error {
		<-ctx.Done()
		notify("STOPPING=1")
		log.Info("stopping")
		return stop(servers, httpServer)
	})
	return g.Wait()
}

// stop lets calls in flight end, for a while.
func stop(servers []*grpc.Server, httpServer *http.Server) error {
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			timer := time.AfterFunc(stopGrace, s.Stop)
			defer timer.Stop()
			s.GracefulStop()
		})
	}
	all.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if err := httpServer.Shutdown(ctx); err != nil {
		return httpServer.Close()
	}
	return nil
}

func tidy(ctx context.Context, a *authority.Authority, log *slog.Logger) {
	ticker := time.NewTicker(tidyEvery)
	defer ticker.Stop()
	for {
		if err := a.Tidy(ctx); err != nil && ctx.Err() == nil {
			log.ErrorContext(ctx, "tidying failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// userIDs looks users up, by name or number.
func userIDs(names []string) ([]uint32, error) {
	out := make([]uint32, 0, len(names))
	for _, name := range names {
		id := name
		if _, err := strconv.ParseUint(name, 10, 32); err != nil {
			u, err := user.Lookup(name)
			if err != nil {
				return nil, fmt.Errorf("hosts: %w", err)
			}
			id = u.Uid
		}
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("hosts: user %q: %w", name, err)
		}
		out = append(out, uint32(n))
	}
	return out, nil
}

// pool reads roots; nil means the system's.
func pool(key, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s: no certificate in it", key, file)
	}
	return p, nil
}

// notify tells systemd how far the service is, if it wants to know.
func notify(state string) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return
	}
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprint(c, state)
}
