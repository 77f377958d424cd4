package egress

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"hallmark.build/sandbox/egress/blocks"
)

// The helper comes with a presigned URL, which is for one request, or with
// credentials for one object, which it signs its requests with itself.

// signedBy begins S3's signature in a header.
const signedBy = "AWS4-"

// signatureForm is that of S3's signature in a header.
var signatureForm = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=[^ ,]+, ?SignedHeaders=([a-z0-9;-]+), ?Signature=[0-9a-f]{64}$`)

// toStorage is the request anew, as the object storage gets it.
func (q *request) toStorage(body io.Reader, length int64) (*http.Request, error) {
	u, err := originURL(q.ask)
	if err != nil {
		return nil, err
	}
	header := storageHeader(q.Header, u.RawQuery)
	if signature := q.Header.Get("Authorization"); strings.HasPrefix(signature, signedBy) && !signedQuery(u.RawQuery) {
		if header, err = signedHeader(q.Header, signature); err != nil {
			return nil, err
		}
	}
	out := (&http.Request{Method: q.Method, URL: u, Host: u.Host, Header: header, ProtoMajor: 1, ProtoMinor: 1}).WithContext(q.p.ctx)
	if length > 0 {
		out.Body, out.ContentLength = io.NopCloser(body), length
	}
	return out, nil
}

// signedQuery reports whether the URL has a signature in it.
func signedQuery(query string) bool {
	return slices.ContainsFunc(strings.Split(strings.ToLower(query), "&"), func(part string) bool {
		name, _, _ := strings.Cut(part, "=")
		return name == "sig" || strings.HasSuffix(name, "signature")
	})
}

// signable are the headers that the helper may sign. They say who asks, what the
// bytes are and how the storage keeps them; none gives the object another owner,
// another reader or another source.
var signable = map[string]bool{
	"accept-encoding": true, "amz-sdk-invocation-id": true, "amz-sdk-request": true, "content-encoding": true, "content-length": true,
	"content-type": true, "host": true, "x-amz-content-sha256": true, "x-amz-date": true, "x-amz-decoded-content-length": true,
	"x-amz-meta-cachekey": true, "x-amz-sdk-checksum-algorithm": true, "x-amz-security-token": true, "x-amz-server-side-encryption": true,
	"x-amz-server-side-encryption-aws-kms-key-id": true, "x-amz-trailer": true,
}

// signedHeader picks the headers that a signature covers. One that is covered and
// cannot pass makes the request another one, so it is told rather than left out.
func signedHeader(in http.Header, signature string) (http.Header, error) {
	m := signatureForm.FindStringSubmatch(signature)
	if m == nil {
		return nil, &storageError{reason: "the request's signature is of a form that is not known"}
	}
	out := http.Header{"Accept-Encoding": {"identity"}, "User-Agent": nil, "Authorization": {signature}}
	for name := range strings.SplitSeq(m[1], ";") {
		if !signable[name] && !strings.HasPrefix(name, "x-amz-checksum-") {
			return nil, unsignable(name)
		}
		values := in[http.CanonicalHeaderKey(name)]
		switch {
		case name == "host" || name == "content-length" || name == "accept-encoding":
		case name == "content-encoding" && len(values) == 1 && values[0] != "aws-chunked": // would become the object's
			return nil, unsignable(name)
		case len(values) == 1 && len(values[0]) <= maxHeaderValue:
			out[http.CanonicalHeaderKey(name)] = values
		default:
			return nil, &storageError{reason: fmt.Sprintf("header %q is signed, and is not there once", clip(name, 80))}
		}
	}
	return out, nil
}

// A storageError says why a request is not passed on, or its answer not back.
type storageError struct{ reason, remedy string }

func (e *storageError) Error() string { return e.reason }

func unsignable(name string) error {
	if name == "range" {
		return &storageError{"S3's kit asks for parts of a cache, and only the whole can be looked up", "turn FF_USE_PARALLEL_CACHE_TRANSFER off"}
	}
	return &storageError{reason: fmt.Sprintf("header %q is signed, and may not pass with a cache", clip(name, 80))}
}

// framed reports whether the body is an archive within a frame.
func (q *request) framed() (bool, error) {
	coding, content := q.Header.Get("Content-Encoding"), q.Header.Get("X-Amz-Content-Sha256")
	switch {
	case content == blocks.Chunked && coding == "aws-chunked":
		return true, nil
	case strings.HasPrefix(content, "STREAMING-"), coding != "" && coding != "identity":
		return false, errors.New("the archive is encoded in a way that cannot be read")
	}
	return false, nil
}

// keepsFrame reports whether a storage that gets this header knows of the frame.
func keepsFrame(h http.Header) bool {
	return h.Get("Content-Encoding") != "" && h.Get("X-Amz-Content-Sha256") != "" && h.Get("X-Amz-Decoded-Content-Length") != ""
}

// archiveSize is how many bytes of an archive the body has, or -1 where it does not
// say.
func (q *request) archiveSize() (int64, error) {
	framed, err := q.framed()
	if err != nil || !framed {
		return q.ContentLength, err
	}
	said := q.Header.Get("X-Amz-Decoded-Content-Length")
	size, err := strconv.ParseInt(said, 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != said || size <= 0 || q.ContentLength <= size {
		return 0, errors.New("the archive comes without its size")
	}
	return size, nil
}

// readArchive copies what the body has of an archive, and returns how much that is
// and what stood around it.
func (q *request) readArchive(w io.Writer, size int64) (n int64, frame blocks.Frame, err error) {
	if framed, _ := q.framed(); framed {
		q.body.limit = q.ContentLength
		frame, err = blocks.Unframe(w, q.body, size)
		return size, frame, err
	}
	q.body.limit = q.p.side.b.cfg.CacheBytes
	n, err = io.Copy(w, q.body)
	if errors.Is(err, errBodyTooLarge) {
		err = errCacheTooLarge
	}
	return n, frame, err
}

var rangeForm = regexp.MustCompile(`^bytes=(\d{1,15})-(\d{0,15})$`)

// part is what a request asks for of an archive that was looked up as a whole.
// Azure's kit reads several parts at once where it is told to, and takes what it
// gets for the part; other clients live with the whole.
func (q *request) part(size int64) (from, n int64, err error) {
	asked := q.Header.Get("X-Ms-Range")
	if asked == "" {
		return 0, size, nil
	}
	m := rangeForm.FindStringSubmatch(asked)
	if m == nil {
		return 0, 0, errors.New("a range of a form that is not known")
	}
	from, _ = strconv.ParseInt(m[1], 10, 64)
	end := size
	if m[2] != "" {
		last, _ := strconv.ParseInt(m[2], 10, 64)
		end = min(size, last+1)
	}
	if from >= end {
		return 0, 0, fmt.Errorf("a range outside of the archive's %d bytes", size)
	}
	return from, end - from, nil
}
