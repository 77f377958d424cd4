package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"hallmark.build/attest/report"
	"hallmark.build/attest/verify"
)

// Limits of one conversation with an authority.
const (
	fetchTimeout = 2 * time.Minute
	maxAnswer    = 128 << 20
	maxRedirects = 3
)

// fetch asks an authority for the bundles of an artifact. Nothing that it says
// is believed: bundles are judged like any others.
func fetch(ctx context.Context, server string, digest verify.Digest) ([][]byte, error) {
	u, err := serverURL(server)
	if err != nil {
		return nil, err
	}
	u = u.JoinPath("v1", "subjects", digest.String())
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "hallmark/"+version)
	client := &http.Client{CheckRedirect: stayPut}
	resp, err := client.Do(req)
	if err != nil {
		return nil, &failure{fmt.Errorf("ask for bundles: %s", report.Clean(err.Error())), "is this the authority's public URL?"}
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, unattested(u.Host, digest)
	default:
		return nil, &failure{fmt.Errorf("ask %s for bundles: %s", u.Host, report.Clean(resp.Status)), "is this the authority's public URL?"}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read bundles from %s: %s", u.Host, report.Clean(err.Error()))
	}
	if len(body) > maxAnswer {
		return nil, fmt.Errorf("read bundles from %s: more than %d MiB", u.Host, maxAnswer>>20)
	}
	var answer struct {
		Attestations []struct {
			Bundle json.RawMessage `json:"bundle"`
		} `json:"attestations"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, &failure{fmt.Errorf("read bundles from %s: not the answer of an authority", u.Host), "is this the authority's public URL?"}
	}
	if len(answer.Attestations) == 0 {
		return nil, unattested(u.Host, digest)
	}
	var bundles [][]byte
	for _, a := range answer.Attestations {
		bundles = append(bundles, a.Bundle)
	}
	return bundles, nil
}

func unattested(host string, digest verify.Digest) error {
	return &failure{fmt.Errorf("no bundle for %s: %s has none", digest, host), "was the file changed after the job, or built elsewhere?"}
}

// stayPut follows redirects within one host, never to a weaker scheme.
func stayPut(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	case req.URL.Host != first.Host || req.URL.Scheme != first.Scheme:
		return fmt.Errorf("redirected to %s://%s", req.URL.Scheme, req.URL.Host)
	}
	return nil
}
