package egress

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

const (
	token   = "?sig=very-secret&sv=2021-12-02"
	blockA  = token + "&comp=block&blockid=AAAA"
	blockB  = token + "&comp=block&blockid=BBBB"
	lists   = token + "&comp=blocklist"
	listA   = "<BlockList><Latest>AAAA</Latest></BlockList>"
	listAB  = "<BlockList><Latest>AAAA</Latest><Latest>BBBB</Latest></BlockList>"
	part1   = "?partNumber=1&uploadId=up"
	partsOf = "?uploadId=up"
	listed  = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>&quot;tag&quot;</ETag></Part></CompleteMultipartUpload>"
	signed  = "Authorization: AWS4-HMAC-SHA256 Credential=key/20261127/us-east-1/s3/aws4_request, SignedHeaders=host%s, Signature=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// ask sends one request with a body, and returns the answer's status and all of it.
func (w *world) ask(method, target, body string, headers ...string) (status, answer string) {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "body")
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		w.t.Fatal(err)
	}
	args := []string{"-i", "-X", method, w.url(target), "-H", "Content-Type: text/plain"}
	if body != "" {
		args = append(args, "--data-binary", "@"+file)
	}
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	out, errs, _ := w.helperCurl(args...)
	if _, after, ok := strings.Cut(out, "HTTP/1.1 100 Continue\r\n\r\n"); ok {
		out = after
	}
	if len(out) < len("HTTP/1.1 200") {
		w.t.Fatalf("%s %s: %s%s", method, target, out, errs)
	}
	return out[len("HTTP/1.1 "):len("HTTP/1.1 200")], out
}

// blockStore takes every block and list, and answers as both vendors' do.
func blockStore(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	switch {
	case r.Method == http.MethodPost && r.URL.Query().Has("uploads"):
		_, _ = io.WriteString(w, `<InitiateMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Bucket>evil</Bucket><UploadId>up</UploadId></InitiateMultipartUploadResult>`)
	case r.Method == http.MethodPost:
		_, _ = io.WriteString(w, `<CompleteMultipartUploadResult><Location>evil</Location></CompleteMultipartUploadResult>`)
	case r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusNoContent)
	case r.URL.Query().Has("partNumber"):
		w.Header().Set("ETag", `"tag"`)
		w.Header().Set("X-Amz-Checksum-Crc32", "AAAAAA==")
		w.Header().Set("X-Evil", "evil")
	default:
		w.Header().Set("ETag", `"evil"`)
		w.WriteHeader(http.StatusCreated)
	}
}

func blockWorld(t *testing.T) (*world, *bucket, *keeper) {
	t.Helper()
	s, k := &bucket{answer: blockStore}, &keeper{}
	return cacheWorld(t, s, k, sandbox.ArchiveCache), s, k
}

func TestUploadInBlocks(t *testing.T) {
	w, s, k := blockWorld(t)
	for _, step := range []struct{ method, target, body, header, want string }{
		{"PUT", objectPath + blockB, "two", "X-Ms-Version: 2021-12-02", "201"},
		{"PUT", objectPath + blockA, "wrong", "X-Ms-Version: 2021-12-02", "201"},
		{"PUT", objectPath + blockA, "one", "X-Ms-Version: 2021-12-02", "201"},
		{"PUT", objectPath + lists, listAB, "X-Ms-Version: 2021-12-02", "201"},
		{"POST", objectPath + "?uploads=", "", fmt.Sprintf(signed, ""), "200"},
		{"PUT", objectPath + part1, "three", fmt.Sprintf(signed, ""), "200"},
		{"POST", objectPath + partsOf, listed, fmt.Sprintf(signed, ""), "200"},
		{"PUT", objectPath + part1, "four", fmt.Sprintf(signed, ""), "200"},
		{"DELETE", objectPath + partsOf, "", fmt.Sprintf(signed, ""), "204"},
	} {
		if status, answer := w.ask(step.method, step.target, step.body, step.header); status != step.want || strings.Contains(answer, "evil") || strings.Contains(answer, "Evil") {
			t.Errorf("%s %s: %s", step.method, step.target, answer)
		}
	}
	want := fmt.Sprintf("stored archive_cache ab/deps %.8s 6, stored archive_cache ab/deps %.8s 5", digest([]byte("onetwo")), digest([]byte("three")))
	if said := strings.Join(k.said, ", "); said != want {
		t.Errorf("said %q, want %q", said, want)
	}
	if n := len(s.requests()); n != 9 {
		t.Errorf("the storage was asked %d times", n)
	}
	fetches := of[record.Fetch](w.rec)
	if len(fetches) != 9 {
		t.Errorf("%d fetches", len(fetches))
	}
	for _, f := range fetches {
		if f.Bytes != 0 || strings.Contains(f.URL, "secret") || (f.RequestBytes == 0) != (f.Method == "DELETE" || strings.HasSuffix(f.URL, "uploads=")) {
			t.Errorf("fetched %+v", f)
		}
	}
	w.spoolIsEmpty()
	w.end(sandbox.Helper)
}

