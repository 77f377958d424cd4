// Package gitlab asks GitLab what it knows of a job.
//
// The authority must not take the host's word for which commit, project and
// user a job has. GitLab's answer is compared with what the host says, field by
// field: any difference is a [Disagreement], which is a security failure.
// Everything that leaves the question open, a GitLab that is down above all, is
// an ordinary error.
//
// # When it is asked
//
//   - [Client.Check], before anything of a job runs: GET /api/v4/job under the
//     job's own token. The job must be running.
//   - [Client.Closing], before anything is signed: the same, and the runner and
//     its machine must be those of the opening. The job must be running or,
//     unless its record says that it succeeded, canceling: a job that a person
//     cancels still runs after_script, uploads and says so in its record. GitLab
//     answers nobody else's token: after the job's end, a forced cancel or an
//     erasure it is 401 or 403, as it is for a canceling job before GitLab 17,
//     which knew no such status. Each is a disagreement about the token.
//   - [Client.Ended], for a record that is closed late: GET
//     /api/v4/projects/:id/jobs/:id under a token of the authority's own. The
//     job must have ended as its record says, if it has ended, and not have been
//     erased. A runner that was deleted since is not held against it.
//
// # Evidence besides
//
// A job can bring an ID token that GitLab signed for the authority's audience.
// [IDTokens] verifies it. It adds to what is known of the job and is never a
// signer: the tenant can read it.
package gitlab

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"hallmark.build/attest/internal/private"
)

// Limits of one question.
const (
	Timeout     = 20 * time.Second
	MaxAnswer   = 1 << 20 // bytes
	maxToken    = 4 << 10 // bytes
	maxInDetail = 200     // bytes of a value quoted in an error
)

// Facts are what both sides must agree on.
type Facts struct {
	ID         int64
	Name       string
	Stage      string
	ProjectID  int64
	PipelineID int64
	UserID     int64
	Ref        string
	Tag        bool
	SHA        string
	Runner     int64  // 0: not compared
	Manager    string // the runner's machine, its system id; empty: not compared
}

// Confirmed is what GitLab adds to the facts that it confirmed.
type Confirmed struct {
	Project string // full path, from the job's web address
	Host    string // name by which people reach this GitLab, likewise
	Runner  int64  // that took the job
	Manager string // its system id; older GitLabs do not tell
}

// A Disagreement is a field in which GitLab and the host differ. It is a
// security failure: never retried, never downgraded.
type Disagreement struct {
	Field string
	Host  string // what the host says; never a secret
	Have  string // what GitLab says
}

// TokenEnded reports whether the job's token is none, or none any more: GitLab
// said nothing about the job itself.
func (d *Disagreement) TokenEnded() bool { return d.Field == "token" }

func (d *Disagreement) Error() string {
	return fmt.Sprintf("gitlab: job %s: the host says %q, GitLab says %q", d.Field, d.Host, d.Have)
}

// A Client asks one GitLab. It is safe for concurrent use.
type Client struct {
	base *url.URL
	url  *url.URL
	http *http.Client
	own  func() (string, error)
}

// New makes a client of the GitLab at base. roots are what its certificate must
// chain to; nil means the system's.
func New(base *url.URL, roots *x509.CertPool) (*Client, error) {
	if base == nil || base.Scheme != "https" && base.Scheme != "http" || base.Host == "" || base.User != nil {
		return nil, errors.New("gitlab: address must be an http or https URL without credentials")
	}
	return &Client{base: base, url: base.JoinPath("api/v4/job"), http: newHTTP(roots)}, nil
}

