package gitlab

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Limits of ID tokens.
const (
	MaxIDToken = 16 << 10 // bytes
	maxClaim   = 1024     // bytes of a claim that is kept
	minRSA     = 2048     // bits
	keysFor    = time.Hour
)

// algorithms are those that GitLab signs ID tokens with. "none" and shared
// secrets are not among them.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.ES256}

// An Identity is what a job's ID token says besides the facts that it agrees
// with. It is evidence about the job, and nothing signs as it.
type Identity struct {
	Issuer      string
	Subject     string
	ID          string // jti
	Issued      time.Time
	ConfigURI   string // of the pipeline's configuration: ci_config_ref_uri
	ConfigSHA   string
	Runner      int64
	Environment string // where the runner is: "self-hosted" or "gitlab-hosted"
}

// IDTokens verifies the ID tokens of one GitLab's jobs. It is safe for
// concurrent use.
//
// The issuer is pinned to GitLab's address. Its keys come from there alone: what
// the discovery document names lies below that address, and no redirect is
// followed (CVE-2026-49478 is about a library that did). They are kept for an
// hour, and fetched again for a key that is not among them.
type IDTokens struct {
	issuer   string
	audience string
	base     *url.URL
	http     *http.Client
	now      func() time.Time

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	fetched time.Time
}

// NewIDTokens makes a verifier of tokens that the GitLab at base made for
// audience. roots are as in [New].
func NewIDTokens(base *url.URL, audience string, roots *x509.CertPool, now func() time.Time) (*IDTokens, error) {
	if _, err := New(base, roots); err != nil {
		return nil, err
	}
	if audience == "" {
		return nil, errors.New("gitlab: id tokens: no audience")
	}
	return &IDTokens{
		issuer: strings.TrimSuffix(base.String(), "/"), audience: audience, base: base, http: newHTTP(roots), now: now,
	}, nil
}

// An identifier is a number that GitLab writes as a string in most claims.
type identifier int64

func (n *identifier) UnmarshalJSON(text []byte) error {
	v, err := strconv.ParseInt(strings.Trim(string(text), `"`), 10, 64)
	if err != nil {
		return errors.New("not an identifier")
	}
	*n = identifier(v)
	return nil
}

// claims are those of GitLab's that are compared or kept.
type claims struct {
	ProjectID    identifier `json:"project_id"`
	JobProjectID identifier `json:"job_project_id"` // from GitLab 18.4 on
	PipelineID   identifier `json:"pipeline_id"`
	JobID        identifier `json:"job_id"`
	UserID       identifier `json:"user_id"`
	RunnerID     identifier `json:"runner_id"`
	SHA          string     `json:"sha"`
	Ref          string     `json:"ref"`
	RefType      string     `json:"ref_type"`
	ConfigURI    string     `json:"ci_config_ref_uri"`
	ConfigSHA    string     `json:"ci_config_sha"`
	Environment  string     `json:"runner_environment"`
}

// Verify checks a job's ID token against the facts that GitLab confirmed. The
// error is a *Disagreement where the token is not what it should be.
func (t *IDTokens) Verify(ctx context.Context, token string, want Facts) (Identity, error) {
	if len(token) > MaxIDToken {
		return Identity{}, wrong("id token", "at most "+strconv.Itoa(MaxIDToken)+" bytes", "more")
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return Identity{}, wrong("id token", "a token that GitLab signs", "another text or algorithm")
	}
	keys, err := t.keysFor(ctx, signed.Signatures[0].Header.KeyID)
	if err != nil {
		return Identity{}, err
	}
	if len(keys) != 1 {
		return Identity{}, wrong("id token's key", "one of GitLab's", signed.Signatures[0].Header.KeyID)
	}
	payload, err := signed.Verify(keys[0])
	if err != nil {
		return Identity{}, wrong("id token's signature", "one by GitLab's key", "another")
	}
	return t.read(payload, want)
}

func wrong(field, want, have string) *Disagreement {
	return &Disagreement{Field: field, Host: want, Have: short(have)}
}