// TestUploadInBlocksThatIsRefused: the list of blocks does not reach the storage, so
// that nothing of them is ever seen.
func TestUploadInBlocksThatIsRefused(t *testing.T) {
	put := func(target, body string) func(*world) {
		return func(w *world) {
			if status, answer := w.ask("PUT", target, body, fmt.Sprintf(signed, "")); status[0] != '2' {
				w.t.Errorf("PUT %s: %s", target, answer)
			}
		}
	}
	for name, c := range map[string]struct {
		before       func(*world)
		target, list string
	}{
		"of no block":            {nil, lists, listA},
		"of a foreign block":     {put(objectPath+blockA, "one"), lists, listAB},
		"of what was committed":  {put(objectPath+blockA, "one"), lists, "<BlockList><Latest>AAAA</Latest><Committed>BBBB</Committed></BlockList>"},
		"of another object":      {put(objectPath+"2"+blockA, "one"), lists, listA},
		"of another upload":      {put(objectPath+"?partNumber=1&uploadId=other", "one"), partsOf, listed},
		"with another tag":       {put(objectPath+part1, "one"), partsOf, strings.Replace(listed, "tag", "gat", 1)},
		"of an earlier stage":    {func(w *world) { put(objectPath+blockA, "one")(w); w.begin(sandbox.ArchiveCacheFail) }, lists, listA},
		"of what was given up":   {func(w *world) { put(objectPath+part1, "one")(w); w.ask("DELETE", objectPath+partsOf, "") }, partsOf, listed},
		"of another upload's":    {func(w *world) { put(objectPath+blockA, "one")(w); put(objectPath+"2"+blockA, "two")(w) }, lists, listA},
		"in words of S3's":       {put(objectPath+blockA, "one"), lists, listed},
		"with something behind":  {put(objectPath+blockA, "one"), lists, listA + listA},
		"larger than it may":     {put(objectPath+blockA, strings.Repeat("a", maxCache/2+1)), lists, "<BlockList><Latest>AAAA</Latest><Latest>AAAA</Latest></BlockList>"},
		"that the store refused": {func(w *world) { put(objectPath+blockA, "one")(w); w.ask("PUT", objectPath+blockA+"&sr=fail", "two") }, lists, listA},
	} {
		t.Run(name, func(t *testing.T) {
			w, s, k := blockWorld(t)
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.RawQuery, "fail") {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				blockStore(w, r)
			}
			if c.before != nil {
				c.before(w)
			}
			asked := len(s.requests())
			method := "PUT"
			if c.target == partsOf {
				method = "POST"
			}
			if status, answer := w.ask(method, objectPath+c.target, c.list); status != "403" {
				t.Errorf("answer: %s", answer)
			}
			if n := len(s.requests()); n != asked {
				t.Errorf("the list went out")
			}
			if said := strings.Join(k.said, ", "); !strings.HasPrefix(said, "refused archive_cache") || strings.Contains(said, "stored") {
				t.Errorf("said %q", said)
			}
			w.begin(sandbox.UploadSuccess)
			w.spoolIsEmpty()
			w.end(sandbox.Helper)
		})
	}
}

