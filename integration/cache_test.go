package integration

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/sandbox/record"
)

// cacheDir is where the world's daemon keeps caches.
const cacheDir = "/var/lib/hallmark/sandboxd/cache"

// cacheRule is the usual rule, under a key of the test's own.
func cacheRule(t *testing.T, key string) coordinator.CacheRule {
	return coordinator.CacheRule{Key: key + "-" + t.Name(), Paths: []string{"deps/"}}
}

// cachingJob has caches, and no artifacts.
func cachingJob(script []string, rules ...coordinator.CacheRule) coordinator.Job {
	job := hermetic(script...)
	job.Caches = rules
	return job
}

// fill is the first pipeline's script, see the next one's: what it finds.
var (
	fill = []string{"mkdir -p deps/sub", "echo one > deps/a", "echo two > deps/sub/b", "chmod 755 deps/a", "ln -s a deps/link"}
	see  = []string{"cat deps/a deps/sub/b deps/link 2>/dev/null || echo it is empty"}
)

// cachesOf are the record's entries about caches.
func cachesOf(t *testing.T, r coordinator.Result) []record.Cache {
	t.Helper()
	return harness.DataOf[record.Cache](t, harness.Evidence(t, r), record.CacheUsed)
}

// one requires a single entry, of what became of a cache.
func one(t *testing.T, r coordinator.Result, action string) record.Cache {
	t.Helper()
	all := cachesOf(t, r)
	if len(all) != 1 || all[0].Action != action {
		t.Fatalf("job %d: caches %+v, want one %s", r.ID, all, action)
	}
	return all[0]
}

// hit and miss are jobs that find their cache, or do not.
func hit(t *testing.T, job coordinator.Job) coordinator.Result {
	t.Helper()
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\none\ntwo\none")
	return r
}

func miss(t *testing.T, job coordinator.Job) coordinator.Result {
	t.Helper()
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "\nit is empty")
	never(t, r, "\none\ntwo")
	return r
}

