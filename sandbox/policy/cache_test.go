package policy

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
)

const (
	objectHash = "b1e5ad6a4f0b5c50ef1cb3a5ca5e34b7fd54b1f9a7ef7c1f5a8f0c1f0b4e2a91"
	presigned  = "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k%2F20261127%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20261127T010000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&x-id=GetObject&X-Amz-Signature=" + objectHash
)

// stored is a policy of project 77 with caches in two places.
func stored(t testing.TB) Policy {
	p := firewalled(t)
	p.Job.Project = 77
	p.Caches = []*url.URL{parse(t, "https://minio.example.com:9000"), parse(t, "https://storage.example.com/bucket")}
	return p
}

func TestDecideCaches(t *testing.T) {
	const minio, gcs = "https://minio.example.com:9000", "https://storage.example.com/bucket"
	for _, tt := range []struct {
		stage sandbox.Stage
		line  string
		want  Decision
	}{
		{sandbox.RestoreCache, "GET " + minio + "/b/runner/tok_-1/project/77/b1/" + objectHash + presigned, Decision{Rule: RuleCacheRead, Cache: CacheRead, Object: "b1/" + objectHash}},
		{sandbox.RestoreCache, "HEAD " + minio + "/b/project/77/deps-main" + presigned, Decision{Rule: RuleCacheRead, Cache: CacheLook, Object: "deps-main"}},
		{sandbox.RestoreCache, "GET " + minio + "/project/77/a/b%20c%C3%A9", Decision{Rule: RuleCacheRead, Cache: CacheRead, Object: "a/b cé"}},
		{sandbox.RestoreCache, "GET " + gcs + "/ci/project/77/deps?Expires=1&GoogleAccessId=a%40b&Signature=c%2F", Decision{Rule: RuleCacheRead, Cache: CacheRead, Object: "deps"}},
		{sandbox.RestoreCache, "GET " + gcs + "/project/77/deps?sv=2020&se=1&sr=b&sp=r&sig=x", Decision{Rule: RuleCacheRead, Cache: CacheRead, Object: "deps"}},
		{sandbox.ArchiveCache, "PUT " + gcs + "/project/77/project/78/deps", Decision{Rule: RuleCacheWrite, Cache: CacheWrite, Object: "project/78/deps"}},
		{sandbox.ArchiveCacheFail, "PUT " + minio + "/b/project/77/deps" + presigned, Decision{Rule: RuleCacheWrite, Cache: CacheWrite, Object: "deps"}},
		{sandbox.ArchiveCacheFail, "HEAD " + minio + "/b/project/77/deps" + presigned, Decision{Rule: RuleCacheWrite, Cache: CacheLook, Object: "deps"}},
	} {
		for _, profile := range []sandbox.Profile{sandbox.Hermetic, sandbox.Firewalled} {
			p := stored(t)
			p.Profile, tt.want.Allow = profile, true
			if diff := cmp.Diff(tt.want, p.Decide(request(t, tt.stage, tt.line))); diff != "" {
				t.Errorf("%s %s: %s", tt.stage, tt.line, diff)
			}
		}
	}

	refused := map[sandbox.Stage][]string{
		sandbox.RestoreCache: {
			"PUT " + minio + "/b/project/77/deps", "POST " + minio + "/b/project/77/deps", "DELETE " + minio + "/b/project/77/deps",
			"GET " + minio + "/b/project/78/deps", "GET " + minio + "/b/project/077/deps", "GET " + minio + "/b/project/+77/deps", "GET " + minio + "/b/project/-77/deps",
			"GET " + minio + "/b/project/78/project/77/deps", "GET " + minio + "/b/project/77/", "GET " + minio + "/b/project/77", "GET " + minio + "/b/project/77/a/",
			"GET " + minio + "/", "GET " + minio + "/b?list-type=2", "GET " + minio + "/b/xproject/77/deps", "GET " + minio + "/b/Project/77/deps",
			"GET " + minio + "/b/project/77/..%2f..%2fproject/78/deps", "GET " + minio + "/b/project/77/../78/deps", "GET " + minio + "/b/project%2f77/deps",
			"GET " + minio + "/b/project/77;/deps", "GET " + minio + "/b/project/77/a%3bb", "GET " + minio + "/b/project//77/deps", "GET " + minio + "/b/%70roject/77/deps",
			"GET " + minio + "/b/project/77/deps?acl", "GET " + minio + "/b/project/77/deps?versionId=1", "GET " + minio + "/b/project/77/deps?response-content-encoding=gzip",
			"GET " + minio + "/b/project/77/deps?sig=a&sig=b", "GET " + minio + "/b/project/77/deps?sig=a;acl", "GET " + minio + "/b/project/77/deps?X-Amz-Copy-Source=x",
			"GET http://minio.example.com:9000/b/project/77/deps", "GET https://minio.example.com/b/project/77/deps", "GET https://minio.example.org:9000/b/project/77/deps",
			"GET https://b.minio.example.com:9000/project/77/deps",
			"GET https://storage.example.com/other/project/77/deps", "GET https://storage.example.com/bucket2/project/77/deps", "GET https://storage.example.com/project/77/deps",
		},
		sandbox.ArchiveCache: {
			"GET " + minio + "/b/project/77/deps", "PUT " + minio + "/b/project/78/deps", "PUT " + minio + "/b/project/77/deps?uploads", "PUT " + minio + "/b/project/77/deps?tagging",
			"POST " + minio + "/b/project/77/deps", "DELETE " + minio + "/b/project/77/deps",
		},
		sandbox.DownloadArtifacts: {"GET " + minio + "/b/project/77/deps"}, sandbox.UploadSuccess: {"PUT " + minio + "/b/project/77/deps"},
		sandbox.GetSources: {"GET " + minio + "/b/project/77/deps"}, sandbox.PrepareScript: {"GET " + minio + "/b/project/77/deps"},
		sandbox.BuildScript: {"GET " + minio + "/b/project/77/deps"}, sandbox.StepScript: {"GET " + minio + "/b/project/77/deps"}, sandbox.AfterScript: {"PUT " + minio + "/b/project/77/deps"},
	}
	for stage, list := range refused {
		for _, line := range list {
			if d := stored(t).Decide(request(t, stage, line)); d.Allow || d.Cache != "" || d.Reason == "" {
				t.Errorf("%s %s: %+v", stage, line, d)
			}
		}
	}
	none := stored(t)
	none.Caches = nil
	if d := none.Decide(request(t, sandbox.RestoreCache, "GET "+minio+"/b/project/77/deps")); d.Allow || !strings.Contains(d.Remedy, "cache.servers") || !strings.Contains(d.Remedy, "[runners.cache]") {
		t.Errorf("without a place: %+v", d)
	}
	nobody := stored(t)
	nobody.Job.Project = 0
	if d := nobody.Decide(request(t, sandbox.RestoreCache, "GET "+minio+"/b/project/0/deps")); d.Allow {
		t.Errorf("a job of no project: %+v", d)
	}
}

