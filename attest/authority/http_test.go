package authority_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
)

// payload is a bundle's statement.
func payload(t testing.TB, bundle []byte) []byte {
	t.Helper()
	var b struct {
		DSSEEnvelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	return b.DSSEEnvelope.Payload
}

func (w *world) get(path string) *httptest.ResponseRecorder {
	w.t.Helper()
	return w.do(http.MethodGet, path)
}

func (w *world) do(method, path string) *httptest.ResponseRecorder {
	w.t.Helper()
	rec := httptest.NewRecorder()
	w.a.HTTP().ServeHTTP(rec, httptest.NewRequest(method, "http://authority"+path, nil))
	return rec
}

type found struct {
	Attestations []struct {
		Bundle   json.RawMessage `json:"bundle"`
		JobID    int64           `json:"job_id"`
		Project  string          `json:"project"`
		ClosedAt string          `json:"closed_at"`
	} `json:"attestations"`
	Truncated bool `json:"truncated"`
}

func (w *world) found(path string) found {
	w.t.Helper()
	rec := w.get(path)
	if rec.Code != http.StatusOK || rec.Header().Get("Content-Type") != "application/json" {
		w.t.Fatalf("%s: %d %s", path, rec.Code, rec.Body)
	}
	if !strings.HasPrefix(rec.Body.String(), `{"attestations":[`) {
		w.t.Errorf("%s: %.40s", path, rec.Body)
	}
	var f found
	if err := json.Unmarshal(rec.Body.Bytes(), &f); err != nil {
		w.t.Fatal(err)
	}
	return f
}

func TestSearch(t *testing.T) {
	w := newWorld(t)
	_, _, closed := w.run()
	at := closed.GetAttestations()[0]
	for path, n := range map[string]int{
		"/v1/subjects/sha256:" + at.GetSubjects()[0].GetSha256(): 1,
		"/v1/subjects/sha256:" + at.GetSubjects()[2].GetSha256(): 1,
		"/v1/subjects/sha256:" + attesttest.SHA256("nothing"):    0,
		"/v1/jobs/4242":              1,
		"/v1/jobs/4243":              0,
		"/v1/projects/group/project": 1,
		"/v1/projects/group/other":   0,
	} {
		f := w.found(path)
		if len(f.Attestations) != n || f.Truncated {
			t.Errorf("%s: %d attestations, want %d", path, len(f.Attestations), n)
		}
		for _, a := range f.Attestations {
			if !bytes.Equal(a.Bundle, at.GetBundle()) || a.JobID != 4242 || a.Project != "group/project" || a.ClosedAt != "2026-11-26T15:04:05Z" {
				t.Errorf("%s: %+v", path, a)
			}
		}
	}
}

func TestBundlesAndRecords(t *testing.T) {
	w := newWorld(t)
	res, _, closed := w.run()
	at := closed.GetAttestations()[0]
	if rec := w.get("/v1/bundles/sha256:" + at.GetSha256()); rec.Code != 200 || !bytes.Equal(rec.Body.Bytes(), at.GetBundle()) {
		t.Errorf("%d", rec.Code)
	}
	rec := w.get("/v1/attempts/" + res.GetAttempt() + "/record")
	want := append(bytes.Join(w.job(res), []byte("\n")), '\n')
	if rec.Code != 200 || !bytes.Equal(rec.Body.Bytes(), want) || rec.Header().Get("Content-Type") != "application/jsonl" {
		t.Errorf("%d %s", rec.Code, rec.Header())
	}
	for _, path := range []string{"/v1/bundles/sha256:" + attesttest.SHA256("x"), "/v1/attempts/" + strings.Repeat("0", 32) + "/record"} {
		if rec := w.get(path); rec.Code != 404 {
			t.Errorf("%s: %d", path, rec.Code)
		}
	}
}

// TestOpenRecordIsNotShown holds that a record is read once it is whole.
func TestOpenRecordIsNotShown(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	w.mustAppend(res, w.job(res)[:5]...)
	if rec := w.get("/v1/attempts/" + res.GetAttempt() + "/record"); rec.Code != 404 {
		t.Errorf("%d", rec.Code)
	}
}

func TestManyFound(t *testing.T) {
	w := newWorld(t)
	for i := range 103 {
		req := openRequest()
		req.Job.Id = int64(1000 + i)
		res, err := w.a.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		o := opened(res)
		o.Job.ID = req.GetJob().GetId()
		if _, err := w.close(res, w.mustAppend(res, w.lines(attesttest.JobOf(o))...).GetHead()); err != nil {
			t.Fatal(err)
		}
	}
	f := w.found("/v1/projects/group/project")
	if len(f.Attestations) != 100 || !f.Truncated {
		t.Errorf("%d found, truncated %v", len(f.Attestations), f.Truncated)
	}
}

func TestPages(t *testing.T) {
	w := newWorld(t)
	for path, want := range map[string]string{
		"/trusted-root.json":   "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"/builders/hermetic":   "https://ci.example.com/hallmark/hermetic",
		"/builders/firewalled": "allow-list",
		"/hallmark/hermetic":   "tenant code has no network",
		"/healthz":             "alive",
		"/readyz":              "ready",
	} {
		if rec := w.get(path); rec.Code != 200 || !strings.Contains(rec.Body.String(), want) || rec.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
		if rec := w.do(http.MethodHead, path); rec.Code != 200 || rec.Body.Len() != 0 {
			t.Errorf("HEAD %s: %d, %d bytes", path, rec.Code, rec.Body.Len())
		}
	}
	for _, page := range []string{"hermetic", "firewalled"} {
		text := w.get("/builders/" + page).Body.String()
		for _, word := range []string{"Scope.", "Claimed level.", "Completeness.", "Not verified."} {
			if !strings.Contains(text, word) {
				t.Errorf("%s: nothing about %q", page, word)
			}
		}
		if strings.ContainsAny(text, "{}") {
			t.Errorf("%s: a hole in the text", page)
		}
	}
}

func TestNotReady(t *testing.T) {
	w := newWorld(t)
	w.store.Close()
	if rec := w.get("/readyz"); rec.Code != 503 || strings.Contains(rec.Body.String(), "sql") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := w.get("/v1/jobs/1"); rec.Code != 503 {
		t.Errorf("%d", rec.Code)
	}
	if rec := w.get("/healthz"); rec.Code != 200 {
		t.Errorf("%d", rec.Code)
	}
	w.start()
}

func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"} {
		if rec := w.do(method, "/healthz"); rec.Code != http.StatusMethodNotAllowed || rec.Header().Get("Allow") == "" {
			t.Errorf("%s: %d", method, rec.Code)
		}
	}
}

