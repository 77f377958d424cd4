package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"hallmark.build/sandbox/egress/blocks"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// A stagedCache is an archive that comes in blocks. There is one at a time: the
// helper sends one cache after the other, and does not come back to one that it
// gave up.
type stagedCache struct {
	address, upload string
	blocks          *blocks.Staged
}

// staged returns the blocks of an upload, or nil.
func (b *Border) staged(address, upload string) *blocks.Staged {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.staging; s != nil && s.address == address && s.upload == upload {
		return s.blocks
	}
	return nil
}

// stage returns the blocks of an upload, of which this may be the first. Those of
// another one give way.
func (b *Border) stage(address, upload string) (*blocks.Staged, error) {
	if s := b.staged(address, upload); s != nil {
		return s, nil
	}
	file, err := newSpool(b.cfg.SpoolDir)
	if err != nil {
		return nil, err
	}
	s := blocks.Stage(file, b.cfg.CacheBytes)
	b.mu.Lock()
	defer b.mu.Unlock()
	if other := b.staging; other != nil && other.address == address && other.upload == upload {
		_ = s.Close()
		return other.blocks, nil
	}
	b.unstage()
	b.staging = &stagedCache{address: address, upload: upload, blocks: s}
	return s, nil
}

// unstage gives back the room. The caller holds the border's lock.
func (b *Border) unstage() {
	if b.staging != nil {
		_ = b.staging.blocks.Close()
		b.staging = nil
	}
}

// forgetBlocks is for an upload that came to its end, or for any.
func (b *Border) forgetBlocks(of *blocks.Staged) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.staging != nil && (of == nil || b.staging.blocks == of) {
		b.unstage()
	}
}

// cacheStep carries out one step of an upload in blocks.
func (q *request) cacheStep(d policy.Decision, a CacheArchive) bool {
	switch d.Step.Kind {
	case policy.StepBlock:
		return q.takeBlock(d, a)
	case policy.StepCommit:
		return q.commitBlocks(d, a)
	}
	return q.turnBlocks(d)
}

// turnBlocks begins an upload in parts, or ends it without an object.
func (q *request) turnBlocks(d policy.Decision) bool {
	if q.ContentLength != 0 {
		return q.malformed(http.StatusBadRequest, errors.New("a body in a request that has none"))
	}
	resp, fetch, err := q.askStorage(d)
	if err != nil {
		return q.unanswered(err, fetch)
	}
	defer resp.Body.Close()
	if resp.StatusCode > 299 {
		return q.answerStatus(resp, fetch)
	}
	answer := &http.Response{StatusCode: resp.StatusCode, Header: http.Header{}}
	var text string
	if d.Step.Kind == policy.StepBegin {
		id, err := readUploadID(resp.Body)
		if err != nil {
			return q.unanswered(err, fetch)
		}
		text = "<InitiateMultipartUploadResult><UploadId>" + id + "</UploadId></InitiateMultipartUploadResult>"
		answer.Header.Set("Content-Type", "application/xml")
	} else if s := q.p.side.b.staged(q.address(), d.Step.Upload); s != nil {
		q.p.side.b.forgetBlocks(s)
	}
	fetch.Status = resp.StatusCode
	return q.answerStep(answer, fetch, text)
}

// answerStep records an exchange whose answer is not the storage's own, and gives
// the answer.
func (q *request) answerStep(answer *http.Response, fetch record.Fetch, text string) bool {
	q.body.describe(&fetch)
	if q.p.side.b.append(record.Fetched, fetch) != nil {
		cut(q.raw)
		return false
	}
	if answer.StatusCode != http.StatusNoContent {
		answer.Header.Set("Content-Length", strconv.Itoa(len(text)))
	}
	keep := q.keep()
	if q.writeHead(answer, answer.Header, keep) != nil {
		return false
	}
	if _, err := q.bw.WriteString(text); err != nil {
		return false
	}
	return q.bw.Flush() == nil && keep
}

const maxStepAnswer = 64 << 10

// readUploadID reads the one thing that the helper needs of S3's answer.
func readUploadID(r io.Reader) (string, error) {
	var answer struct {
		XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
		UploadID string   `xml:"UploadId"`
	}
	if err := xml.NewDecoder(io.LimitReader(r, maxStepAnswer)).Decode(&answer); err != nil {
		return "", fmt.Errorf("the object storage's answer: %w", err)
	}
	if !policy.UploadID(answer.UploadID) {
		return "", errors.New("the object storage's answer names no upload")
	}
	return answer.UploadID, nil
}

