package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// coordinator is a GitLab that takes artifacts.
type coordinator struct {
	mu     sync.Mutex
	hits   int
	header http.Header
	uri    string
	length int64
	part   http.Header
	data   []byte
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func (c *coordinator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hits++
	c.header, c.uri, c.length = r.Header, r.RequestURI, r.ContentLength
	if c.answer != nil && c.answer(w, r) {
		return
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	form := multipart.NewReader(r.Body, params["boundary"])
	p, err := form.NextRawPart()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.part = http.Header(p.Header)
	c.data, _ = io.ReadAll(p)
	if _, err := form.NextRawPart(); !errors.Is(err, io.EOF) {
		http.Error(w, "more than one part", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"message":"201 Created"}`)
}

func (c *coordinator) state() (hits int, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hits, c.data
}

const artifactsPath = "/api/v4/jobs/42/artifacts?artifact_format=zip&artifact_type=archive&expire_in=1+week"

// checked is an upload check that accepts, and remembers what it saw.
type checked struct {
	data             []byte
	size             int64
	format, fileName string
	err              error
	before           func()
}

func (c *checked) check(_ context.Context, f *os.File, size int64, format, fileName string) ([]record.UploadEntry, error) {
	if c.before != nil {
		c.before()
	}
	c.data, _ = io.ReadAll(f)
	c.size, c.format, c.fileName = size, format, fileName
	if c.err != nil {
		return nil, c.err
	}
	return []record.UploadEntry{{Path: "out/a", Kind: "file", SHA256: digest([]byte("a")), Bytes: 1, Mode: 0o644}}, nil
}

func uploadWorld(t testing.TB, gl *coordinator, c *checked) (*world, string, []byte) {
	t.Helper()
	w := newWorld(t, options{profile: sandbox.Hermetic, gitlab: gl, change: func(cfg *Config) { cfg.CheckUpload = c.check }})
	data := bytes.Repeat([]byte("artifact"), 200_000)
	file := filepath.Join(t.TempDir(), "artifacts.zip")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	w.begin(sandbox.UploadSuccess)
	return w, file, data
}

func TestUploadThatMatches(t *testing.T) {
	for name, extra := range map[string][]string{
		"length":   nil,
		"chunked":  {"-H", "Transfer-Encoding: chunked"},
		"expected": {"-H", "Expect: 100-continue"},
	} {
		t.Run(name, func(t *testing.T) {
			gl, c := &coordinator{}, &checked{}
			w, file, data := uploadWorld(t, gl, c)
			c.before = func() {
				if hits, _ := gl.state(); hits != 0 {
					t.Error("gitlab was asked before the artifact was matched")
				}
				left, err := os.ReadDir(w.b.cfg.SpoolDir)
				if err != nil || len(left) != 0 {
					t.Errorf("the spool has a name: %v %v", left, err)
				}
			}
			args := append([]string{"-i", "-H", "JOB-TOKEN: secret", "-F", "file=@" + file + ";type=application/octet-stream"}, extra...)
			out, errs, _ := w.helperCurl(append(args, w.gitlabURL(artifactsPath))...)
			if !strings.Contains(out, "HTTP/1.1 201 Created") || !strings.HasSuffix(out, `{"message":"201 Created"}`) {
				t.Fatalf("answer: %s%s", out, errs)
			}
			if !bytes.Equal(c.data, data) || c.size != int64(len(data)) || c.format != "zip" || c.fileName != "artifacts.zip" {
				t.Errorf("the check saw %d bytes, format %s, name %s", c.size, c.format, c.fileName)
			}
			if !bytes.Equal(gl.data, data) || gl.header.Get("Job-Token") != "secret" || gl.uri != artifactsPath || gl.length <= int64(len(data)) {
				t.Errorf("gitlab saw %d bytes, %s, %v", len(gl.data), gl.uri, gl.header)
			}
			wantPart := http.Header{"Content-Disposition": {`form-data; name="file"; filename="artifacts.zip"`}, "Content-Type": {"application/octet-stream"}}
			if diff := cmp.Diff(wantPart, gl.part); diff != "" {
				t.Error(diff)
			}
			w.end(sandbox.Helper)
			want := []record.Upload{{
				Stage: "upload_artifacts_on_success", FileName: "artifacts.zip", Type: "archive", Format: "zip", SHA256: digest(data), Bytes: int64(len(data)), Status: 201,
				Entries: []record.UploadEntry{{Path: "out/a", Kind: "file", SHA256: digest([]byte("a")), Bytes: 1, Mode: 0o644}},
			}}
			if diff := cmp.Diff(want, of[record.Upload](w.rec)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUploadThatDiffers(t *testing.T) {
	gl, c := &coordinator{}, &checked{err: &sandbox.SecurityError{Err: errors.New("out/a: another digest")}}
	w, file, _ := uploadWorld(t, gl, c)
	out, errs, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
	if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: artifact-mismatch") || !strings.Contains(out, "out/a: another digest") {
		t.Errorf("answer: %s%s", out, errs)
	}
	c.err = nil // and no other upload passes now
	out, _, _ = w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
	if !strings.Contains(out, "HTTP/1.1 403 ") {
		t.Errorf("answer: %s", out)
	}
	if hits, _ := gl.state(); hits != 0 {
		t.Error("gitlab was asked")
	}
	v := of[record.Violation](w.rec)
	if len(v) != 1 || v[0].Stage != "upload_artifacts_on_success" || !strings.Contains(v[0].Detail, "out/a") {
		t.Errorf("violations: %+v", v)
	}
	if u := of[record.Upload](w.rec); len(u) != 0 {
		t.Errorf("uploaded: %+v", u)
	}
	for _, role := range []sandbox.Role{sandbox.Helper, sandbox.Helper} {
		var security *sandbox.SecurityError
		if err := w.b.End(role); !errors.As(err, &security) {
			t.Errorf("end: %v", err)
		}
	}
}

func TestUploadThatCannotBeChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		err    error
		status string
		ends   bool
	}{
		"the job's fault":  {&sandbox.UserError{Err: errors.New("not a zip"), Hint: "use zip"}, "HTTP/1.1 403 ", true},
		"the host's fault": {errors.New("disk on fire"), "HTTP/1.1 500 ", false},
	} {
		t.Run(name, func(t *testing.T) {
			gl, c := &coordinator{}, &checked{err: tt.err}
			w, file, _ := uploadWorld(t, gl, c)
			out, _, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
			if !strings.Contains(out, tt.status) {
				t.Errorf("answer: %s", out)
			}
			if hits, _ := gl.state(); hits != 0 {
				t.Error("gitlab was asked")
			}
			if err := w.b.End(sandbox.Helper); (err == nil) != tt.ends {
				t.Errorf("end: %v", err)
			}
		})
	}
}

// What an artifact takes of the spool's disk is bounded, whatever the job sends
// or GitLab answers.
func TestArtifactsAreBounded(t *testing.T) {
	const most = 1 << 20
	answer := strings.Repeat("x", most+1)
	gl, c := &coordinator{answer: func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, answer)
		}
		return r.Method == http.MethodGet
	}}, &checked{}
	w, file, _ := uploadWorld(t, gl, c)
	w.b.cfg.ArtifactBytes = most
	out, _, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
	if hits, _ := gl.state(); hits != 0 || strings.Contains(out, " 201 ") || c.size != 0 {
		t.Errorf("%d requests at gitlab, %d bytes checked, answer: %.300s", hits, c.size, out)
	}
	w.begin(sandbox.DownloadArtifacts)
	out, _, _ = w.helperCurl("-i", w.gitlabURL(fmt.Sprintf("/api/v4/jobs/%d/artifacts", depID)))
	if strings.Contains(out, "xxxx") || !strings.Contains(out, " 403 ") {
		t.Errorf("answer: %.300s", out)
	}
}

func TestUploadThatIsNotRecordedIsNotAnswered(t *testing.T) {
	gl, c := &coordinator{}, &checked{}
	w, file, _ := uploadWorld(t, gl, c)
	w.rec.hook(func(k record.Kind, _ any) error {
		if k == record.Uploaded {
			return errors.New("disk full")
		}
		return nil
	})
	if out, _, code := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath)); code == 0 {
		t.Errorf("answer: %s", out)
	}
	if err := w.b.End(sandbox.Helper); err == nil {
		t.Error("end: no error")
	}
}

func TestUploadOfManyFilesIsRecordedInSeveralLines(t *testing.T) {
	const files = 40_000
	gl := &coordinator{}
	w := newWorld(t, options{profile: sandbox.Hermetic, gitlab: gl, change: func(cfg *Config) {
		cfg.CheckUpload = func(context.Context, *os.File, int64, string, string) ([]record.UploadEntry, error) {
			entries := make([]record.UploadEntry, files)
			for i := range entries {
				entries[i] = record.UploadEntry{Path: fmt.Sprintf("out/\x01\x02%d", i), Kind: "file", SHA256: digest(nil)}
			}
			return entries, nil
		}
	}})
	w.begin(sandbox.UploadSuccess)
	if out, _, _ := w.helperCurl("-i", "-F", "file=@/etc/hostname", w.gitlabURL(artifactsPath)); !strings.Contains(out, "HTTP/1.1 201 ") {
		t.Errorf("answer: %s", out)
	}
	w.end(sandbox.Helper)
	upload := of[record.Upload](w.rec)[0]
	var all []record.UploadEntry
	for _, m := range of[record.Members](w.rec) {
		if line, err := json.Marshal(m); err != nil || len(line) > record.MaxLine/2 {
			t.Errorf("a line of %d bytes, %v", len(line), err)
		}
		if m.SHA256 != upload.SHA256 || m.Stage != upload.Stage {
			t.Errorf("members of %s in %s, want %s in %s", m.SHA256, m.Stage, upload.SHA256, upload.Stage)
		}
		all = append(all, m.Entries...)
	}
	if int64(len(all)) != upload.Matched || len(all)+len(upload.Entries) != files {
		t.Errorf("%d members before, %d said, %d with the upload", len(all), upload.Matched, len(upload.Entries))
	}
	for i, e := range append(all, upload.Entries...) {
		if !strings.HasSuffix(e.Path, fmt.Sprintf("\x02%d", i)) {
			t.Fatalf("member %d is %q", i, e.Path)
		}
	}
}

func TestUploadFormsThatAreRefused(t *testing.T) {
	for name, args := range map[string][]string{
		"two files":        {"-F", "file=@/etc/hostname", "-F", "file=@/etc/hosts"},
		"another field":    {"-F", "file=@/etc/hostname", "-F", "token=x"},
		"field before":     {"-F", "metadata=x", "-F", "file=@/etc/hostname"},
		"wrong field":      {"-F", "metadata=@/etc/hostname"},
		"no file name":     {"-F", "file=x"},
		"encoded part":     {"-F", "file=@/etc/hostname;encoder=base64"},
		"header in part":   {"-F", "file=@/etc/hostname;headers=\"X-A: b\""},
		"quote in name":    {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\\\"b\"\r\n\r\nabc\r\n--x--\r\n"},
		"not multipart":    {"--data-binary", "@/etc/hostname"},
		"encoded body":     {"-H", "Content-Encoding: gzip", "-F", "file=@/etc/hostname"},
		"no body":          {"-X", "POST"},
		"other multipart":  {"-H", "Content-Type: multipart/mixed; boundary=x", "--data-binary", "--x--\r\n"},
		"empty form":       {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x--\r\n"},
		"unfinished form":  {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc"},
		"two dispositions": {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\nabc\r\n--x--\r\n"},
		"name twice":       {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"; filename*=UTF-8''b\r\n\r\nabc\r\n--x--\r\n"},
		"path in name":     {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"../a\"\r\n\r\nabc\r\n--x--\r\n"},
		"bytes after":      {"-H", "Content-Type: multipart/form-data; boundary=x", "--data-binary", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc\r\n--x--\r\n" + strings.Repeat("z", 10_000)},
	} {
		t.Run(name, func(t *testing.T) {
			gl, c := &coordinator{}, &checked{}
			w, _, _ := uploadWorld(t, gl, c)
			out, errs, _ := w.helperCurl(append(append([]string{"-i"}, args...), w.gitlabURL(artifactsPath))...)
			if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: upload") {
				t.Errorf("answer: %s%s", out, errs)
			}
			if hits, _ := gl.state(); hits != 0 {
				t.Error("gitlab was asked")
			}
			w.wantBlock("upload", "/artifacts")
			w.end(sandbox.Helper)
		})
	}
}

func TestUploadRedirects(t *testing.T) {
	t.Run("same origin", func(t *testing.T) {
		gl, c := &coordinator{}, &checked{}
		w, file, data := uploadWorld(t, gl, c)
		gl.answer = func(rw http.ResponseWriter, r *http.Request) bool {
			if gl.hits > 1 {
				return false
			}
			http.Redirect(rw, r, "/api/v4/jobs/42/artifacts?artifact_format=zip&artifact_type=archive", http.StatusTemporaryRedirect)
			return true
		}
		out, errs, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
		if hits, got := gl.state(); !strings.Contains(out, " 201 ") || hits != 2 || !bytes.Equal(got, data) {
			t.Errorf("%d hits, answer: %s%s", hits, out, errs)
		}
		w.end(sandbox.Helper)
	})
	for name, location := range map[string]string{
		"other host":      "https://good.test/api/v4/jobs/42/artifacts",
		"other scheme":    "http://gitlab.test/api/v4/jobs/42/artifacts",
		"other job":       "/api/v4/jobs/43/artifacts",
		"other endpoint":  "/api/v4/jobs/42/artifacts/authorize",
		"other port":      "https://gitlab.test:1/api/v4/jobs/42/artifacts",
		"no location":     "",
		"user":            "https://x@gitlab.test/api/v4/jobs/42/artifacts",
		"loop":            artifactsPath,
		"dots":            "/x/%2e%2e/api/v4/jobs/42/artifacts",
		"internal secret": "/api/v4/jobs/42/artifacts?file.path=/etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			gl, c := &coordinator{}, &checked{}
			w, file, _ := uploadWorld(t, gl, c)
			gl.answer = func(rw http.ResponseWriter, r *http.Request) bool {
				_, _ = io.Copy(io.Discard, r.Body)
				rw.Header().Set("Location", location)
				rw.WriteHeader(http.StatusTemporaryRedirect)
				return true
			}
			out, errs, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
			if !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: redirect") {
				t.Errorf("answer: %s%s", out, errs)
			}
			if hits, _ := gl.state(); hits > maxRedirects+1 || (name != "loop" && hits != 1) {
				t.Errorf("%d hits", hits)
			}
		})
	}
}

func TestUploadThatGitLabRefuses(t *testing.T) {
	gl, c := &coordinator{}, &checked{}
	w, file, _ := uploadWorld(t, gl, c)
	gl.answer = func(rw http.ResponseWriter, r *http.Request) bool {
		http.Error(rw, `{"message":"413 too large"}`, http.StatusRequestEntityTooLarge) // before it has read the body
		return true
	}
	out, errs, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(artifactsPath))
	if !strings.Contains(out, "HTTP/1.1 413 ") && !strings.Contains(out, "HTTP/1.1 502 ") {
		t.Errorf("answer: %s%s", out, errs)
	}
	w.end(sandbox.Helper)
	if u := of[record.Upload](w.rec); len(u) != 1 || u[0].Status == 201 {
		t.Errorf("uploaded: %+v", u)
	}
}

func TestUploadsWithoutACheckAreRefused(t *testing.T) {
	gl := &coordinator{}
	w := newWorld(t, options{profile: sandbox.Hermetic, gitlab: gl})
	w.begin(sandbox.UploadSuccess)
	if out, _, _ := w.helperCurl("-i", "-F", "file=@/etc/hostname", w.gitlabURL(artifactsPath)); !strings.Contains(out, "HTTP/1.1 403 ") {
		t.Errorf("answer: %s", out)
	}
	if hits, _ := gl.state(); hits != 0 {
		t.Error("gitlab was asked")
	}
}

func TestUploadEndpointsOfOthers(t *testing.T) {
	for name, path := range map[string]string{
		"other job": "/api/v4/jobs/41/artifacts", "trace": "/api/v4/jobs/42/trace", "authorize": "/api/v4/jobs/42/artifacts/authorize", "workhorse": "/api/v4/jobs/42/artifacts?file.path=/etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			gl, c := &coordinator{}, &checked{}
			w, file, _ := uploadWorld(t, gl, c)
			if out, _, _ := w.helperCurl("-i", "-F", "file=@"+file, w.gitlabURL(path)); !strings.Contains(out, "HTTP/1.1 403 ") {
				t.Errorf("answer: %s", out)
			}
			if hits, _ := gl.state(); hits != 0 || c.size != 0 {
				t.Error("gitlab or the check was asked")
			}
			w.wantBlock("stage", "")
		})
	}
}

func FuzzReadForm(f *testing.F) {
	const boundary = "multipart/form-data; boundary=x"
	f.Add(boundary, []byte("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.zip\"\r\nContent-Type: application/octet-stream\r\n\r\nabc\r\n--x--\r\n"))
	f.Add(boundary, []byte("--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\nz\r\n--x--\r\n"))
	f.Add(boundary, []byte("preamble\r\n--x\r\n\r\n\r\n--x--"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		var file bytes.Buffer
		p, err := readForm(bytes.NewReader(body), contentType, &file, 1<<20)
		if err != nil {
			return
		}
		if p.size != int64(file.Len()) || p.sha256 != digest(file.Bytes()) || !properFileName(p.fileName) || printable(p.contentType) != p.contentType {
			t.Fatalf("part %+v of %d bytes", p, file.Len())
		}
		if !bytes.Contains(body, file.Bytes()) {
			t.Fatal("the file is not in the body")
		}
		// Any other reader finds the same and nothing more.
		_, params, err := mime.ParseMediaType(contentType)
		if err != nil {
			t.Fatal(err)
		}
		form, err := multipart.NewReader(bytes.NewReader(body), params["boundary"]).ReadForm(1 << 20)
		if err != nil {
			return
		}
		if len(form.Value) != 0 || len(form.File) != 1 || len(form.File["file"]) != 1 {
			t.Fatalf("another reader finds %v %v", form.Value, form.File)
		}
	})
}