func TestPaths(t *testing.T) {
	w := newWorld(t)
	digest := attesttest.SHA256("x")
	for _, path := range []string{
		"/", "/v1", "/v1/", "/v1/subjects", "/v1/subjects/", "/v1/subjects/" + digest, "/v1/subjects/sha512:" + digest,
		"/v1/subjects/sha256:" + strings.ToUpper(digest), "/v1/subjects/sha256:" + digest[1:], "/v1/subjects/sha256:" + digest + "/",
		"/v1/jobs/", "/v1/jobs/0", "/v1/jobs/-1", "/v1/jobs/01", "/v1/jobs/+1", "/v1/jobs/1/", "/v1/jobs/9223372036854775808",
		"/v1/projects/", "/v1/projects/group", "/v1/projects/group/", "/v1/projects//project", "/v1/projects/group/../x",
		"/v1/projects/group/pro%20ject", "/v1/projects/group/" + strings.Repeat("x", 3000),
		"/v1/attempts/x/record", "/v1/attempts/" + digest[:32], "/v1/attempts/" + digest[:32] + "/record/", "/v1/attempts/..%2f..%2findex.db/record",
		"/builders/", "/builders/open", "/builders/hermetic/", "/hallmark/", "/trusted-root.json/", "/v1/bundles/sha256:..",
	} {
		if rec := w.get(path); rec.Code != 404 {
			t.Errorf("%.60s: %d", path, rec.Code)
		}
	}
}

func FuzzPath(f *testing.F) {
	for _, p := range []string{
		"/v1/subjects/sha256:" + attesttest.SHA256("x"), "/v1/jobs/1", "/v1/projects/a/b", "/v1/attempts/" + strings.Repeat("0", 32) + "/record",
		"/builders/hermetic", "/hallmark/firewalled", "/trusted-root.json", "/healthz", "/v1/projects/a/../b", "/v1/jobs/1e3", "",
	} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		kind, value := authority.Parse(path, "/hallmark")
		if kind == 0 && value != "" {
			t.Errorf("%q: no page, yet %q", path, value)
		}
		if strings.ContainsAny(value, "\x00\n\\%?#") || strings.Contains("/"+value+"/", "/../") || strings.HasPrefix(value, "/") {
			t.Errorf("%q: value %q", path, value)
		}
		if kind != 0 && !strings.HasSuffix(path, value) && !strings.HasSuffix(path, fmt.Sprint(value, "/record")) {
			t.Errorf("%q: value %q is not in it", path, value)
		}
	})
}

// TestConnectionsAreBounded has one reader more than there is room for: it must
// wait until another goes.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := authority.ListenHTTP("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() { // the kernel's queue has room for all
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	accept := func() net.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := accept()
	for range authority.MaxConnections - 1 {
		dial()
		accept()
	}
	dial()
	var room atomic.Bool
	next := make(chan bool)
	go func() {
		c, err := l.Accept()
		next <- err == nil && room.Load()
		c.Close()
	}()
	for range 20 { // time enough for a listener that does not wait
		dial()
	}
	room.Store(true)
	first.Close()
	if !<-next {
		t.Errorf("more than %d connections at a time", authority.MaxConnections)
	}
}
