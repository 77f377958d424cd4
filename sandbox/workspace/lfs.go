package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"strconv"
	"strings"
)

// A pointer is what git stores in place of a file that Git LFS keeps.
type pointer struct {
	sha256 string
	size   int64
}

// parsePointer reads a pointer of exactly three lines. Pointers with
// extensions say nothing of the file's own content and are not taken.
func parsePointer(data []byte) (pointer, bool) {
	if len(data) > maxPointer {
		return pointer{}, false
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != "version https://git-lfs.github.com/spec/v1" {
		return pointer{}, false
	}
	oid, ok := strings.CutPrefix(lines[1], "oid sha256:")
	digits, ok2 := strings.CutPrefix(lines[2], "size ")
	raw, err := hex.DecodeString(oid)
	size, err2 := strconv.ParseInt(digits, 10, 64)
	if !ok || !ok2 || err != nil || err2 != nil || len(raw) != sha256.Size || strings.ToLower(oid) != oid || size < 0 {
		return pointer{}, false
	}
	return pointer{oid, size}, true
}

// sumFile is the SHA-256 of the file at rel beneath root.
func sumFile(ctx context.Context, root int, rel string) (sum string, size int64, err error) {
	f, err := openPath(root, rel)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(contextReader{ctx, f}, maxFile))
	if err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}

// contextReader ends a long read when ctx does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// sameButLines reports whether two texts differ by their line endings alone.
func sameButLines(a, b []byte) bool {
	fold := func(x []byte) []byte { return bytes.ReplaceAll(x, []byte("\r\n"), []byte("\n")) }
	return bytes.Equal(fold(a), fold(b))
}
