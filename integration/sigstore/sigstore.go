// Package sigstore runs a whole Sigstore on this machine, for tests of what uses one.
//
// It is the real thing: Fulcio, a timestamp server and Rekor v2 as processes,
// believed by the trusted root of a TUF repository. Of its own it has only the
// two places that give out OIDC tokens: a login for services, and a GitLab that
// gives each job one. There is no certificate transparency log, so that
// certificates have no SCT. The timestamp server serves its metrics on a port
// that cannot be chosen, so that a machine has one Sigstore at a time: the next
// waits.
package sigstore

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// RekorName is the log's name in the trusted root.
const RekorName = "rekor.example.test"

// A Sigstore is one that runs.
type Sigstore struct {
	FulcioURL    string
	TimestampURL string
	RekorURL     string
	TUFURL       string

	Login  *Issuer // of services, each known by a mail address
	GitLab *Issuer // of jobs, each known by its pipeline's definition

	TrustedRoot   string // file
	SigningConfig string // file
	TUFRoot       string // file: what a client of the TUF repository starts from

	dir, tools string
	turn       *os.File // locked
	servers    []*httptest.Server
	processes  []process
}

// A process is a program that runs, until it has ended.
type process struct {
	*exec.Cmd
	ended chan struct{}
}

// Start starts everything, with its files in dir, once no other runs on this
// machine. Tools is the directory of the programs.
func Start(ctx context.Context, dir, tools string) (*Sigstore, error) {
	s := &Sigstore{tools: tools}
	var err error
	if s.turn, err = takeTurn(ctx); err != nil {
		return nil, err
	}
	for try := range 3 { // a port that was free may be somebody's by now
		s.dir = filepath.Join(dir, strconv.Itoa(try))
		if err = os.MkdirAll(s.dir, 0o700); err == nil {
			err = s.start(ctx)
		}
		if err == nil {
			return s, nil
		}
		s.end()
	}
	return nil, errors.Join(err, s.Close())
}

// Close ends everything. It may be called twice.
func (s *Sigstore) Close() error {
	s.end()
	if s.turn == nil {
		return nil
	}
	turn := s.turn
	s.turn = nil
	return turn.Close()
}

func (s *Sigstore) end() {
	for _, server := range s.servers {
		server.Close()
	}
	for _, p := range s.processes {
		_ = p.Process.Kill() // it may have ended
		<-p.ended
	}
	s.servers, s.processes = nil, nil
}

// takeTurn waits until no other process has the lock, which ends with its
// holder.
func takeTurn(ctx context.Context) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(os.TempDir(), "hallmark-sigstore.lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return file, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), file.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *Sigstore) start(ctx context.Context) error {
	var err error
	if s.Login, err = s.issuer(); err != nil {
		return err
	}
	if s.GitLab, err = s.issuer(); err != nil {
		return err
	}
	waiting, gaveUp := context.WithCancelCause(ctx)
	defer gaveUp(nil)
	together, waiting := errgroup.WithContext(waiting)
	free, err := freePorts(7)
	if err != nil {
		return err
	}
	if err := errors.Join(s.startFulcio(free[:3]), s.startTimestamp(free[3]), s.startRekor(free[4:])); err != nil {
		return err
	}
	for _, p := range s.processes {
		go func() { // until the process ends, for which Close waits
			<-p.ended
			gaveUp(fmt.Errorf("%s ended", p.Path))
		}()
	}
	together.Go(func() error { return s.keepChain(waiting, s.FulcioURL+"/api/v1/rootCert", "fulcio.pem") })
	together.Go(func() error {
		return s.keepChain(waiting, strings.TrimSuffix(s.TimestampURL, "/timestamp")+"/timestamp/certchain", "timestamp.pem")
	})
	together.Go(func() error {
		_, err := answer(waiting, s.RekorURL+"/healthz")
		return err
	})
	if err := together.Wait(); err != nil {
		return err
	}
	if err := s.describe(ctx); err != nil {
		return err
	}
	return s.publish()
}

func (s *Sigstore) file(name string) string { return filepath.Join(s.dir, name) }

func (s *Sigstore) issuer() (*Issuer, error) {
	i, err := newIssuer()
	if err != nil {
		return nil, err
	}
	server := httptest.NewServer(i)
	s.servers = append(s.servers, server)
	i.URL = server.URL
	return i, nil
}

