package world

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// packageServer answers for every path with bytes that the path decides:
// /FILE a line of text, /size/N/FILE N bytes.
func packageServer() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rest, sized := strings.CutPrefix(r.URL.Path, "/size/")
		if !sized {
			fmt.Fprintf(w, "package %s\n", r.URL.Path)
			return
		}
		number, name, _ := strings.Cut(rest, "/")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 0 {
			http.Error(w, "size?", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", number)
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.Copy(w, io.LimitReader(&pattern{seed: sha256.Sum256([]byte(name))}, n))
	})
}

// pattern is an endless stream that costs little to make.
type pattern struct {
	seed  [32]byte
	count uint64
}

func (p *pattern) Read(b []byte) (int, error) {
	n := 0
	for n+32 <= len(b) {
		binary.LittleEndian.PutUint64(p.seed[:8], p.count)
		p.count++
		n += copy(b[n:], p.seed[:])
	}
	if n == 0 {
		n = copy(b, p.seed[:])
		p.count++
	}
	return n, nil
}
