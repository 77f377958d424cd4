package egress

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"hallmark.build/sandbox/egress/blocks"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// writeCache takes an archive in whole, has it matched, and only then hands it to
// the object storage.
func (q *request) writeCache(d policy.Decision, a CacheArchive) bool {
	b := q.p.side.b
	size, err := q.archiveSize()
	if err != nil {
		return q.refuse(refusal{rule: ruleCache, reason: err.Error()})
	}
	file, done, err := b.takeSpool(q.p.ctx)
	if err != nil {
		return q.refuseCache(a, err)
	}
	defer done()
	if size > b.cfg.CacheBytes {
		return q.refuseCache(a, errCacheTooLarge)
	}
	if q.body.proceed() != nil {
		return false
	}
	sum := sha256.New()
	n, frame, err := q.readArchive(io.MultiWriter(file, sum), size)
	var form *blocks.FormError
	switch {
	case errors.As(err, &form):
		return q.refuse(refusal{rule: ruleCache, reason: form.Error()})
	case errors.Is(err, errSpool), errors.Is(err, errCacheTooLarge):
		return q.refuseCache(a, err)
	case err != nil: // the helper went away
		return false
	}
	a.SHA256, a.Bytes = hex.EncodeToString(sum.Sum(nil)), n
	fetch := q.cacheFetch(d)
	q.body.describe(&fetch)
	return q.storeCache(fetch, a, file, func() (*http.Response, string, error) {
		return q.putArchive(io.NewSectionReader(file, 0, n), n, frame)
	})
}

// refuseCache records that an archive is not kept, and tells the helper, whose
// job does not fail for it.
func (q *request) refuseCache(a CacheArchive, why error) bool {
	if q.p.ctx.Err() != nil {
		return false
	}
	if err := q.p.side.b.cfg.Caches.Refused(a, why); err != nil {
		return q.systemFailure("cache", err)
	}
	return q.cacheNotKept()
}

// cacheNotKept answers without recording: it is on record already.
func (q *request) cacheNotKept() bool {
	keep := q.keep()
	q.tell(refusal{rule: ruleCache, reason: "this cache is not kept", remedy: "the job's log says why"}, false, !keep)
	if !keep {
		q.linger()
	}
	return keep
}

// storeCache has a spooled archive matched, and only then sent. send returns the
// storage's answer, and the digest of what it has read of the archive, or "" where
// that was not all. Who calls it has the turn to spool.
func (q *request) storeCache(fetch record.Fetch, a CacheArchive, file spool, send func() (*http.Response, string, error)) bool {
	b := q.p.side.b
	if b.stored[q.address()] == a.SHA256 { // the helper did not wait for the answer
		return q.answerStored()
	}
	if err := file.rewind(); err != nil {
		return q.refuseCache(a, err)
	}
	matches, err := b.cfg.Caches.Match(q.p.ctx, a, file.File)
	switch {
	case q.p.ctx.Err() != nil:
		return false
	case err != nil:
		return q.systemFailure("cache", err)
	case !matches:
		return q.cacheNotKept()
	}
	resp, sent, err := send()
	if err != nil {
		if err := b.cfg.Caches.Refused(a, errors.New("the object storage did not answer")); err != nil {
			return q.systemFailure("cache", err)
		}
		return q.unanswered(err, fetch)
	}
	defer resp.Body.Close()
	fetch.Status = resp.StatusCode
	if resp.StatusCode > 299 || sent != a.SHA256 {
		if err := b.cfg.Caches.Refused(a, storageRefusal(resp.StatusCode, sent)); err != nil {
			return q.systemFailure("cache", err)
		}
		return q.answerStatus(resp, fetch)
	}
	if b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false
	}
	if err := b.cfg.Caches.Stored(a); err != nil {
		return q.systemFailure("cache", err)
	}
	b.stored[q.address()] = a.SHA256
	return q.answerStored()
}

func storageRefusal(status int, sent string) error {
	if status <= 299 && sent != "" {
		return errors.New("the spooled archive changed while it was sent")
	}
	return fmt.Errorf("the object storage answered with status %d", status)
}

// answerStored says that the storage has the archive, and nothing else that it said.
func (q *request) answerStored() bool {
	status, text := http.StatusOK, ""
	switch {
	case q.Header.Get("X-Ms-Version") != "": // Azure's kit takes no other
		status = http.StatusCreated
	case q.Method == http.MethodPost: // S3's reads one
		text = "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"
	}
	keep := q.keep()
	if q.writeHead(&http.Response{StatusCode: status}, http.Header{"Content-Length": {strconv.Itoa(len(text))}}, keep) != nil {
		return false
	}
	if _, err := q.bw.WriteString(text); err != nil {
		return false
	}
	return q.bw.Flush() == nil && keep
}

// putArchive sends what the request brought of an archive, in the frame in which it
// came.
func (q *request) putArchive(r io.Reader, size int64, frame blocks.Frame) (*http.Response, string, error) {
	archive := &outgoing{r: frame.Around(r), sum: sha256.New(), skip: int64(len(frame.Head)), left: size}
	out, err := q.toStorage(archive, size+frame.Len())
	if err != nil {
		return nil, "", err
	}
	if frame.Len() > 0 && !keepsFrame(out.Header) {
		return nil, "", &storageError{reason: "the archive is in a frame that no signature covers"}
	}
	resp, err := q.p.side.b.up.storage.RoundTrip(out)
	if err != nil {
		return nil, "", err
	}
	return resp, archive.digest(), nil
}
