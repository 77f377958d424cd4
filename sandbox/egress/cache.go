package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// A CacheArchive is a cache in object storage. SHA256 is empty, and Bytes 0, where
// it is refused before it was read.
type CacheArchive struct {
	Stage  sandbox.Stage
	Object string // the runner's name for it, below its project
	SHA256 string
	Bytes  int64
}

// Caches decides over caches in object storage, and records what becomes of each.
// A refusal concerns that archive alone: the job goes on without. An error means
// that evidence could not be recorded.
type Caches interface {
	// Restore reports whether the job may be given an archive; if so it is on record
	// as restored, if not as refused.
	Restore(ctx context.Context, a CacheArchive) (bool, error)
	// Match reports whether an archive is made of files as they lie in the sealed
	// workspace; if not it is on record as refused. The file stands at its
	// beginning, belongs to the border and cannot change.
	Match(ctx context.Context, a CacheArchive, file *os.File) (bool, error)
	// Stored records that the object storage took an archive.
	Stored(a CacheArchive) error
	// Refused records that an archive is not given, or not kept, and why.
	Refused(a CacheArchive, why error) error
}

// ruleCache is for caches in object storage that cannot be told apart from others.
const ruleCache = "cache"

// A heldCache is an archive that the job may have. It stays until the stage ends or
// another file needs the room: GitLab Runner's helper asks again if it has waited
// thirty seconds for an answer to begin, and it may ask for parts.
type heldCache struct {
	address string
	bytes   int64
	answer  *http.Response
	file    spool
}

// dropCache is called by who has the turn to spool.
func (b *Border) dropCache() {
	if b.held != nil {
		_ = b.held.file.Close()
		b.held = nil
	}
}

// forgetCache gives back the room at the end of a stage, unless the next one
// already spools: it drops what it finds itself.
func (b *Border) forgetCache() {
	select {
	case b.spooling <- struct{}{}:
		b.dropCache()
		clear(b.missed)
		<-b.spooling
	default:
	}
}

// cache carries out what package policy allows with a cache in object storage.
func (q *request) cache(d policy.Decision) bool {
	b := q.p.side.b
	if b.cfg.Caches == nil {
		return q.refuse(refusal{rule: ruleCache, reason: "the job has no caches that could be looked up"})
	}
	a := CacheArchive{Stage: q.p.stage, Object: d.Object}
	switch d.Cache {
	case policy.CacheRead:
		return q.readCache(d, a)
	case policy.CacheWrite:
		if d.Step.Kind != "" {
			return q.cacheStep(d, a)
		}
		return q.writeCache(d, a)
	}
	resp, fetch, err := q.askStorage(d)
	if err != nil {
		return q.unanswered(err, fetch)
	}
	defer resp.Body.Close()
	return q.answerStatus(resp, fetch)
}

// address is the object's, without the query, which is a signature.
func (q *request) address() string {
	return q.ask.Scheme + "://" + joinAuthority(q.ask.Scheme, q.ask.Host, q.ask.Port) + q.ask.Path
}

// cacheFetch begins the record of an exchange with the object storage. No
// variable of the job may show in it, not even by a cache's name.
func (q *request) cacheFetch(d policy.Decision) record.Fetch {
	fetch := record.Fetch{
		Stage: string(q.p.stage), Role: string(q.p.side.role), Method: q.Method, Rule: d.Rule,
		SHA256: hex.EncodeToString(sha256.New().Sum(nil)),
	}
	if u, err := originURL(q.ask); err == nil {
		fetch.URL = redactURL(u, q.p.side.b.secrets)
	}
	return fetch
}

// askStorage asks for an object, or whether it is there.
func (q *request) askStorage(d policy.Decision) (*http.Response, record.Fetch, error) {
	fetch := q.cacheFetch(d)
	out, err := q.toStorage(nil, 0)
	if err != nil {
		return nil, fetch, err
	}
	resp, err := q.p.side.b.up.storage.RoundTrip(out)
	return resp, fetch, err
}

// readCache takes an archive in whole, has it looked up, and only then hands it
// to the helper.
func (q *request) readCache(d policy.Decision, a CacheArchive) bool {
	b, asked := q.p.side.b, time.Now()
	done, err := b.turn(q.p.ctx)
	if err != nil {
		return false
	}
	defer done()
	if b.missed[q.address()] {
		return q.noCache()
	}
	head := &earlyHead{q: q, due: asked.Add(q.patience().answer)}
	if b.held == nil || b.held.address != q.address() {
		b.dropCache()
		if keep, ok := q.takeCache(d, a, head); !ok {
			return keep
		}
	}
	return q.giveCache(b.held, head.sent)
}