func newHTTP(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: Timeout,
		Transport: &http.Transport{
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			ResponseHeaderTimeout:  Timeout,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConns:           4,
			IdleConnTimeout:        time.Minute,
		},
		// A redirect would carry the token, or the trust, to where nobody
		// configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// WithToken returns a client that can also ask about jobs that have ended. read
// returns the authority's own token, for each question anew.
func (c *Client) WithToken(read func() (string, error)) *Client {
	with := *c
	with.own = read
	return &with
}

// TokenFile reads the authority's own token from a file that nobody else may
// open, whenever it is asked: such tokens are rotated.
func TokenFile(name string) func() (string, error) {
	return func() (string, error) {
		text, err := private.ReadFile(name, maxToken)
		return strings.TrimSpace(string(text)), err
	}
}

// ErrNoToken says that the authority has no token of its own, so that it cannot
// ask about jobs whose token has ended.
var ErrNoToken = errors.New("gitlab: the job's token has ended, and the authority has none of its own (gitlab_token_file)")

// ErrHidden says that GitLab answers, and shows a job to the authority's own
// token neither as it is nor as gone: what it does not show and what is not
// there look the same.
var ErrHidden = errors.New("gitlab: the authority's own token is refused")

// answer is the part of GitLab's job entity that is compared. GitLab adds
// fields over time: the others are ignored.
type answer struct {
	ID     int64  `json:"id"`
	Status string `json:"status"`
	Stage  string `json:"stage"`
	Name   string `json:"name"`
	Ref    string `json:"ref"`
	Tag    bool   `json:"tag"`
	WebURL string `json:"web_url"`
	Commit struct {
		ID string `json:"id"`
	} `json:"commit"`
	Pipeline struct {
		ID        int64  `json:"id"`
		ProjectID int64  `json:"project_id"`
		SHA       string `json:"sha"`
	} `json:"pipeline"`
	User struct {
		ID int64 `json:"id"`
	} `json:"user"`
	Runner struct {
		ID int64 `json:"id"`
	} `json:"runner"`
	Manager struct {
		SystemID string `json:"system_id"`
	} `json:"runner_manager"`
	ErasedAt string `json:"erased_at"`
}

// Check asks which running job the token belongs to and compares. The error is
// a *Disagreement where GitLab gives another answer than the host.
func (c *Client) Check(ctx context.Context, token string, want Facts) (Confirmed, error) {
	have, err := c.askJob(ctx, token)
	if err != nil {
		return Confirmed{}, err
	}
	if d := compare(want, have, "running"); d != nil {
		return Confirmed{}, d
	}
	if have.Runner.ID <= 0 {
		return Confirmed{}, &Disagreement{Field: "runner", Host: "a job that it runs", Have: "a job that no runner has"}
	}
	return confirmed(have, c.base.Path)
}

// Closing asks again, with the facts of the opening, before anything is signed
// about a job that came to result.
func (c *Client) Closing(ctx context.Context, token string, want Facts, result string) error {
	have, err := c.askJob(ctx, token)
	if err != nil {
		return err
	}
	statuses := []string{"running", "canceling"}
	if result == success {
		statuses = statuses[:1]
	}
	if d := compare(want, have, statuses...); d != nil {
		return d
	}
	return nil
}

// success is GitLab's word for a job that did well, and that of records.
const success = "success"

// Ended asks about a job whose token has ended, and whose record says that it
// came to result. It is ErrNoToken where the authority has no token of its own,
// and ErrHidden where GitLab does not show that token the job.
func (c *Client) Ended(ctx context.Context, want Facts, result string) error {
	if c.own == nil {
		return ErrNoToken
	}
	token, err := c.own()
	if err != nil {
		return fmt.Errorf("gitlab: the authority's own token: %w", err)
	}
	if !printable(token) {
		return errors.New("gitlab: the authority's own token is none: see gitlab_token_file")
	}
	project, job := strconv.FormatInt(want.ProjectID, 10), strconv.FormatInt(want.ID, 10)
	have, err := c.ask(ctx, c.base.JoinPath("api/v4/projects", project, "jobs", job), "PRIVATE-TOKEN", token)
	if refused, ok := errors.AsType[*refusedError](err); ok {
		return fmt.Errorf("%w: %s", ErrHidden, refused.status)
	}
	if err != nil {
		return err
	}
	if have.Runner.ID == 0 {
		want.Runner, want.Manager = 0, ""
	}
	statuses := []string{"failed", "canceled", "running", "canceling"}
	if result == success {
		statuses = []string{success, "running"}
	}
	if d := compare(want, have, statuses...); d != nil {
		return d
	}
	return nil
}

// askJob asks under a job's own token.
func (c *Client) askJob(ctx context.Context, token string) (answer, error) {
	if !printable(token) {
		return answer{}, &Disagreement{Field: "token", Host: "a token that is none", Have: "not asked"}
	}
	have, err := c.ask(ctx, c.url, "JOB-TOKEN", token)
	if refused, ok := errors.AsType[*refusedError](err); ok {
		return answer{}, &Disagreement{Field: "token", Host: "the token of a running job", Have: refused.status}
	}
	return have, err
}

// printable reports whether a token can stand in a header.
func printable(token string) bool {
	return token != "" && len(token) <= maxToken && !strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })
}

