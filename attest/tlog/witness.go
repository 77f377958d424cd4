package tlog

import (
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
	witnessTimeout   = 10 * time.Second
	mostPause        = 4 * time.Second // less than Tessera waits for witnesses
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
		key := fields[2][strings.LastIndexByte(fields[2], '+')+1:]
		if other, ok := keys[key]; ok {
			return nil, fmt.Errorf("witness policy: %s and %s have the same key", other, fields[1])
		}
		keys[key] = fields[1]
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
