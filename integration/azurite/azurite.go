// Package azurite starts Azurite, which speaks as Azure does for blobs, as tools.sh installs it.
//
// It answers by HTTPS alone, as the runner's tokens demand, with a certificate that
// nobody checks: tests reach it by its Handler, from a server of their own.
package azurite

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Key is that of the account.
var Key = base64.StdEncoding.EncodeToString([]byte("the key of an account that only tests have"))

// A Server is an Azurite with one account.
type Server struct {
	account string
	url     *url.URL
	cmd     *exec.Cmd
	ended   chan struct{}
	front   *httputil.ReverseProxy
}

// Start starts Azurite of a checkout with its data in a directory. Stop must be
// called.
func Start(ctx context.Context, checkout, dir, account string) (*Server, error) {
	program := filepath.Join(checkout, ".cache", "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("%w: run make peers", err)
	}
	if err := writeCertificate(dir); err != nil {
		return nil, err
	}
	s := &Server{account: account}
	s.cmd = exec.CommandContext(ctx, "node", program, "--location", filepath.Join(dir, "data"), "--blobPort", "0", "--silent", "--disableTelemetry",
		"--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"))
	s.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "AZURITE_ACCOUNTS=" + account + ":" + Key}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.run(); err != nil {
		return nil, err
	}
	if err := s.ready(out); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// run starts it on a thread of its own: what shall end with us ends, to the kernel,
// with the thread that started it.
func (s *Server) run() error {
	started := make(chan error)
	s.ended = make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(s.ended)
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
		}
	}()
	return <-started
}

// ready waits until Azurite says where it listens.
func (s *Server) ready(out io.Reader) error {
	lines := bufio.NewScanner(out)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		_, address, ok := strings.Cut(lines.Text(), "successfully listens on ")
		if !ok {
			continue
		}
		at, err := url.Parse(strings.TrimSpace(address))
		if err != nil {
			return err
		}
		s.url = at
		s.front = &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = at.Scheme, at.Host },
			Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
			ErrorLog:  log.New(io.Discard, "", 0),
		}
		go func() { _, _ = io.Copy(io.Discard, out) }()
		return nil
	}
	return fmt.Errorf("azurite does not listen: %q, %v", said, lines.Err())
}

// Stop ends it.
func (s *Server) Stop() error {
	err := s.cmd.Process.Kill()
	<-s.ended
	return err
}

// Handler hands requests on to Azurite. It finds the account in the first label of
// the host's name.
func (s *Server) Handler() http.Handler { return s.front }

// writeCertificate makes one that is good for nothing but to speak TLS.
func writeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, form, form, key.Public(), key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

const (
	version  = "2021-12-02"
	timeForm = "2006-01-02T15:04:05Z"
)

// Token signs for one blob, with permissions such as "r" and "w", as the runner does.
func (s *Server) Token(container, blob, permissions string) string {
	end := time.Now().Add(time.Hour).UTC().Format(timeForm)
	text := strings.Join([]string{permissions, "", end, "/blob/" + s.account + "/" + container + "/" + blob, "", "", "https", version, "b", "", "", "", "", "", "", ""}, "\n")
	return url.Values{"sp": {permissions}, "se": {end}, "spr": {"https"}, "sv": {version}, "sr": {"b"}, "sig": {sign(text)}}.Encode()
}

func sign(text string) string {
	key, err := base64.StdEncoding.DecodeString(Key)
	if err != nil {
		panic(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// MakeContainer makes a container.
func (s *Server) MakeContainer(ctx context.Context, name string) error {
	end := time.Now().Add(time.Hour).UTC().Format(timeForm)
	text := strings.Join([]string{s.account, "c", "b", "c", "", end, "", "https", version, "", ""}, "\n")
	query := url.Values{"restype": {"container"}, "sp": {"c"}, "ss": {"b"}, "srt": {"c"}, "se": {end}, "spr": {"https"}, "sv": {version}, "sig": {sign(text)}}
	status, body, err := s.do(ctx, http.MethodPut, name, query.Encode(), nil)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("container %s: status %d: %s", name, status, body)
	}
	return err
}

// Blob reads a blob; it is nil where there is none.
func (s *Server) Blob(ctx context.Context, container, name string) ([]byte, error) {
	status, body, err := s.do(ctx, http.MethodGet, container+"/"+name, s.Token(container, name, "r"), nil)
	switch {
	case err != nil || status == http.StatusNotFound:
		return nil, err
	case status != http.StatusOK:
		return nil, fmt.Errorf("blob %s: status %d: %s", name, status, body)
	}
	return body, nil
}

// SetBlob writes a blob past everybody.
func (s *Server) SetBlob(ctx context.Context, container, name string, content []byte) error {
	status, body, err := s.do(ctx, http.MethodPut, container+"/"+name, s.Token(container, name, "w"), content)
	if err == nil && status != http.StatusCreated {
		err = fmt.Errorf("blob %s: status %d: %s", name, status, body)
	}
	return err
}

func (s *Server) do(ctx context.Context, method, path, query string, content []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.url.String()+"/"+s.account+"/"+path+"?"+query, strings.NewReader(string(content)))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
	resp, err := s.front.Transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}
