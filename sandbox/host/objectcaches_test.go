package host

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/record"
)

// newStorageWorld is a cacheWorld whose runner keeps caches in an object storage.
func newStorageWorld(t *testing.T, mode string) *cacheWorld {
	t.Helper()
	w := newCacheWorld(t, mode)
	w.cfg.Caches.Servers = []*url.URL{{Scheme: "https", Host: "minio.example.com"}}
	return w
}

// last is what the record says last of a cache.
func (w *cacheWorld) last(t *testing.T) record.Cache {
	t.Helper()
	lines, err := w.j.record.Lines(w.j.record.Head().Entries-1, 1)
	if err != nil {
		t.Fatal(err)
	}
	var e struct{ Data record.Cache }
	if err := json.Unmarshal(lines[0], &e); err != nil {
		t.Fatal(err)
	}
	return e.Data
}

// TestWhoVouchesForAnObject: as for a cache of the host, and all that is asked by is
// the digest.
func TestWhoVouchesForAnObject(t *testing.T) {
	other := vouching()
	other.Project = "group/other"
	archive := egress.CacheArchive{Stage: sandbox.RestoreCache, Object: "b1/" + sha256Hex("deps"), SHA256: strings.Repeat("a", 64), Bytes: 9}
	for name, c := range map[string]struct {
		origins   []Origin
		own, full string // what becomes of it, and "+" if somebody vouches
	}{
		"attested":        {[]Origin{vouching()}, "restored+", "restored+"},
		"unknown":         {nil, "refused", "restored"},
		"another project": {[]Origin{other}, "refused", "restored"},
	} {
		for mode, want := range map[string]string{cachesOwn: c.own, cachesFull: c.full} {
			t.Run(name+" "+mode, func(t *testing.T) {
				w := newStorageWorld(t, mode)
				w.authority.origins = c.origins
				given, err := w.objectCaches(w.j).Restore(t.Context(), archive)
				used := w.last(t)
				have := used.Action
				if used.Attestation != "" && used.Invocation != "" {
					have += "+"
				}
				if err != nil || have != want || given != strings.HasPrefix(want, "restored") || w.authority.asked != archive.SHA256 {
					t.Errorf("%v, %v: %+v, want %s", given, err, used, want)
				}
				if used.Key != "deps" || used.Stage != "restore_cache" || used.SHA256 != archive.SHA256 || used.Bytes != 9 {
					t.Errorf("%+v", used)
				}
				said := strings.Join(w.j.downloads.take(), "\n")
				if refused := strings.Contains(said, "deps: refused: "); refused == given || !strings.Contains(said, "cache   deps") {
					t.Errorf("said %q", said)
				}
			})
		}
	}
}

// TestEndedStageRefusesNothing: a job that is canceled is told of no refusal.
func TestEndedStageRefusesNothing(t *testing.T) {
	w := newStorageWorld(t, cachesOwn)
	before := w.j.record.Head()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	given, err := w.objectCaches(w.j).Restore(ctx, egress.CacheArchive{Stage: sandbox.RestoreCache, Object: "deps", SHA256: strings.Repeat("a", 64)})
	if given || err != nil || w.j.record.Head() != before {
		t.Errorf("%v, %v, %+v", given, err, w.last(t))
	}
}

// TestKeysOfObjects: the record has the key as the job wrote it, and never a value
// that is not public.
func TestKeysOfObjects(t *testing.T) {
	w := newStorageWorld(t, cachesOwn)
	w.j.payload.Caches = []executor.Cache{{Key: "a/b c"}, {Key: "k-$SECRET"}}
	w.j.payload.Variables = []executor.Variable{{Key: "SECRET", Value: "hush-hush", Masked: true}}
	for object, want := range map[string]string{
		"a/b c": "a/b c", sha256Hex("a/b c"): "a/b c", "ff/" + sha256Hex("a/b c"): "a/b c",
		"k-hush-hush": "k-$SECRET", sha256Hex("k-hush-hush"): "k-$SECRET",
		"of-nobody-hush-hush": sha256Hex("of-nobody-hush-hush"), "FF/" + sha256Hex("a/b c"): sha256Hex("FF/" + sha256Hex("a/b c")),
	} {
		if err := w.objectCaches(w.j).Stored(egress.CacheArchive{Stage: sandbox.ArchiveCache, Object: object, SHA256: strings.Repeat("a", 64)}); err != nil {
			t.Fatal(err)
		}
		if used := w.last(t); used.Key != want || used.Action != "stored" {
			t.Errorf("%s: %+v, want key %s", object, used, want)
		}
	}
	w.j.payload.Caches = nil
	if w.objectCaches(w.j) != nil {
		t.Error("a job without caches has some")
	}
}

// TestStorageAndHostDoNotMix: what the host keeps is laid into no job whose helper
// is told of an object storage.
func TestStorageAndHostDoNotMix(t *testing.T) {
	file := ` "--file" "../../../cache/` + depsFile.path + `"`
	for name, c := range map[string]struct {
		script string
		remote bool
	}{
		"host":                   {`export A="--url x"; gitlab-runner "cache-extractor"` + file + ` "--timeout" "10"`, false},
		"presigned":              {`gitlab-runner "cache-extractor"` + file + ` "--timeout" "10" "--url" "https://minio.example.com/x"`, true},
		"GoCloud":                {`gitlab-runner "cache-extractor"` + file + ` "--gocloud-url" "azblob://x"`, true},
		"archiving":              {`gitlab-runner "cache-archiver"` + file + ` "--url" "https://minio.example.com/x"`, true},
		"another runner program": {`gitlab-runner "artifacts-downloader" "--url" "https://gitlab.example.com"`, false},
	} {
		w := newStorageWorld(t, cachesOwn)
		if have := w.remote([]byte(c.script)); have != c.remote {
			t.Errorf("%s: %v", name, have)
		}
		w.cfg.Caches.Servers = nil
		if w.remote([]byte(c.script)) {
			t.Errorf("%s: remote without a server", name)
		}
	}
}
