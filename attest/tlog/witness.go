package tlog

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/transparency-dev/tessera"
)

// Limits on witnesses.
const (
	maxWitnessAnswer = 64 << 10
	witnessTimeout   = 10 * time.Second
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

// witnessClient bounds what a witness answers and for how long.
func witnessClient() *http.Client {
	return &http.Client{
		Transport:     boundedTransport{http.DefaultTransport, maxWitnessAnswer},
		Timeout:       witnessTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A boundedTransport cuts answers off.
type boundedTransport struct {
	next http.RoundTripper
	most int64
}

func (t boundedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, t.most), res.Body}
	return res, nil
}
