package tlog

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/transparency-dev/tessera/client"
	"google.golang.org/protobuf/encoding/protojson"
)

// Limits of an outside Rekor. A proof is 2 kB, a tile 8 kB.
const (
	maxAnswer  = 1 << 20
	rekorTries = 6
	firstPause = 250 * time.Millisecond // between tries, doubled each time
)

// RekorOptions say where a Rekor is and what it is believed.
type RekorOptions struct {
	URL     *url.URL
	Roots   *x509.CertPool // nil means the system's
	Trusted *trustpb.TrustedRoot
	Now     func() time.Time // nil means time.Now
}

// Rekor is an outside log of Rekor's version 2.
type Rekor struct {
	url     *url.URL
	http    *http.Client
	tiles   webTiles // beside the API
	trusted []*trustpb.TransparencyLogInstance
	logs    map[string]rekorLog // by the whole key id
	now     func() time.Time
}

type rekorLog struct {
	*verifier
	from, until time.Time // no until means for ever
}

// NewRekor enters signatures in the Rekor at a URL. What it answers counts only
// if it verifies with a log of the trusted root.
func NewRekor(o RekorOptions) (*Rekor, error) {
	r := &Rekor{url: o.URL, trusted: o.Trusted.GetTlogs(), logs: map[string]rekorLog{}, now: o.Now}
	if r.now == nil {
		r.now = time.Now
	}
	for _, instance := range r.trusted {
		base, err := url.Parse(instance.GetBaseUrl())
		if err != nil {
			return nil, fmt.Errorf("tlog: trusted root: log %.80q: %w", instance.GetBaseUrl(), err)
		}
		v, err := newVerifier(base.Hostname(), instance.GetPublicKey().GetRawBytes())
		if err != nil {
			continue // a log of another kind, whose answers nobody here can believe
		}
		log := rekorLog{verifier: v, from: instance.GetPublicKey().GetValidFor().GetStart().AsTime()}
		if end := instance.GetPublicKey().GetValidFor().GetEnd(); end != nil {
			log.until = end.AsTime()
		}
		r.logs[string(v.id)] = log
	}
	if len(r.logs) == 0 {
		return nil, errors.New("tlog: the trusted root names no log whose key is Ed25519 or ECDSA P-256")
	}
	r.http = newClient(o.Roots)
	r.tiles = webTiles{r.http, o.URL.JoinPath("api/v2")}
	return r, nil
}

// Trusted implements [Log].
func (r *Rekor) Trusted() []*trustpb.TransparencyLogInstance { return r.trusted }

// Close implements [Log].
func (r *Rekor) Close(context.Context) error {
	r.http.CloseIdleConnections()
	return nil
}

// Enter implements [Log].
func (r *Rekor) Enter(ctx context.Context, text []byte) ([]byte, error) {
	d, err := parseDraft(text)
	if err != nil {
		return nil, err
	}
	answer, err := r.add(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("tlog: rekor %s: %w", r.url, err)
	}
	entry, err := r.verify(d, answer)
	if err != nil {
		return nil, fmt.Errorf("tlog: rekor %s: %w", r.url, err)
	}
	return d.with(entry)
}

// verify checks an answer, and returns of it what was checked.
func (r *Rekor) verify(d *draft, answer *rekorpb.TransparencyLogEntry) (*rekorpb.TransparencyLogEntry, error) {
	log, ok := r.logs[string(answer.GetLogId().GetKeyId())]
	if !ok {
		return nil, fmt.Errorf("%w: its log %x is not in the trusted root", ErrContradiction, first(answer.GetLogId().GetKeyId(), 8))
	}
	if now := r.now(); now.Before(log.from) || !log.until.IsZero() && now.After(log.until) {
		return nil, fmt.Errorf("%w: the trusted root does not trust its log %s now", ErrContradiction, log.origin)
	}
	cp, err := d.verifyEntry(log.verifier, answer)
	if err != nil {
		return nil, err
	}
	return d.entry(log.verifier, uint64(answer.GetLogIndex()), cp, answer.GetInclusionProof().GetHashes()), nil
}

