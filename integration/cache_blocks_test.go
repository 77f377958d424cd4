package integration

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"

	"hallmark.build/integration/azurite"
	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// azure is an Azure that the runner keeps caches in, empty.
type azure struct {
	t      *testing.T
	server *azurite.Server
}

func newAzure(t *testing.T) azure {
	t.Helper()
	server, err := azurite.Start(t.Context(), theWorld.Root, t.TempDir(), world.StorageAccount)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		theWorld.Storage.Answer(http.NotFoundHandler())
		_ = server.Stop()
	})
	if err := server.MakeContainer(t.Context(), world.StorageBucket); err != nil {
		t.Fatal(err)
	}
	theWorld.Storage.Answer(server.Handler())
	return azure{t, server}
}

func (a azure) get(name string) []byte {
	a.t.Helper()
	data, err := a.server.Blob(a.t.Context(), world.StorageBucket, name)
	if err != nil {
		a.t.Fatal(err)
	}
	return data
}

func (a azure) put(name string, data []byte) {
	a.t.Helper()
	if err := a.server.SetBlob(a.t.Context(), world.StorageBucket, name, data); err != nil {
		a.t.Fatal(err)
	}
}

// TestCacheInBlocksIsADependencyOfTheNext: where the helper has credentials and no
// URL, and sends an archive in blocks, one job's cache is the next one's all the
// same, and what somebody else wrote there is nobody's.
func TestCacheInBlocksIsADependencyOfTheNext(t *testing.T) {
	type storage interface {
		get(name string) []byte
		put(name string, data []byte)
	}
	for _, c := range []struct {
		name, runner string
		start        func(*testing.T) storage
		steps        []string // the ends of queries by which it is written
	}{
		{"azure", world.Azure, func(t *testing.T) storage { return newAzure(t) }, []string{"comp=block", "comp=block", "comp=blocklist"}},
		{"s3 by a role", world.Assumed, func(t *testing.T) storage { return newObjectStorage(t) }, []string{"uploads=", "partNumber=1", "partNumber=2", "uploadId="}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := c.start(t)
			rule := cacheRule(t, "deps")
			job := func(script ...string) coordinator.Job {
				job := cachingJob(script, rule)
				job.Runner = c.runner
				return job
			}
			larger := append(slices.Clone(fill), "head -c 20971520 /dev/urandom > deps/large") // than a block
			first := miss(t, job(append(see, larger...)...))
			stored := one(t, first, "stored")
			attested(t, first)
			if data := s.get(objectOf(rule.Key)); sha256Hex(data) != stored.SHA256 || int64(len(data)) != stored.Bytes || stored.Bytes < 20<<20 {
				t.Errorf("%d bytes in the storage, recorded %+v", len(data), stored)
			}
			var written []string
			for _, f := range dataOf[record.Fetch](t, evidence(t, first), record.Fetched) {
				if f.Stage == "archive_cache" && f.Method != "HEAD" {
					written = append(written, f.URL)
				}
			}
			if len(written) != len(c.steps) {
				t.Fatalf("written by %s", lines(written))
			}
			for i, step := range c.steps {
				if !strings.Contains(written[i], step) {
					t.Errorf("step %d is %s, want %s", i, written[i], step)
				}
			}
			rule.Policy = "pull"
			next := job(append(see, "cp deps/a out.txt")...)
			next.Artifacts = coordinator.Archive("out.txt")
			second := hit(t, next)
			restored := one(t, second, "restored")
			if restored.SHA256 != stored.SHA256 || restored.Attestation == "" {
				t.Errorf("stored %+v, restored %+v", stored, restored)
			}
			if raw := attested(t, second).Statement.Raw; strings.Count(raw, stored.SHA256) < 1 || !strings.Contains(raw, restored.Attestation) {
				t.Error("what was restored is no dependency")
			}
			for _, r := range []coordinator.Result{first, second} {
				text, err := json.Marshal(evidence(t, r))
				if err != nil {
					t.Fatal(err)
				}
				if n := strings.Count(string(text), "sig="); n != strings.Count(string(text), "sig=REDACTED") || (n > 0) != (c.runner == world.Azure) {
					t.Errorf("job %d: %d signatures in the record", r.ID, n)
				}
			}
			evil := zipOf(t, "deps/a", "evil\n")
			s.put(objectOf(rule.Key), evil)
			r := miss(t, job(see...))
			if used := one(t, r, "refused"); used.SHA256 != sha256Hex(evil) || !strings.Contains(used.Detail, "no attested job") {
				t.Errorf("%+v", used)
			}
		})
	}
}