// read checks the claims of a token whose signature holds.
func (t *IDTokens) read(payload []byte, want Facts) (Identity, error) {
	var (
		standard jwt.Claims
		own      claims
	)
	if json.Unmarshal(payload, &standard) != nil || json.Unmarshal(payload, &own) != nil {
		return Identity{}, wrong("id token", "GitLab's claims", "others")
	}
	if standard.Expiry == nil || standard.IssuedAt == nil {
		return Identity{}, wrong("id token's time", "an issue and an expiry", "none")
	}
	expected := jwt.Expected{Issuer: t.issuer, AnyAudience: jwt.Audience{t.audience}, Time: t.now()}
	switch err := standard.Validate(expected); {
	case errors.Is(err, jwt.ErrInvalidIssuer):
		return Identity{}, wrong("id token's issuer", t.issuer, standard.Issuer)
	case errors.Is(err, jwt.ErrInvalidAudience):
		return Identity{}, wrong("id token's audience", t.audience, strings.Join(standard.Audience, " "))
	case err != nil:
		return Identity{}, wrong("id token's time", "now", err.Error())
	}
	if d := own.compare(want); d != nil {
		return Identity{}, d
	}
	id := Identity{
		Issuer: standard.Issuer, Subject: standard.Subject, ID: standard.ID, Issued: standard.IssuedAt.Time().UTC(),
		ConfigURI: own.ConfigURI, ConfigSHA: own.ConfigSHA, Runner: int64(own.RunnerID), Environment: own.Environment,
	}
	for _, text := range []string{id.Subject, id.ID, id.ConfigURI, id.ConfigSHA, id.Environment} {
		if len(text) > maxClaim {
			return Identity{}, wrong("id token", "claims of at most "+strconv.Itoa(maxClaim)+" bytes", text)
		}
	}
	return id, nil
}

// compare finds the first claim that is not about the job.
func (c *claims) compare(want Facts) *Disagreement {
	project := c.JobProjectID
	if project == 0 {
		project = c.ProjectID
	}
	refType := "branch"
	if want.Tag {
		refType = "tag"
	}
	ref := want.Ref
	if strings.HasPrefix(ref, "refs/merge-requests/") {
		ref = c.Ref // the claim names the branch that is to be merged
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, f := range []struct{ claim, want, have string }{
		{"job_id", number(want.ID), number(int64(c.JobID))},
		{"project_id", number(want.ProjectID), number(int64(project))},
		{"pipeline_id", number(want.PipelineID), number(int64(c.PipelineID))},
		{"user_id", number(want.UserID), number(int64(c.UserID))},
		{"sha", want.SHA, c.SHA},
		{"ref", ref, c.Ref},
		{"ref_type", refType, c.RefType},
		{"runner_id", number(want.Runner), number(int64(c.RunnerID))},
	} {
		if f.want != f.have {
			return &Disagreement{Field: "id token's " + f.claim, Host: short(f.want), Have: short(f.have)}
		}
	}
	return nil
}

// keysFor returns GitLab's keys of a name.
func (t *IDTokens) keysFor(ctx context.Context, name string) ([]jose.JSONWebKey, error) {
	t.mu.Lock()
	keys, fetched := t.keys, t.fetched
	t.mu.Unlock()
	if found := keys.Key(name); len(found) > 0 && t.now().Sub(fetched) < keysFor {
		return found, nil
	}
	keys, err := t.fetch(ctx)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.keys, t.fetched = keys, t.now()
	t.mu.Unlock()
	return keys.Key(name), nil
}

// fetch asks GitLab where its keys are, and for them.
func (t *IDTokens) fetch(ctx context.Context) (jose.JSONWebKeySet, error) {
	none := jose.JSONWebKeySet{}
	text, err := get(ctx, t.http, t.base.JoinPath(".well-known/openid-configuration"), func(http.Header) {})
	if err != nil {
		return none, err
	}
	var discovery struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(text, &discovery); err != nil {
		return none, fmt.Errorf("gitlab: discovery: %w", err)
	}
	if discovery.Issuer != t.issuer {
		return none, fmt.Errorf("gitlab: discovery: GitLab calls itself %q, gitlab_url is %q: id tokens need both to be one", short(discovery.Issuer), t.issuer)
	}
	where, err := t.below(discovery.Keys)
	if err != nil {
		return none, err
	}
	text, err = get(ctx, t.http, where, func(http.Header) {})
	if err != nil {
		return none, err
	}
	return parseKeys(text)
}

// below takes an address if it lies below GitLab's own.
func (t *IDTokens) below(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	root := strings.TrimSuffix(t.base.Path, "/") + "/"
	if err != nil || u.Scheme != t.base.Scheme || u.Host != t.base.Host || u.User != nil ||
		!strings.HasPrefix(u.Path, root) || u.JoinPath().Path != u.Path {
		return nil, fmt.Errorf("gitlab: discovery: keys at %q, which is not below %s", short(address), t.issuer)
	}
	return u, nil
}

// parseKeys takes the public keys that sign.
func parseKeys(text []byte) (jose.JSONWebKeySet, error) {
	var all, out jose.JSONWebKeySet
	if err := json.Unmarshal(text, &all); err != nil {
		return out, fmt.Errorf("gitlab: keys: %w", err)
	}
	for _, k := range all.Keys {
		pub, isRSA := k.Key.(*rsa.PublicKey)
		if k.KeyID == "" || !k.Valid() || !k.IsPublic() || k.Use != "" && k.Use != "sig" || isRSA && pub.N.BitLen() < minRSA {
			continue
		}
		out.Keys = append(out.Keys, k)
	}
	return out, nil
}