// A refusedError is GitLab's answer to a token that it does not take.
type refusedError struct{ status string }

func (e *refusedError) Error() string { return "gitlab: " + e.status }

func (c *Client) ask(ctx context.Context, where *url.URL, header, token string) (answer, error) {
	body, err := get(ctx, c.http, where, func(h http.Header) { h.Set(header, token) })
	if err != nil {
		return answer{}, err
	}
	return parse(body)
}

// get reads one JSON document of GitLab's.
func get(ctx context.Context, client *http.Client, where *url.URL, with func(http.Header)) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("gitlab: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "hallmark-attestd")
	with(req.Header)
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("gitlab: %w", err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return nil, &refusedError{res.Status}
	default:
		return nil, fmt.Errorf("gitlab: %s: %s", where, res.Status)
	}
	if kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return nil, fmt.Errorf("gitlab: %s: answer is not application/json", where)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("gitlab: %s: %w", where, err)
	}
	if len(body) > MaxAnswer {
		return nil, fmt.Errorf("gitlab: %s: answer of more than %d bytes", where, MaxAnswer)
	}
	return body, nil
}

func parse(body []byte) (answer, error) {
	var a answer
	if !utf8.Valid(body) {
		return answer{}, errors.New("gitlab: answer is not UTF-8")
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return answer{}, fmt.Errorf("gitlab: answer: %w", err)
	}
	return a, nil
}

// compare finds the first difference. The first of the statuses is the one that
// is expected.
func compare(want Facts, have answer, statuses ...string) *Disagreement {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	status := statuses[0]
	if slices.Contains(statuses, have.Status) {
		status = have.Status
	}
	for _, f := range []struct{ field, host, have string }{
		{"id", number(want.ID), number(have.ID)},
		{"status", status, have.Status},
		{"erasure", "", have.ErasedAt},
		{"name", want.Name, have.Name},
		{"stage", want.Stage, have.Stage},
		{"project id", number(want.ProjectID), number(have.Pipeline.ProjectID)},
		{"pipeline id", number(want.PipelineID), number(have.Pipeline.ID)},
		{"commit", want.SHA, have.Commit.ID},
		{"pipeline commit", want.SHA, cmp.Or(have.Pipeline.SHA, have.Commit.ID)}, // older GitLabs leave it out
		{"ref", want.Ref, have.Ref},
		{"tag", strconv.FormatBool(want.Tag), strconv.FormatBool(have.Tag)},
		{"user id", number(want.UserID), number(have.User.ID)},
		{"runner", number(cmp.Or(want.Runner, have.Runner.ID)), number(have.Runner.ID)},
		{"runner's machine", cmp.Or(want.Manager, have.Manager.SystemID), have.Manager.SystemID},
	} {
		if f.host != f.have {
			return &Disagreement{Field: f.field, Host: short(f.host), Have: short(f.have)}
		}
	}
	return nil
}

func short(s string) string {
	if len(s) <= maxInDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxInDetail], "") + "…"
}

// confirmed reads a job's web address, https://host/root/group/project/-/jobs/1,
// where root is the path of GitLab itself.
func confirmed(have answer, root string) (Confirmed, error) {
	unknown := fmt.Errorf("gitlab: the job's web address %q names no project below %q", short(have.WebURL), root+"/")
	u, err := url.Parse(have.WebURL)
	if err != nil {
		return Confirmed{}, unknown
	}
	rest, ok := strings.CutPrefix(u.Path, strings.TrimSuffix(root, "/")+"/")
	project, isJob := strings.CutSuffix(rest, "/-/jobs/"+strconv.FormatInt(have.ID, 10))
	if !ok || !isJob || project == "" {
		return Confirmed{}, unknown
	}
	return Confirmed{Project: project, Host: u.Hostname(), Runner: have.Runner.ID, Manager: have.Manager.SystemID}, nil
}
