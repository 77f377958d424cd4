package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"hallmark.build/attest/authority/client"
)

// TestMistakesAreExplained makes those of a new admin, and wants to be told what
// to do.
func TestMistakesAreExplained(t *testing.T) {
	dir := t.TempDir()
	runner := filepath.Join(dir, "gitlab-runner")
	if err := os.WriteFile(runner, []byte("#!/bin/sh\necho 'Version: 19.4.0'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	const required = "gitlab_url = 'https://gitlab.example.com'\nhelper_image = 'registry.example.com/helper@sha256:00'\n"
	good := required + fmt.Sprintf("gitlab_runner = %q\nsocket_user = 'root'\nstate_dir = %q\nrun_dir = %q\nsocket = %q\n",
		runner, dir+"/state", dir+"/run", dir+"/run/s.sock")
	for name, c := range map[string]struct {
		config string // none if it is empty
		want   []string
	}{
		"no file":          {"", []string{"sandboxd.toml: no such file", "hint: `hallmark config example sandboxd` prints one"}},
		"two mistakes":     {"helper_imag = 'x'\nstop_grace = 5\n", []string{"error: ", `unknown key "helper_imag"`, `hint: did you mean "helper_image"?`, "stop_grace: want"}},
		"no runner":        {required + "gitlab_runner = '/nowhere/gitlab-runner'\n", []string{"gitlab_runner: ", "hint: install GitLab Runner first"}},
		"no such user":     {strings.Replace(good, "'root'", "'nobody-here'", 1), []string{`socket_user: there is no user "nobody-here"`, "hint: "}},
		"no certificates":  {good + "gitlab_ca = '/nowhere/ca.pem'\n", []string{"gitlab_ca: open /nowhere/ca.pem"}},
		"has not joined":   {good + "[authority]\naddress = '127.0.0.1:1'\n", []string{"identity", "hint: this host has to join: run `hallmark-attestd enrol`"}},
		"nothing to start": {good + "[containerd]\nbin_dir = '/nowhere'\n", []string{"containerd.bin_dir: ", "hint: `make install` puts"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sandboxd.toml")
			if c.config != "" {
				if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var stderr bytes.Buffer
			if code := run(t.Context(), []string{"-config", file}, nil, nil, &stderr); code != 1 {
				t.Errorf("exit status %d, want 1", code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("not said: %q\n%s", want, &stderr)
				}
			}
		})
	}
}

// TestSilenceOfOthersIsTold wants a warning where GitLab or the authority does
// not answer, or is another than it should be, and none where they do.
func TestSilenceOfOthersIsTold(t *testing.T) {
	web := httptest.NewTLSServer(nil)
	t.Cleanup(web.Close)
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	plain := httptest.NewServer(nil)
	t.Cleanup(plain.Close)
	gone := httptest.NewServer(nil)
	gone.Close()
	socket := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	t.Cleanup(server.Stop)
	go func() { _ = server.Serve(l) }()

	gitlab := func(address string, roots *x509.CertPool) func(*slog.Logger) {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		return func(log *slog.Logger) { warnOfGitLab(t.Context(), u, roots, log) }
	}
	authority := func(socket string, patience time.Duration) func(*slog.Logger) {
		conn, err := client.DialSocket(socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return func(log *slog.Logger) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			warnOfAuthority(ctx, conn, log)
		}
	}
	for name, c := range map[string]struct {
		warn func(*slog.Logger)
		want string // nothing if it is empty
	}{
		"gitlab":                 {gitlab(web.URL, roots), ""},
		"gitlab without TLS":     {gitlab(plain.URL, nil), ""},
		"gitlab of other roots":  {gitlab(web.URL, x509.NewCertPool()), "GitLab cannot be reached"},
		"gitlab is not there":    {gitlab(gone.URL, nil), "GitLab cannot be reached"},
		"authority":              {authority(socket, time.Minute), ""},
		"authority is not there": {authority(socket+".none", 50*time.Millisecond), "the authority does not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			var text bytes.Buffer
			c.warn(slog.New(slog.NewTextHandler(&text, nil)))
			if got := text.String(); c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("logged %q, want %q", got, c.want)
			}
		})
	}
}
