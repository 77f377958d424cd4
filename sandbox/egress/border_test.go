package egress

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

func deleteRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.FlushRuleset()
	return conn.Flush()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestFetchIsRecorded(t *testing.T) {
	data := bytes.Repeat([]byte("hallmark"), 100_000)
	for _, tt := range []struct {
		name      string
		origin    http.Handler
		mediaType string
		want      []byte
	}{
		{"length", fixed(data), "application/octet-stream", data},
		{"chunked", chunked(data), "", data},
		{"chunked and empty", chunked(nil), "", nil},
		{"empty", fixed(nil), "application/octet-stream", nil},
		{"one byte", fixed([]byte("x")), "application/octet-stream", []byte("x")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Firewalled, origin: tt.origin})
			w.begin(sandbox.BuildScript)
			out, errs, code := w.curl(w.url("/a/b?x=1&token=geheim"))
			if code != 0 || out != string(tt.want) {
				t.Fatalf("curl: exit %d, %d bytes, %s", code, len(out), errs)
			}
			w.end(sandbox.Build)
			want := []record.Fetch{{
				Stage: "build_script", Role: "build", Method: "GET", URL: w.url("/a/b?x=1&token=REDACTED"), Status: 200,
				SHA256: digest(tt.want), Bytes: int64(len(tt.want)), MediaType: tt.mediaType, Rule: "good",
			}}
			if diff := cmp.Diff(want, of[record.Fetch](w.rec)); diff != "" {
				t.Error(diff)
			}
			if b := of[record.Block](w.rec); len(b) != 0 {
				t.Errorf("refusals: %+v", b)
			}
		})
	}
}

func TestHermeticRefusesInWords(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic})
	w.begin(sandbox.BuildScript)
	for range 3 {
		out, errs, code := w.curl("-i", w.url("/x"))
		if code != 0 {
			t.Fatalf("curl: exit %d: %s", code, errs)
		}
		for _, want := range []string{"HTTP/1.1 403 ", "X-Hallmark-Rule: hermetic", "Content-Type: text/plain", "hint: ", "rule hermetic"} {
			if !strings.Contains(out, want) {
				t.Errorf("answer lacks %q:\n%s", want, out)
			}
		}
	}
	w.wantBlock("hermetic", w.url("/x"))
	w.end(sandbox.Build)
	blocks := of[record.Block](w.rec)
	if len(blocks) != 2 || blocks[1].Count != 2 {
		t.Errorf("want one refusal and then a count of 2, have %+v", blocks)
	}
	w.wantNoFetch()
}
