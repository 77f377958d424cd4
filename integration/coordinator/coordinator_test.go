package coordinator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// world is a server with one project.
func world(t *testing.T) (*Server, string) {
	t.Helper()
	repos := t.TempDir()
	commit, err := Publish(repos, "group/project", "main", map[string]string{"README": "hello\n", "run.sh": "#!/bin/sh\n"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Repositories: repos})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	if err := s.SetURL(web.URL); err != nil {
		t.Fatal(err)
	}
	return s, commit
}

func do(t *testing.T, method, url, token, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("JOB-TOKEN", token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(out)
}

func take(t *testing.T, s *Server, j Job) *Attempt {
	t.Helper()
	a, err := s.AddJob(j)
	if err != nil {
		t.Fatal(err)
	}
	status, _, body := do(t, "POST", s.URL()+"/api/v4/jobs/request", "", "{}")
	if status != http.StatusCreated || !strings.Contains(body, a.token) {
		t.Fatalf("request: %d %s", status, body)
	}
	return a
}

func multipartFile(t *testing.T, name, content string) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("file", name)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(part, content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.FormDataContentType()
}

func TestJobFromRequestToResult(t *testing.T) {
	s, commit := world(t)
	a := take(t, s, Job{Script: []string{"true"}, Artifacts: Archive("out/")})
	api := fmt.Sprintf("%s/api/v4/jobs/%d", s.URL(), a.Job.ID)

	if status, header, _ := do(t, "PUT", api, a.token, `{"state":"running"}`); status != 200 || header.Get("Job-Status") != "running" {
		t.Errorf("update: %d %s", status, header.Get("Job-Status"))
	}
	if status, _, body := do(t, "GET", s.URL()+"/api/v4/job", a.token, ""); status != 200 || !strings.Contains(body, commit) {
		t.Errorf("job: %d %s", status, body)
	}
	status, header, _ := do(t, "PATCH", api+"/trace", a.token, "hello ", "Content-Range", "0-5")
	if status != http.StatusAccepted || header.Get("Range") != "0-6" {
		t.Errorf("trace: %d %s", status, header.Get("Range"))
	}
	if status, header, _ = do(t, "PATCH", api+"/trace", a.token, "x", "Content-Range", "9-9"); status != 416 || header.Get("Range") != "0-6" {
		t.Errorf("trace with a gap: %d %s", status, header.Get("Range"))
	}
	body, kind := multipartFile(t, "out.zip", "PK")
	if status, _, text := do(t, "POST", api+"/artifacts?artifact_type=archive&artifact_format=zip", a.token, body, "Content-Type", kind); status != 201 {
		t.Errorf("upload: %d %s", status, text)
	}
	if status, _, _ := do(t, "PUT", api, a.token, `{"state":"failed","failure_reason":"script_failure","exit_code":42}`); status != 200 {
		t.Errorf("final update: %d", status)
	}
	got, err := a.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	art, _ := got.Artifact("archive")
	if got.State != Failed || got.FailureReason != "script_failure" || got.ExitCode == nil || *got.ExitCode != 42 ||
		got.Trace != "hello " || art.FileName != "out.zip" || string(art.Data) != "PK" {
		t.Errorf("result: %+v", got)
	}
}

func TestRefusals(t *testing.T) {
	s, _ := world(t)
	a := take(t, s, Job{})
	other := take(t, s, Job{})
	api := fmt.Sprintf("%s/api/v4/jobs/%d", s.URL(), a.Job.ID)
	first, kind := multipartFile(t, "out.zip", "PK1")
	if status, _, _ := do(t, "POST", api+"/artifacts?artifact_type=archive", a.token, first, "Content-Type", kind); status != 201 {
		t.Fatalf("first upload: %d", status)
	}
	second, kind2 := multipartFile(t, "out.zip", "PK2")

	for _, c := range []struct {
		name, method, url, token, body, kind string
		want                                 int
	}{
		{"no token", "PUT", api, "", `{}`, "", 403},
		{"another job's token", "PUT", api, other.token, `{}`, "", 403},
		{"unknown job", "PUT", s.URL() + "/api/v4/jobs/1", a.token, `{}`, "", 404},
		{"not JSON", "PUT", api, a.token, `{`, "", 400},
		{"trace without a range", "PATCH", api + "/trace", a.token, "x", "", 416},
		{"second artifact of a type", "POST", api + "/artifacts?artifact_type=archive", a.token, second, kind2, 400},
		{"artifact that is no form", "POST", api + "/artifacts?artifact_type=junit", a.token, "x", "", 400},
		{"artifact cut short", "POST", api + "/artifacts?artifact_type=junit", a.token, first[:len(first)-8], kind, 400},
		{"artifact that is not there", "GET", fmt.Sprintf("%s/api/v4/jobs/%d/artifacts", s.URL(), other.Job.ID), other.token, "", "", 404},
		{"job without a token", "GET", s.URL() + "/api/v4/job", "", "", "", 401},
		{"job with a wrong token", "GET", s.URL() + "/api/v4/job", "x", "", "", 401},
		{"repository without a password", "GET", s.URL() + "/group/project.git/info/refs?service=git-upload-pack", "", "", "", 401},
		{"no repository", "GET", s.URL() + "/group/project", "", "", "", 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			if status, _, text := do(t, c.method, c.url, c.token, c.body, "Content-Type", c.kind); status != c.want {
				t.Errorf("status %d, want %d: %s", status, c.want, text)
			}
		})
	}
	if status, _, _ := do(t, "POST", api+"/artifacts?artifact_type=archive", a.token, first, "Content-Type", kind); status != 201 {
		t.Errorf("the same artifact again: %d, want 201", status)
	}

	do(t, "PUT", api, a.token, `{"state":"success"}`)
	for _, c := range []struct{ method, url string }{
		{"PUT", api}, {"POST", api + "/artifacts?artifact_type=junit"}, {"GET", s.URL() + "/api/v4/job"},
	} {
		if status, _, _ := do(t, c.method, c.url, a.token, `{"state":"failed"}`); status != 403 {
			t.Errorf("%s %s after the end: %d, want 403", c.method, c.url, status)
		}
	}
}

