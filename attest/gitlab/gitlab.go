// Package gitlab asks GitLab what it knows of a job.
//
// The authority must not take the host's word for which commit, project and
// user a job has. GET /api/v4/job, with the job's own token, answers from
// GitLab's database while the job runs. What the answer says is compared with
// what the host says, field by field: any difference is a [Disagreement], which
// is a security failure. Everything that leaves the question open, a GitLab
// that is down above all, is an ordinary error.
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
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
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
}

// Confirmed is what GitLab adds to the facts that it confirmed, both from the
// job's web address.
type Confirmed struct {
	Project string // full path
	Host    string // name by which people reach this GitLab
}

// A Disagreement is a field in which GitLab and the host differ. It is a
// security failure: never retried, never downgraded.
type Disagreement struct {
	Field string
	Host  string // what the host says; never a secret
	Have  string // what GitLab says
}

func (d *Disagreement) Error() string {
	return fmt.Sprintf("gitlab: job %s: the host says %q, GitLab says %q", d.Field, d.Host, d.Have)
}

// A Client asks one GitLab. It is safe for concurrent use.
type Client struct {
	base *url.URL
	url  *url.URL
	http *http.Client
}

// New makes a client of the GitLab at base. roots are what its certificate must
// chain to; nil means the system's.
func New(base *url.URL, roots *x509.CertPool) (*Client, error) {
	if base == nil || base.Scheme != "https" && base.Scheme != "http" || base.Host == "" || base.User != nil {
		return nil, errors.New("gitlab: address must be an http or https URL without credentials")
	}
	return &Client{
		base: base,
		url:  base.JoinPath("api/v4/job"),
		http: &http.Client{
			Timeout: Timeout,
			Transport: &http.Transport{
				TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
				TLSHandshakeTimeout:    10 * time.Second,
				ResponseHeaderTimeout:  Timeout,
				MaxResponseHeaderBytes: 64 << 10,
				MaxIdleConns:           4,
				IdleConnTimeout:        time.Minute,
			},
			// A redirect would carry the token to where nobody configured.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

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
}

// Check asks which running job the token belongs to and compares. The error is
// a *Disagreement where GitLab gives another answer than the host.
func (c *Client) Check(ctx context.Context, token string, want Facts) (Confirmed, error) {
	if token == "" || len(token) > maxToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Confirmed{}, &Disagreement{Field: "token", Host: "a token that is none", Have: "not asked"}
	}
	have, err := c.ask(ctx, token)
	if err != nil {
		return Confirmed{}, err
	}
	if d := compare(want, have); d != nil {
		return Confirmed{}, d
	}
	return confirmed(have.WebURL, c.base.Path, want.ID)
}

func (c *Client) ask(ctx context.Context, token string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url.String(), nil)
	if err != nil {
		return answer{}, fmt.Errorf("gitlab: %w", err)
	}
	req.Header.Set("JOB-TOKEN", token)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "hallmark-attestd")
	res, err := c.http.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("gitlab: %w", err)
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return answer{}, &Disagreement{Field: "token", Host: "the token of a running job", Have: res.Status}
	default:
		return answer{}, fmt.Errorf("gitlab: %s: %s", c.url, res.Status)
	}
	if kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return answer{}, fmt.Errorf("gitlab: %s: answer is not application/json", c.url)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, MaxAnswer+1))
	if err != nil {
		return answer{}, fmt.Errorf("gitlab: %s: %w", c.url, err)
	}
	if len(body) > MaxAnswer {
		return answer{}, fmt.Errorf("gitlab: %s: answer of more than %d bytes", c.url, MaxAnswer)
	}
	return parse(body)
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

func compare(want Facts, have answer) *Disagreement {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, f := range []struct{ field, host, have string }{
		{"id", number(want.ID), number(have.ID)},
		{"status", "running", have.Status},
		{"name", want.Name, have.Name},
		{"stage", want.Stage, have.Stage},
		{"project id", number(want.ProjectID), number(have.Pipeline.ProjectID)},
		{"pipeline id", number(want.PipelineID), number(have.Pipeline.ID)},
		{"commit", want.SHA, have.Commit.ID},
		{"pipeline commit", want.SHA, cmp.Or(have.Pipeline.SHA, have.Commit.ID)}, // older GitLabs leave it out
		{"ref", want.Ref, have.Ref},
		{"tag", strconv.FormatBool(want.Tag), strconv.FormatBool(have.Tag)},
		{"user id", number(want.UserID), number(have.User.ID)},
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
func confirmed(webURL, root string, id int64) (Confirmed, error) {
	unknown := fmt.Errorf("gitlab: the job's web address %q names no project below %q", short(webURL), root+"/")
	u, err := url.Parse(webURL)
	if err != nil {
		return Confirmed{}, unknown
	}
	rest, ok := strings.CutPrefix(u.Path, strings.TrimSuffix(root, "/")+"/")
	project, isJob := strings.CutSuffix(rest, "/-/jobs/"+strconv.FormatInt(id, 10))
	if !ok || !isJob || project == "" {
		return Confirmed{}, unknown
	}
	return Confirmed{Project: project, Host: u.Hostname()}, nil
}
