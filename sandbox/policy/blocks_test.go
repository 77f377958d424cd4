package policy

import (
	"net/url"
	"strings"
	"testing"

	"hallmark.build/sandbox"
)

func TestParseStep(t *testing.T) {
	const block = "pNFB9NiKRud5gyLMbzRJ1QAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
	const upload = "db835ae1-60d0-46b4-adca-416298372c35"
	for _, c := range []struct {
		method, query string
		want          Step
		rest          string
	}{
		{"PUT", "", Step{}, ""},
		{"GET", "sig=a&acl", Step{}, "sig=a&acl"}, // for others to judge
		{"PUT", "blockid=" + url.QueryEscape(block) + "&comp=block&se=1&sig=a", Step{Kind: StepBlock, Block: block}, "se=1&sig=a"},
		{"PUT", "comp=blocklist&sig=a&sig=b", Step{Kind: StepCommit}, "sig=a&sig=b"},
		{"POST", "uploads=", Step{Kind: StepBegin}, ""},
		{"POST", "uploads", Step{Kind: StepBegin}, ""},
		{"PUT", "partNumber=10000&uploadId=" + upload + "&x-id=UploadPart", Step{Kind: StepBlock, Upload: upload, Block: "10000"}, "x-id=UploadPart"},
		{"POST", "uploadId=" + upload, Step{Kind: StepCommit, Upload: upload}, ""},
		{"DELETE", "uploadId=" + upload, Step{Kind: StepAbort, Upload: upload}, ""},
	} {
		got, rest, err := parseStep(c.method, c.query)
		if err != nil || got != c.want || rest != c.rest {
			t.Errorf("%s %s: %+v, %q, %v: want %+v, %q", c.method, c.query, got, rest, err, c.want, c.rest)
		}
	}
	for _, line := range []string{
		"PUT comp=", "PUT comp=copy", "PUT comp=block", "PUT comp=metadata", "GET comp=blocklist", "POST comp=blocklist", "DELETE comp=blocklist",
		"PUT comp=block&comp=blocklist", "PUT comp=blocklist&comp=", "PUT comp=blocklist&blockid=AAAA", "PUT blockid=AAAA", "PUT comp=block&blockid=", "PUT comp=block&blockid=A",
		"PUT comp=block&blockid=AA+A", "PUT comp=block&blockid=AAB=", "PUT comp=block&blockid=" + strings.Repeat("AAAA", 22), "PUT comp=block&blockid=AAAA&blockid=BBBB",
		"PUT uploads", "POST uploads=1", "POST uploads&uploadId=a", "POST uploads&uploads", "GET uploads", "GET uploadId=a", "HEAD partNumber=1", "PUT uploadId=a",
		"PUT partNumber=1", "PUT partNumber=0&uploadId=a", "PUT partNumber=01&uploadId=a", "PUT partNumber=10001&uploadId=a", "PUT partNumber=1&partNumber=2&uploadId=a",
		"PUT partNumber=AAAA&uploadId=", "PUT partNumber=1&uploadId=a%2fb", "POST uploadId=", "DELETE uploadId=", "POST uploadId=a&partNumber=1", "PUT comp=blocklist&uploadId=a",
		"PUT comp=block;blockid=AAAA", "PUT comp=%zz",
	} {
		method, query, _ := strings.Cut(line, " ")
		if got, _, err := parseStep(method, query); err == nil {
			t.Errorf("%s: read as %+v", line, got)
		}
	}
}

