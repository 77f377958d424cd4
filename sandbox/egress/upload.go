package egress

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

const (
	maxUpload       = 64 << 30 // bytes of one artifact
	maxFileName     = 255
	maxUploadAnswer = 1 << 20
	maxEpilogue     = 4 << 10
	partOverhead    = 64 << 10 // of the multipart form around the file
	// membersBytes is about how much of one line in the record an artifact's
	// members take up; more of them go into lines of their own.
	membersBytes = 1 << 20
)

// A part is the one field of an artifact upload.
type part struct {
	fileName    string
	contentType string
	size        int64
	sha256      string
}

// A formError says why an upload's form is not what GitLab Runner sends.
type formError struct{ reason string }

func (e *formError) Error() string { return "artifact upload: " + e.reason }

// readForm copies the file of an upload to w, and refuses every form that
// another reader could take for something else: it has one part, that is the
// field "file", in the very spelling of GitLab Runner, encoded in no way.
func readForm(r io.Reader, contentType string, w io.Writer, limit int64) (part, error) {
	mediaType, params, err := mime.ParseMediaType(contentType)
	if err != nil || mediaType != "multipart/form-data" || len(params) != 1 || params["boundary"] == "" {
		return part{}, &formError{"want multipart/form-data with a boundary"}
	}
	form := multipart.NewReader(r, params["boundary"])
	p, err := form.NextRawPart()
	if errors.Is(err, io.EOF) {
		return part{}, &formError{"no part in the form"}
	}
	if err != nil {
		return part{}, fmt.Errorf("artifact upload: form: %w", err)
	}
	out, err := readPartHeader(p.Header)
	if err != nil {
		return part{}, err
	}
	sum := sha256.New()
	out.size, err = io.Copy(io.MultiWriter(w, sum), io.LimitReader(p, limit+1))
	if err != nil {
		return part{}, fmt.Errorf("artifact upload: file: %w", err)
	}
	if out.size > limit {
		return part{}, &formError{fmt.Sprintf("larger than %d bytes", limit)}
	}
	out.sha256 = hex.EncodeToString(sum.Sum(nil))
	if _, err := form.NextRawPart(); err == nil {
		return part{}, &formError{"more than one part in the form"}
	} else if !errors.Is(err, io.EOF) {
		return part{}, fmt.Errorf("artifact upload: form: %w", err)
	}
	rest, err := io.Copy(io.Discard, io.LimitReader(r, maxEpilogue+1))
	if err != nil {
		return part{}, fmt.Errorf("artifact upload: form: %w", err)
	}
	if rest > maxEpilogue {
		return part{}, &formError{"bytes after the form"}
	}
	return out, nil
}

const (
	dispositionStart = `form-data; name="file"; filename="`
	dispositionEnd   = `"`
)

func readPartHeader(h textproto.MIMEHeader) (part, error) {
	for name, values := range h {
		if (name != "Content-Disposition" && name != "Content-Type") || len(values) != 1 {
			return part{}, &formError{fmt.Sprintf("header %q in the part: unknown or repeated", clip(printable(name), 80))}
		}
	}
	name, ok := strings.CutPrefix(h.Get("Content-Disposition"), dispositionStart)
	if ok {
		name, ok = strings.CutSuffix(name, dispositionEnd)
	}
	if !ok || !properFileName(name) {
		return part{}, &formError{"the part is not the field \"file\" with a plain file name"}
	}
	contentType := h.Get("Content-Type")
	if len(contentType) > maxMediaType || printable(contentType) != contentType {
		return part{}, &formError{"the part's content type is out of form"}
	}
	return part{fileName: name, contentType: contentType}, nil
}

func properFileName(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= maxFileName && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '"' || r == '\\' || r == '/' })
}

