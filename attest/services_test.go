package attest_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

const database, queue = "registry.example.com/postgres:16", "registry.example.com/queue:1"

// serviceOf is a service's image as a host would record it.
func serviceOf(name string, names ...string) record.Image {
	digest := "sha256:" + attesttest.SHA256(name)
	return record.Image{Role: "service", Name: name, Reference: "registry.example.com/x@" + digest, Manifest: digest,
		Config: digest, Platform: "linux/amd64", Names: names}
}

// withServices is a job that asks for three, and whose record has these.
func withServices(events []attesttest.Event, services ...record.Image) []attesttest.Event {
	o := events[0].Data.(record.Opened)
	for _, name := range []string{database, database, queue} {
		o.External.Services = append(slices.Clone(o.External.Services), record.ImageParameter{Name: name})
	}
	events = slices.Clone(events)
	events[0].Data = o
	for _, s := range services {
		events = insert(events, event(record.ImageResolved, s), starts("prepare_script"))
	}
	return events
}

func TestServicesAreDependencies(t *testing.T) {
	st := one(t, withServices(attesttest.Job(), serviceOf(database, "postgres", "db"), serviceOf(queue, "queue")))
	var got [][]any
	for _, dep := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		if notes, ok := dep.(map[string]any)["annotations"].(map[string]any); ok && notes["role"] == "service" {
			got = append(got, []any{dep.(map[string]any)["digest"].(map[string]any)["sha256"], notes["asked"], notes["names"]})
		}
	}
	want := [][]any{
		{attesttest.SHA256(database), database, []any{"postgres", "db"}},
		{attesttest.SHA256(queue), queue, []any{"queue"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func refused(t *testing.T, name string, events []attesttest.Event, want attest.Reason) {
	t.Helper()
	all, err := attest.Statements(entries(t, events), factsOf(events))
	if have := reason(err); have != want || all != nil {
		t.Errorf("%s: reason %q and %d statements, want %q and none (%v)", name, have, len(all), want, err)
	}
}

func TestServicesThatDoNotFitAreRefused(t *testing.T) {
	job := attesttest.Job()
	db := serviceOf(database, "postgres")
	late := func(stage string) []attesttest.Event {
		return insert(withServices(job), event(record.ImageResolved, db), starts(stage))
	}
	fetched := func(events []attesttest.Event, role string, before func(attesttest.Event) bool) []attesttest.Event {
		f := attesttest.Fetch("services", "GET", "https://modules.example.com/x", "x")
		f.Role = role
		return insert(events, event(record.Fetched, f), before)
	}
	open := attesttest.Dependencies(1)
	for name, c := range map[string]struct {
		events []attesttest.Event
		want   attest.Reason
	}{
		"unasked":                  {insert(job, event(record.ImageResolved, db), starts("prepare_script")), attest.ServiceUnasked},
		"another":                  {withServices(job, serviceOf("registry.example.com/other:1", "other")), attest.ServiceUnasked},
		"out of order":             {withServices(job, serviceOf(queue, "queue"), db), attest.ServiceUnasked},
		"more than asked":          {withServices(job, db, serviceOf(database, "b"), serviceOf(database, "c")), attest.ServiceUnasked},
		"without a name":           {withServices(job, serviceOf(database)), attest.Malformed},
		"empty name":               {withServices(job, serviceOf(database, "")), attest.Malformed},
		"name of another":          {withServices(job, db, serviceOf(queue, "postgres")), attest.Malformed},
		"after tenant code":        {late("upload_artifacts_on_success"), attest.ImageChanged},
		"by tag":                   {withServices(job, changed(db, func(i *record.Image) { i.Reference = database })), attest.Malformed},
		"stage of that name":       {changeStarted(withServices(job, db), "build_script", func(s *record.Started) { s.Stage = "services" }), attest.Malformed},
		"exchange, hermetic":       {fetched(withServices(job, db), "build", starts("build_script")), attest.FetchWithoutNetwork},
		"exchange, no service":     {fetched(open, "build", starts("build_script")), attest.FetchOutsideStage},
		"exchange, helper's":       {fetched(withServices(open, db), "helper", starts("build_script")), attest.FetchOutsideStage},
		"exchange, tree not known": {fetched(withServices(open, db), "build", starts("get_sources")), attest.FetchOutsideStage},
		"exchange, sealed":         {fetched(withServices(open, db), "build", starts("upload_artifacts_on_success")), attest.FetchOutsideStage},
	} {
		refused(t, name, c.events, c.want)
	}
	// Between the comparison and the seal it is what a service does.
	one(t, fetched(withServices(open, db), "build", starts("build_script")))
}

// A tree that is compared once a service may have changed it says nothing.
func TestComparisonAfterAServiceFetchedIsRefused(t *testing.T) {
	events := withServices(attesttest.Dependencies(1), serviceOf(database, "postgres"))
	f := attesttest.Fetch("services", "GET", "https://modules.example.com/x", "x")
	f.Role = "build"
	events = insert(events, event(record.Fetched, f), starts("build_script"))
	again := events[slices.IndexFunc(events, kind(record.SourceVerified))]
	refused(t, "compared again", insert(events, again, starts("build_script")), attest.SourceAfterTenant)
}

// A service that reaches out as soon as it runs does so before caches are restored.
func TestCacheIsRestoredAfterAServiceFetched(t *testing.T) {
	events := withServices(attesttest.Dependencies(1), serviceOf(database, "postgres"))
	o := events[0].Data.(record.Opened)
	o.External.Caches = []record.CacheRule{{Key: "deps", Paths: []string{"vendor/"}}}
	events[0].Data = o
	f := attesttest.Fetch("services", "GET", "https://modules.example.com/x", "x")
	f.Role = "build"
	events = insert(events, event(record.Fetched, f), starts("build_script"))
	events = insert(events, event(record.CacheUsed, attesttest.Restored()), starts("build_script"))
	one(t, events)
}