// run starts a program that Close ends. Its output is kept in a file.
func (s *Sigstore) run(name string, args ...string) error {
	log, err := os.Create(s.file(name + ".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p := exec.Command(filepath.Join(s.tools, name), args...)
	p.Dir, p.Stdout, p.Stderr = s.dir, log, log
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.Wait() // what it says is in its log
	}()
	s.processes = append(s.processes, process{p, ended})
	return nil
}

func (s *Sigstore) startFulcio(free []string) error {
	type object = map[string]any
	issuer := func(i *Issuer, kind, provider string) object {
		return object{"IssuerURL": i.URL, "ClientID": Audience, "Type": kind, "CIProvider": provider}
	}
	text, err := json.Marshal(object{
		"OIDCIssuers": object{
			s.Login.URL:  issuer(s.Login, "email", ""),
			s.GitLab.URL: issuer(s.GitLab, "ci-provider", "gitlab-pipeline"),
		},
		"CIIssuerMetadata": object{"gitlab-pipeline": object{
			"DefaultTemplateValues": object{"url": s.GitLab.URL},
			"ExtensionTemplates": object{
				"BuildSignerURI": "https://{{ .ci_config_ref_uri }}", "BuildSignerDigest": "ci_config_sha",
				"SourceRepositoryURI": "{{ .url }}/{{ .project_path }}", "SourceRepositoryDigest": "sha",
				"RunInvocationURI": "{{ .url }}/{{ .project_path }}/-/jobs/{{ .job_id }}",
			},
			"SubjectAlternativeNameTemplate": "https://{{ .ci_config_ref_uri }}",
		}},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.file("fulcio.json"), text, 0o600); err != nil {
		return err
	}
	s.FulcioURL = "http://127.0.0.1:" + free[0]
	return s.run("fulcio", "serve", "--host=127.0.0.1", "--port="+free[0], "--grpc-host=127.0.0.1", "--grpc-port="+free[1],
		"--metrics-port="+free[2], "--ca=ephemeralca", "--ct-log-url=", "--config-path=fulcio.json",
		"--legacy-unix-domain-socket="+s.file("fulcio.sock"))
}

func (s *Sigstore) startTimestamp(port string) error {
	s.TimestampURL = "http://127.0.0.1:" + port + "/api/v1/timestamp"
	return s.run("timestamp-server", "serve", "--host=127.0.0.1", "--port="+port, "--timestamp-signer=memory", "--disable-ntp-monitoring")
}

func (s *Sigstore) startRekor(free []string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	privateDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return err
	}
	publicDER, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	err = errors.Join(
		os.WriteFile(s.file("rekor.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}), 0o600),
		os.WriteFile(s.file("rekor.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}), 0o600),
	)
	if err != nil {
		return err
	}
	s.RekorURL = "http://127.0.0.1:" + free[0]
	return s.run("rekor-tiles", "serve", "--http-address=127.0.0.1", "--http-port="+free[0], "--grpc-port="+free[1],
		"--http-metrics-port="+free[2], "--hostname="+RekorName, "--storage-dir="+s.file("rekor"),
		"--signer-filepath=rekor.key", "--checkpoint-interval=1s")
}

// keepChain fetches a chain of certificates, as soon as the service is up.
func (s *Sigstore) keepChain(ctx context.Context, url, name string) error {
	chain, err := answer(ctx, url)
	if err != nil {
		return err
	}
	return os.WriteFile(s.file(name), chain, 0o600)
}

// describe writes the trusted root and the signing configuration.
func (s *Sigstore) describe(ctx context.Context) error {
	s.TrustedRoot, s.SigningConfig = s.file("trusted_root.json"), s.file("signing_config.v0.2.json")
	start := "start-time=" + time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	service := func(url, version string) string {
		return "url=" + url + ",api-version=" + version + ",operator=test," + start
	}
	if err := s.cosign(ctx, "trusted-root", "create", "--out="+s.TrustedRoot,
		"--fulcio=url="+s.FulcioURL+",certificate-chain="+s.file("fulcio.pem"),
		"--tsa=url="+s.TimestampURL+",certificate-chain="+s.file("timestamp.pem"),
		"--rekor=url=https://"+RekorName+",public-key="+s.file("rekor.pub")+",origin="+RekorName+","+start); err != nil {
		return err
	}
	return s.cosign(ctx, "signing-config", "create", "--out="+s.SigningConfig, "--fulcio="+service(s.FulcioURL, "1"),
		"--oidc-provider="+service(s.Login.URL, "1"), "--rekor="+service(s.RekorURL, "2"), "--rekor-config=ANY",
		"--tsa="+service(s.TimestampURL, "1"), "--tsa-config=ANY")
}

func (s *Sigstore) cosign(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(s.tools, "cosign"), args...)
	cmd.Env = append(os.Environ(), "HOME="+s.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cosign %s: %w\n%s", args[0], err, out)
	}
	return nil
}

// freePorts are ports that nobody listens on, all different.
func freePorts(n int) ([]string, error) {
	var list []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // once all are known, so that none is found twice
		list = append(list, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return list, nil
}

// answer is what a service says once it says something.
func answer(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		body, err := get(ctx, url)
		if err == nil {
			return body, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w: %w", url, err, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return body, err
}