func TestCancel(t *testing.T) {
	s, _ := world(t)
	for _, to := range []State{Canceling, Canceled} {
		a := take(t, s, Job{})
		a.CancelOn("marker", to)
		api := fmt.Sprintf("%s/api/v4/jobs/%d", s.URL(), a.Job.ID)
		_, header, _ := do(t, "PATCH", api+"/trace", a.token, "nothing", "Content-Range", "0-6")
		if got := header.Get("Job-Status"); got != "running" {
			t.Errorf("before the marker: %s", got)
		}
		_, header, _ = do(t, "PATCH", api+"/trace", a.token, " marker", "Content-Range", "7-13")
		if got := header.Get("Job-Status"); got != string(to) {
			t.Errorf("after the marker: %s, want %s", got, to)
		}
		status, _, _ := do(t, "PUT", api, a.token, `{"state":"running"}`)
		if want := map[State]int{Canceling: 200, Canceled: 403}[to]; status != want {
			t.Errorf("%s: update %d, want %d", to, status, want)
		}
	}
}

// TestInterrupt wants a newer pipeline to cancel what it makes redundant alone.
func TestInterrupt(t *testing.T) {
	s, commit := world(t)
	jobs := map[string]Job{
		"redundant":         {PipelineID: 1, Interruptible: true},
		"not interruptible": {PipelineID: 1},
		"of its pipeline":   {PipelineID: 2, Interruptible: true},
		"of another ref":    {PipelineID: 1, Interruptible: true, Ref: "refs/merge-requests/1/head", SHA: commit},
	}
	attempts := map[string]*Attempt{}
	for name, j := range jobs {
		attempts[name] = take(t, s, j)
	}
	if _, err := s.AddJob(Job{PipelineID: 2}); err != nil {
		t.Fatal(err)
	}
	for name, a := range attempts {
		want := Running
		if name == "redundant" {
			want = Canceling
		}
		if got := a.State(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestFaults(t *testing.T) {
	s, _ := world(t)
	a := take(t, s, Job{})
	remove := s.Inject(Fault{Path: "/api/v4/job", Status: 503, Times: 2})
	s.Inject(Fault{Method: "POST", Path: "/api/v4/jobs/*/artifacts", Status: 307, Header: http.Header{"Location": {"https://elsewhere.example.test/x"}}})
	var got []int
	for range 3 {
		status, _, _ := do(t, "GET", s.URL()+"/api/v4/job", a.token, "")
		got = append(got, status)
	}
	remove()
	if fmt.Sprint(got) != "[503 503 200]" {
		t.Errorf("a fault for two requests: %v", got)
	}
	s.SetDown(true)
	if _, err := http.Get(s.URL() + "/api/v4/job"); err == nil {
		t.Error("a server that is down answered")
	}
	s.SetDown(false)
	faulty := 0
	for _, r := range s.Requests() {
		if r.Faulty {
			faulty++
		}
	}
	if faulty < 3 { // the client may try a dropped request again
		t.Errorf("%d faulty requests on record, want 3 or more", faulty)
	}
}

func TestGitServesTheJobOfTheProject(t *testing.T) {
	s, commit := world(t)
	a := take(t, s, Job{})
	var p struct {
		Git struct {
			URL      string   `json:"repo_url"`
			SHA      string   `json:"sha"`
			Refspecs []string `json:"refspecs"`
		} `json:"git_info"`
	}
	if err := json.Unmarshal(a.Payload(), &p); err != nil {
		t.Fatal(err)
	}
	if p.Git.SHA != commit {
		t.Errorf("sha %s, want %s", p.Git.SHA, commit)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	if out, err := exec.Command("git", "init", "-q", clone).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	fetch := append([]string{"fetch", "-q", "--depth", "20", p.Git.URL}, p.Git.Refspecs...)
	if _, err := Git(clone, fetch...); err != nil {
		t.Fatal(err)
	}
	if got, err := Git(clone, "rev-parse", "refs/remotes/origin/main"); err != nil || got != commit {
		t.Errorf("fetched %s (%v), want %s", got, err, commit)
	}
	if _, err := Git(clone, "push", "-q", p.Git.URL, "HEAD:refs/heads/x"); err == nil {
		t.Error("a push was taken")
	}
}

func TestLongPollEndsWithTheJob(t *testing.T) {
	s, _ := world(t)
	s.opts.LongPoll = time.Minute
	status := make(chan int)
	go func() {
		resp, err := http.Post(s.URL()+"/api/v4/jobs/request", "application/json", strings.NewReader("{}"))
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	if _, err := s.AddJob(Job{}); err != nil {
		t.Fatal(err)
	}
	if got := <-status; got != http.StatusCreated {
		t.Errorf("status %d, want 201", got)
	}
}

func TestDependencies(t *testing.T) {
	s, _ := world(t)
	a := take(t, s, Job{Name: "first"})
	body, kind := multipartFile(t, "out.zip", "PK")
	do(t, "POST", fmt.Sprintf("%s/api/v4/jobs/%d/artifacts?artifact_type=archive", s.URL(), a.Job.ID), a.token, body, "Content-Type", kind)
	b, err := s.AddJob(Job{Dependencies: []int64{a.Job.ID}})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b.Payload()), `"dependencies":[{"id":4001,"name":"first"`) {
		t.Errorf("payload: %s", b.Payload())
	}
	if status, _, data := do(t, "GET", fmt.Sprintf("%s/api/v4/jobs/%d/artifacts?direct_download=true", s.URL(), a.Job.ID), a.token, ""); status != 200 || data != "PK" {
		t.Errorf("download: %d %q", status, data)
	}
	if _, err := s.AddJob(Job{Dependencies: []int64{1}}); err == nil {
		t.Error("an unknown dependency was taken")
	}
}

func TestJobWaitsForItsRunner(t *testing.T) {
	s, _ := world(t)
	if _, err := s.AddJob(Job{Runner: "glrt-one"}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		token string
		want  int
	}{{"glrt-two", 204}, {"", 204}, {"glrt-one", 201}, {"glrt-one", 204}} {
		if status, _, _ := do(t, "POST", s.URL()+"/api/v4/jobs/request", "", `{"token":"`+c.token+`"}`); status != c.want {
			t.Errorf("runner %q: %d, want %d", c.token, status, c.want)
		}
	}
}