// upload takes an artifact in, has it matched, and only then hands it to GitLab.
func (q *request) upload(d policy.Decision) bool {
	b := q.p.side.b
	if b.cfg.CheckUpload == nil {
		return q.refuse(refusal{rule: ruleUpload, reason: "artifacts cannot be matched on this host"})
	}
	if b.violation() != nil {
		return q.refuse(refusal{rule: ruleViolation, reason: "an earlier artifact of this job differed from the sealed workspace"})
	}
	if enc := q.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return q.refuse(refusal{rule: ruleUpload, reason: "the upload is encoded in a way that cannot be read"})
	}
	spool, done, err := b.takeSpool(q.p.ctx)
	if err != nil {
		return q.systemFailure("artifact upload", err)
	}
	defer done()
	if q.body.proceed() != nil {
		return false
	}
	q.body.limit = b.artifactBytes() + partOverhead
	p, err := readForm(q.body, q.Header.Get("Content-Type"), spool, b.artifactBytes())
	var form *formError
	switch {
	case errors.As(err, &form):
		return q.refuse(refusal{rule: ruleUpload, reason: form.Error(), remedy: "artifacts are uploaded by gitlab-runner alone"})
	case errors.Is(err, errSpool):
		return q.systemFailure("artifact upload", err)
	case err != nil: // the client stopped sending, or sent what is no form
		return q.refuse(refusal{rule: ruleUpload, reason: "the upload did not come to its end"})
	}
	return q.match(d, spool, p)
}

// artifactBytes is how large an artifact may be.
func (b *Border) artifactBytes() int64 {
	if n := b.cfg.ArtifactBytes; n > 0 {
		return min(n, maxUpload)
	}
	return maxUpload
}

var errSpool = errors.New("spool")

// A spool is an unlinked file.
type spool struct{ *os.File }

// takeSpool waits for its turn: one file at a time takes room on the host's
// disk. The caller calls done when it has no more use for the spool.
func (b *Border) takeSpool(ctx context.Context) (s spool, done func(), err error) {
	over, err := b.turn(ctx)
	if err != nil {
		return spool{}, nil, err
	}
	b.dropCache()
	if s, err = newSpool(b.cfg.SpoolDir); err != nil {
		over()
		return spool{}, nil, err
	}
	return s, func() { _ = s.Close(); over() }, nil
}

