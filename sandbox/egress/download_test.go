package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// TestDownloadIsLookedUpFirst: the client has no byte of an artifact before the
// check has seen all of it, nor of one that is refused, wherever GitLab has it.
func TestDownloadIsLookedUpFirst(t *testing.T) {
	path := fmt.Sprintf("/api/v4/jobs/%d/artifacts", depID)
	content := strings.Repeat("artifact", 200_000)
	for name, c := range map[string]struct {
		err    error
		want   string // rule of the refusal
		status string
		failed bool // the stage
	}{
		"attested":        {nil, "", "200", false},
		"replaced":        {&sandbox.SecurityError{Err: errors.New("artifacts of build differ")}, ruleViolation, "403", true},
		"not admitted":    {&sandbox.UserError{Err: errors.New("not attested"), Hint: "attest"}, ruleOrigins, "403", false},
		"nobody to ask":   {errors.New("no answer"), ruleUpload, "500", true},
		"no check at all": {nil, ruleOrigins, "403", false},
	} {
		for _, stored := range []string{"in GitLab", "in object storage"} {
			t.Run(name+" "+stored, func(t *testing.T) {
				var storage string
				serve := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, content) })
				asked := 0
				w := newWorld(t, options{profile: sandbox.Hermetic, origin: serve,
					gitlab: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						if storage != "" {
							http.Redirect(rw, r, storage, http.StatusFound)
							return
						}
						serve(rw, r)
					}),
					change: func(cfg *Config) {
						cfg.CheckDownload = func(_ context.Context, job int64, sha256 string) (string, string, error) {
							asked++
							if job != depID || sha256 != digest([]byte(content)) {
								t.Errorf("asked for %s of job %d", sha256, job)
							}
							return "https://ci.example.com/7", strings.Repeat("b", 64), c.err
						}
						if name == "no check at all" {
							cfg.CheckDownload = nil
						}
					}})
				if stored == "in object storage" {
					storage = w.url("/bucket/a.zip")
				}
				w.begin(sandbox.DownloadArtifacts)
				out, errs, _ := w.helperCurl("-i", w.gitlabURL(path))
				if !strings.Contains(out, "HTTP/1.1 "+c.status) {
					t.Errorf("answer: %.300s %s", out, errs)
				}
				if given := strings.Contains(out, "artifactartifact"); given != (c.want == "") {
					t.Errorf("was it given? %v", given)
				}
				fetched := of[record.Fetch](w.rec)
				if c.want == "" {
					if len(fetched) != 1 || fetched[0].Attestation != strings.Repeat("b", 64) || fetched[0].Invocation != "https://ci.example.com/7" ||
						fetched[0].Bytes != int64(len(content)) || fetched[0].Rule != policy.RuleDownload || asked != 1 {
						t.Errorf("asked %d times, fetched %+v", asked, fetched)
					}
				} else if len(fetched) > 0 {
					t.Errorf("fetched %+v", fetched)
				}
				violations := of[record.Violation](w.rec)
				if (len(violations) > 0) != (c.want == ruleViolation) {
					t.Errorf("violations: %+v", violations)
				}
				err := w.b.End(sandbox.Helper)
				if (err != nil) != c.failed {
					t.Errorf("the stage ended with %v", err)
				}
				if _, security := errors.AsType[*sandbox.SecurityError](err); security != (c.want == ruleViolation) {
					t.Errorf("the stage ended with %v", err)
				}
				if left, err := os.ReadDir(w.b.cfg.SpoolDir); err != nil || len(left) > 0 {
					t.Errorf("%d files in the spool, %v", len(left), err)
				}
			})
		}
	}
}

// TestDownloadInParts: GitLab's answers that are no artifact are not looked up,
// and parts of one are not given.
func TestDownloadInParts(t *testing.T) {
	path := fmt.Sprintf("/api/v4/jobs/%d/artifacts", depID)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
		fetch  bool
	}{
		"not there": {func(rw http.ResponseWriter, _ *http.Request) { http.Error(rw, "no artifacts", http.StatusNotFound) }, "404 Not Found", true},
		"a part": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(rw, "part")
		}, "403 GitLab's answer is not", false},
		"packed": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(rw, "part")
		}, "403 GitLab's answer is not", false},
		"cut off": {func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(rw, "part")
		}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{profile: sandbox.Hermetic, gitlab: c.answer, change: func(cfg *Config) {
				cfg.CheckDownload = func(context.Context, int64, string) (string, string, error) {
					t.Error("it was looked up")
					return "", "", nil
				}
			}})
			w.begin(sandbox.DownloadArtifacts)
			out, _, _ := w.helperCurl("-i", w.gitlabURL(path))
			if !strings.Contains(out, c.want) || strings.Contains(out, "part\n") || strings.HasSuffix(out, "part") {
				t.Errorf("answer: %s", out)
			}
			fetched := of[record.Fetch](w.rec)
			if (len(fetched) == 1) != c.fetch || c.fetch && fetched[0].Status == 0 {
				t.Errorf("fetched %+v", fetched)
			}
			w.end(sandbox.Helper)
		})
	}
}