// An earlyHead is the head of an answer that is sent before the archive is there,
// when a client would not wait longer for it. What is refused afterwards can only be
// cut off; to who asks again it is not there.
type earlyHead struct {
	q    *request
	due  time.Time
	resp *http.Response
	sent bool
}

// Read reads the archive, and sends the head once it is due.
func (e *earlyHead) Read(b []byte) (int, error) {
	if !e.sent && time.Now().After(e.due) && e.resp.ContentLength > 0 && e.q.Header.Get("X-Ms-Range") == "" {
		e.sent = true
		answer := storageAnswer(e.resp)
		answer.Header.Set("Content-Length", strconv.FormatInt(e.resp.ContentLength, 10))
		if err := e.q.writeHead(answer, answer.Header, e.q.keep()); err == nil {
			_ = e.q.bw.Flush() // who went away may ask again
		}
	}
	return e.resp.Body.Read(b)
}

// takeCache is ok when the archive is held. If not, the client has its answer.
func (q *request) takeCache(d policy.Decision, a CacheArchive, head *earlyHead) (keep, ok bool) {
	b := q.p.side.b
	resp, fetch, err := q.askStorage(d)
	if err != nil {
		return q.unanswered(err, fetch), false
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return q.answerStatus(resp, fetch), false
	}
	if !plain(resp.Header.Get("Content-Encoding")) || resp.Header.Get("Content-Range") != "" {
		return q.missCache(a, errors.New("the object storage's answer is not the archive alone and whole")), false
	}
	file, err := newSpool(b.cfg.SpoolDir)
	if err != nil {
		return q.missCache(a, err), false
	}
	defer func() {
		if !ok {
			_ = file.Close()
		}
	}()
	head.resp = resp
	a.SHA256, a.Bytes, err = spoolCache(file, head, b.cfg.CacheBytes)
	if head.sent {
		defer func(client net.Conn) {
			if !ok {
				cut(client)
				keep = false
			}
		}(q.raw)
		q = q.silent()
	}
	switch {
	case errors.Is(err, errSpool), errors.Is(err, errCacheTooLarge):
		return q.missCache(CacheArchive{Stage: a.Stage, Object: a.Object}, err), false
	case err != nil: // none of it was given to anybody, and the helper tries again
		return q.unanswered(err, fetch), false
	}
	given, err := b.cfg.Caches.Restore(q.p.ctx, a)
	switch {
	case err != nil:
		return q.systemFailure("cache", err), false
	case !given:
		b.missed[q.address()] = true
		return q.noCache(), false
	}
	fetch.Status, fetch.SHA256, fetch.Bytes = resp.StatusCode, a.SHA256, a.Bytes
	if b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false, false
	}
	b.held = &heldCache{address: q.address(), bytes: a.Bytes, answer: storageAnswer(resp), file: file}
	return false, true
}

// plain reports whether an answer's bytes are the archive's own. Some storages name here
// what the upload was wrapped in, which is gone.
func plain(coding string) bool {
	return coding == "" || coding == "identity" || coding == "aws-chunked"
}

var errCacheTooLarge = errors.New("the archive is larger than cache.archive allows")

// spoolCache copies an archive that has to end within a limit.
func spoolCache(w spool, r io.Reader, limit int64) (digest string, n int64, err error) {
	sum := sha256.New()
	n, err = io.Copy(io.MultiWriter(w, sum), io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = errCacheTooLarge
	}
	return hex.EncodeToString(sum.Sum(nil)), n, err
}

// giveCache hands on what is held, or a part of it; after its head, if that was sent.
func (q *request) giveCache(c *heldCache, headSent bool) bool {
	from, n, err := q.part(c.bytes)
	if err != nil {
		return q.refuse(refusal{rule: ruleCache, reason: err.Error()})
	}
	answer, header := *c.answer, c.answer.Header.Clone()
	header.Set("Content-Length", strconv.FormatInt(n, 10))
	if n < c.bytes {
		answer.StatusCode = http.StatusPartialContent
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+n-1, c.bytes))
	}
	keep := q.keep()
	if !headSent && q.writeHead(&answer, header, keep) != nil {
		return false
	}
	if _, err := io.Copy(q.bw, io.NewSectionReader(c.file, from, n)); err != nil {
		cut(q.raw)
		return false
	}
	return q.bw.Flush() == nil && keep
}

// missCache records that an archive is not given, which the helper takes for one
// that is not there.
func (q *request) missCache(a CacheArchive, why error) bool {
	if err := q.p.side.b.cfg.Caches.Refused(a, why); err != nil {
		return q.systemFailure("cache", err)
	}
	q.p.side.b.missed[q.address()] = true
	return q.noCache()
}

// silent is a request that is not answered in words any more.
func (q *request) silent() *request {
	c, out := *q.client, *q
	c.bw = nil
	out.client = &c
	return &out
}

