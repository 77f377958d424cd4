package tlog

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
)

// Limits on witnesses.
const (
	maxWitnessAnswer = 64 << 10
	mostPause        = 4 * time.Second
	witnessTimeout   = mostPause + 10*time.Second // a slow one is heard, also after a pause
)

// parseWitnesses reads a policy that asks for at least one witness. A witness
// under two names would count twice.
func parseWitnesses(policy []byte) (*tessera.WitnessGroup, error) {
	keys := map[string]string{}
	for line := range strings.Lines(string(policy)) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) != 4 || fields[0] != "witness" {
			continue
		}
		parts := strings.SplitN(fields[2], "+", 3) // name, hash, key
		key, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
		if err != nil || len(parts) != 3 || len(key) == 0 {
			return nil, fmt.Errorf("witness policy: %s: key %.100q", fields[1], fields[2])
		}
		bare := string(key[1:]) // of its use
		if other, ok := keys[bare]; ok {
			return nil, fmt.Errorf("witness policy: %s and %s have the same key", other, fields[1])
		}
		keys[bare] = fields[1]
	}
	group, err := tessera.NewWitnessGroupFromPolicy(policy)
	if err != nil {
		return nil, fmt.Errorf("witness policy: %w", err)
	}
	if group.Satisfied(nil) {
		return nil, errors.New("witness policy: asks for no witness: configure none instead")
	}
	return &group, nil
}

// witnessClient bounds what a witness answers, for how long, and how often one
// that fails is asked.
func witnessClient() *http.Client {
	return &http.Client{
		Transport:     &witnessTransport{next: http.DefaultTransport, failing: map[string]failing{}},
		Timeout:       witnessTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A witnessTransport cuts answers off, and holds calls of a witness back that has
// failed just now: Tessera would repeat them every [CheckpointInterval].
type witnessTransport struct {
	next http.RoundTripper

	mu      sync.Mutex
	failing map[string]failing // by URL
}

type failing struct {
	until time.Time
	pause time.Duration
}

func (t *witnessTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	url := r.URL.String()
	t.mu.Lock()
	until := t.failing[url].until
	t.mu.Unlock()
	select {
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-time.After(time.Until(until)):
	}
	res, err := t.next.RoundTrip(r)
	t.note(url, err == nil && (res.StatusCode == http.StatusOK || res.StatusCode == http.StatusConflict))
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, maxWitnessAnswer), res.Body}
	return res, nil
}

func (t *witnessTransport) note(url string, good bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if good {
		delete(t.failing, url)
		return
	}
	pause := min(max(2*t.failing[url].pause, firstPause), mostPause)
	t.failing[url] = failing{time.Now().Add(pause), pause}
}