func TestDecideUploadsInBlocks(t *testing.T) {
	const azure, s3, token = "https://account.example.com/caches/runner%2Ftok_-1%2Fproject%2F77%2F", "https://minio.example.com:9000/b/project/77/", "sp=w&se=1&spr=https&sv=2026-06-06&sr=b&sig=a%2Fb%3D"
	policy := func() Policy {
		p := stored(t)
		p.Caches = append(p.Caches, parse(t, "https://account.example.com/caches"))
		return p
	}
	for _, c := range []struct {
		stage  sandbox.Stage
		line   string
		access CacheAccess
		step   Step
	}{
		{sandbox.RestoreCache, "GET " + azure + "deps?" + token, CacheRead, Step{}},
		{sandbox.RestoreCache, "HEAD " + azure + "deps?" + token, CacheLook, Step{}},
		{sandbox.ArchiveCache, "PUT " + azure + "deps?" + token, CacheWrite, Step{}},
		{sandbox.ArchiveCache, "PUT " + azure + "deps?comp=block&blockid=AAAA&" + token, CacheWrite, Step{Kind: StepBlock, Block: "AAAA"}},
		{sandbox.ArchiveCacheFail, "PUT " + azure + "deps?comp=blocklist&" + token, CacheWrite, Step{Kind: StepCommit}},
		{sandbox.RestoreCache, "GET " + s3 + "deps?x-id=GetObject", CacheRead, Step{}},
		{sandbox.ArchiveCache, "PUT " + s3 + "deps?x-id=PutObject", CacheWrite, Step{}},
		{sandbox.ArchiveCache, "POST " + s3 + "deps?uploads=", CacheWrite, Step{Kind: StepBegin}},
		{sandbox.ArchiveCache, "PUT " + s3 + "deps?partNumber=1&uploadId=a&x-id=UploadPart", CacheWrite, Step{Kind: StepBlock, Upload: "a", Block: "1"}},
		{sandbox.ArchiveCache, "POST " + s3 + "deps?uploadId=a", CacheWrite, Step{Kind: StepCommit, Upload: "a"}},
		{sandbox.ArchiveCache, "DELETE " + s3 + "deps?uploadId=a", CacheWrite, Step{Kind: StepAbort, Upload: "a"}},
	} {
		d := policy().Decide(request(t, c.stage, c.line))
		if !d.Allow || d.Cache != c.access || d.Step != c.step || d.Object != "deps" {
			t.Errorf("%s %s: %+v", c.stage, c.line, d)
		}
	}
	for _, line := range []string{
		"DELETE " + azure + "deps?" + token, "POST " + azure + "deps?comp=blocklist&" + token, "PUT " + azure + "deps?comp=properties&" + token, "PUT " + azure + "deps?comp=blocklist&rsct=a&" + token,
		"PUT " + azure + "deps?comp=block&blockid=AAAA&timeout=1&" + token, "PUT " + azure + "deps?comp=blocklist", "PUT " + azure + "deps", "PUT " + azure + "deps%2F..%2F..%2F78%2Fdeps?" + token,
		"PUT " + azure + "..%2F78%2Fdeps?" + token, "PUT https://account.example.com/caches?restype=container&" + token, "PUT https://account.example.com/caches/project%2F78%2Fdeps?comp=blocklist&" + token,
		"PUT https://account.example.com/caches%2Fproject%2F77%2Fdeps?" + token, "PUT https://account.example.com/caches/project%252F77%252Fdeps?" + token,
		"DELETE " + s3 + "deps", "POST " + s3 + "deps", "POST " + s3 + "deps?delete", "POST " + s3 + "deps?restore", "POST " + s3 + "deps?select&select-type=2", "PUT " + s3 + "deps?partNumber=1&uploadId=a&acl",
		"GET " + s3 + "deps?partNumber=1", "GET " + s3 + "deps?uploadId=a", "GET https://minio.example.com:9000/b?uploads", "DELETE https://minio.example.com:9000/b/project/78/deps?uploadId=a",
	} {
		if d := policy().Decide(request(t, sandbox.ArchiveCache, line)); d.Allow || d.Cache != "" || d.Step != (Step{}) {
			t.Errorf("%s: %+v", line, d)
		}
	}
	for _, line := range []string{
		"PUT " + azure + "deps?comp=block&blockid=AAAA&" + token, "PUT " + azure + "deps?comp=blocklist&" + token,
		"POST " + s3 + "deps?uploads=", "PUT " + s3 + "deps?partNumber=1&uploadId=a", "POST " + s3 + "deps?uploadId=a", "DELETE " + s3 + "deps?uploadId=a",
	} {
		for _, stage := range []sandbox.Stage{sandbox.RestoreCache, sandbox.BuildScript, sandbox.UploadSuccess, sandbox.GetSources} {
			if d := policy().Decide(request(t, stage, line)); d.Allow {
				t.Errorf("%s %s: %+v", stage, line, d)
			}
		}
	}
}
