package attest_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

// event is short for an event of known type.
func event(k record.Kind, data any) attesttest.Event { return attesttest.Event{Kind: k, Data: data} }

func opened(change func(*record.Opened)) []attesttest.Event {
	o := attesttest.Opened()
	change(&o)
	return attesttest.JobOf(o)
}

// both changes a fact in the parameters too, so that the two still agree.
func both(change func(*record.Job, *record.External)) []attesttest.Event {
	return opened(func(o *record.Opened) { change(&o.Job, &o.External) })
}

func fetchIn(stage string, change func(*record.Fetch)) []attesttest.Event {
	f := attesttest.Fetch(stage, "GET", "https://example.com/x", "x")
	change(&f)
	return insert(attesttest.Dependencies(0), event(record.Fetched, f), ends(stage))
}

func upload(change func(*record.Upload)) []attesttest.Event {
	return replace(attesttest.Job(), change)
}

// members are n files of the sample's artifact, in a line before it.
func members(n int) record.Members {
	job := attesttest.Job()
	u := job[slices.IndexFunc(job, kind(record.Uploaded))].Data.(record.Upload)
	m := record.Members{Stage: u.Stage, SHA256: u.SHA256}
	for i := range n {
		m.Entries = append(m.Entries, record.UploadEntry{Path: fmt.Sprintf("more/%d", i), Kind: "file", SHA256: attesttest.SHA256(fmt.Sprint(i)), Bytes: 1})
	}
	return m
}

func TestMembersOfEarlierLinesAreSubjects(t *testing.T) {
	job := insert(upload(func(u *record.Upload) { u.Matched = 3 }), event(record.Matched, members(3)), kind(record.Uploaded))
	for _, sub := range at(t, one(t, job), "subject").([]any) {
		if sub := sub.(map[string]any); sub["name"] == "more/2" {
			if got := at(t, sub, "digest.sha256"); got != attesttest.SHA256("2") {
				t.Errorf("digest %v", got)
			}
			return
		}
	}
	t.Error("a member of an earlier line is no subject")
}

func endOf(stage, outcome string) func([]attesttest.Event) []attesttest.Event {
	return func(events []attesttest.Event) []attesttest.Event {
		events = slices.Clone(events)
		events[slices.IndexFunc(events, ends(stage))].Data = attesttest.Ended(stage, outcome)
		return events
	}
}

const evil = "https://user:secret@example.com/x"

