package sign

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
)

const callTimeout = 30 * time.Second

// httpClient follows no redirect: what is sent is for the named service alone.
func httpClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: callTimeout,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    16,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// post sends a request and reads a bounded answer of the wanted type. Of an
// error's body it shows a line.
func post(ctx context.Context, c *http.Client, url, sends, wants string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", sends)
	req.Header.Set("Accept", wants)
	res, err := c.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", url, err)
	case len(answer) > maxAnswer:
		return nil, fmt.Errorf("%s: answer of more than %d KiB", url, maxAnswer>>10)
	case res.StatusCode < 200 || res.StatusCode > 299:
		return nil, fmt.Errorf("%s: %s: %s", url, res.Status, oneLine(answer))
	}
	if kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || kind != wants {
		return nil, fmt.Errorf("%s: answer of type %q: want %q", url, res.Header.Get("Content-Type"), wants)
	}
	return answer, nil
}

func oneLine(text []byte) string {
	const most = 200
	line := strings.Join(strings.FieldsFunc(string(text), func(r rune) bool { return r < ' ' || r == 0x7f || r == 0x85 }), " ")
	if len(line) > most {
		line = line[:most]
	}
	return strings.ToValidUTF8(line, "?")
}
