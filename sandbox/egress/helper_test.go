package egress

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// gitServer serves a repository with git's own program.
func gitServer(t *testing.T) http.Handler {
	t.Helper()
	root := t.TempDir()
	work := filepath.Join(root, "work")
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Env = append(cmd.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	run("init", "-q", work)
	run("-C", work, "commit", "-q", "--allow-empty", "-m", "first")
	run("clone", "-q", "--bare", work, filepath.Join(root, "group", "project.git"))
	run("-C", filepath.Join(root, "group", "project.git"), "config", "http.receivepack", "true")
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	return &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, InheritEnv: []string{"PATH"},
	}
}

func TestGetSources(t *testing.T) {
	w := newWorld(t, options{profile: sandbox.Hermetic, gitlab: gitServer(t)})
	w.begin(sandbox.GetSources)
	dst := filepath.Join(t.TempDir(), "clone")
	git := func(args ...string) (string, int) {
		out, errs, code := w.run(sandbox.Helper, append([]string{"env", "GIT_SSL_CAINFO=" + w.caFile, "GIT_TERMINAL_PROMPT=0", "git"}, args...)...)
		return out + errs, code
	}
	if out, code := git("clone", "-q", w.gitlabURL(repo), dst); code != 0 {
		t.Fatalf("clone: %s", out)
	}
	var urls []string
	for _, f := range of[record.Fetch](w.rec) {
		if f.Rule != "source" || f.Role != "helper" || f.Stage != "get_sources" || f.Incomplete != "" || f.Bytes == 0 || (f.Method == "POST") != (f.RequestSHA256 != "") {
			t.Errorf("fetched: %+v", f)
		}
		urls = append(urls, f.Method+" "+f.URL)
	}
	if len(urls) < 2 || urls[0] != "GET "+w.gitlabURL(repo)+"/info/refs?service=git-upload-pack" || urls[len(urls)-1] != "POST "+w.gitlabURL(repo)+"/git-upload-pack" {
		t.Errorf("fetched: %q", urls)
	}
	// What was asked for was read on its way, from the client's own bytes.
	head, _ := git("-C", dst, "rev-parse", "HEAD")
	fetches := of[record.Fetch](w.rec)
	want := &record.GitRequest{Command: "fetch", Wants: []string{strings.TrimSpace(head)}, Pack: true}
	if diff := cmp.Diff(want, fetches[len(fetches)-1].Git); diff != "" {
		t.Error(diff)
	}
	for name, args := range map[string][]string{
		"nothing git would say": {"--data-binary", "want everything"},
		"a foreign encoding":    {"-H", "Content-Encoding: zstd", "--data-binary", "0000"},
		"too long to be read":   {"--data-binary", "@" + tooLong(t)},
	} {
		w.helperCurl(append(args, w.gitlabURL(repo)+"/git-upload-pack")...)
		all := of[record.Fetch](w.rec)
		if f := all[len(all)-1]; f.Method != "POST" || f.RequestBytes == 0 || f.Git != nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if out, code := git("-C", dst, "push", "origin", "HEAD:refs/heads/evil"); code == 0 || !strings.Contains(out, "rule stage") {
		t.Errorf("push: exit %d: %s", code, out)
	}
	if out, code := git("clone", "-q", w.gitlabURL("/group/other.git"), dst+"2"); code == 0 {
		t.Errorf("clone of another repository: %s", out)
	}
	w.end(sandbox.Helper)
	w.begin(sandbox.RestoreCache)
	if out, code := git("ls-remote", w.gitlabURL(repo)); code == 0 || !strings.Contains(out, "needs no network") {
		t.Errorf("ls-remote in another stage: exit %d: %s", code, out)
	}
}

func TestDownloadArtifacts(t *testing.T) {
	path := fmt.Sprintf("/api/v4/jobs/%d/artifacts?direct_download=true", depID)
	var location string
	var storage *seen
	setup := func(t *testing.T, to func(w *world) string) *world {
		storage = &seen{}
		w := newWorld(t, options{profile: sandbox.Hermetic, origin: storage, gitlab: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Job-Token") != "dep" {
				http.Error(rw, "no token", http.StatusUnauthorized)
				return
			}
			if location == "" || r.URL.Path == "/direct" {
				_, _ = io.WriteString(rw, "direct")
				return
			}
			http.Redirect(rw, r, location, http.StatusFound)
		})})
		location = to(w)
		w.begin(sandbox.DownloadArtifacts)
		return w
	}
	get := func(w *world) string {
		out, errs, _ := w.helperCurl("-i", "-H", "Job-Token: dep", "-H", "Authorization: Bearer dep", w.gitlabURL(path))
		return out + errs
	}
	t.Run("direct", func(t *testing.T) {
		w := setup(t, func(*world) string { return "" })
		if out := get(w); !strings.HasSuffix(out, "direct") {
			t.Errorf("answer: %s", out)
		}
	})
	t.Run("object storage", func(t *testing.T) {
		w := setup(t, func(w *world) string { return w.url("/bucket/a.zip?X-Amz-Signature=abc&X-Amz-Date=1") })
		out := get(w)
		if !strings.Contains(out, "HTTP/1.1 200 ") || !strings.HasSuffix(out, "good") {
			t.Fatalf("answer: %s", out)
		}
		if storage.header.Get("Job-Token") != "" || storage.header.Get("Authorization") != "" {
			t.Errorf("credentials crossed hosts: %v", storage.header)
		}
		f := of[record.Fetch](w.rec)
		if len(f) != 1 || f[0].URL != w.gitlabURL(path) || len(f[0].Redirects) != 1 || f[0].SHA256 != digest([]byte("good")) {
			t.Fatalf("fetched: %+v", f)
		}
		if f[0].Redirects[0] != w.url("/bucket/a.zip?X-Amz-Signature=REDACTED&X-Amz-Date=REDACTED") {
			t.Errorf("redirect recorded as %s", f[0].Redirects[0])
		}
	})
	for name, tt := range map[string]struct {
		to   func(w *world) string
		rule string
	}{
		"private":          {func(w *world) string { return "https://10.0.0.1/x" }, "private-address"},
		"metadata":         {func(w *world) string { return "https://169.254.169.254/x" }, "private-address"},
		"downgrade":        {func(w *world) string { return strings.Replace(w.url("/x"), "https", "http", 1) }, "redirect"},
		"file":             {func(w *world) string { return "file:///etc/passwd" }, "redirect"},
		"user":             {func(w *world) string { return strings.Replace(w.url("/x"), "good.test", "a@good.test", 1) }, "redirect"},
		"other gitlab api": {func(w *world) string { return "/api/v4/jobs/1/trace" }, "redirect"},
		"gitlab elsewhere": {func(w *world) string { return "/direct" }, "redirect"},
		"dots":             {func(w *world) string { return w.url("/x/%2e%2e/y") }, "redirect"},
		"loop":             {func(w *world) string { return path }, "redirect"},
		"numeric host":     {func(w *world) string { return "https://0x7f.1/" }, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			w := setup(t, tt.to)
			if out := get(w); !strings.Contains(out, "HTTP/1.1 403 ") || !strings.Contains(out, "X-Hallmark-Rule: "+tt.rule) {
				t.Errorf("answer: %s", out)
			}
			w.wantBlock(tt.rule, w.gitlabURL("/api"))
			w.wantNoFetch()
			if storage.hits.Load() != 0 {
				t.Error("the storage was asked")
			}
		})
	}
}

// tooLong is a file with more than the border reads of a git request.
func tooLong(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "request")
	if err := os.WriteFile(name, bytes.Repeat([]byte("0000"), maxKept/4+1), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