// noCache answers without recording: it is on record already.
func (q *request) noCache() bool {
	keep := q.keep()
	q.tell(refusal{status: http.StatusNotFound, rule: ruleCache, reason: "this cache may not be given to the job", remedy: "the job's log says why"}, false, !keep)
	return keep
}

// storageCode is the one word of a storage's errors that tells an admin what is
// wrong: SignatureDoesNotMatch, say.
var storageCode = regexp.MustCompile(`<Code>[A-Za-z]{1,64}</Code>`)

// answerStatus hands on what a storage says without an object: its status alone.
// All else that it says nobody has looked at, and it could end up in the job.
func (q *request) answerStatus(resp *http.Response, fetch record.Fetch) bool {
	if redirects(resp.StatusCode) {
		return q.refuse(refusal{rule: ruleRedirect, reason: "the object storage leads elsewhere",
			remedy: "give the runner's [runners.cache] the bucket's own address and region"})
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode < 400 {
		return q.refuse(refusal{rule: ruleCache, reason: fmt.Sprintf("the object storage answered with status %d", resp.StatusCode)})
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusNotFound {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxUploadAnswer))
		q.p.side.b.cfg.Log.Warn("object storage refused", "url", fetch.URL, "method", q.Method, "status", resp.StatusCode, "code", string(storageCode.Find(text)))
	}
	answer := storageAnswer(resp)
	if q.Method != http.MethodHead {
		answer.ContentLength = 0
	}
	fetch.Status = resp.StatusCode
	return q.relayHead(answer, fetch)
}

// storageAnswer is what the helper gets of the head of a storage's answer. Metadata
// of the object, which the helper would write beside the archive, is not in it.
func storageAnswer(resp *http.Response) *http.Response {
	out := &http.Response{StatusCode: resp.StatusCode, ContentLength: resp.ContentLength, Header: http.Header{"Content-Type": {"application/octet-stream"}}}
	// The helper takes the newer one where a cache may have two names.
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		out.Header.Set("Last-Modified", t.UTC().Format(http.TimeFormat))
	}
	// Azure's kit does not live without it.
	if t, err := http.ParseTime(resp.Header.Get("X-Ms-Creation-Time")); err == nil {
		out.Header.Set("X-Ms-Creation-Time", t.UTC().Format(http.TimeFormat))
	}
	return out
}

// storageHeader picks what an object storage gets: what the runner's signature
// covers, so that nobody but the runner has chosen it, and the type, which some
// signatures cover without naming it. Nothing has an object copied from another.
func storageHeader(in http.Header, query string) http.Header {
	out := http.Header{"Accept-Encoding": {"identity"}, "User-Agent": nil}
	signed := signedHeaders(query)
	for name, values := range in {
		lower := strings.ToLower(name)
		if len(values) != 1 || len(values[0]) > maxHeaderValue || unsent[lower] || strings.Contains(lower, "copy-source") {
			continue
		}
		if signed(lower) && (vendors(lower) || lower == "content-md5") || lower == "content-type" || lower == "x-ms-blob-type" || lower == "x-ms-version" {
			out[name] = values
		}
	}
	return out
}

// unsent are headers that belong to one connection, that say which part is meant
// or how it is written, or that are credentials; whoever signed them.
var unsent = map[string]bool{
	"host": true, "content-length": true, "transfer-encoding": true, "content-encoding": true, "connection": true, "expect": true, "te": true,
	"trailer": true, "upgrade": true, "accept-encoding": true, "user-agent": true, "authorization": true, "proxy-authorization": true, "cookie": true,
	"range": true, "x-ms-range": true, "x-amz-content-sha256": true, "x-amz-decoded-content-length": true, "x-amz-trailer": true,
	"if-match": true, "if-none-match": true, "if-modified-since": true, "if-unmodified-since": true, "if-range": true,
}

// signedHeaders tells which headers a presigned URL's signature covers. The
// earlier signatures of S3 and GCS cover all of the vendor's own.
func signedHeaders(query string) func(lower string) bool {
	names := map[string]bool{}
	old := false
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(name) {
		case "x-amz-signedheaders", "x-goog-signedheaders":
			for _, n := range strings.FieldsFunc(strings.ReplaceAll(strings.ToLower(value), "%3b", ";"), func(r rune) bool { return r == ';' }) {
				names[n] = true
			}
		case "signature":
			old = true
		}
	}
	return func(lower string) bool {
		return names[lower] || old && vendors(lower)
	}
}

// vendors reports headers that an object storage has a meaning for: with others a
// URL of a tenant's own making could speak to what stands before it.
func vendors(lower string) bool {
	return strings.HasPrefix(lower, "x-amz-") || strings.HasPrefix(lower, "x-goog-")
}