// TestBlocksThatDoNotPass: not a byte of them reaches the storage.
func TestBlocksThatDoNotPass(t *testing.T) {
	const chunked = "X-Amz-Content-Sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER"
	frame := "3\r\none\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
	for name, c := range map[string]struct {
		method, target, body string
		headers              []string
	}{
		"too large":               {"PUT", blockA, strings.Repeat("a", maxCache+1), nil},
		"empty":                   {"PUT", blockA, "", []string{"Content-Length: 0"}},
		"of no size":              {"PUT", blockA, "one", []string{"Transfer-Encoding: chunked"}},
		"packed":                  {"PUT", blockA, "one", []string{"Content-Encoding: gzip"}},
		"a frame that is not one": {"PUT", part1, "one", []string{chunked, "Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 2"}},
		"a frame of another size": {"PUT", part1, frame, []string{chunked, "Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 2"}},
		"a frame without a size":  {"PUT", part1, frame, []string{chunked, "Content-Encoding: aws-chunked"}},
		"half a frame":            {"PUT", part1, frame, []string{chunked, "X-Amz-Decoded-Content-Length: 3"}},
		"the other half":          {"PUT", part1, frame, []string{"Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 3"}},
		"chunks with signatures":  {"PUT", part1, frame, []string{"X-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 3"}},
		"a frame of no signature": {"PUT", part1, frame, []string{chunked, "Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 3"}},
		"a frame in a signed URL": {"PUT", "?X-Amz-SignedHeaders=x-amz-content-sha256%3Bcontent-encoding&X-Amz-Signature=a", frame, []string{chunked, "Content-Encoding: aws-chunked", "X-Amz-Decoded-Content-Length: 3"}},
		"packed later":            {"POST", "?uploads=", "", []string{fmt.Sprintf(signed, ";content-encoding"), "Content-Encoding: gzip"}},
		"a copy of another":       {"PUT", part1, "one", []string{fmt.Sprintf(signed, ";x-amz-copy-source"), "X-Amz-Copy-Source: /ci/project/78/ab/deps"}},
		"public to all":           {"POST", "?uploads=", "", []string{fmt.Sprintf(signed, ";x-amz-acl"), "X-Amz-Acl: public-read"}},
		"signed and not there":    {"PUT", part1, "one", []string{fmt.Sprintf(signed, ";x-amz-date")}},
		"signed by another form":  {"PUT", part1, "one", []string{strings.Replace(fmt.Sprintf(signed, ""), "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", 1)}},
		"a body to begin with":    {"POST", "?uploads=", "one", nil},
		"the list of all":         {"GET", "?uploads=", "", nil},
		"two steps at once":       {"PUT", blockA + "&comp=blocklist", "one", nil},
		"a list too long":         {"PUT", lists, strings.Repeat(" ", 8<<20+1), nil},
		"a list that is packed":   {"PUT", lists, listA, []string{"Content-Encoding: gzip"}},
	} {
		t.Run(name, func(t *testing.T) {
			w, s, k := blockWorld(t)
			if status, answer := w.ask(c.method, objectPath+c.target, c.body, c.headers...); status[0] != '4' {
				t.Errorf("answer: %s", answer)
			}
			if n := len(s.requests()); n > 0 || strings.Contains(strings.Join(k.said, " "), "stored") {
				t.Errorf("the storage was asked %d times, said %q", n, k.said)
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
		})
	}
}

// TestStorageThatDoesNotTakeTheList: what it says besides its status is not trusted.
func TestStorageThatDoesNotTakeTheList(t *testing.T) {
	for name, answer := range map[string]string{
		"an error within 200": `<Error><Code>InternalError</Code></Error>`, "nothing within 200": "", "other words": "fine",
	} {
		t.Run(name, func(t *testing.T) {
			w, s, k := blockWorld(t)
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPost {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, answer)
					return
				}
				blockStore(w, r)
			}
			if status, answer := w.ask("POST", objectPath+"?uploads=", ""); status != "502" {
				t.Errorf("begin: %s", answer)
			}
			w.ask("PUT", objectPath+part1, "one")
			if status, answer := w.ask("POST", objectPath+partsOf, listed); status != "500" {
				t.Errorf("list: %s", answer)
			}
			if said := strings.Join(k.said, ", "); said != fmt.Sprintf("refused archive_cache ab/deps %.8s 3", digest([]byte("one"))) {
				t.Errorf("said %q", said)
			}
			w.end(sandbox.Helper)
			w.spoolIsEmpty()
		})
	}
}

func FuzzSignedHeader(f *testing.F) {
	f.Add("x-amz-date", "20261127T010906Z", "host;x-amz-date")
	f.Add("x-amz-acl", "public-read", "host;x-amz-acl")
	f.Add("content-encoding", "gzip", "content-encoding")
	f.Fuzz(func(t *testing.T, name, value, names string) {
		in := http.Header{}
		in.Set(name, value)
		out, err := signedHeader(in, strings.Replace(strings.TrimPrefix(signed, "Authorization: "), "host%s", names, 1))
		if err != nil {
			return
		}
		for have, values := range out {
			lower := strings.ToLower(have)
			switch {
			case lower == "user-agent" || lower == "accept-encoding" || lower == "authorization":
			case !strings.Contains(";"+names+";", ";"+lower+";"):
				t.Fatalf("%q goes out, which is not signed in %q", have, names)
			case !signable[lower] && !strings.HasPrefix(lower, "x-amz-checksum-") || lower == "content-encoding" && values[0] != "aws-chunked":
				t.Fatalf("%q goes out: %q", have, values)
			}
		}
	})
}

// TestPartsOfACache: Azure's kit asks for parts, which are of the whole that was
// looked up.
func TestPartsOfACache(t *testing.T) {
	s, k := &bucket{objects: map[string][]byte{objectPath: []byte("0123456789")}}, &keeper{}
	w := cacheWorld(t, s, k, sandbox.RestoreCache)
	for _, c := range []struct{ asked, status, want string }{
		{"bytes=0-3", "206", "0123"}, {"bytes=4-", "206", "456789"}, {"bytes=8-100", "206", "89"}, {"bytes=0-9", "200", "0123456789"},
		{"bytes=10-", "403", ""}, {"bytes=3-2", "403", ""}, {"bytes=-3", "403", ""}, {"bytes=0-1,3-4", "403", ""},
	} {
		status, answer := w.ask("GET", objectPath+token, "", "X-Ms-Range: "+c.asked)
		if status != c.status || c.want != "" && !strings.HasSuffix(answer, "\r\n\r\n"+c.want) {
			t.Errorf("%s: %s", c.asked, answer)
		}
		if status == "206" && !strings.Contains(answer, fmt.Sprintf("Content-Range: bytes %d-", strings.Index("0123456789", c.want))) {
			t.Errorf("%s: %s", c.asked, answer)
		}
	}
	if n := len(s.requests()); n != 1 || len(k.said) != 1 {
		t.Errorf("the storage was asked %d times, said %q", n, k.said)
	}
	w.end(sandbox.Helper)
}
