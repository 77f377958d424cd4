package attest_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

// cached is the sample with a cache that is restored and one that is stored.
func cached() []attesttest.Event {
	job := opened(func(o *record.Opened) {
		o.External.Caches = []record.CacheRule{{Key: "deps", Paths: []string{"vendor/"}, Policy: "pull-push", When: "on_success"}}
	})
	job = insert(job, event(record.CacheUsed, attesttest.Restored()), starts("build_script"))
	job = insert(job, event(record.StageStarted, attesttest.Started("restore_cache")), starts("build_script"))
	job = insert(job, event(record.StageEnded, attesttest.Ended("restore_cache", "success")), starts("build_script"))
	for _, ev := range []attesttest.Event{
		event(record.StageStarted, attesttest.Started("archive_cache")),
		event(record.StageEnded, attesttest.Ended("archive_cache", "success")),
		event(record.CacheUsed, attesttest.Stored()),
	} {
		job = insert(job, ev, starts("upload_artifacts_on_success"))
	}
	return job
}

// fromStorage is the sample with a cache that came from an object storage, as bytes
// of which restored says that it is the same.
func fromStorage(content string) []attesttest.Event {
	job := opened(func(o *record.Opened) {
		o.External.Caches = []record.CacheRule{{Key: "deps", Paths: []string{"vendor/"}}}
	})
	used, look := attesttest.Restored(), attesttest.Fetch("restore_cache", "HEAD", storageURL, "")
	used.SHA256 = attesttest.SHA256("k")
	for _, ev := range []attesttest.Event{
		event(record.StageStarted, attesttest.Started("restore_cache")),
		event(record.Fetched, look),
		event(record.CacheUsed, used),
		event(record.Fetched, attesttest.Fetch("restore_cache", "GET", storageURL, content)),
		event(record.StageEnded, attesttest.Ended("restore_cache", "success")),
	} {
		job = insert(job, ev, starts("build_script"))
	}
	return job
}

const storageURL = "https://minio.example.com:9000/ci/project/77/deps?X-Amz-Signature=REDACTED"

// TestCacheFromObjectStorageIsOneDependency: the exchange that brought it is not
// listed beside it.
func TestCacheFromObjectStorageIsOneDependency(t *testing.T) {
	st := one(t, fromStorage("k"))
	var have []any
	for _, d := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		if digest, ok := at(t, d, "digest").(map[string]any); ok && digest["sha256"] == attesttest.SHA256("k") {
			have = append(have, d)
		}
	}
	want := []any{map[string]any{
		"name": "cache/deps.zip", "digest": map[string]any{"sha256": attesttest.SHA256("k")},
		"downloadLocation": "https://minio.example.com:9000/ci/project/77/deps",
		"annotations": map[string]any{
			"kind": "cache", "key": "deps", "bytes": 1000.0, "hallmark_attestation": "sha256:" + attesttest.Restored().Attestation,
			"hallmark_invocation": attesttest.Restored().Invocation,
		},
	}}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	if have := at(t, st, "predicate.hallmark_completeness.caches"); have != attest.Border {
		t.Errorf("caches are %v although one was restored", have)
	}
}

// cachedAs changes what is restored, or what is stored.
func cachedAs(action string, change func(*record.Cache)) []attesttest.Event {
	job := slices.Clone(cached())
	for i, ev := range job {
		if k, ok := ev.Data.(record.Cache); ok && k.Action == action {
			change(&k)
			job[i].Data = k
		}
	}
	return job
}

func cacheRefusals() map[string]struct {
	events []attesttest.Event
	want   attest.Reason
} {
	restored := func(change func(*record.Cache)) []attesttest.Event { return cachedAs("restored", change) }
	stored := func(change func(*record.Cache)) []attesttest.Event { return cachedAs("stored", change) }
	none := replace(cached(), func(o *record.Opened) { o.External.Caches = nil })
	late := insert(cached(), event(record.CacheUsed, attesttest.Restored()), kind(record.Sealed))
	during := insert(cached(), event(record.CacheUsed, attesttest.Restored()), ends("build_script"))
	early := insert(cached(), event(record.CacheUsed, attesttest.Stored()), kind(record.Sealed))
	type c = struct {
		events []attesttest.Event
		want   attest.Reason
	}
	return map[string]c{
		"cache of a job that has none":      {none, attest.CacheInconsistent},
		"cache restored after tenant code":  {late, attest.CacheInconsistent},
		"cache restored within a script":    {during, attest.CacheInconsistent},
		"cache stored before the seal":      {early, attest.CacheInconsistent},
		"cache restored by an archiving":    {restored(func(k *record.Cache) { k.Stage = "archive_cache" }), attest.CacheInconsistent},
		"cache restored by a script":        {restored(func(k *record.Cache) { k.Stage = "build_script" }), attest.CacheInconsistent},
		"cache stored by a restoring":       {stored(func(k *record.Cache) { k.Stage = "restore_cache" }), attest.CacheInconsistent},
		"cache restored without digest":     {restored(func(k *record.Cache) { k.SHA256 = "" }), attest.CacheInconsistent},
		"cache stored without digest":       {stored(func(k *record.Cache) { k.SHA256 = "" }), attest.CacheInconsistent},
		"cache stored for another job":      {stored(func(k *record.Cache) { k.Attestation, k.Invocation = attesttest.SHA256("b"), "x" }), attest.CacheInconsistent},
		"attestation without invocation":    {restored(func(k *record.Cache) { k.Invocation = "" }), attest.CacheInconsistent},
		"invocation without attestation":    {restored(func(k *record.Cache) { k.Attestation = "" }), attest.CacheInconsistent},
		"cache refused without reason":      {restored(func(k *record.Cache) { k.Action, k.Attestation, k.Invocation = "refused", "", "" }), attest.CacheInconsistent},
		"cache neither restored nor stored": {restored(func(k *record.Cache) { k.Action, k.Attestation, k.Invocation = "seen", "", "" }), attest.CacheInconsistent},
		"cache without key":                 {restored(func(k *record.Cache) { k.Key = "" }), attest.Malformed},
		"cache with no such digest":         {restored(func(k *record.Cache) { k.SHA256 = "abc" }), attest.Malformed},
		"cache with no such attestation":    {restored(func(k *record.Cache) { k.Attestation = "abc" }), attest.Malformed},
		"other bytes of an object storage":  {fromStorage("x"), attest.CacheInconsistent},
		"object storage without a cache":    {remove(fromStorage("k"), kind(record.CacheUsed)), attest.CacheInconsistent},
		"cache said after it was given":     {insert(remove(fromStorage("k"), kind(record.CacheUsed)), event(record.CacheUsed, attesttest.Restored()), ends("restore_cache")), attest.CacheInconsistent},
		"cache of less than nothing":        {restored(func(k *record.Cache) { k.Bytes = -1 }), attest.NumberTooLarge},
	}
}

