package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// A DownloadCheck looks up an artifact of an earlier job, and returns the attempt
// that made it and its attestation, both empty where nobody vouches for it. What
// contradicts an attestation is a *sandbox.SecurityError; what the admin lets no
// job have, a *sandbox.UserError.
type DownloadCheck func(ctx context.Context, job int64, sha256 string) (invocation, attestation string, err error)

// download takes in an artifact of an earlier job, has it looked up, and only
// then hands it to the client: what is refused was never there.
func (q *request) download(resp *http.Response, fetch record.Fetch, job int64) bool {
	b := q.p.side.b
	switch encoding := resp.Header.Get("Content-Encoding"); {
	case resp.StatusCode < 200 || resp.StatusCode > 299: // GitLab's own words
		return q.relay(resp, fetch)
	case resp.StatusCode != http.StatusOK || encoding != "" && encoding != "identity":
		return q.refuse(refusal{rule: ruleOrigins, reason: "GitLab's answer is not the artifact alone and whole"})
	case b.cfg.CheckDownload == nil:
		return q.refuse(refusal{rule: ruleOrigins, reason: "artifacts of earlier jobs cannot be looked up on this host"})
	}
	spool, done, err := b.takeSpool(q.p.ctx)
	if err != nil {
		return q.systemFailure("artifact download", err)
	}
	defer done()
	fetch.Status, fetch.MediaType = resp.StatusCode, clip(printable(resp.Header.Get("Content-Type")), maxMediaType)
	sum := sha256.New()
	fetch.Bytes, err = io.Copy(io.MultiWriter(spool, sum), io.LimitReader(resp.Body, b.artifactBytes()+1))
	fetch.SHA256 = hex.EncodeToString(sum.Sum(nil))
	switch {
	case errors.Is(err, errSpool):
		return q.systemFailure("artifact download", err)
	case err != nil:
		return q.abandoned(fetch, "the origin's answer was cut off")
	case fetch.Bytes > b.artifactBytes():
		return q.refuse(refusal{rule: ruleCapacity, reason: fmt.Sprintf("an artifact larger than %d bytes", b.artifactBytes())})
	}
	fetch.Invocation, fetch.Attestation, err = b.cfg.CheckDownload(q.p.ctx, job, fetch.SHA256)
	var (
		security *sandbox.SecurityError
		user     *sandbox.UserError
	)
	switch {
	case errors.As(err, &security):
		return q.replaced(err)
	case errors.As(err, &user):
		return q.refuse(refusal{rule: ruleOrigins, reason: user.Error(), remedy: user.Hint})
	case err != nil:
		return q.systemFailure("artifact download", err)
	}
	return q.handOn(resp, fetch, spool)
}

// replaced records that GitLab hands out what its job did not make.
func (q *request) replaced(err error) bool {
	b := q.p.side.b
	b.violate(err)
	_ = b.append(record.Violated, record.Violation{
		Stage: string(q.p.stage), What: "artifact of an earlier job differs from what was attested",
		Detail: clip(printable(err.Error()), maxTarget),
	})
	return q.refuse(refusal{status: http.StatusForbidden, rule: ruleViolation, reason: err.Error(),
		remedy: "nothing was handed to this job; someone changed or replaced what GitLab had stored"})
}

// handOn gives the client what is spooled, once that is on record.
func (q *request) handOn(resp *http.Response, fetch record.Fetch, file spool) bool {
	if err := file.rewind(); err != nil {
		return q.systemFailure("artifact download", err)
	}
	q.body.describe(&fetch)
	if q.p.side.b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false
	}
	header := answerHeader(resp.Header)
	header.Set("Content-Length", strconv.FormatInt(fetch.Bytes, 10))
	keep := q.keep()
	if q.writeHead(resp, header, keep) != nil {
		return false
	}
	if _, err := io.Copy(q.bw, file.File); err != nil {
		cut(q.raw)
		return false
	}
	return q.bw.Flush() == nil && keep
}
