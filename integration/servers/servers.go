// Package servers starts the PostgreSQL and the S3 server that a fleet's store is tested on.
//
// PostgreSQL is Debian's, in a cluster of its own that is thrown away. It
// refuses to run as root, so there it runs as nobody. The S3 server is
// versitygw on a directory, as tools.sh builds it.
package servers

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"hallmark.build/attest/store/fleet"
)

const (
	nobody    = 65534
	accessKey = "hallmark"
	secretKey = "hallmark-secret"
	patience  = 60 * time.Second // with a server that starts on a busy machine
)

// tries are how often a server is started: another program may have taken its
// port just before.
const tries = 3

// Servers are both, on one directory.
type Servers struct {
	dir      string
	roots    *x509.CertPool
	postgres *server
	s3       *server
	pgPort   int
	s3Port   int
	names    atomic.Int64

	accessKey, secretKey string
}

// Start starts both. Stop must be called.
func Start(ctx context.Context) (*Servers, error) {
	dir, err := os.MkdirTemp("", "hallmark-servers-")
	if err != nil {
		return nil, err
	}
	s := &Servers{dir: dir, accessKey: accessKey, secretKey: secretKey}
	if err := s.start(ctx); err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

// StartStorage starts the S3 server alone, with an empty bucket and a key to it.
func StartStorage(ctx context.Context, bucket, accessKey, secretKey string) (*Servers, error) {
	dir, err := os.MkdirTemp("", "hallmark-storage-")
	if err != nil {
		return nil, err
	}
	s := &Servers{dir: dir, accessKey: accessKey, secretKey: secretKey}
	err = s.certify()
	if err == nil {
		err = s.addS3(ctx)
	}
	if err == nil {
		err = s.makeBucket(ctx, bucket)
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func (s *Servers) makeBucket(ctx context.Context, name string) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	return client.MakeBucket(ctx, name, minio.MakeBucketOptions{})
}

// Client speaks to the S3 server with all rights.
func (s *Servers) Client(t testing.TB) *minio.Client {
	t.Helper()
	client, err := s.client()
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Proxy answers under whatever name it is asked by, as the S3 server does.
func (s *Servers) Proxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", fmt.Sprintf("127.0.0.1:%d", s.s3Port)
			r.Out.Host = r.In.Host // it is signed
		},
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}, DisableCompression: true},
	}
}

func (s *Servers) start(ctx context.Context) error {
	if err := os.Chmod(s.dir, 0o711); err != nil {
		return err
	}
	if err := s.certify(); err != nil {
		return err
	}
	if err := s.initPostgres(ctx); err != nil {
		return err
	}
	return errors.Join(
		retry(ctx, func() (err error) {
			if s.pgPort, err = freePort(); err != nil {
				return err
			}
			return s.startPostgres(ctx)
		}),
		s.addS3(ctx))
}

func (s *Servers) addS3(ctx context.Context) error {
	if err := s.initS3(); err != nil {
		return err
	}
	return retry(ctx, func() (err error) {
		if s.s3Port, err = freePort(); err != nil {
			return err
		}
		return s.startS3(ctx)
	})
}

func retry(ctx context.Context, start func() error) error {
	for n := 1; ; n++ {
		err := start()
		if err == nil || n == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// Stop ends both and removes what they had.
func (s *Servers) Stop() {
	s.StopS3()
	s.KillPostgres()
	os.RemoveAll(s.dir)
}

func (s *Servers) initPostgres(ctx context.Context) error {
	bin, err := postgresBin()
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "postgres")
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := give(data, s.file("postgres.key")); err != nil {
		return err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", data, "-U", "hallmark", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-instructions")
	initdb.SysProcAttr = unprivileged()
	initdb.Dir = "/"
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	s.postgres = &server{
		path: filepath.Join(bin, "postgres"),
		args: []string{"-D", data, "-k", data, "-h", "127.0.0.1", "-c", "max_connections=300", "-c", "shared_buffers=64MB",
			"-c", "ssl=on", "-c", "ssl_cert_file=" + s.file("server.pem"), "-c", "ssl_key_file=" + s.file("postgres.key")},
		attr: unprivileged(),
	}
	return nil
}

// give makes files those of whom PostgreSQL runs as.
func give(names ...string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range names {
		if err := os.Chown(name, nobody, nobody); err != nil {
			return err
		}
	}
	return nil
}

func (s *Servers) file(name string) string { return filepath.Join(s.dir, name) }

// certify makes a certificate that both servers show.
func (s *Servers) certify() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "servers of tests"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	s.roots = x509.NewCertPool()
	s.roots.AppendCertsFromPEM(certPEM)
	return errors.Join(
		os.WriteFile(s.file("server.pem"), certPEM, 0o644),
		os.WriteFile(s.file("s3.key"), keyPEM, 0o600),
		os.WriteFile(s.file("postgres.key"), keyPEM, 0o600))
}

// postgresBin finds Debian's programs, of the latest version.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		return "", errors.New("no PostgreSQL in /usr/lib/postgresql: run make deps")
	}
	return filepath.Dir(found[len(found)-1]), nil
}

func unprivileged() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return attr
}

func (s *Servers) initS3() error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	path := filepath.Join(root, ".cache", "bin", "versitygw")
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w: run make peers", err)
	}
	data, meta := filepath.Join(s.dir, "s3"), filepath.Join(s.dir, "meta")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Mkdir(meta, 0o700)); err != nil {
		return err
	}
	s.s3 = &server{
		path: path,
		args: []string{"--access", s.accessKey, "--secret", s.secretKey, "--quiet",
			"--cert", s.file("server.pem"), "--key", s.file("s3.key"),
			"posix", "--sidecar", meta, data},
		attr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	}
	return nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("not below a go.mod")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// DatabaseURL names a database of the cluster, for its owner.