func TestCacheIsADependencyAndASubject(t *testing.T) {
	st := one(t, cached())
	var have any
	for _, d := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		if at(t, d, "name") == "cache/deps.zip" {
			have = d
		}
	}
	want := map[string]any{
		"name": "cache/deps.zip", "digest": map[string]any{"sha256": attesttest.Restored().SHA256},
		"annotations": map[string]any{
			"kind": "cache", "key": "deps", "bytes": 1000.0, "hallmark_attestation": "sha256:" + attesttest.Restored().Attestation,
			"hallmark_invocation": attesttest.Restored().Invocation,
		},
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
	if have := at(t, st, "predicate.hallmark_completeness.caches"); have != attest.Border {
		t.Errorf("caches are %v although one was restored", have)
	}
	if subjectOf(t, st, "cache/deps.zip") != attesttest.Stored().SHA256 {
		t.Error("what was stored is no subject")
	}
}

func subjectOf(t *testing.T, st any, name string) any {
	for _, sub := range at(t, st, "subject").([]any) {
		if at(t, sub, "name") == name {
			return at(t, sub, "digest.sha256")
		}
	}
	return nil
}

// TestUnattestedCacheSaysSo: what nobody vouches for has no origin.
func TestUnattestedCacheSaysSo(t *testing.T) {
	st := one(t, cachedAs("restored", func(k *record.Cache) { k.Attestation, k.Invocation = "", "" }))
	for _, d := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		if at(t, d, "name") != "cache/deps.zip" {
			continue
		}
		if notes := at(t, d, "annotations").(map[string]any); notes["hallmark_attestation"] != nil || notes["hallmark_invocation"] != nil {
			t.Errorf("%v", notes)
		}
		if have := at(t, st, "predicate.hallmark_completeness.caches"); have != attest.Declared {
			t.Errorf("caches are %v although nobody vouches for one", have)
		}
		return
	}
	t.Error("it is no dependency")
}

func TestRefusedCacheIsNoDependency(t *testing.T) {
	st := one(t, cachedAs("restored", func(k *record.Cache) {
		k.Action, k.Attestation, k.Invocation, k.Detail = "refused", "", "", "its bytes changed"
	}))
	for _, d := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		if at(t, d, "name") == "cache/deps.zip" {
			t.Error("it is a dependency")
		}
	}
	if have := at(t, st, "predicate.hallmark_completeness.caches"); have != attest.Hermetic {
		t.Errorf("caches are %v although none was restored", have)
	}
}

// TestCacheAlone: a job without artifacts is attested for the cache that it left.
func TestCacheAlone(t *testing.T) {
	st := one(t, remove(cached(), kind(record.Uploaded)))
	if subjects := at(t, st, "subject").([]any); len(subjects) != 1 || subjectOf(t, st, "cache/deps.zip") == nil {
		t.Errorf("subjects %v", subjects)
	}
}

func TestCacheRestoredTwiceIsOneDependency(t *testing.T) {
	job := insert(cached(), event(record.CacheUsed, attesttest.Restored()), starts("restore_cache"))
	n := 0
	for _, d := range at(t, one(t, job), "predicate.buildDefinition.resolvedDependencies").([]any) {
		if at(t, d, "name") == "cache/deps.zip" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d dependencies", n)
	}
}

func TestOrigins(t *testing.T) {
	have, err := attest.Origins(entries(t, cached()))
	if err != nil {
		t.Fatal(err)
	}
	k := attesttest.Restored()
	if diff := cmp.Diff([]attest.Origin{{SHA256: k.SHA256, Attestation: k.Attestation, Invocation: k.Invocation, Entry: have[0].Entry}}, have); diff != "" {
		t.Error(diff)
	}
}
