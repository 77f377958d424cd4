package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// patience is for how long others may take to answer before the log says that
// they do not. The daemon serves all the same: they may come later.
const patience = 10 * time.Second

// warnOfAuthority says in the log if the authority does not answer.
func warnOfAuthority(ctx context.Context, conn *grpc.ClientConn, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		conn.Connect() // where it has given up
		if conn.WaitForStateChange(ctx, state) {
			continue
		}
		if ctx.Err() == context.DeadlineExceeded {
			log.Warn("the authority does not answer, and jobs fail until it does", "hint", "is hallmark-attestd running, and does [authority] say where?")
		}
		return
	}
}

// warnOfGitLab says in the log if GitLab cannot be reached, or proves to be
// somebody else. Nothing is asked of it.
func warnOfGitLab(ctx context.Context, gitlab *url.URL, roots *x509.CertPool, log *slog.Logger) {
	reach, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := greet(reach, gitlab, roots); err != nil && ctx.Err() == nil {
		log.Warn("GitLab cannot be reached, and jobs fail until it can", "error", err,
			"hint", "check gitlab_url, and gitlab_ca if its certificate is from an authority of your own")
	}
}

func greet(ctx context.Context, u *url.URL, roots *x509.CertPool) error {
	port := u.Port()
	if port == "" {
		port = u.Scheme // by its name
	}
	address := net.JoinHostPort(u.Hostname(), port)
	var conn net.Conn
	var err error
	if u.Scheme == "https" {
		conn, err = (&tls.Dialer{Config: &tls.Config{RootCAs: roots}}).DialContext(ctx, "tcp", address)
	} else {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return err
	}
	return conn.Close()
}
