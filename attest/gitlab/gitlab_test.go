package gitlab_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
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
"pipeline":{"id":9001,"iid":4,"project_id":77,"sha":"3f786850e387550fdab836ed7e6dc881de23001b","ref":"main"},"user":{"id":3,"username":"u"}}`

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
	if diff := cmp.Diff(gitlab.Confirmed{Project: "group/project", Host: "gitlab.example.com"}, have); diff != "" {
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
	} {
		_, err := serve(t, says(body)).Check(t.Context(), token, facts())
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != field {
			t.Errorf("%s: %v", field, err)
		}
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
