package integration

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/servers"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// objectStorage is an S3 server that the runner keeps caches in, empty.
type objectStorage struct {
	t      *testing.T
	client *minio.Client
}

func newObjectStorage(t *testing.T) objectStorage {
	t.Helper()
	s, err := servers.StartStorage(t.Context(), world.StorageBucket, world.StorageAccessKey, world.StorageSecretKey)
	if err != nil {
		t.Fatal(err)
	}
	theWorld.Storage.Answer(s.Proxy())
	t.Cleanup(func() {
		theWorld.Storage.Answer(http.NotFoundHandler())
		s.Stop()
	})
	return objectStorage{t, s.Client(t)}
}

// objectOf is where the runner keeps the cache of a key of project 77.
func objectOf(key string) string {
	hash := sha256Hex([]byte(key))
	return "ci/project/77/" + hash[:2] + "/" + hash
}

func (s objectStorage) get(name string) []byte {
	s.t.Helper()
	o, err := s.client.GetObject(s.t.Context(), world.StorageBucket, name, minio.GetObjectOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	defer o.Close()
	data, err := io.ReadAll(o)
	if err != nil {
		s.t.Fatalf("%s: %v", name, err)
	}
	return data
}

func (s objectStorage) put(name string, data []byte) {
	s.t.Helper()
	if _, err := s.client.PutObject(s.t.Context(), world.StorageBucket, name, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s objectStorage) names() []string {
	s.t.Helper()
	var out []string
	for o := range s.client.ListObjectsIter(s.t.Context(), world.StorageBucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			s.t.Fatal(o.Err)
		}
		out = append(out, o.Key)
	}
	return out
}

// storedJob is a caching job of the runner that keeps caches there.
func storedJob(script []string, rules ...coordinator.CacheRule) coordinator.Job {
	job := cachingJob(script, rules...)
	job.Runner = world.Stored
	return job
}

func pulled(rule coordinator.CacheRule) coordinator.CacheRule {
	rule.Policy = "pull"
	return rule
}

// localCaches are those that this host keeps.
func localCaches(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cacheDir, "objects", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestCacheInObjectStorageIsADependencyOfTheNext(t *testing.T) {
	s := newObjectStorage(t)
	rule := cacheRule(t, "deps")
	local := one(t, miss(t, cachingJob(append(see, fill...), rule)), "stored") // by a runner without it
	before := localCaches(t)
	first := miss(t, storedJob(append(see, fill...), rule))
	stored := one(t, first, "stored")
	made := attested(t, first)
	if after := localCaches(t); len(after) != len(before) {
		t.Errorf("this host kept one too: %v, before %v", after, before)
	}
	if data := s.get(objectOf(rule.Key)); sha256Hex(data) != stored.SHA256 || int64(len(data)) != stored.Bytes {
		t.Errorf("%d bytes in the bucket, recorded %+v", len(data), stored)
	}
	if !strings.Contains(made.Statement.Raw, stored.SHA256) {
		t.Error("what was stored is no subject")
	}
	mention(t, first, "cache   "+rule.Key+": sha256:"+stored.SHA256+", for later jobs")

	job := storedJob(append(see, "cp deps/a out.txt"), rule)
	job.Artifacts = coordinator.Archive("out.txt")
	second := hit(t, job)
	restored := one(t, second, "restored")
	mention(t, second, "attested, of job", "Successfully extracted cache")
	if restored.SHA256 != stored.SHA256 || restored.Key != rule.Key || restored.Attestation == "" || restored.SHA256 == local.SHA256 {
		t.Errorf("stored %+v, restored %+v, local %+v", stored, restored, local)
	}
	var st struct {
		Predicate struct {
			Definition struct {
				Dependencies []struct {
					Name, URI, DownloadLocation string
					Digest                      map[string]string
					Annotations                 map[string]any
				} `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
			Completeness map[string]string `json:"hallmark_completeness"`
		}
	}
	raw := attested(t, second).Statement.Raw
	if err := json.Unmarshal([]byte(raw), &st); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, d := range st.Predicate.Definition.Dependencies {
		if d.Digest["sha256"] != stored.SHA256 {
			continue
		}
		found++
		want := "https://" + world.StorageName + "/" + world.StorageBucket + "/" + objectOf(rule.Key)
		if d.Name != "cache/"+rule.Key+".zip" || d.DownloadLocation != want || d.Annotations["hallmark_attestation"] != "sha256:"+restored.Attestation {
			t.Errorf("dependency %+v", d)
		}
	}
	if found != 1 || st.Predicate.Completeness["caches"] != "border" {
		t.Errorf("%d dependencies of that digest; caches are %s", found, st.Predicate.Completeness["caches"])
	}
	for _, r := range []coordinator.Result{first, second} {
		text, err := json.Marshal(evidence(t, r))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"X-Amz-Signature=", "X-Amz-Credential="} {
			if n := strings.Count(string(text), secret); n == 0 || n != strings.Count(string(text), secret+"REDACTED") {
				t.Errorf("job %d: %s in the record: %d", r.ID, secret, n)
			}
		}
		never(t, r, "X-Amz-Signature")
	}
}

// TestPoisonedObjectIsRefusedAndTheJobGoesOn: who can write to the bucket can take
// caches away from jobs, and give them none.
func TestPoisonedObjectIsRefusedAndTheJobGoesOn(t *testing.T) {
	s := newObjectStorage(t)
	good, bad := cacheRule(t, "good"), cacheRule(t, "bad")
	one(t, miss(t, storedJob(append(see, fill...), good)), "stored")
	evil := zipOf(t, "deps/a", "evil\n")
	s.put(objectOf(bad.Key), evil)
	r := miss(t, storedJob(see, pulled(bad)))
	never(t, r, "\nevil")
	if used := one(t, r, "refused"); used.SHA256 != sha256Hex(evil) || used.Key != bad.Key || !strings.Contains(used.Detail, "no attested job") {
		t.Errorf("%+v", used)
	}
	mention(t, r, "cache   "+bad.Key+": refused", "Failed to extract cache")
	rule := pulled(cacheRule(t, "none"))
	rule.FallbackKeys = []string{bad.Key, good.Key}
	all := cachesOf(t, hit(t, storedJob(see, rule)))
	if len(all) != 2 || all[0].Action != "refused" || all[0].Key != bad.Key || all[1].Action != "restored" || all[1].Key != good.Key {
		t.Errorf("fallback keys: %+v", all)
	}
	// The runner looks for the key's plain name too, and takes what is newer.
	s.put("ci/project/77/"+good.Key, evil)
	r = miss(t, storedJob(see, pulled(good)))
	if used := one(t, r, "refused"); used.Key != good.Key || used.SHA256 != sha256Hex(evil) {
		t.Errorf("%+v", used)
	}
	// Of jobs of others nobody has any: the storage does not know them apart.
	hash := objectOf(good.Key)
	for name, change := range map[string]func(*coordinator.Job){
		"protected ref": func(j *coordinator.Job) { j.Protected = true },
		"other project": func(j *coordinator.Job) { j.ProjectID = 78 },
	} {
		s.put(strings.Replace(hash, "project/77", "project/78", 1), s.get(hash))
		s.put("ci/project/77/"+good.Key, s.get(hash))
		job := storedJob(see, pulled(good))
		change(&job)
		if used := one(t, miss(t, job), "refused"); !strings.Contains(used.Detail, "no attested job") {
			t.Errorf("%s: %+v", name, used)
		}
	}
}

func TestModesOfCachesInObjectStorage(t *testing.T) {
	s := newObjectStorage(t)
	rule := cacheRule(t, "deps")
	one(t, miss(t, storedJob(append(see, fill...), rule)), "stored")
	other := pulled(cacheRule(t, "other"))
	s.put(objectOf(other.Key), zipOf(t, "deps/a", "of unknown origin\n"))
	mode := func(word string, try func()) {
		t.Helper()
		restore, err := theWorld.ConfigureSandboxd(func(config string) string {
			return strings.Replace(config, "[cache]\n", "[cache]\nhermetic = \""+word+"\"\n", 1)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := restore(); err != nil {
				t.Error(err)
			}
		}()
		try()
	}
	mode("full", func() {
		r := run(t, storedJob(see, other))
		expect(t, r, coordinator.Success, "")
		mention(t, r, "\nof unknown origin")
		if used := one(t, r, "restored"); used.Attestation != "" {
			t.Errorf("%+v", used)
		}
		if one(t, hit(t, storedJob(see, pulled(rule))), "restored").Attestation == "" {
			t.Error("one that is attested is given as if it were not")
		}
	})
	mode("off", func() {
		r := miss(t, storedJob(see, rule))
		if all := cachesOf(t, r); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		if fetched := dataOf[record.Fetch](t, evidence(t, r), record.Fetched); strings.Contains(lines(urls(fetched)), world.StorageName) {
			t.Errorf("fetched %+v", fetched)
		}
	})
}

func urls(fetched []record.Fetch) []string {
	var out []string
	for _, f := range fetched {
		out = append(out, f.URL)
	}
	return out
}

// TestHelperOfATenantAtTheObjectStorage: the helper is the tenant's, and it holds
// the runner's URLs. It can write to no other project, and nothing but sealed files.
func TestHelperOfATenantAtTheObjectStorage(t *testing.T) {
	s := newObjectStorage(t)
	victim := strings.Replace(objectOf("victim"), "project/77", "project/78", 1)
	s.put(victim, []byte("the victim's"))
	fake := `#!/bin/sh
PATH=/usr/local/bin:/usr/bin:/bin
before=; url=; check=
for arg; do
	case $before in --url) url=$arg;; --check-url) check=$arg;; esac
	before=$arg
done
[ "$1" = cache-archiver ] || exec gitlab-runner "$@"
mkdir -p /tmp/evil && cd /tmp/evil && echo evil > evil
pack() { rm -f /tmp/evil/cache.zip; gitlab-runner cache-archiver --path evil --file /tmp/evil/cache.zip "$@"; }
pack --url "$url"
pack --url "$(echo "$url" | sed s,project/77,project/78,)"
pack --url "$(echo "$url" | sed s,/caches/,/others/,)"
pack --url "$url&tagging"
gitlab-runner cache-extractor --file /tmp/evil/got.zip --url "$check"
exit 0
`
	job := storedJob(append(fill, "mkdir -p /builds/bin", `printf %s "$FAKE" > /builds/bin/gitlab-runner`, "chmod 755 /builds/bin/gitlab-runner",
		`echo 'PATH=/builds/bin:/usr/local/bin:/usr/bin:/bin' >> "$GITLAB_ENV"`), cacheRule(t, "deps"))
	job.Variables = []coordinator.Variable{{Key: "FAKE", Value: fake, Public: true, Raw: true}}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	if used := one(t, r, "refused"); used.Stage != "archive_cache" || used.SHA256 == "" {
		t.Errorf("%+v", used)
	}
	if names := s.names(); len(names) != 1 || names[0] != victim || string(s.get(victim)) != "the victim's" {
		t.Errorf("in the bucket: %v", names)
	}
	blocked := lines(targets(dataOf[record.Block](t, evidence(t, r), record.Blocked)))
	for _, want := range []string{"PUT project/78", "PUT /others/", "PUT &tagging", "GET project/77"} {
		method, part, _ := strings.Cut(want, " ")
		if !strings.Contains(blocked, part) || !strings.Contains(blocked, method+" ") {
			t.Errorf("not refused: %s\n%s", want, blocked)
		}
	}
	if strings.Contains(blocked, world.StorageAccessKey) {
		t.Errorf("the record has credentials:\n%s", blocked)
	}
}

func targets(blocks []record.Block) []string {
	var out []string
	for _, b := range blocks {
		out = append(out, b.Method+" "+b.Target)
	}
	return out
}