func TestCacheOfOneJobIsADependencyOfTheNext(t *testing.T) {
	rule := cacheRule(t, "deps")
	rule.Key = "deps-$CI_COMMIT_REF_SLUG-" + t.Name()
	job := cachingJob(fill, rule)
	job.Variables = []coordinator.Variable{{Key: "CI_COMMIT_REF_SLUG", Value: "main", Public: true}}
	first := run(t, job)
	expect(t, first, coordinator.Success, "")
	stored := one(t, first, "stored")
	made := attested(t, first)

	job.Script = append(see, "cp deps/a out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	second := hit(t, job)
	mention(t, second, "attested, of job", "Successfully extracted cache")
	restored := one(t, second, "restored")
	if restored.SHA256 != stored.SHA256 || restored.Key != "deps-main-"+t.Name() {
		t.Errorf("stored %+v, restored %+v", stored, restored)
	}
	type dependency struct {
		Name        string            `json:"name"`
		Digest      map[string]string `json:"digest"`
		Annotations map[string]any    `json:"annotations"`
	}
	var st struct {
		Predicate struct {
			Definition struct {
				Dependencies []dependency `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
			Run struct {
				Metadata struct {
					Invocation string `json:"invocationId"`
				} `json:"metadata"`
			} `json:"runDetails"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal([]byte(made.Statement.Raw), &st); err != nil {
		t.Fatal(err)
	}
	invocation := st.Predicate.Run.Metadata.Invocation
	if err := json.Unmarshal([]byte(attested(t, second).Statement.Raw), &st); err != nil {
		t.Fatal(err)
	}
	for _, d := range st.Predicate.Definition.Dependencies {
		if d.Name != "cache/"+restored.Key+".zip" {
			continue
		}
		if d.Digest["sha256"] != stored.SHA256 || d.Annotations["hallmark_invocation"] != invocation {
			t.Errorf("dependency %+v, want sha256 %s of %s", d, stored.SHA256, invocation)
		}
		bundle, _ := d.Annotations["hallmark_attestation"].(string)
		if status, body := harness.Get(t, "/v1/bundles/"+bundle); status != 200 || !strings.Contains(string(body), "dsseEnvelope") {
			t.Errorf("its attestation %q: %d", bundle, status)
		}
		return
	}
	t.Errorf("the cache is no dependency: %+v", st.Predicate.Definition.Dependencies)
}

func TestCachePoliciesAndFallbacks(t *testing.T) {
	rule := cacheRule(t, "deps")
	push := rule
	push.Policy = "push"
	one(t, miss(t, cachingJob(append(see, fill...), push)), "stored")
	if all := cachesOf(t, miss(t, cachingJob(append(see, fill...), push))); len(all) != 1 || all[0].Action != "stored" {
		t.Errorf("a cache that is only pushed: %+v", all)
	}
	pull := rule
	pull.Policy = "pull"
	one(t, hit(t, cachingJob(append(see, "echo more > deps/c"), pull)), "restored")
	one(t, hit(t, cachingJob(see, rule)), "restored") // nothing new: not kept again

	other := cacheRule(t, "other")
	other.FallbackKeys = []string{"nobody-" + t.Name(), rule.Key}
	all := cachesOf(t, hit(t, cachingJob(see, other)))
	if len(all) != 2 || all[0].Action != "restored" || all[0].Key != rule.Key || all[1].Action != "stored" || all[1].Key != other.Key {
		t.Errorf("fallback key: %+v", all)
	}
	job := cachingJob(see, cacheRule(t, "third"))
	job.Variables = []coordinator.Variable{{Key: "CACHE_FALLBACK_KEY", Value: rule.Key, Public: true}}
	hit(t, job)
}

func TestCacheOfAFailedJobAndUntrackedFiles(t *testing.T) {
	rule, always := cacheRule(t, "deps"), cacheRule(t, "always")
	always.When, always.Untracked, always.Paths = "always", true, nil
	r := run(t, cachingJob(append(fill, "exit 3"), rule, always))
	expect(t, r, coordinator.Failed, "script_failure")
	if k := one(t, r, "stored"); k.Key != always.Key {
		t.Errorf("kept %+v", k)
	}
	miss(t, cachingJob(see, rule))
	hit(t, cachingJob(see, always))
}

// TestCachesOfOthers: no job is given what another project's made, nor what a ref
// of the other protection left, whatever its variables say.
func TestCachesOfOthers(t *testing.T) {
	rule := cacheRule(t, "deps")
	one(t, miss(t, cachingJob(append(see, fill...), rule)), "stored")
	for name, change := range map[string]func(*coordinator.Job){
		"protected ref": func(j *coordinator.Job) { j.Protected = true },
		"other project": func(j *coordinator.Job) { j.ProjectID = 78 },
		"other profile": func(j *coordinator.Job) { j.Runner = firewalled().Runner },
	} {
		job := cachingJob(see, rule)
		change(&job)
		job.Variables = []coordinator.Variable{{Key: "CI_PROJECT_ID", Value: "77", Public: true}, {Key: "CI_COMMIT_REF_PROTECTED", Value: "false", Public: true}}
		if all := cachesOf(t, miss(t, job)); len(all) != 0 {
			t.Errorf("%s: %+v", name, all)
		}
	}
}

func TestPoisonedCacheIsRefusedAndTheJobGoesOn(t *testing.T) {
	rule := cacheRule(t, "deps")
	pull := rule
	pull.Policy = "pull"
	fillAndPoison := func(poison func(object string)) record.Cache {
		t.Helper()
		push := rule
		push.Policy = "push"
		k := one(t, run(t, cachingJob(fill, push)), "stored")
		poison(filepath.Join(cacheDir, "objects", k.SHA256))
		return k
	}
	k := fillAndPoison(func(object string) {
		data, err := os.ReadFile(object)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(object, data, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	r := miss(t, cachingJob(see, pull))
	if used := one(t, r, "refused"); used.SHA256 != k.SHA256 || !strings.Contains(used.Detail, "not what it was") {
		t.Errorf("%+v", used)
	}
	mention(t, r, "refused", "not what it was")
	fillAndPoison(func(string) {})
	hit(t, cachingJob(see, pull))
}

// TestUnattestedCacheIsRefused: an archive that somebody put into the store and
// its index is given to nobody, for no attestation speaks of it.
func TestUnattestedCacheIsRefused(t *testing.T) {
	rule := cacheRule(t, "deps")
	k := one(t, run(t, cachingJob(fill, rule)), "stored")
	entries, err := filepath.Glob(filepath.Join(cacheDir, "index", "*", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	evil := zipOf(t, "deps/a", "evil\n")
	digest := sha256Hex(evil)
	if err := os.WriteFile(filepath.Join(cacheDir, "objects", digest), evil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range entries {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var e map[string]any
		if err := json.Unmarshal(text, &e); err != nil {
			t.Fatal(err)
		}
		if entry := e["entry"].(map[string]any); entry["sha256"] == k.SHA256 {
			entry["sha256"], entry["bytes"] = digest, len(evil)
			if text, err = json.Marshal(e); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := run(t, cachingJob(see, rule))
	expect(t, r, coordinator.Success, "")
	never(t, r, "\nevil")
	if used := one(t, r, "refused"); used.SHA256 != digest || !strings.Contains(used.Detail, "no attested job") {
		t.Errorf("%+v", used)
	}
}

// TestPlantedArchivesAreNotKept: the helper is the tenant's, and so is what it
// leaves in /cache. What is not an archive of sealed files is kept for nobody.
func TestPlantedArchivesAreNotKept(t *testing.T) {
	plants := []struct{ name, plant, why string }{
		{"other-files", `printf PK > "$f"`, "cache.zip"},
		{"symlink", `ln -s /etc/passwd "$f"`, "plain file"},
		{"fifo", `mkfifo "$f"`, "plain file"},
		{"directory", `mkdir "$f"`, "plain file"},
		{"huge", `truncate -s 3000000000 "$f"`, "larger than"},
	}
	// A program of the job's own takes the place of the one that packs caches.
	fake := []string{"#!/bin/sh", `while [ $# -gt 0 ]; do [ "$1" = --file ] && f="$2"; shift; done`, `[ -n "$f" ] || exit 0`,
		`mkdir -p "${f%/*}"`, `rm -rf "$f"`, "echo >> /tmp/calls", `case $(wc -l < /tmp/calls) in`}
	job := cachingJob(nil)
	for i, p := range plants {
		rule := cacheRule(t, p.name)
		rule.Policy = "push"
		job.Caches = append(job.Caches, rule)
		fake = append(fake, fmt.Sprintf("%d) %s;;", i+1, p.plant))
	}
	fake = append(fake, "esac")
	job.Variables = []coordinator.Variable{{Key: "FAKE", Value: strings.Join(fake, "\n") + "\n", Public: true, Raw: true}}
	job.Script = append(fill, "mkdir -p /builds/bin", `printf %s "$FAKE" > /builds/bin/gitlab-runner`, "chmod 755 /builds/bin/gitlab-runner",
		`echo 'PATH=/builds/bin:/usr/local/bin:/usr/bin:/bin' >> "$GITLAB_ENV"`)
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	unattested(t, r)
	all := cachesOf(t, r)
	if len(all) != len(plants) {
		t.Fatalf("%+v", all)
	}
	for i, p := range plants {
		if used := all[i]; used.Action != "refused" || !strings.HasPrefix(used.Key, p.name) || !strings.Contains(used.Detail, p.why) {
			t.Errorf("%s: %+v", p.name, used)
		}
		job.Caches[i].Policy = "pull"
	}
	job.Script = see
	if all := cachesOf(t, miss(t, job)); len(all) != 0 {
		t.Errorf("the next job has %+v", all)
	}
}

func zipOf(t *testing.T, name, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err == nil {
		_, err = w.Write([]byte(content))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
