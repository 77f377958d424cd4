package tlog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"github.com/transparency-dev/tessera/api/layout"
)

const (
	requestTimeout = 20 * time.Second
	maxTile        = 256 * (2 + maxEntry) // of entries; one of hashes has 8 kB
)

// newClient reaches a log somewhere else. It follows no redirect: a log is where
// it was said to be.
func newClient(roots *x509.CertPool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport.MaxIdleConnsPerHost = 64
	return &http.Client{
		Transport: transport, Timeout: requestTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// do sends a request and reads the whole answer.
func do(c *http.Client, req *http.Request, most int64) (*http.Response, []byte, error) {
	res, err := c.Do(req)
	if err != nil {
		return nil, nil, &tryAgainError{err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return nil, nil, &tryAgainError{err}
	}
	if int64(len(body)) > most {
		return nil, nil, fmt.Errorf("%w: answers more than %d bytes", ErrContradiction, most)
	}
	return res, body, nil
}

// webTiles is a log that is served at a URL, to be read.
type webTiles struct {
	http *http.Client
	base *url.URL
}

func (w webTiles) checkpoint(ctx context.Context) ([]byte, error) {
	return w.get(ctx, layout.CheckpointPath, maxCheckpoint)
}

func (w webTiles) tile(ctx context.Context, level, index uint64, partial uint8) ([]byte, error) {
	return w.partial(ctx, partial, func(p uint8) string { return layout.TilePath(level, index, p) })
}

func (w webTiles) entries(ctx context.Context, index uint64, partial uint8) ([]byte, error) {
	return w.partial(ctx, partial, func(p uint8) string { return layout.EntriesPath(index, p) })
}

func (w webTiles) partial(ctx context.Context, partial uint8, path func(uint8) string) ([]byte, error) {
	data, err := w.get(ctx, path(partial), maxTile)
	if errors.Is(err, fs.ErrNotExist) && partial > 0 {
		return w.get(ctx, path(0), maxTile)
	}
	return data, err
}

func (w webTiles) get(ctx context.Context, path string, most int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.base.JoinPath(path).String(), nil)
	if err != nil {
		return nil, err
	}
	res, body, err := do(w.http, req, most)
	if err != nil {
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK:
		return body, nil
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return nil, fmt.Errorf("%s: status %d: %.200q", path, res.StatusCode, body)
}
