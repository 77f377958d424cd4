package attest_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

// downloaded is the sample with an artifact of an earlier job.
func downloaded(change func(*record.Fetch)) []attesttest.Event {
	f := attesttest.Fetch("download_artifacts", "GET", "https://gitlab.example.com/api/v4/jobs/41/artifacts?direct_download=true", "artifacts.zip")
	f.Attestation, f.Invocation = attesttest.SHA256("bundle"), "https://ci.example.com/hallmark/attempts/41"
	change(&f)
	job := opened(func(o *record.Opened) {
		o.External.Dependencies = []record.DependencyChoice{{ID: 41, Name: "build"}}
	})
	for _, ev := range []attesttest.Event{
		event(record.StageStarted, attesttest.Started("download_artifacts")),
		event(record.Fetched, f),
		event(record.StageEnded, attesttest.Ended("download_artifacts", "success")),
	} {
		job = insert(job, ev, starts("build_script"))
	}
	return job
}

func TestAttestedDownloadNamesItsAttestation(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*record.Fetch)
		want   map[string]any
	}{
		"attested": {func(*record.Fetch) {}, map[string]any{
			"hallmark_attestation": "sha256:" + attesttest.SHA256("bundle"), "hallmark_invocation": "https://ci.example.com/hallmark/attempts/41"}},
		"not": {func(f *record.Fetch) { f.Attestation, f.Invocation = "", "" }, map[string]any{}},
	} {
		t.Run(name, func(t *testing.T) {
			found := 0
			for _, d := range at(t, one(t, downloaded(c.change)), "predicate.buildDefinition.resolvedDependencies").([]any) {
				if at(t, d, "digest").(map[string]any)["sha256"] != attesttest.SHA256("artifacts.zip") {
					continue
				}
				found++
				have := map[string]any{}
				for k, v := range at(t, d, "annotations").(map[string]any) {
					if k == "hallmark_attestation" || k == "hallmark_invocation" {
						have[k] = v
					}
				}
				if diff := cmp.Diff(c.want, have); diff != "" {
					t.Error(diff)
				}
			}
			if found != 1 {
				t.Errorf("it is listed %d times", found)
			}
		})
	}
}

func downloadRefusals() map[string]struct {
	events []attesttest.Event
	want   attest.Reason
} {
	type c = struct {
		events []attesttest.Event
		want   attest.Reason
	}
	url := func(url string) c {
		return c{downloaded(func(f *record.Fetch) { f.URL = url }), attest.DownloadInconsistent}
	}
	const gl = "https://gitlab.example.com"
	return map[string]c{
		"download's attestation alone":     {downloaded(func(f *record.Fetch) { f.Invocation = "" }), attest.DownloadInconsistent},
		"download's invocation alone":      {downloaded(func(f *record.Fetch) { f.Attestation = "" }), attest.DownloadInconsistent},
		"download's attestation malformed": {downloaded(func(f *record.Fetch) { f.Attestation = "x" }), attest.Malformed},
		"attested, of a job not named":     url(gl + "/api/v4/jobs/42/artifacts"),
		"attested, of no job":              url(gl + "/api/v4/jobs/x/artifacts"),
		"attested, no artifact":            url(gl + "/api/v4/jobs/41/trace"),
		"attested, no API":                 url(gl + "/41/artifacts"),
		"attested, not there":              {downloaded(func(f *record.Fetch) { f.Status = 404 }), attest.DownloadInconsistent},
		"attested, cut off":                {downloaded(func(f *record.Fetch) { f.Incomplete = "cut off" }), attest.DownloadInconsistent},
		"attested, posted":                 {downloaded(func(f *record.Fetch) { f.Method = "POST" }), attest.DownloadInconsistent},
	}
}

func TestUnattested(t *testing.T) {
	none := func(f *record.Fetch) { f.Attestation, f.Invocation = "", "" }
	for name, c := range map[string]struct {
		events []attesttest.Event
		want   []int64 // jobs
	}{
		"attested":     {downloaded(func(*record.Fetch) {}), nil},
		"not":          {downloaded(none), []int64{41}},
		"not there":    {downloaded(func(f *record.Fetch) { none(f); f.Status = 404 }), nil},
		"cut off":      {downloaded(func(f *record.Fetch) { none(f); f.Incomplete = "cut off" }), nil},
		"no artifact":  {downloaded(func(f *record.Fetch) { none(f); f.URL = "https://gitlab.example.com/api/v4/jobs/41/artifacts/x" }), nil},
		"nothing":      {attesttest.Job(), nil},
		"twice is one": {insert(downloaded(none), downloadOf(downloaded(none)), ends("download_artifacts")), []int64{41}},
	} {
		have, err := attest.Unattested(entries(t, c.events))
		if err != nil {
			t.Fatal(err)
		}
		var jobs []int64
		for _, d := range have {
			jobs = append(jobs, d.Job)
			if d.SHA256 != attesttest.SHA256("artifacts.zip") {
				t.Errorf("%s: %+v", name, d)
			}
		}
		if !slices.Equal(jobs, c.want) {
			t.Errorf("%s: jobs %v, want %v", name, jobs, c.want)
		}
	}
}

func downloadOf(events []attesttest.Event) attesttest.Event {
	return events[slices.IndexFunc(events, func(ev attesttest.Event) bool {
		f, ok := ev.Data.(record.Fetch)
		return ok && f.Stage == "download_artifacts"
	})]
}
