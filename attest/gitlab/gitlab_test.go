package gitlab_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest/gitlab"
)

const token = "glcbt-64_TOKEN"

func facts() gitlab.Facts {
	return gitlab.Facts{
		ID: 4242, Name: "compile", Stage: "build", ProjectID: 77, PipelineID: 9001, UserID: 3, Ref: "main",
		SHA: "3f786850e387550fdab836ed7e6dc881de23001b",
	}
}

const answer = `{"id":4242,"status":"running","stage":"build","name":"compile","ref":"main","tag":false,"coverage":null,
"web_url":"https://gitlab.example.com/group/project/-/jobs/4242","commit":{"id":"3f786850e387550fdab836ed7e6dc881de23001b","title":"x"},
"pipeline":{"id":9001,"iid":4,"project_id":77,"sha":"3f786850e387550fdab836ed7e6dc881de23001b","ref":"main"},"user":{"id":3,"username":"u"},
"runner":{"id":7,"description":"r"},"runner_manager":{"id":1,"system_id":"s_0123456789ab"},"erased_at":null}`

func serve(t *testing.T, h http.HandlerFunc) *gitlab.Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return client(t, s.URL, nil)
}

func client(t *testing.T, base string, roots *x509.CertPool) *gitlab.Client {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	c, err := gitlab.New(u, roots)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func says(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, body)
	}
}

func TestConfirmed(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v4/job" || r.Header.Get("JOB-TOKEN") != token || r.Method != "GET" {
			t.Errorf("asked %s %s with token %q", r.Method, r.URL, r.Header.Get("JOB-TOKEN"))
		}
		says(answer)(w, r)
	})
	have, err := c.Check(t.Context(), token, facts())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(gitlab.Confirmed{Project: "group/project", Host: "gitlab.example.com", Runner: 7, Manager: "s_0123456789ab"}, have); diff != "" {
		t.Error(diff)
	}
}

func TestRelativeRoot(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/git/lab/api/v4/job" {
			t.Errorf("asked %s", r.URL)
		}
		says(strings.ReplaceAll(answer, "example.com/", "example.com/git/lab/"))(w, r)
	}))
	defer s.Close()
	for _, base := range []string{s.URL + "/git/lab", s.URL + "/git/lab/"} {
		have, err := client(t, base, nil).Check(t.Context(), token, facts())
		if err != nil || have.Project != "group/project" {
			t.Errorf("%+v, %v", have, err)
		}
	}
}

func TestWebAddresses(t *testing.T) {
	for web, want := range map[string]string{
		"https://g.example.com/a/b/c/-/jobs/4242": "a/b/c",
		"https://g.example.com/a/b/-/jobs/4243":   "",
		"https://g.example.com/a/b":               "",
		"":                                        "",
		"%zz":                                     "",
	} {
		body := strings.Replace(answer, "https://gitlab.example.com/group/project/-/jobs/4242", web, 1)
		have, err := serve(t, says(body)).Check(t.Context(), token, facts())
		if have.Project != want || (err == nil) != (want != "") || errors.As(err, new(*gitlab.Disagreement)) {
			t.Errorf("%q: %+v, %v", web, have, err)
		}
	}
}