// refusals has, for each rule, records in which it alone is broken.
func refusals() map[string]struct {
	events []attesttest.Event
	want   attest.Reason
} {
	type c = struct {
		events []attesttest.Event
		want   attest.Reason
	}
	job := attesttest.Job()
	long := strings.Repeat("ab", 32)
	return map[string]c{
		"empty":                     {nil, attest.NotClosed},
		"not closed":                {job[:len(job)-1], attest.NotClosed},
		"no outputs":                {remove(job, kind(record.Uploaded)), attest.NoOutputs},
		"uploads rejected":          {upload(func(u *record.Upload) { u.Status = 400 }), attest.UploadsRejected},
		"system failure":            {replace(job, func(c *record.Closing) { c.Result = "system_failure" }), attest.SystemFailure},
		"violation":                 {insert(job, event(record.Violated, record.Violation{What: "x"}), kind(record.Closed)), attest.Violation},
		"profile unknown":           {opened(func(o *record.Opened) { o.Profile, o.External.Profile = "open", "open" }), attest.ProfileUnknown},
		"hermetic with border":      {opened(func(o *record.Opened) { o.Network.Build = "border" }), attest.NetworkContradiction},
		"hermetic with host":        {opened(func(o *record.Opened) { o.Network.Build = "host" }), attest.NetworkContradiction},
		"firewalled without border": {opened(func(o *record.Opened) { o.Profile, o.External.Profile = "firewalled", "firewalled" }), attest.NetworkContradiction},
		"helper with host network":  {opened(func(o *record.Opened) { o.Network.Helper = "host" }), attest.NetworkContradiction},
		"no policy digest":          {opened(func(o *record.Opened) { o.Network.PolicyDigest = "" }), attest.Malformed},
		"other source":              {opened(func(o *record.Opened) { o.External.Source += "x" }), attest.FactsContradiction},
		"other ref":                 {opened(func(o *record.Opened) { o.External.Ref = "refs/heads/release" }), attest.FactsContradiction},
		"branch called as main":     {both(func(j *record.Job, x *record.External) { j.Ref, x.Ref = "refs/heads/main", "refs/heads/main" }), attest.FactsContradiction},
		"branch called as a tag":    {both(func(j *record.Job, x *record.External) { j.Ref, x.Ref = "refs/tags/v1", "refs/tags/v1" }), attest.FactsContradiction},
		"tag called as main": {both(func(j *record.Job, x *record.External) {
			j.Ref, j.RefType, x.Ref = "refs/heads/main", "tag", "refs/heads/main"
		}), attest.FactsContradiction},
		"branch for tag":          {opened(func(o *record.Opened) { o.Job.RefType = "tag" }), attest.FactsContradiction},
		"other project":           {opened(func(o *record.Opened) { o.External.Project = "group/other" }), attest.FactsContradiction},
		"other job name":          {opened(func(o *record.Opened) { o.External.JobName = "other" }), attest.FactsContradiction},
		"other job stage":         {opened(func(o *record.Opened) { o.External.JobStage = "other" }), attest.FactsContradiction},
		"other profile":           {opened(func(o *record.Opened) { o.External.Profile = "firewalled" }), attest.FactsContradiction},
		"no source":               {both(func(j *record.Job, x *record.External) { j.SourceURI, x.Source = "", "" }), attest.Malformed},
		"no project":              {both(func(j *record.Job, x *record.External) { j.Project, x.Project = "", "" }), attest.Malformed},
		"no invocation id":        {opened(func(o *record.Opened) { o.InvocationID = "" }), attest.Malformed},
		"relative source":         {both(func(j *record.Job, x *record.External) { j.SourceURI, x.Source = "/g/p", "/g/p" }), attest.Malformed},
		"source with credentials": {both(func(j *record.Job, x *record.External) { j.SourceURI, x.Source = evil, evil }), attest.CredentialsInAddress},
		"short commit":            {opened(func(o *record.Opened) { o.Job.SHA = "abc" }), attest.Malformed},
		"upper-case commit":       {opened(func(o *record.Opened) { o.Job.SHA = strings.ToUpper(attesttest.Commit) }), attest.Malformed},
		"ref type unknown":        {opened(func(o *record.Opened) { o.Job.RefType = "" }), attest.Malformed},
		"job id too large":        {opened(func(o *record.Opened) { o.Job.ID = 1 << 53 }), attest.NumberTooLarge},
		"negative user":           {opened(func(o *record.Opened) { o.Job.UserID = -1 }), attest.NumberTooLarge},
		"dependency id too large": {opened(func(o *record.Opened) {
			o.External.Dependencies = []record.DependencyChoice{{ID: 1 << 53}}
		}), attest.NumberTooLarge},
		"step timeout too large": {opened(func(o *record.Opened) { o.External.Steps[0].TimeoutSec = 1 << 53 }), attest.NumberTooLarge},
		"hook timeout negative": {opened(func(o *record.Opened) {
			o.External.Hooks = []record.Step{{TimeoutSec: -1}}
		}), attest.NumberTooLarge},

		"image of no role":         {replace(job, func(i *record.Image) { i.Role = "init" }), attest.Malformed},
		"image with names":         {replace(job, func(i *record.Image) { i.Names = []string{"a"} }), attest.Malformed},
		"image without digest":     {replace(job, func(i *record.Image) { i.Manifest = "sha256:abc" }), attest.Malformed},
		"image with bad index":     {replace(job, func(i *record.Image) { i.Index = "sha512:" + long }), attest.Malformed},
		"image without config":     {replace(job, func(i *record.Image) { i.Config = "" }), attest.Malformed},
		"image by tag":             {replace(job, func(i *record.Image) { i.Reference = "registry.example.com/golang:1.26" }), attest.Malformed},
		"image without repository": {replace(job, func(i *record.Image) { i.Reference = "@" + i.Manifest }), attest.Malformed},
		"two images": {insert(job, event(record.ImageResolved, changed(job[1].Data.(record.Image), func(i *record.Image) {
			i.Config = "sha256:" + long
		})), starts("prepare_script")), attest.ImageChanged},
		"image too late": {insert(job, job[2], starts("get_sources")), attest.ImageChanged},
		"no build image": {remove(job, func(ev attesttest.Event) bool {
			i, ok := ev.Data.(record.Image)
			return ok && i.Role == "build"
		}), attest.ImageMissing},
		"no helper image": {remove(job, func(ev attesttest.Event) bool {
			i, ok := ev.Data.(record.Image)
			return ok && i.Role == "helper"
		}), attest.ImageMissing},

		"stage without name":          {replace(job, func(s *record.Started) { s.Stage = "" }), attest.Malformed},
		"stage without script digest": {replace(job, func(s *record.Started) { s.ScriptDigest = "" }), attest.Malformed},
		"stages overlap":              {remove(job, ends("prepare_script")), attest.StagesOverlap},
		"stage never ended":           {remove(job, ends("upload_artifacts_on_success")), attest.StageOpen},
		"stage never started":         {remove(job, starts("prepare_script")), attest.StageNeverStarted},
		"stage ended elsewhere":       {replace(job, func(s *record.Ended) { s.Role = "build" }), attest.StageNeverStarted},
		"stage ended by another name": {replace(job, func(s *record.Ended) { s.Stage = "get_sources" }), attest.StageNeverStarted},
		"tenant stage in helper": {changeStarted(job, "build_script", func(s *record.Started) {
			s.Role = "helper"
		}), attest.StageRole},
		"helper stage in build":                  {replace(job, func(s *record.Started) { s.Role = "build" }), attest.StageRole},
		"outcome unknown":                        {endOf("prepare_script", "security_failure")(job), attest.OutcomeUnknown},
		"duration negative":                      {replace(job, func(s *record.Ended) { s.DurationMS = -1 }), attest.NumberTooLarge},
		"exit code too large":                    {replace(job, func(s *record.Ended) { s.ExitCode = 1 << 40 }), attest.NumberTooLarge},
		"job exit code too large":                {replace(job, func(c *record.Closing) { c.ExitCode = 1 << 40 }), attest.NumberTooLarge},
		"result unknown":                         {replace(job, func(c *record.Closing) { c.Result = "fine" }), attest.OutcomeUnknown},
		"success claimed":                        {endOf("build_script", "failed")(job), attest.ResultContradiction},
		"success claimed after a system failure": {endOf("build_script", "system_failure")(job), attest.ResultContradiction},

		"source unverified":       {remove(job, kind(record.SourceVerified)), attest.SourceUnverified},
		"source fetched again":    {again(job, "get_sources", kind(record.SourceVerified)), attest.SourceUnverified},
		"work tree cleared":       {again(job, "clear_worktree", kind(record.SourceVerified)), attest.SourceUnverified},
		"source in flux":          {insert(remove(job, kind(record.SourceVerified)), job[slices.IndexFunc(job, kind(record.SourceVerified))], ends("get_sources")), attest.SourceInFlux},
		"other commit":            {replace(job, func(s *record.Source) { s.Commit = strings.Repeat("0", 40) }), attest.SourceOther},
		"wrong object format":     {replace(job, func(s *record.Source) { s.Format = "sha256" }), attest.Malformed},
		"unknown object format":   {replace(job, func(s *record.Source) { s.Format = "md5" }), attest.Malformed},
		"tree of other format":    {replace(job, func(s *record.Source) { s.Tree = long }), attest.Malformed},
		"source outcome unknown":  {replace(job, func(s *record.Source) { s.Outcome = "probably" }), attest.OutcomeUnknown},
		"match without tree":      {replace(job, func(s *record.Source) { s.Tree = "" }), attest.OutcomeUnknown},
		"match with another tree": {replace(job, func(s *record.Source) { s.Found = strings.Repeat("0", 40) }), attest.OutcomeUnknown},
		"match with differences":  {replace(job, func(s *record.Source) { s.Differs = []string{"x"} }), attest.OutcomeUnknown},
		"negative files":          {replace(job, func(s *record.Source) { s.Files = -1 }), attest.NumberTooLarge},
		"sources after tenant code": {insert(job, event(record.StageStarted, attesttest.Started("get_sources")),
			kind(record.Sealed)), attest.SourceAfterTenant},
		"compared after tenant code": {insert(job, job[slices.IndexFunc(job, kind(record.SourceVerified))], kind(record.Sealed)), attest.SourceAfterTenant},

		"tenant after seal": {insert(job, event(record.StageStarted, attesttest.Started("after_script")),
			starts("upload_artifacts_on_success")), attest.TenantAfterSeal},
		"archive before seal": {insert(job, event(record.StageStarted, attesttest.Started("archive_cache")), kind(record.Sealed)), attest.NotSealed},
		"upload stage before seal": {insert(remove(job, kind(record.Sealed)), event(record.Sealed, record.Seal{Directory: "/builds/group/project"}),
			kind(record.Closed)), attest.NotSealed},
		"match before seal":          {insert(job, event(record.Matched, members(1)), kind(record.Sealed)), attest.NotSealed},
		"match outside an upload":    {insert(job, event(record.Matched, members(1)), starts("upload_artifacts_on_success")), attest.UploadOutsideStage},
		"match without digest":       {insert(job, event(record.Matched, record.Members{Stage: members(1).Stage, Entries: members(1).Entries}), kind(record.Uploaded)), attest.Malformed},
		"match of nothing":           {insert(job, event(record.Matched, members(0)), kind(record.Uploaded)), attest.Malformed},
		"members that were not said": {insert(job, event(record.Matched, members(2)), kind(record.Uploaded)), attest.UploadInconsistent},
		"members that are missing":   {upload(func(u *record.Upload) { u.Matched = 2 }), attest.UploadInconsistent},
		"member in both lines": {insert(upload(func(u *record.Upload) {
			u.Matched = 1
			u.Entries = append(u.Entries, members(1).Entries...)
		}), event(record.Matched, members(1)), kind(record.Uploaded)), attest.UploadInconsistent},
		"upload before seal": {insert(job, event(record.Uploaded, attesttest.Upload("a.zip", "archive")), kind(record.Sealed)), attest.NotSealed},
		"sealed twice":       {insert(job, event(record.Sealed, record.Seal{Directory: "/builds/x"}), starts("upload_artifacts_on_success")), attest.SealedTwice},
		"seal in flux": {insert(remove(job, kind(record.Sealed)), event(record.Sealed, record.Seal{Directory: "/builds/x"}),
			ends("build_script")), attest.SealInFlux},
		"seal of a relative directory": {replace(job, func(s *record.Seal) { s.Directory = "builds" }), attest.Malformed},
		"seal of the root":             {replace(job, func(s *record.Seal) { s.Directory = "/" }), attest.Malformed},
		"seal of an unclean directory": {replace(job, func(s *record.Seal) { s.Directory = "/builds/../etc" }), attest.Malformed},

		"fetch between stages": {insert(attesttest.Dependencies(0), event(record.Fetched, attesttest.Fetch("build_script", "GET", "https://e.com/x", "x")),
			kind(record.Sealed)), attest.FetchOutsideStage},
		"fetch of another stage":  {fetchIn("build_script", func(f *record.Fetch) { f.Stage = "get_sources" }), attest.FetchOutsideStage},
		"fetch in another role":   {fetchIn("build_script", func(f *record.Fetch) { f.Role = "helper" }), attest.FetchOutsideStage},
		"fetch without network":   {insert(job, event(record.Fetched, attesttest.Fetch("build_script", "GET", "https://e.com/x", "x")), ends("build_script")), attest.FetchWithoutNetwork},
		"fetch with credentials":  {fetchIn("build_script", func(f *record.Fetch) { f.URL = evil }), attest.CredentialsInAddress},
		"redirect with the same":  {fetchIn("build_script", func(f *record.Fetch) { f.Redirects = []string{evil} }), attest.CredentialsInAddress},
		"fetch of no address":     {fetchIn("build_script", func(f *record.Fetch) { f.URL = "x" }), attest.Malformed},
		"fetch without digest":    {fetchIn("build_script", func(f *record.Fetch) { f.SHA256 = "" }), attest.Malformed},
		"fetch of no object":      {fetchIn("build_script", func(f *record.Fetch) { f.Git = &record.GitRequest{Command: "fetch", Wants: []string{"HEAD"}} }), attest.Malformed},
		"fetch with bad request":  {fetchIn("build_script", func(f *record.Fetch) { f.RequestSHA256 = "x" }), attest.Malformed},
		"fetch without method":    {fetchIn("build_script", func(f *record.Fetch) { f.Method = "" }), attest.Malformed},
		"fetch without status":    {fetchIn("build_script", func(f *record.Fetch) { f.Status = 0 }), attest.Malformed},
		"fetch of no status":      {fetchIn("build_script", func(f *record.Fetch) { f.Status, f.Incomplete = 600, "x" }), attest.Malformed},
		"fetch of negative size":  {fetchIn("build_script", func(f *record.Fetch) { f.Bytes = -1 }), attest.Malformed},
		"negative count of block": {replace(job, func(b *record.Block) { b.Count = -1 }), attest.NumberTooLarge},
		"count overflows":         {replace(job, func(b *record.Block) { b.Count = 1 << 62 }), attest.NumberTooLarge},

		"upload between stages":          {insert(job, event(record.Uploaded, attesttest.Upload("a.zip", "archive")), starts("upload_artifacts_on_success")), attest.UploadOutsideStage},
		"upload in a stage that is none": {archived(job), attest.UploadOutsideStage},
		"upload of another stage":        {upload(func(u *record.Upload) { u.Stage = "upload_artifacts_on_failure" }), attest.UploadOutsideStage},
		"upload without name":            {upload(func(u *record.Upload) { u.FileName = "" }), attest.Malformed},
		"upload with path":               {upload(func(u *record.Upload) { u.FileName = "../a.zip" }), attest.Malformed},
		"upload without type":            {upload(func(u *record.Upload) { u.Type = "" }), attest.Malformed},
		"upload without digest":          {upload(func(u *record.Upload) { u.SHA256 = "" }), attest.Malformed},
		"upload with upper-case digest":  {upload(func(u *record.Upload) { u.SHA256 = strings.ToUpper(u.SHA256) }), attest.Malformed},
		"upload with no such status":     {upload(func(u *record.Upload) { u.Status = 42 }), attest.Malformed},
		"upload whose answer was lost":   {upload(func(u *record.Upload) { u.Status = 0 }), attest.UploadsRejected},
		"member above":                   {upload(func(u *record.Upload) { u.Entries[1].Path = "../app" }), attest.UploadInconsistent},
		"member absolute":                {upload(func(u *record.Upload) { u.Entries[1].Path = "/app" }), attest.UploadInconsistent},
		"member unclean":                 {upload(func(u *record.Upload) { u.Entries[1].Path = "dist//app" }), attest.UploadInconsistent},
		"member without name":            {upload(func(u *record.Upload) { u.Entries[1].Path = "" }), attest.UploadInconsistent},
		"member with NUL":                {upload(func(u *record.Upload) { u.Entries[1].Path = "a\x00b" }), attest.UploadInconsistent},
		"member twice":                   {upload(func(u *record.Upload) { u.Entries[2].Path = u.Entries[1].Path }), attest.UploadInconsistent},
		"file without digest":            {upload(func(u *record.Upload) { u.Entries[1].SHA256 = "" }), attest.UploadInconsistent},
		"file with target":               {upload(func(u *record.Upload) { u.Entries[1].Target = "x" }), attest.UploadInconsistent},
		"directory with digest":          {upload(func(u *record.Upload) { u.Entries[0].SHA256 = long }), attest.UploadInconsistent},
		"symlink without target":         {upload(func(u *record.Upload) { u.Entries[0].Kind = "symlink" }), attest.UploadInconsistent},
		"device":                         {upload(func(u *record.Upload) { u.Entries[1].Kind = "device" }), attest.UploadInconsistent},

		"data of another type": {replace0(job, "x", kind(record.Uploaded)), attest.Malformed},
	}
}

