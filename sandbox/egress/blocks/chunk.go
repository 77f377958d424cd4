package blocks

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
)

// A Frame is what stands around the bytes of an object in a request. It is empty
// where the body is the object's bytes and nothing else.
type Frame struct{ Head, Tail string }

// Chunked is the value of X-Amz-Content-Sha256 by which a body is known that
// has a frame: the one that S3's kit sends over TLS.
const Chunked = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"

// maxTail bounds the end of a frame: one checksum.
const maxTail = 256

var tailForm = regexp.MustCompile(`^\r\n0\r\nx-amz-checksum-(?:crc32|crc32c|crc64nvme|sha1|sha256):[A-Za-z0-9+/]{4,88}={0,2}\r\n\r\n$`)

// Unframe copies the bytes of an object from a body of aws-chunked coding, and
// returns what stood around them. There is but one form that is read, the one
// that the kit writes: one chunk of the size that was announced, and a checksum
// behind it. What has other chunks, or signatures on them, is refused.
func Unframe(w io.Writer, r io.Reader, size int64) (Frame, error) {
	if size <= 0 {
		return Frame{}, malformed("no size of the decoded content")
	}
	f := Frame{Head: strconv.FormatInt(size, 16) + "\r\n"}
	head := make([]byte, len(f.Head))
	if _, err := io.ReadFull(r, head); err != nil {
		return Frame{}, short(err)
	}
	if string(head) != f.Head {
		return Frame{}, malformed("the body is not one chunk of %d bytes without a signature", size)
	}
	if _, err := io.CopyN(w, r, size); err != nil {
		return Frame{}, short(err)
	}
	var tail bytes.Buffer
	if _, err := io.Copy(&tail, io.LimitReader(r, maxTail+1)); err != nil {
		return Frame{}, err
	}
	if !tailForm.Match(tail.Bytes()) {
		return Frame{}, malformed("after the chunk there is something else than one checksum")
	}
	f.Tail = tail.String()
	return f, nil
}

func short(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return malformed("the body ends within the chunk")
	}
	return fmt.Errorf("body: %w", err)
}

// Len is how many bytes the frame adds.
func (f Frame) Len() int64 { return int64(len(f.Head) + len(f.Tail)) }

// Around gives the body back as it came.
func (f Frame) Around(r io.Reader) io.Reader {
	return io.MultiReader(bytes.NewReader([]byte(f.Head)), r, bytes.NewReader([]byte(f.Tail)))
}