func TestDigestCoversPlacesOfCaches(t *testing.T) {
	a, b, c := stored(t), stored(t), stored(t)
	b.Caches = []*url.URL{parse(t, "https://STORAGE.example.com:443/bucket/"), parse(t, "https://minio.example.com:9000/")}
	c.Caches = c.Caches[:1]
	if a.Digest() != b.Digest() {
		t.Error("the same places in other words have another digest")
	}
	if a.Digest() == c.Digest() || c.Digest() == firewalled(t).Digest() {
		t.Error("other places have the same digest")
	}
}

func FuzzCachesStayInTheirProject(f *testing.F) {
	for _, p := range []string{"/bucket/project/77/deps", "/bucket/project/78/project/77/deps", "/bucket/project/77/%2e%2e/x", "/bucket/./project/77/x", "/bucket/project/77/..;/x", "/bucket/project/77/a%2f..%2f..", "/bucketproject/77/x"} {
		f.Add("GET", p, "X-Amz-Signature=a")
		f.Add("PUT", p, "acl")
		f.Add("PUT", p, "comp=block&blockid=AAAA&sig=a")
		f.Add("POST", p, "uploadId=a")
	}
	f.Fuzz(func(t *testing.T, method, p, query string) {
		pol := stored(t)
		pol.Caches = pol.Caches[1:]
		for _, stage := range []sandbox.Stage{sandbox.RestoreCache, sandbox.ArchiveCache, sandbox.ArchiveCacheFail, sandbox.GetSources, sandbox.BuildScript, sandbox.DownloadArtifacts, sandbox.UploadSuccess} {
			r := Request{Role: stage.Role(), Stage: stage, Scheme: "https", Method: method, Host: "storage.example.com", Port: 443, Path: p, RawQuery: query}
			d := pol.Decide(r)
			if !d.Allow {
				continue
			}
			clean := lenient(p)
			_, after, ok := strings.Cut(clean, "/project/77/")
			if !ok || after == "" || !strings.HasPrefix(clean, "/bucket/") {
				t.Fatalf("%s %s %q allowed, which a lenient server reads as %q: %+v", stage, method, p, clean, d)
			}
			want := map[string]CacheAccess{"HEAD": CacheLook, "GET": CacheRead, "PUT": CacheWrite}[method]
			if d.Step.Kind != "" {
				want = CacheWrite
			}
			if d.Cache != want || want == CacheRead && stage != sandbox.RestoreCache || want == CacheWrite && stage == sandbox.RestoreCache || d.Object == "" || d.Follow || d.Upload {
				t.Fatalf("%s %s %q: %+v", stage, method, p, d)
			}
			if values, err := url.ParseQuery(query); err != nil || d.Step.Kind == "" && (values.Has("comp") || values.Has("blockid") || values.Has("uploads") || values.Has("uploadId") || values.Has("partNumber")) {
				t.Fatalf("query %q allowed for the whole", query)
			}
			for part := range strings.SplitSeq(strings.ToLower(query), "&") {
				name, _, _ := strings.Cut(part, "=")
				for _, bad := range []string{"acl", "tagging", "versionid", "delete", "list-type", "response-content-encoding"} {
					if name == bad {
						t.Fatalf("query %q allowed", query)
					}
				}
			}
		}
	})
}
