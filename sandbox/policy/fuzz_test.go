package policy

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"hallmark.build/sandbox"
)

// lenient reads a path as the most obliging server would: decoded until nothing
// changes, backslashes as slashes, parameters dropped, dots resolved.
func lenient(p string) string {
	for range 8 {
		next := strings.ReplaceAll(p, "\\", "/")
		if plain, err := url.PathUnescape(next); err == nil {
			next = plain
		}
		if next == p {
			break
		}
		p = next
	}
	segments := strings.Split(p, "/")
	for i := range segments {
		segments[i], _, _ = strings.Cut(segments[i], ";")
		segments[i] = strings.TrimRight(segments[i], "\x00 ")
	}
	return strings.ToLower(path.Clean("/" + strings.Join(segments, "/")))
}

func FuzzTenantNeverReachesRunnerAPI(f *testing.F) {
	for _, s := range []string{
		"/api/v4/jobs/1", "/api/v4/projects/1", "/api/v4/%6aobs", "//api/v4/jobs", "/x/../api/v4/jobs", "/api/v4/runners", "/api/v4/job", "/api%2fv4/jobs",
		"/api/v4;x/jobs", "/API/V4/JOBS", "/api/v4%252fjobs", "/api\\v4\\jobs", "/api/v4/./jobs",
	} {
		f.Add("GET", "gitlab.example.com", s, "")
	}
	f.Fuzz(func(t *testing.T, method, host, p, query string) {
		pol := firewalled(t)
		pol.Allow = append(pol.Allow, Rule{Name: "everything", Host: "gitlab.example.com", Methods: []string{"GET", "POST", "PUT", "PATCH", "DELETE"}})
		for _, scheme := range []string{"https", "http"} {
			r := Request{Role: sandbox.Build, Stage: sandbox.BuildScript, Scheme: scheme, Method: method, Host: host, Port: map[string]int{"https": 443, "http": 80}[scheme], Path: p, RawQuery: query}
			d := pol.Decide(r)
			if !d.Allow {
				if d.Rule == "" || d.Reason == "" {
					t.Fatalf("refused without rule or reason: %+v", d)
				}
				continue
			}
			clean := lenient(p)
			for _, bad := range []string{"/api/v4/job", "/api/v4/runner"} {
				if strings.HasPrefix(clean, bad) {
					t.Fatalf("%q allowed, which a lenient server reads as %q", p, clean)
				}
			}
			if strings.Contains(clean+"/", "/../") {
				t.Fatalf("%q allowed with dots", p)
			}
			if d.Upload || d.Follow {
				t.Fatalf("%q got a helper's grant", p)
			}
		}
	})
}

func FuzzHelperStaysInItsRepository(f *testing.F) {
	f.Add("GET", "/group/project.git/info/refs", "service=git-upload-pack")
	f.Add("POST", "/group/project.git/git-upload-pack", "")
	f.Add("POST", "/api/v4/jobs/42/artifacts", "artifact_type=archive")
	f.Fuzz(func(t *testing.T, method, p, query string) {
		pol := firewalled(t)
		for _, stage := range []sandbox.Stage{sandbox.GetSources, sandbox.DownloadArtifacts, sandbox.UploadSuccess, sandbox.RestoreCache} {
			r := Request{Role: sandbox.Helper, Stage: stage, Scheme: "https", Method: method, Host: "gitlab.example.com", Port: 443, Path: p, RawQuery: query}
			d := pol.Decide(r)
			if !d.Allow {
				continue
			}
			clean := lenient(p)
			ok := map[sandbox.Stage]func() bool{
				sandbox.GetSources: func() bool {
					return strings.HasPrefix(clean, "/group/project.git/") && !strings.Contains(clean, "receive-pack") && !d.Upload
				},
				sandbox.DownloadArtifacts: func() bool {
					return method == "GET" && (clean == "/api/v4/jobs/7/artifacts" || clean == "/api/v4/jobs/8/artifacts")
				},
				sandbox.UploadSuccess: func() bool { return method == "POST" && clean == "/api/v4/jobs/42/artifacts" && d.Upload },
				sandbox.RestoreCache:  func() bool { return false },
			}[stage]
			if !ok() {
				t.Fatalf("%s %s %q?%q allowed: %+v", stage, method, p, query, d)
			}
		}
	})
}

func FuzzCanonicalHost(f *testing.F) {
	for _, s := range []string{"example.com", "127.1", "[::1]", "ｅ.com", "a@b", "0x7f.1", "xn--a", "::ffff:1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		host, err := CanonicalHost(s)
		if err != nil {
			return
		}
		again, err := CanonicalHost(host)
		if err != nil || again != host {
			t.Fatalf("%q became %q, which becomes %q (%v)", s, host, again, err)
		}
		if strings.ContainsAny(host, "@/\\?#%[] \t\r\n") || host != strings.ToLower(host) {
			t.Fatalf("%q became %q", s, host)
		}
	})
}