func changed[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

func changeStarted(events []attesttest.Event, stage string, change func(*record.Started)) []attesttest.Event {
	events = slices.Clone(events)
	i := slices.IndexFunc(events, starts(stage))
	events[i].Data = changed(events[i].Data.(record.Started), change)
	return events
}

func replace0(events []attesttest.Event, data any, which func(attesttest.Event) bool) []attesttest.Event {
	events = slices.Clone(events)
	events[slices.IndexFunc(events, which)].Data = data
	return events
}

// again runs a stage once more behind the event.
func again(events []attesttest.Event, stage string, behind func(attesttest.Event) bool) []attesttest.Event {
	i := slices.IndexFunc(events, behind) + 1
	return slices.Insert(slices.Clone(events), i,
		event(record.StageStarted, attesttest.Started(stage)), event(record.StageEnded, attesttest.Ended(stage, "success")))
}

// archived has an upload in a stage that archives a cache.
func archived(events []attesttest.Event) []attesttest.Event {
	u := attesttest.Upload("a.zip", "archive")
	u.Stage = "archive_cache"
	i := slices.IndexFunc(events, kind(record.Sealed)) + 1
	return slices.Insert(slices.Clone(events), i, event(record.StageStarted, attesttest.Started("archive_cache")),
		event(record.Uploaded, u), event(record.StageEnded, attesttest.Ended("archive_cache", "success")))
}

func TestRefusals(t *testing.T) {
	seen := map[attest.Reason]bool{}
	all := refusals()
	maps.Copy(all, cacheRefusals())
	maps.Copy(all, downloadRefusals())
	for name, c := range all {
		t.Run(name, func(t *testing.T) {
			all, err := attest.Statements(entries(t, c.events), factsOf(c.events))
			if have := reason(err); have != c.want {
				t.Errorf("reason %q, want %q (%v)", have, c.want, err)
			}
			if all != nil {
				t.Error("statements beside an error")
			}
		})
		seen[c.want] = true
	}
	for _, r := range []attest.Reason{
		attest.NoOutputs, attest.UploadsRejected, attest.SystemFailure, attest.NotClosed, attest.Malformed,
		attest.ProfileUnknown, attest.NetworkContradiction, attest.FactsContradiction, attest.NumberTooLarge,
		attest.Violation, attest.StageOpen, attest.StagesOverlap, attest.StageNeverStarted, attest.StageRole,
		attest.OutcomeUnknown, attest.ImageMissing, attest.ImageChanged, attest.SourceUnverified, attest.SourceInFlux,
		attest.SourceOther, attest.SourceAfterTenant, attest.TenantAfterSeal, attest.SealInFlux, attest.SealedTwice,
		attest.NotSealed, attest.FetchOutsideStage, attest.FetchWithoutNetwork, attest.UploadOutsideStage,
		attest.UploadInconsistent, attest.CacheInconsistent, attest.DownloadInconsistent, attest.ResultContradiction, attest.CredentialsInAddress,
	} {
		if !seen[r] {
			t.Errorf("no record is refused for %s", r)
		}
	}
}

// TestBrokenChain hands over entries that package record would not have made.
func TestBrokenChain(t *testing.T) {
	good := entries(t, attesttest.Job())
	for name, es := range map[string][]record.Entry{
		"gap":          slices.Delete(slices.Clone(good), 4, 5),
		"order":        append(append(slices.Clone(good[:3]), good[4], good[3]), good[5:]...),
		"start":        good[1:],
		"other record": append(slices.Clone(entries(t, opened(func(o *record.Opened) { o.Session = "x" }))[:5]), good[5:]...),
	} {
		if _, err := attest.Statements(es, facts("hermetic")); reason(err) != attest.ChainBroken {
			t.Errorf("%s: %v", name, err)
		}
	}
	again := slices.Clone(good)
	again[3].Kind = record.JobOpened
	if _, err := attest.Statements(again, facts("hermetic")); reason(err) != attest.NotOpened {
		t.Errorf("opened twice: %v", err)
	}
	unknown := slices.Clone(good)
	unknown[3].Kind = "signed"
	if _, err := attest.Statements(unknown, facts("hermetic")); reason(err) != attest.Malformed {
		t.Errorf("unknown kind: %v", err)
	}
	field := slices.Clone(good)
	field[0].Data = json.RawMessage(`{"what":1}`)
	if _, err := attest.Statements(field, facts("hermetic")); reason(err) != attest.Malformed {
		t.Errorf("unknown field: %v", err)
	}
}

// TestAccepted has records that look odd and are in order.
func TestAccepted(t *testing.T) {
	job := attesttest.Job()
	retried := slices.Insert(slices.Clone(job), slices.IndexFunc(job, starts("get_sources")),
		event(record.StageStarted, attesttest.Started("get_sources")), event(record.StageEnded, attesttest.Ended("get_sources", "failed")))
	after := slices.Insert(slices.Clone(job), slices.IndexFunc(job, kind(record.Sealed)),
		event(record.StageStarted, attesttest.Started("after_script")), event(record.StageEnded, attesttest.Ended("after_script", "failed")))
	lenient := endOf("build_script", "failed")(opened(func(o *record.Opened) { o.External.Steps[0].AllowFailure = true }))
	tag := both(func(j *record.Job, x *record.External) { j.Ref, j.RefType, x.Ref = "v1", "tag", "refs/tags/v1" })
	merge := both(func(j *record.Job, x *record.External) {
		j.Ref, x.Ref = "refs/merge-requests/1/head", "refs/merge-requests/1/head"
	})
	odd := both(func(j *record.Job, x *record.External) {
		j.Ref, x.Ref = "refs/heads/main", "refs/heads/refs/heads/main"
	})
	sameImage := insert(job, job[1], starts("prepare_script"))
	for name, events := range map[string][]attesttest.Event{
		"sources retried": retried, "after_script failed": after, "failure allowed": lenient,
		"tag": tag, "merge request": merge, "branch of an odd name": odd, "image resolved twice alike": sameImage,
		"canceled":             replace(job, func(c *record.Closing) { c.Result = "canceled" }),
		"timeout":              replace(job, func(c *record.Closing) { c.Result = "timeout" }),
		"fetch without answer": fetchIn("build_script", func(f *record.Fetch) { f.Status, f.Incomplete = 0, "refused" }),
		"largest":              opened(func(o *record.Opened) { o.Job.ID = 1<<53 - 1 }),
	} {
		if _, err := attest.Statements(entries(t, events), factsOf(events)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzStatements turns any chain of known kinds into statements, or refuses it.
func FuzzStatements(f *testing.F) {
	seed := func(events []attesttest.Event) {
		type wire struct {
			Kind record.Kind
			Data json.RawMessage
		}
		var out []wire
		for _, ev := range events {
			data, err := json.Marshal(ev.Data)
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, wire{ev.Kind, data})
		}
		text, err := json.Marshal(out)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	seed(attesttest.Job())
	seed(attesttest.Dependencies(2))
	for _, c := range refusals() {
		seed(c.events)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var in []struct {
			Kind record.Kind
			Data json.RawMessage
		}
		if json.Unmarshal(text, &in) != nil {
			return
		}
		events := make([]attesttest.Event, len(in))
		for i, w := range in {
			events[i] = attesttest.Event{Kind: w.Kind, Data: w.Data}
		}
		es, err := attesttest.Entries(attesttest.Start(), events)
		if err != nil {
			return
		}
		var o record.Opened
		if len(es) > 0 {
			_ = es[0].Decode(&o)
		}
		all, err := attest.Statements(es, facts(o.Profile))
		if (err == nil) != (len(all) > 0) {
			t.Fatalf("%d statements with error %v", len(all), err)
		}
		names := map[string]bool{}
		for _, st := range all {
			if !st.Intact() || !json.Valid(st.JSON) || len(st.Subjects) == 0 || len(st.Subjects) > attest.MaxSubjects {
				t.Fatal("statement is not whole")
			}
			if record.CheckJSON(st.JSON) != nil {
				t.Fatalf("statement is read in two ways: %v", record.CheckJSON(st.JSON))
			}
			for _, s := range st.Subjects {
				if names[s.Name] {
					t.Fatalf("subject %q twice", s.Name)
				}
				names[s.Name] = true
			}
		}
	})
}

func BenchmarkStatements(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(count(n), func(b *testing.B) {
			es := entries(b, attesttest.Dependencies(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := attest.Statements(es, facts("firewalled")); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNames has an output named "a" beside files "a", "a:a" and so on: each
// round of lengthening names makes the clash of the next.
func BenchmarkNames(b *testing.B) {
	var chain, others []string
	for i := range 120 {
		chain = append(chain, strings.Repeat("a:", i)+"a")
	}
	for i := range 20_000 {
		others = append(others, fmt.Sprint("dist/", i))
	}
	es := entries(b, uploads(attesttest.Upload("a", "archive", chain...), attesttest.Upload("z.zip", "archive", others...)))
	for b.Loop() {
		if _, err := attest.Statements(es, facts("hermetic")); err != nil {
			b.Fatal(err)
		}
	}
}

func count(n int) string {
	text, _ := json.Marshal(n)
	return "deps=" + string(text)
}
