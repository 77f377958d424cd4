package coordinator

import (
	"errors"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"hallmark.build/attest/gitlab"
)

const readToken = "glpat-read"

// asked is a server, a job that runs there, and what the authority would ask.
func asked(t *testing.T) (*Server, *Attempt, *gitlab.Client, gitlab.Facts) {
	t.Helper()
	s, err := New(Options{ReadToken: readToken})
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	if err := s.SetURL(web.URL); err != nil {
		t.Fatal(err)
	}
	a, err := s.AddJob(Job{SHA: "3f786850e387550fdab836ed7e6dc881de23001b", Held: true, IDTokens: map[string]string{"HALLMARK_ID_TOKEN": "authority"}})
	if err != nil {
		t.Fatal(err)
	}
	a.Start()
	base, err := url.Parse(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := gitlab.New(base, nil)
	if err != nil {
		t.Fatal(err)
	}
	j := &a.Job
	facts := gitlab.Facts{ID: j.ID, Name: j.Name, Stage: j.Stage, ProjectID: j.ProjectID, PipelineID: j.PipelineID, UserID: j.UserID, Ref: j.Ref, SHA: j.SHA}
	return s, a, client, facts
}

// TestAnswersAboutJobs goes through a job's life as the authority asks about it.
func TestAnswersAboutJobs(t *testing.T) {
	_, a, client, facts := asked(t)
	was, err := client.Check(t.Context(), a.Token(), facts)
	if err != nil {
		t.Fatal(err)
	}
	facts.Runner, facts.Manager = was.Runner, was.Manager
	client = client.WithToken(func() (string, error) { return readToken, nil })
	closing := func() string { return field(client.Closing(t.Context(), a.Token(), facts, "canceled")) }
	ended := func(result string) string { return field(client.Ended(t.Context(), facts, result)) }
	for _, step := range []struct {
		name    string
		do      func()
		closing string
		success string
		failed  string
	}{
		{"running", func() {}, "", "", ""},
		{"canceling", a.Cancel, "", "status", ""},
		{"canceled", a.ForceCancel, "token", "status", ""},
		{"success", func() { a.End(Success) }, "token", "", "status"},
		{"failed", func() { a.End(Failed) }, "token", "status", ""},
		{"moved", func() { a.End(Running); a.MoveTo(8, "s_other") }, "runner", "runner", "runner"},
		{"machine", func() { a.MoveTo(was.Runner, "s_other") }, "runner's machine", "runner's machine", "runner's machine"},
		{"erased", func() { a.MoveTo(was.Runner, was.Manager); a.Erase() }, "token", "erasure", "erasure"},
	} {
		step.do()
		if c, s, f := closing(), ended("success"), ended("failed"); c != step.closing || s != step.success || f != step.failed {
			t.Errorf("%s: closing %q, ended in success %q, in failure %q", step.name, c, s, f)
		}
	}
}

func field(err error) string {
	if d, ok := errors.AsType[*gitlab.Disagreement](err); ok {
		return d.Field
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestIDTokensVerify(t *testing.T) {
	s, a, _, facts := asked(t)
	base, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	facts.Runner = runnerID
	for audience, want := range map[string]string{"authority": "", "sigstore": "id token's audience"} {
		v, err := gitlab.NewIDTokens(base, audience, nil, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), a.Job.signed["HALLMARK_ID_TOKEN"], facts); field(err) != want {
			t.Errorf("%s: %v", audience, err)
		}
	}
}