func (s *Servers) DatabaseURL(name string) string { return s.URL(name, "hallmark") }

// URL names a database of the cluster, for a role.
func (s *Servers) URL(name, role string) string {
	return fmt.Sprintf("postgres:///%s?host=%s&port=%d&user=%s", name, filepath.Join(s.dir, "postgres"), s.pgPort, role)
}

// RemoteURL names a database as another machine would, which wants TLS.
func (s *Servers) RemoteURL(name string) string {
	return fmt.Sprintf("postgres://hallmark@127.0.0.1:%d/%s?sslmode=verify-full&sslrootcert=%s", s.pgPort, name, s.file("server.pem"))
}

// StartPostgres starts it where it was and waits until it answers.
func (s *Servers) StartPostgres(ctx context.Context) error {
	return retry(ctx, func() error { return s.startPostgres(ctx) })
}

func (s *Servers) startPostgres(ctx context.Context) error {
	return s.postgres.start(ctx, []string{"-p", strconv.Itoa(s.pgPort)}, func(ctx context.Context) error {
		c, err := pgx.Connect(ctx, s.DatabaseURL("postgres"))
		if err != nil {
			return err
		}
		return c.Close(ctx)
	})
}

// KillPostgres ends it as a crash of it would: it recovers when it starts.
func (s *Servers) KillPostgres() { s.postgres.stop(syscall.SIGQUIT) }

// StartS3 starts it where it was and waits until it answers.
func (s *Servers) StartS3(ctx context.Context) error {
	return retry(ctx, func() error { return s.startS3(ctx) })
}

func (s *Servers) startS3(ctx context.Context) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	return s.s3.start(ctx, []string{"--port", fmt.Sprintf("127.0.0.1:%d", s.s3Port)}, func(ctx context.Context) error {
		_, err := client.BucketExists(ctx, "nothing")
		return err
	})
}

// StopS3 kills it.
func (s *Servers) StopS3() { s.s3.stop(syscall.SIGKILL) }

func (s *Servers) client() (*minio.Client, error) {
	return minio.New(fmt.Sprintf("127.0.0.1:%d", s.s3Port), &minio.Options{
		Creds: credentials.NewStaticV4(s.accessKey, s.secretKey, ""), Region: "us-east-1", MaxRetries: 1, Secure: true,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}},
	})
}

// Fresh makes an empty database and bucket.
func (s *Servers) Fresh(t testing.TB) fleet.Options {
	t.Helper()
	name := fmt.Sprintf("test-%d", s.names.Add(1))
	c, err := pgx.Connect(t.Context(), s.DatabaseURL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), fmt.Sprintf("CREATE DATABASE %q", name)); err != nil {
		t.Fatal(err)
	}
	if err := s.makeBucket(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return fleet.Options{
		Database: s.DatabaseURL(name), Endpoint: fmt.Sprintf("https://127.0.0.1:%d", s.s3Port), Region: "us-east-1",
		Bucket: name, AccessKey: accessKey, SecretKey: secretKey, Roots: s.roots,
	}
}

// CA is a file with the roots of both servers' certificates.
func (s *Servers) CA() string { return s.file("server.pem") }

// BucketDir is where the S3 server keeps a bucket's objects.
func (s *Servers) BucketDir(bucket string) string { return filepath.Join(s.dir, "s3", bucket) }

// CopyBucket copies all objects of a bucket to another.
func (s *Servers) CopyBucket(t testing.TB, from, to string) {
	t.Helper()
	client := s.Client(t)
	for o := range client.ListObjectsIter(t.Context(), from, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			t.Fatal(o.Err)
		}
		if _, err := client.CopyObject(t.Context(), minio.CopyDestOptions{Bucket: to, Object: o.Key},
			minio.CopySrcOptions{Bucket: from, Object: o.Key}); err != nil {
			t.Fatal(err)
		}
	}
}

// Tool runs one of PostgreSQL's programs.
func (s *Servers) Tool(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(s.postgres.path), name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// A server is a process that can be started again.
type server struct {
	path string
	args []string
	attr *syscall.SysProcAttr

	process *os.Process
	ended   chan struct{}
	said    bytes.Buffer // once ended
}

// start runs it at an address, as arguments say, and leaves nothing running if
// it does not answer.
func (p *server) start(ctx context.Context, address []string, answers func(context.Context) error) error {
	started := make(chan error)
	p.ended = make(chan struct{})
	cmd := exec.Command(p.path, slices.Concat(address, p.args)...)
	cmd.Dir, cmd.SysProcAttr = "/", p.attr
	p.said.Reset()
	cmd.Stdout, cmd.Stderr = &p.said, &p.said
	go func() {
		defer close(p.ended)
		// The server shall end with us, which the kernel understands as with
		// the thread that started it.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.process = cmd.Process
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := p.wait(ctx, answers)
	if err != nil {
		p.stop(syscall.SIGQUIT)
	}
	return err
}

func (p *server) wait(ctx context.Context, answers func(context.Context) error) error {
	for {
		err := answers(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %s", filepath.Base(p.path), strings.TrimSpace(p.said.String()))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", filepath.Base(p.path), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *server) stop(signal syscall.Signal) {
	if p == nil || p.process == nil {
		return
	}
	_ = p.process.Signal(signal)
	<-p.ended
	p.process = nil
}