func TestDisagreements(t *testing.T) {
	for field, change := range map[string]func(*gitlab.Facts){
		"id":          func(f *gitlab.Facts) { f.ID++ },
		"name":        func(f *gitlab.Facts) { f.Name = "other" },
		"stage":       func(f *gitlab.Facts) { f.Stage = "other" },
		"project id":  func(f *gitlab.Facts) { f.ProjectID++ },
		"pipeline id": func(f *gitlab.Facts) { f.PipelineID++ },
		"user id":     func(f *gitlab.Facts) { f.UserID++ },
		"ref":         func(f *gitlab.Facts) { f.Ref = "release" },
		"tag":         func(f *gitlab.Facts) { f.Tag = true },
		"commit":      func(f *gitlab.Facts) { f.SHA = strings.Repeat("0", 40) },
		"runner":      func(f *gitlab.Facts) { f.Runner = 8 },
	} {
		f := facts()
		change(&f)
		_, err := serve(t, says(answer)).Check(t.Context(), token, f)
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for field, body := range map[string]string{
		"status":          strings.Replace(answer, `"running"`, `"canceled"`, 1),
		"pipeline commit": strings.Replace(answer, `"sha":"3f`, `"sha":"00`, 1),
		"id":              `{}`,
		"user id":         strings.Replace(answer, `"user":{"id":3,"username":"u"}`, `"user":null`, 1),
		"erasure":         strings.Replace(answer, `"erased_at":null`, `"erased_at":"2026-11-26T12:00:00.000Z"`, 1),
		"runner":          strings.Replace(answer, `"runner":{"id":7,"description":"r"}`, `"runner":null`, 1),
	} {
		_, err := serve(t, says(body)).Check(t.Context(), token, facts())
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// atOpening is what was confirmed when the job was opened.
func atOpening() gitlab.Facts {
	f := facts()
	f.Runner, f.Manager = 7, "s_0123456789ab"
	return f
}

func TestClosing(t *testing.T) {
	for name, c := range map[string]struct{ from, to, field string }{
		"running":         {"", "", ""},
		"canceling":       {`"running"`, `"canceling"`, "status"},
		"canceled":        {`"running"`, `"canceled"`, "status"},
		"success":         {`"running"`, `"success"`, "status"},
		"a new status":    {`"running"`, `"waiting_for_callback"`, "status"},
		"erased":          {`"erased_at":null`, `"erased_at":"2026-11-26T12:00:00.000Z"`, "erasure"},
		"another runner":  {`"runner":{"id":7`, `"runner":{"id":8`, "runner"},
		"no runner":       {`"runner":{"id":7,"description":"r"}`, `"runner":null`, "runner"},
		"another machine": {`s_0123456789ab`, `s_0123456789ac`, "runner's machine"},
		"another commit":  {`"commit":{"id":"3f`, `"commit":{"id":"00`, "commit"},
		"another user":    {`"user":{"id":3`, `"user":{"id":4`, "user id"},
	} {
		body := strings.Replace(answer, c.from, c.to, 1)
		err := serve(t, says(body)).Closing(t.Context(), token, atOpening(), "success")
		d, ok := errors.AsType[*gitlab.Disagreement](err)
		if c.field == "" && err != nil || c.field != "" && (!ok || d.Field != c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	canceling := serve(t, says(strings.Replace(answer, `"running"`, `"canceling"`, 1)))
	for _, result := range []string{"canceled", "failed", "timeout"} {
		if err := canceling.Closing(t.Context(), token, atOpening(), result); err != nil {
			t.Errorf("%s while canceling: %v", result, err)
		}
	}
	ended := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if d, ok := errors.AsType[*gitlab.Disagreement](ended.Closing(t.Context(), token, atOpening(), "success")); !ok || !d.TokenEnded() {
		t.Error("a token that ended is no disagreement about it")
	}
}

// TestEnded has the jobs that are asked about once their token has ended.
func TestEnded(t *testing.T) {
	for name, c := range map[string]struct{ status, result, from, to, field string }{
		"success":            {status: "success", result: "success"},
		"failed":             {status: "failed", result: "failed"},
		"timed out":          {status: "failed", result: "canceled"},
		"canceled":           {status: "canceled", result: "canceled"},
		"still running":      {status: "running", result: "success"},
		"being canceled":     {status: "canceling", result: "canceled"},
		"canceled meanwhile": {status: "canceling", result: "success", field: "status"},
		"runner deleted":     {status: "success", result: "success", from: `"runner":{"id":7,"description":"r"}`, to: `"runner":null`},
		"turned red":         {status: "failed", result: "success", field: "status"},
		"canceled after all": {status: "canceled", result: "success", field: "status"},
		"turned green":       {status: "success", result: "failed", field: "status"},
		"never ran":          {status: "pending", result: "success", field: "status"},
		"erased":             {status: "success", result: "success", from: `"erased_at":null`, to: `"erased_at":"2026-11-26T12:00:00.000Z"`, field: "erasure"},
		"another runner":     {status: "success", result: "success", from: `"runner":{"id":7`, to: `"runner":{"id":8`, field: "runner"},
		"another project":    {status: "success", result: "success", from: `"project_id":77`, to: `"project_id":78`, field: "project id"},
	} {
		body := strings.Replace(strings.Replace(answer, `"running"`, `"`+c.status+`"`, 1), c.from, c.to, 1)
		client := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/api/v4/projects/77/jobs/4242" || r.Header.Get("PRIVATE-TOKEN") != "glpat-own" || r.Header.Get("JOB-TOKEN") != "" {
				t.Errorf("asked %s with %q", r.URL, r.Header.Get("PRIVATE-TOKEN"))
			}
			says(body)(w, r)
		}).WithToken(func() (string, error) { return "glpat-own", nil })
		err := client.Ended(t.Context(), atOpening(), c.result)
		d, ok := errors.AsType[*gitlab.Disagreement](err)
		if c.field == "" && err != nil || c.field != "" && (!ok || d.Field != c.field) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEndedUndecided has what leaves open how a job ended.
func TestEndedUndecided(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
	if err := c.Ended(t.Context(), atOpening(), "success"); !errors.Is(err, gitlab.ErrNoToken) {
		t.Errorf("without a token: %v", err)
	}
	for name, read := range map[string]func() (string, error){
		"may not see it": func() (string, error) { return "glpat-own", nil },
		"no file":        func() (string, error) { return "", errors.New("no such file") },
		"empty":          func() (string, error) { return "", nil },
		"two lines":      func() (string, error) { return "a\nb", nil },
	} {
		err := c.WithToken(read).Ended(t.Context(), atOpening(), "success")
		if _, security := errors.AsType[*gitlab.Disagreement](err); err == nil || security || strings.Contains(err.Error(), "glpat") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokenFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	read := gitlab.TokenFile(file)
	if _, err := read(); err == nil {
		t.Error("a token from nowhere")
	}
	for _, token := range []string{"glpat-one", "glpat-two"} {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if have, err := read(); err != nil || have != token {
			t.Errorf("%q, %v", have, err)
		}
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := read(); err == nil {
		t.Error("a file that everybody reads")
	}
}

func TestTokenRefused(t *testing.T) {
	for _, code := range []int{401, 403, 404} {
		_, err := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }).Check(t.Context(), token, facts())
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != "token" {
			t.Errorf("%d: %v", code, err)
		}
	}
	asked := false
	c := serve(t, func(http.ResponseWriter, *http.Request) { asked = true })
	for _, bad := range []string{"", "a b", "a\r\nX: y", "ä", strings.Repeat("x", 5000)} {
		_, err := c.Check(t.Context(), bad, facts())
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != "token" || asked {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
}

// TestUndecided has everything after which nobody knows more than before.
func TestUndecided(t *testing.T) {
	elsewhere := httptest.NewServer(says(answer))
	defer elsewhere.Close()
	for name, h := range map[string]http.HandlerFunc{
		"down": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/api/v4/job", http.StatusFound)
		},
		"other type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, answer)
		},
		"not json":   says("<html>"),
		"cut":        says(answer[:len(answer)/2]),
		"two values": says(answer + answer),
		"not utf-8":  says("{\"name\":\"\xff\"}"),
		"huge":       says(`{"name":"` + strings.Repeat("x", 2<<20) + `"}`),
		"wrong type": says(`{"id":"4242"}`),
		"big number": says(`{"id":99999999999999999999}`),
		"empty":      says(""),
		"closed": func(w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		},
	} {
		_, err := serve(t, h).Check(t.Context(), token, facts())
		if _, security := errors.AsType[*gitlab.Disagreement](err); err == nil || security {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("%s: the error tells the token", name)
		}
	}
}

func TestContextEnds(t *testing.T) {
	release := make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Check(ctx, token, facts()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestRoots(t *testing.T) {
	s := httptest.NewTLSServer(says(answer))
	defer s.Close()
	pool := x509.NewCertPool()
	if _, err := client(t, s.URL, pool).Check(t.Context(), token, facts()); err == nil {
		t.Error("an unknown certificate: accepted")
	}
	pool.AddCert(s.Certificate())
	if _, err := client(t, s.URL, pool).Check(t.Context(), token, facts()); err != nil {
		t.Error(err)
	}
}

func TestAddresses(t *testing.T) {
	for _, base := range []string{"", "gitlab.example.com", "ftp://gitlab.example.com", "https://user:pw@gitlab.example.com", "https:///x"} {
		u, err := url.Parse(base)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := gitlab.New(u, nil); err == nil {
			t.Errorf("%q: accepted", base)
		}
	}
	if _, err := gitlab.New(nil, nil); err == nil {
		t.Error("nil: accepted")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(answer))
	f.Add([]byte(`{"id":1e3,"commit":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		// An answer agrees with the facts only if it is about them.
		_, err := gitlab.Agrees(body, facts())
		if err == nil && !strings.Contains(string(body), "running") && !strings.Contains(string(body), `\u`) {
			t.Errorf("%s agrees", body)
		}
	})
}