// turn waits until nobody else spools.
func (b *Border) turn(ctx context.Context) (over func(), err error) {
	select {
	case b.spooling <- struct{}{}:
		return func() { <-b.spooling }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newSpool(dir string) (spool, error) {
	f, err := os.CreateTemp(dir, "artifact-*")
	if err != nil {
		return spool{}, fmt.Errorf("%w: %w", errSpool, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return spool{}, fmt.Errorf("%w: %w", errSpool, err)
	}
	return spool{f}, nil
}

// Write marks errors as the host's own.
func (s spool) Write(b []byte) (int, error) {
	n, err := s.File.Write(b)
	if err != nil {
		return n, fmt.Errorf("%w: %w", errSpool, err)
	}
	return n, nil
}

// WriteAt is Write at a place.
func (s spool) WriteAt(b []byte, off int64) (int, error) {
	n, err := s.File.WriteAt(b, off)
	if err != nil {
		return n, fmt.Errorf("%w: %w", errSpool, err)
	}
	return n, nil
}

func (s spool) rewind() error {
	if _, err := s.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	return nil
}

// systemFailure is for what the host could not do. End tells it to the host.
func (q *request) systemFailure(what string, err error) bool {
	if q.p.ctx.Err() != nil {
		return false
	}
	q.p.fail(fmt.Errorf("border: %s: %w", what, err))
	q.p.side.b.cfg.Log.Error(what+" failed", "error", err)
	q.tell(refusal{status: http.StatusInternalServerError, rule: ruleUpload, reason: "the runner host could not check the " + what,
		remedy: "this is a failure of the runner host; run the job again"}, false, true)
	q.linger()
	return false
}

// match has the artifact compared with the sealed workspace.
func (q *request) match(d policy.Decision, file spool, p part) bool {
	b := q.p.side.b
	query, err := policy.ParseUploadQuery(q.ask.RawQuery)
	if err != nil {
		return q.refuse(refusal{rule: ruleUpload, reason: err.Error()})
	}
	if err := file.rewind(); err != nil {
		return q.systemFailure("artifact upload", err)
	}
	entries, err := b.cfg.CheckUpload(q.p.ctx, file.File, p.size, query.Format, p.fileName)
	var (
		security *sandbox.SecurityError
		user     *sandbox.UserError
	)
	switch {
	case errors.As(err, &security):
		return q.violation(err, p)
	case errors.As(err, &user):
		return q.refuse(refusal{rule: ruleUpload, reason: "artifact " + p.fileName + ": " + user.Error(), remedy: user.Hint})
	case err != nil:
		return q.systemFailure("artifact upload", err)
	}
	entry := record.Upload{
		Stage: string(q.p.stage), FileName: p.fileName, Type: query.Type, Format: query.Format,
		SHA256: p.sha256, Bytes: p.size, Entries: entries,
	}
	if err := q.recordMembers(&entry); err != nil {
		cut(q.raw)
		return false
	}
	return q.deliver(file, p, entry)
}

// recordMembers puts the members that are too many for one line into lines of
// their own, and leaves the last ones in the entry.
func (q *request) recordMembers(entry *record.Upload) error {
	for {
		n := fitting(entry.Entries)
		if n == len(entry.Entries) {
			return nil
		}
		part := record.Members{Stage: entry.Stage, SHA256: entry.SHA256, Entries: entry.Entries[:n]}
		if err := q.p.side.b.append(record.Matched, part); err != nil {
			return err
		}
		entry.Matched += int64(n)
		entry.Entries = entry.Entries[n:]
	}
}

// fitting is how many of the first members fit in one line. Names may take six
// times their length, once escaped.
func fitting(members []record.UploadEntry) int {
	const frame = 192 // of one member, all but its names
	size := 0
	for i, m := range members {
		size += frame + 6*(len(m.Path)+len(m.Target))
		if size > membersBytes && i > 0 {
			return i
		}
	}
	return len(members)
}

// violation records that evidence contradicts itself. GitLab has none of it.
func (q *request) violation(err error, p part) bool {
	b := q.p.side.b
	b.violate(err)
	_ = b.append(record.Violated, record.Violation{
		Stage: string(q.p.stage), What: "artifact differs from the sealed workspace",
		Detail: clip(printable(p.fileName+": "+err.Error()), maxTarget),
	})
	return q.refuse(refusal{status: http.StatusForbidden, rule: ruleViolation,
		reason: "artifact " + p.fileName + " differs from the sealed workspace: " + err.Error(),
		remedy: "nothing was uploaded; something changed or replaced the artifact after the build ended"})
}

// deliver sends the matched artifact to GitLab and hands GitLab's answer on.
func (q *request) deliver(file spool, p part, entry record.Upload) bool {
	b := q.p.side.b
	resp, sent, err := q.send(file, p)
	if err == nil {
		defer resp.Body.Close()
		switch {
		case resp.StatusCode >= 300 || sent == p.sha256:
			entry.Status = resp.StatusCode
		case sent == "":
			err = errors.New("gitlab accepted an upload of which it had read only a part")
		default:
			return q.violation(&sandbox.SecurityError{Err: errors.New("the spooled file changed while it was sent")}, p)
		}
	}
	// GitLab may have the file even where its answer was lost: then the status
	// is 0.
	if b.append(record.Uploaded, entry) != nil {
		cut(q.raw)
		return false
	}
	var redirect *redirectError
	switch {
	case errors.As(err, &redirect):
		return q.refuse(refusal{rule: ruleRedirect, reason: redirect.reason, remedy: redirect.remedy})
	case err != nil && q.p.ctx.Err() != nil:
		return false
	case err != nil:
		b.cfg.Log.Info("gitlab did not answer an upload", "error", err)
		reason, remedy := explain(err)
		keep := q.keep()
		q.tell(refusal{status: http.StatusBadGateway, rule: ruleOrigin, reason: reason, remedy: remedy}, false, !keep)
		return keep
	}
	return q.answerUpload(resp)
}

// answerUpload hands on GitLab's answer, which is short.
func (q *request) answerUpload(resp *http.Response) bool {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxUploadAnswer+1))
	if err != nil || len(text) > maxUploadAnswer {
		text = nil // the status is what counts
	}
	header := answerHeader(resp.Header)
	if resp.StatusCode != http.StatusNoContent {
		header.Set("Content-Length", strconv.Itoa(len(text)))
	}
	keep := q.keep()
	if q.writeHead(resp, header, keep) != nil {
		return false
	}
	if _, err := q.bw.Write(text); err != nil {
		return false
	}
	return q.bw.Flush() == nil && keep
}

// send makes the form anew around the spooled bytes. It follows redirects on
// GitLab's own origin alone, and returns the digest of what was sent last.
func (q *request) send(file spool, p part) (*http.Response, string, error) {
	ask := q.ask
	values, err := url.ParseQuery(ask.RawQuery)
	if err != nil {
		return nil, "", err
	}
	ask.RawQuery = values.Encode()
	u, err := originURL(ask)
	if err != nil {
		return nil, "", err
	}
	for range maxRedirects + 1 {
		resp, sent, err := q.sendOnce(q.p.ctx, u, file, p)
		if err != nil || !redirects(resp.StatusCode) {
			return resp, sent, err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusTemporaryRedirect && resp.StatusCode != http.StatusPermanentRedirect {
			return nil, "", &redirectError{reason: fmt.Sprintf("GitLab answered an upload with status %d", resp.StatusCode)}
		}
		next, ask, err := q.hop(u, resp.Header.Get("Location"))
		if err != nil {
			return nil, "", err
		}
		ask.Method = http.MethodPost
		if d := q.p.side.b.cfg.Policy.Decide(ask); !d.Allow || !d.Upload {
			return nil, "", &redirectError{reason: "GitLab redirected an upload to another place", remedy: "artifacts go to the configured GitLab alone; check gitlab_url in sandboxd.toml"}
		}
		u = next
	}
	return nil, "", &redirectError{reason: fmt.Sprintf("more than %d redirects", maxRedirects)}
}

func (q *request) sendOnce(ctx context.Context, u *url.URL, file spool, p part) (*http.Response, string, error) {
	boundary := rand.Text() + rand.Text()
	var head strings.Builder
	fmt.Fprintf(&head, "--%s\r\nContent-Disposition: %s%s%s\r\n", boundary, dispositionStart, p.fileName, dispositionEnd)
	if p.contentType != "" {
		fmt.Fprintf(&head, "Content-Type: %s\r\n", p.contentType)
	}
	head.WriteString("\r\n")
	tail := fmt.Sprintf("\r\n--%s--\r\n", boundary)
	form := &outgoing{r: io.MultiReader(strings.NewReader(head.String()), io.NewSectionReader(file, 0, p.size), strings.NewReader(tail)), sum: sha256.New()}
	form.skip, form.left = int64(head.Len()), p.size
	header := forwardHeader(q.Header)
	header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
	header.Del("Content-Encoding")
	out := (&http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host, Header: header, ProtoMajor: 1, ProtoMinor: 1,
		Body: form, ContentLength: int64(head.Len()) + p.size + int64(len(tail)),
	}).WithContext(ctx)
	resp, err := q.p.side.b.up.roundTrip(out, true)
	if err != nil {
		return nil, "", err
	}
	return resp, form.digest(), nil
}

// outgoing is a form on its way. It hashes the file again as it goes, because
// what GitLab received is what counts. The transport may go on reading after
// GitLab has answered.
type outgoing struct {
	r io.Reader

	mu   sync.Mutex
	sum  hash.Hash
	skip int64 // bytes before the file
	left int64 // bytes of the file that are still to come
}

func (o *outgoing) Read(b []byte) (int, error) {
	n, err := o.r.Read(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	file := b[:n]
	before := min(o.skip, int64(len(file)))
	o.skip -= before
	file = file[before:]
	file = file[:min(o.left, int64(len(file)))]
	o.left -= int64(len(file))
	o.sum.Write(file)
	return n, err
}

func (o *outgoing) Close() error { return nil }

// digest is of the whole file, or "" if not all of it was sent.
func (o *outgoing) digest() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left > 0 || o.skip > 0 {
		return ""
	}
	return hex.EncodeToString(o.sum.Sum(nil))
}