// takeBlock keeps a block and sends it: nobody sees it before it is committed.
func (q *request) takeBlock(d policy.Decision, a CacheArchive) bool {
	b := q.p.side.b
	size, err := q.archiveSize()
	if err == nil && size <= 0 {
		err = errors.New("a block comes without its size")
	}
	if err != nil {
		return q.refuse(refusal{rule: ruleCache, reason: err.Error()})
	}
	staged, err := b.stage(q.address(), d.Step.Upload)
	if err != nil {
		return q.refuseCache(a, err)
	}
	room, err := staged.Take(d.Step.Block, size)
	if err != nil {
		return q.refuseCache(a, errCacheTooLarge)
	}
	if q.body.proceed() != nil {
		return false
	}
	_, frame, err := q.readArchive(room.Writer(), size)
	var form *blocks.FormError
	switch {
	case errors.As(err, &form):
		return q.refuse(refusal{rule: ruleCache, reason: form.Error()})
	case errors.Is(err, errSpool):
		return q.refuseCache(a, err)
	case err != nil: // the helper went away
		return false
	}
	fetch := q.cacheFetch(d)
	resp, sent, err := q.putArchive(room.Reader(), size, frame)
	if err != nil {
		return q.unanswered(err, fetch)
	}
	defer resp.Body.Close()
	if resp.StatusCode > 299 {
		return q.answerStatus(resp, fetch)
	}
	answer := &http.Response{StatusCode: resp.StatusCode, Header: http.Header{}}
	etag := ""
	if d.Step.Upload != "" {
		etag = keepTags(answer.Header, resp.Header)
	}
	if sent != "" {
		room.Keep(sent, etag)
	}
	fetch.Status = resp.StatusCode
	return q.answerStep(answer, fetch, "")
}

// tagForm is that of what S3 calls the content of a part.
var tagForm = regexp.MustCompile(`^[A-Za-z0-9+/="._-]{1,256}$`)

// keepTags hands on the names of a part's content, which the helper repeats where
// it lists the parts, and returns the main one.
func keepTags(to, from http.Header) string {
	for name, values := range from {
		if (name == "Etag" || strings.HasPrefix(name, "X-Amz-Checksum-")) && len(values) == 1 && tagForm.MatchString(values[0]) {
			to[name] = values
		}
	}
	return to.Get("Etag")
}

// commitBlocks has the object that a list makes of blocks matched, and only then
// lets the list pass.
func (q *request) commitBlocks(d policy.Decision, a CacheArchive) bool {
	b := q.p.side.b
	if q.ContentLength < 0 || q.ContentLength > blocks.MaxCommit || q.Header.Get("Content-Encoding") != "" {
		return q.refuse(refusal{rule: ruleCache, reason: "a list of blocks that is encoded, too long or without a length"})
	}
	if q.body.proceed() != nil {
		return false
	}
	body, err := io.ReadAll(q.body)
	if err != nil { // the helper went away
		return false
	}
	read := blocks.ReadBlockList
	if d.Step.Upload != "" {
		read = blocks.ReadParts
	}
	list, err := read(body)
	if err != nil {
		return q.refuseCache(a, err)
	}
	staged := b.staged(q.address(), d.Step.Upload)
	if staged == nil {
		return q.refuseCache(a, errors.New("it is made of blocks that this stage of the job has not sent"))
	}
	defer b.forgetBlocks(staged)
	file, done, err := b.takeSpool(q.p.ctx)
	if err != nil {
		return q.refuseCache(a, err)
	}
	defer done()
	sum := sha256.New()
	a.Bytes, err = staged.Assemble(io.MultiWriter(file, sum), list)
	if err != nil {
		a.Bytes = 0
		return q.refuseCache(a, err)
	}
	a.SHA256 = hex.EncodeToString(sum.Sum(nil))
	fetch := q.cacheFetch(d)
	q.body.describe(&fetch)
	return q.storeCache(fetch, a, file, func() (*http.Response, string, error) {
		resp, err := q.commit(body)
		return resp, a.SHA256, err
	})
}

// commit sends the list as it came: its signature is over every byte.
func (q *request) commit(body []byte) (*http.Response, error) {
	out, err := q.toStorage(bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return nil, err
	}
	resp, err := q.p.side.b.up.storage.RoundTrip(out)
	if err != nil || q.Method != http.MethodPost || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	// S3 says 200 before it knows, and in the body what became of it.
	defer resp.Body.Close()
	var answer struct {
		XMLName xml.Name `xml:"CompleteMultipartUploadResult"`
	}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, maxStepAnswer)).Decode(&answer); err != nil {
		resp.StatusCode = http.StatusInternalServerError
	}
	resp.Body = http.NoBody
	return resp, nil
}
