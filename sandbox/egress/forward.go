package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"hallmark.build/sandbox/egress/git"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

const (
	// pieceSize is how much of an answer is held back until it is recorded.
	pieceSize    = 64 << 10
	maxRedirects = 5
	maxMediaType = 128
)

// forward asks the origin, and hands its answer on.
func (q *request) forward(d policy.Decision) bool {
	u, err := originURL(q.ask)
	if err != nil {
		return q.malformed(http.StatusBadRequest, err)
	}
	fetch := record.Fetch{
		Stage: string(q.p.stage), Role: string(q.p.side.role), Method: q.Method, URL: redactURL(u, q.hidden()), Rule: d.Rule,
		SHA256: hex.EncodeToString(sha256.New().Sum(nil)),
	}
	if q.body.proceed() != nil {
		return false
	}
	ctx, cancel := context.WithCancel(q.p.ctx)
	defer cancel()
	out := (&http.Request{Method: q.Method, URL: u, Host: u.Host, Header: forwardHeader(q.Header), ProtoMajor: 1, ProtoMinor: 1}).WithContext(ctx)
	if q.ContentLength != 0 {
		out.Body, out.ContentLength = q.body, q.ContentLength
	}
	resp, err := q.exchange(out, d, &fetch)
	if err != nil {
		return q.unanswered(err, fetch)
	}
	defer resp.Body.Close()
	if d.Artifacts != 0 {
		return q.download(resp, fetch, d.Artifacts)
	}
	return q.relay(resp, fetch)
}

// A redirectError says why a redirect was not followed.
type redirectError struct{ reason, remedy string }

func (e *redirectError) Error() string { return e.reason }

// exchange sends a request, and follows redirects where the decision says so.
func (q *request) exchange(out *http.Request, d policy.Decision, fetch *record.Fetch) (*http.Response, error) {
	b := q.p.side.b
	gitlab := b.cfg.Policy.GitLabOrigin(q.ask.Scheme, q.ask.Host, q.ask.Port)
	for {
		resp, err := b.up.roundTrip(out, gitlab)
		if err != nil || !d.Follow || !redirects(resp.StatusCode) {
			return resp, err
		}
		resp.Body.Close()
		if len(fetch.Redirects) >= maxRedirects {
			return nil, &redirectError{reason: fmt.Sprintf("more than %d redirects", maxRedirects)}
		}
		next, ask, err := q.hop(out.URL, resp.Header.Get("Location"))
		if err != nil {
			return nil, err
		}
		fetch.Redirects = append(fetch.Redirects, redactURL(next, q.hidden()))
		now := b.cfg.Policy.GitLabOrigin(ask.Scheme, ask.Host, ask.Port)
		if now && !b.cfg.Policy.Decide(ask).Allow {
			return nil, &redirectError{reason: "a redirect to another part of GitLab"}
		}
		header := out.Header.Clone()
		if next.Host != out.URL.Host || next.Scheme != out.URL.Scheme {
			stripCredentials(header)
		}
		gitlab = now
		out = (&http.Request{Method: http.MethodGet, URL: next, Host: next.Host, Header: header, ProtoMajor: 1, ProtoMinor: 1}).WithContext(out.Context())
	}
}