func first[T any](s []T, n int) []T { return s[:min(n, len(s))] }

// add uploads the draft until there is an answer. An upload that was made and
// whose answer was lost is a duplicate the next time.
func (r *Rekor) add(ctx context.Context, d *draft) (*rekorpb.TransparencyLogEntry, error) {
	request, err := rekorRequest(d)
	if err != nil {
		return nil, err
	}
	pause := firstPause
	for try := 1; ; try++ {
		answer, err := r.upload(ctx, d, request)
		var again *tryAgainError
		if !errors.As(err, &again) || try == rekorTries {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		case <-time.After(pause/2 + rand.N(pause)):
			pause *= 2
		}
	}
}

// tryAgainError may pass.
type tryAgainError struct{ err error }

func (e *tryAgainError) Error() string { return e.err.Error() }
func (e *tryAgainError) Unwrap() error { return e.err }

// rekorRequest is CreateEntryRequest of Rekor's API.
func rekorRequest(d *draft) ([]byte, error) {
	type object = map[string]any
	return json.Marshal(object{"hashedRekordRequestV002": object{
		"digest": d.digest[:],
		"signature": object{
			"content":  d.signature,
			"verifier": object{"x509Certificate": object{"rawBytes": d.leaf.Raw}, "keyDetails": "PKIX_ECDSA_P256_SHA_256"},
		},
	}})
}

func (r *Rekor) upload(ctx context.Context, d *draft, request []byte) (*rekorpb.TransparencyLogEntry, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url.JoinPath("api/v2/log/entries").String(), bytes.NewReader(request))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, body, err := do(r.http, req, maxAnswer)
	if err != nil {
		return nil, err
	}
	switch {
	case res.StatusCode == http.StatusCreated || res.StatusCode == http.StatusOK:
		return parseAnswer(body)
	case res.StatusCode == http.StatusConflict:
		return r.existing(ctx, d, res.Header.Get("X-Log-Index"))
	case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500:
		return nil, &tryAgainError{fmt.Errorf("status %d: %.200q", res.StatusCode, body)}
	}
	return nil, fmt.Errorf("status %d: %.200q", res.StatusCode, body)
}

// parseAnswer reads a TransparencyLogEntry. What it has besides is not used.
func parseAnswer(body []byte) (*rekorpb.TransparencyLogEntry, error) {
	entry := &rekorpb.TransparencyLogEntry{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, entry); err != nil {
		return nil, fmt.Errorf("%w: answers with no log entry: %.200q", ErrContradiction, body)
	}
	return entry, nil
}

// existing makes the proof of an entry that the log has already, from its tiles.
func (r *Rekor) existing(ctx context.Context, d *draft, at string) (*rekorpb.TransparencyLogEntry, error) {
	index, err := parseSize(at)
	if err != nil {
		return nil, fmt.Errorf("%w: has the entry already, at no index: %.40q", ErrContradiction, at)
	}
	text, err := r.tiles.checkpoint(ctx)
	if err != nil {
		return nil, fmt.Errorf("has the entry already, at %d: %w", index, err)
	}
	log, cp, err := r.openCheckpoint(text)
	if err != nil {
		return nil, err
	}
	if cp.size <= index {
		return nil, &tryAgainError{fmt.Errorf("has the entry already, at %d, and publishes %d", index, cp.size)}
	}
	builder, err := client.NewProofBuilder(ctx, cp.size, r.tiles.tile)
	if err != nil {
		return nil, err
	}
	path, err := builder.InclusionProof(ctx, index)
	if err != nil {
		return nil, fmt.Errorf("has the entry already, at %d: %w", index, err)
	}
	return d.entry(log.verifier, index, cp, path), nil
}

// openCheckpoint finds the log whose checkpoint it is.
func (r *Rekor) openCheckpoint(text []byte) (rekorLog, checkpoint, error) {
	for _, log := range r.logs {
		if cp, err := log.open(text); err == nil {
			return log, cp, nil
		}
	}
	return rekorLog{}, checkpoint{}, fmt.Errorf("%w: its checkpoint is of no log of the trusted root", ErrContradiction)
}