func redirects(status int) bool {
	switch status {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// stripCredentials takes away what was meant for another host.
func stripCredentials(h http.Header) {
	for _, name := range []string{"Authorization", "Job-Token", "Private-Token", "Deploy-Token", "X-Api-Key", "Cookie"} {
		h.Del(name)
	}
}

// hop reads where a redirect leads, in the same canonical form in which
// requests are decided.
func (q *request) hop(from *url.URL, location string) (*url.URL, policy.Request, error) {
	refuse := func(reason string) (*url.URL, policy.Request, error) {
		return nil, policy.Request{}, &redirectError{reason: "a redirect that cannot be followed: " + reason}
	}
	u, err := from.Parse(location)
	switch {
	case location == "" || err != nil:
		return refuse("no proper location")
	case u.User != nil:
		return refuse("it has user information")
	case u.Scheme != "https" && u.Scheme != "http", from.Scheme == "https" && u.Scheme != "https":
		return refuse("it does not lead to https")
	}
	host, port, err := splitAuthority(u.Host)
	if err != nil {
		return refuse("no proper host")
	}
	if port == 0 {
		port = map[string]int{"https": 443, "http": 80}[u.Scheme]
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	ask := q.ask
	ask.Scheme, ask.Host, ask.Port, ask.Path, ask.RawQuery, ask.Method = u.Scheme, host, port, path, u.RawQuery, http.MethodGet
	if err := policy.CanonicalPath(path); err != nil {
		return refuse(err.Error())
	}
	next, err := originURL(ask)
	if err != nil {
		return refuse(err.Error())
	}
	return next, ask, nil
}

// unanswered tells the client why it gets nothing.
func (q *request) unanswered(err error, fetch record.Fetch) bool {
	var (
		address  *addressError
		redirect *redirectError
		storage  *storageError
	)
	switch {
	case errors.As(err, &address):
		v := refusal{status: http.StatusForbidden, rule: policy.RulePrivate, reason: address.Error(), remedy: "only hosts of the public internet can be reached"}
		if len(fetch.Redirects) > 0 {
			v.remedy = "GitLab's object storage has no public address: set proxy_download in GitLab, so that GitLab hands the file out itself"
		}
		return q.refuse(v)
	case errors.As(err, &redirect):
		return q.refuse(refusal{status: http.StatusForbidden, rule: ruleRedirect, reason: redirect.reason, remedy: redirect.remedy})
	case errors.As(err, &storage):
		return q.refuse(refusal{rule: ruleCache, reason: storage.reason, remedy: storage.remedy})
	case errors.Is(err, errBodyTooLarge):
		return q.refuse(refusal{status: http.StatusForbidden, rule: ruleCapacity, reason: fmt.Sprintf("the request's body has more than %d bytes", q.body.limit)})
	}
	q.p.side.b.cfg.Log.Info("origin did not answer", "url", fetch.URL, "error", err)
	reason, remedy := explain(err)
	fetch.Status, fetch.Incomplete = http.StatusBadGateway, reason
	q.body.describe(&fetch)
	if q.p.side.b.append(record.Fetched, fetch) != nil || q.p.ctx.Err() != nil {
		cut(q.raw)
		return false
	}
	keep := q.keep()
	q.tell(refusal{status: http.StatusBadGateway, rule: ruleOrigin, reason: reason, remedy: remedy}, q.Method == http.MethodHead, !keep)
	return keep
}

// relay hands an answer on while hashing it. The client has the last piece only
// after the fetch is durable in the record.
func (q *request) relay(resp *http.Response, fetch record.Fetch) bool {
	fetch.Status = resp.StatusCode
	fetch.MediaType = clip(printable(resp.Header.Get("Content-Type")), maxMediaType)
	bodiless := q.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified || resp.ContentLength == 0
	if bodiless {
		return q.relayHead(resp, fetch)
	}
	keep := q.keep()
	var w io.Writer = q.bw
	var end func() error
	header := answerHeader(resp.Header)
	switch {
	case resp.ContentLength > 0:
		header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	case q.ProtoAtLeast(1, 1):
		header.Set("Transfer-Encoding", "chunked")
		cw := httputil.NewChunkedWriter(q.bw)
		w = cw
		end = func() error {
			if err := cw.Close(); err != nil {
				return err
			}
			_, err := q.bw.WriteString("\r\n")
			return err
		}
	default:
		keep = false // the end of the connection is the end of the answer
	}
	if err := q.writeHead(resp, header, keep); err != nil {
		return q.abandoned(fetch, "the client went away")
	}
	var answer git.Answer
	from := io.Reader(resp.Body)
	if asksGit(q.Request) {
		from = io.TeeReader(from, &answer)
	}
	last, n, sum, incomplete := q.pump(from, w)
	fetch.Bytes, fetch.SHA256 = n, sum
	if incomplete != "" {
		return q.abandoned(fetch, incomplete)
	}
	q.body.describe(&fetch)
	if fetch.Git != nil {
		fetch.Git.Pack = answer.Pack()
	}
	if q.p.side.b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false
	}
	if _, err := w.Write(last); err != nil {
		return false
	}
	if end != nil && end() != nil {
		return false
	}
	return q.bw.Flush() == nil && keep
}

// relayHead hands on an answer that has no body. It is recorded first: its
// status alone may be what the client wanted to know.
func (q *request) relayHead(resp *http.Response, fetch record.Fetch) bool {
	q.body.describe(&fetch)
	if q.p.side.b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false
	}
	header := answerHeader(resp.Header)
	if resp.ContentLength >= 0 && resp.StatusCode != http.StatusNoContent {
		header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	keep := q.keep()
	if q.writeHead(resp, header, keep) != nil {
		return false
	}
	return q.bw.Flush() == nil && keep
}

// abandoned records an answer that did not come to its end, and makes sure that
// the client sees that it did not.
func (q *request) abandoned(fetch record.Fetch, why string) bool {
	if q.p.ctx.Err() != nil {
		why = "the stage ended"
	}
	fetch.Incomplete = why
	q.body.describe(&fetch)
	_ = q.p.side.b.append(record.Fetched, fetch)
	cut(q.raw)
	return false
}

// answerHeader is what the client gets of an origin's header.
func answerHeader(in http.Header) http.Header {
	out := http.Header{}
	drop := map[string]bool{}
	for _, v := range in["Connection"] {
		for _, name := range strings.Split(v, ",") {
			drop[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	for name, values := range in {
		if !unforwarded[name] && !drop[name] {
			out[name] = values
		}
	}
	return out
}

// writeHead writes status line and header. http.Header.Write takes line breaks
// out of values.
func (q *request) writeHead(resp *http.Response, header http.Header, keep bool) error {
	if !keep {
		header.Set("Connection", "close")
	}
	phrase := http.StatusText(resp.StatusCode)
	if _, rest, ok := strings.Cut(resp.Status, " "); ok && rest != "" {
		phrase = clip(printable(rest), maxPhrase)
	}
	if _, err := fmt.Fprintf(q.bw, "HTTP/1.1 %03d %s\r\n", resp.StatusCode, phrase); err != nil {
		return err
	}
	if err := header.Write(q.bw); err != nil {
		return err
	}
	_, err := q.bw.WriteString("\r\n")
	return err
}

// pump hands a body on but for its last piece, which it returns. incomplete
// says why the body did not come to its end.
func (q *request) pump(r io.Reader, w io.Writer) (last []byte, n int64, sum, incomplete string) {
	hash := sha256.New()
	held, next := make([]byte, 0, pieceSize), make([]byte, pieceSize)
	done := func(why string) ([]byte, int64, string, string) {
		return held, n, hex.EncodeToString(hash.Sum(nil)), why
	}
	for {
		m, err := r.Read(next)
		hash.Write(next[:m])
		n += int64(m)
		if m > 0 {
			if len(held) > 0 {
				if _, err := w.Write(held); err != nil {
					return done("the client went away")
				}
				if err := q.bw.Flush(); err != nil {
					return done("the client went away")
				}
			}
			held, next = next[:m], held[:pieceSize]
		}
		switch {
		case errors.Is(err, io.EOF):
			return done("")
		case err != nil:
			return done("the origin's answer was cut off")
		}
	}
}
