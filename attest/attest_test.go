package attest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	provenancepb "github.com/in-toto/attestation/go/predicates/provenance/v1"
	statementpb "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

var update = flag.Bool("update", false, "rewrite golden files")

func facts(profile string) attest.Facts {
	return attest.Facts{
		BuilderID:      "https://ci.example.com/hallmark/" + profile,
		BuilderVersion: map[string]string{"hallmark-attestd": "0.1.0"},
		GitLabURL:      "https://gitlab.example.com",
	}
}

func entries(t testing.TB, events []attesttest.Event) []record.Entry {
	t.Helper()
	out, err := attesttest.Entries(attesttest.Start(), events)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// factsOf has the builder id that a record's profile asks for.
func factsOf(events []attesttest.Event) attest.Facts {
	if len(events) > 0 {
		if o, ok := events[0].Data.(record.Opened); ok {
			return facts(o.Profile)
		}
	}
	return facts("hermetic")
}

func statements(t testing.TB, events []attesttest.Event) []attest.Statement {
	t.Helper()
	out, err := attest.Statements(entries(t, events), factsOf(events))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// one returns the only statement, decoded.
func one(t testing.TB, events []attesttest.Event) map[string]any {
	t.Helper()
	all := statements(t, events)
	if len(all) != 1 {
		t.Fatalf("%d statements, want 1", len(all))
	}
	return decoded(t, all[0].JSON)
}

func decoded(t testing.TB, text []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// at walks down objects by dotted path.
func at(t testing.TB, v any, path string) any {
	t.Helper()
	for _, name := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("%s: no object at %s", path, name)
		}
		v = m[name]
	}
	return v
}

// replace swaps the data of the first event of a kind.
func replace[T any](events []attesttest.Event, change func(*T)) []attesttest.Event {
	events = slices.Clone(events)
	for i, ev := range events {
		if data, ok := ev.Data.(T); ok {
			change(&data)
			events[i].Data = data
			return events
		}
	}
	panic("no such event")
}

// insert puts an event before the first one for which before holds.
func insert(events []attesttest.Event, ev attesttest.Event, before func(attesttest.Event) bool) []attesttest.Event {
	i := slices.IndexFunc(events, before)
	if i < 0 {
		panic("no such event")
	}
	return slices.Insert(slices.Clone(events), i, ev)
}

func remove(events []attesttest.Event, which func(attesttest.Event) bool) []attesttest.Event {
	return slices.DeleteFunc(slices.Clone(events), which)
}

func kind(k record.Kind) func(attesttest.Event) bool {
	return func(ev attesttest.Event) bool { return ev.Kind == k }
}

func starts(stage string) func(attesttest.Event) bool {
	return func(ev attesttest.Event) bool {
		s, ok := ev.Data.(record.Started)
		return ok && s.Stage == stage
	}
}

func ends(stage string) func(attesttest.Event) bool {
	return func(ev attesttest.Event) bool {
		s, ok := ev.Data.(record.Ended)
		return ok && s.Stage == stage
	}
}

func golden(t *testing.T, name string, have []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, have, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(have)); diff != "" {
		t.Errorf("%s (-want +have):\n%s", file, diff)
	}
}

func mismatch() []attesttest.Event {
	return replace(attesttest.Job(), func(s *record.Source) {
		s.Outcome, s.Found, s.Differs = "mismatch", strings.Repeat("ab", 20), []string{"main.go"}
	})
}

func failed() []attesttest.Event {
	job := replace(attesttest.Job(), func(c *record.Closing) { c.Result, c.ExitCode = "failed", 42 })
	i := slices.IndexFunc(job, ends("build_script"))
	job[i].Data = attesttest.Ended("build_script", "failed")
	return job
}

func TestGolden(t *testing.T) {
	for name, events := range map[string][]attesttest.Event{
		"hermetic.json":   attesttest.Job(),
		"firewalled.json": attesttest.Dependencies(3),
		"mismatch.json":   mismatch(),
		"failed.json":     failed(),
	} {
		t.Run(name, func(t *testing.T) {
			all := statements(t, events)
			golden(t, name, append(all[0].JSON, '\n'))
		})
	}
}

func TestDeterministic(t *testing.T) {
	es := entries(t, attesttest.Dependencies(50))
	first, err := attest.Statements(es, facts("firewalled"))
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := attest.Statements(es, facts("firewalled"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first[0].JSON, again[0].JSON) {
			t.Fatal("the same record gave other bytes")
		}
	}
}

// TestInToto reads statements with in-toto's own types.
func TestInToto(t *testing.T) {
	for _, events := range [][]attesttest.Event{attesttest.Job(), attesttest.Dependencies(3), mismatch(), failed()} {
		for _, st := range statements(t, events) {
			var s statementpb.Statement
			if err := protojson.Unmarshal(st.JSON, &s); err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(); err != nil {
				t.Error(err)
			}
			text, err := protojson.Marshal(s.GetPredicate())
			if err != nil {
				t.Fatal(err)
			}
			var p provenancepb.Provenance
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &p); err != nil {
				t.Fatal(err)
			}
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			if p.GetRunDetails().GetMetadata().GetStartedOn().AsTime() != attesttest.Start() {
				t.Errorf("startedOn is %v", p.GetRunDetails().GetMetadata().GetStartedOn().AsTime())
			}
		}
	}
}

// TestExtensions holds that whoever ignores our extensions sees a valid
// statement with no other names in it.
func TestExtensions(t *testing.T) {
	st := one(t, attesttest.Job())
	if len(st) != 4 {
		t.Errorf("statement has %d fields, want 4", len(st))
	}
	for name := range st["predicate"].(map[string]any) {
		if name != "buildDefinition" && name != "runDetails" && !strings.HasPrefix(name, "hallmark_") {
			t.Errorf("predicate has field %q", name)
		}
	}
}

func TestNoEscapes(t *testing.T) {
	if text := statements(t, attesttest.Job())[0].JSON; !bytes.Contains(text, []byte("<x>&y")) {
		t.Error("<, > and & do not stand as they are")
	}
}

func TestExternalWordForWord(t *testing.T) {
	want, err := json.Marshal(attesttest.Opened().External)
	if err != nil {
		t.Fatal(err)
	}
	have := at(t, one(t, attesttest.Job()), "predicate.buildDefinition.externalParameters")
	if diff := cmp.Diff(decoded(t, want), have); diff != "" {
		t.Error(diff)
	}
}

func TestIntact(t *testing.T) {
	st := statements(t, attesttest.Job())[0]
	if !st.Intact() {
		t.Fatal("not intact as made")
	}
	for name, change := range map[string]func(*attest.Statement){
		"bytes":      func(s *attest.Statement) { s.JSON = append(bytes.Clone(s.JSON), ' ') },
		"builder id": func(s *attest.Statement) { s.BuilderID += "x" },
		"by hand":    func(s *attest.Statement) { *s = attest.Statement{JSON: s.JSON, BuilderID: s.BuilderID} },
		"empty":      func(s *attest.Statement) { *s = attest.Statement{} },
	} {
		changed := st
		change(&changed)
		if changed.Intact() {
			t.Errorf("%s: intact", name)
		}
	}
}

func dependencies(t *testing.T, st map[string]any) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, d := range at(t, st, "predicate.buildDefinition.resolvedDependencies").([]any) {
		out = append(out, d.(map[string]any))
	}
	return out
}

func TestSource(t *testing.T) {
	sha256Repo := func() []attesttest.Event {
		o := attesttest.Opened()
		o.Job.SHA = strings.Repeat("ab", 32)
		return replace(attesttest.JobOf(o), func(s *record.Source) {
			s.Commit, s.Format, s.Tree = o.Job.SHA, "sha256", strings.Repeat("cd", 32)
		})
	}
	absent := replace(attesttest.Job(), func(s *record.Source) { s.Outcome, s.Tree = "absent", "" })
	for name, c := range map[string]struct {
		events                 []attesttest.Event
		commit, outcome, class string
		exchanges              bool // git's own are dependencies
	}{
		"match":    {attesttest.Job(), attesttest.Commit, "match", "hermetic", false},
		"sha256":   {sha256Repo(), strings.Repeat("ab", 32), "match", "hermetic", false},
		"border":   {attesttest.Dependencies(1), attesttest.Commit, "match", "border", false},
		"mismatch": {mismatch(), "", "mismatch", "declared", true},
		"absent":   {absent, "", "absent", "declared", true},
	} {
		t.Run(name, func(t *testing.T) {
			st := one(t, c.events)
			commit, exchanges := "", false
			for _, d := range dependencies(t, st) {
				digest := d["digest"].(map[string]any)
				if g, ok := digest["gitCommit"].(string); ok {
					commit = g
				}
				uri, _ := d["uri"].(string)
				exchanges = exchanges || strings.HasSuffix(uri, "/git-upload-pack")
			}
			if commit != c.commit {
				t.Errorf("gitCommit %q, want %q", commit, c.commit)
			}
			if exchanges != c.exchanges {
				t.Errorf("git exchanges among dependencies: %v, want %v", exchanges, c.exchanges)
			}
			if have := at(t, st, "predicate.hallmark_source.outcome"); have != c.outcome {
				t.Errorf("outcome %v, want %v", have, c.outcome)
			}
			if have := at(t, st, "predicate.hallmark_completeness.sources"); have != c.class {
				t.Errorf("sources are %v, want %v", have, c.class)
			}
		})
	}
}

// TestNoSourceAtAll is a job that failed before its sources were there.
func TestNoSourceAtAll(t *testing.T) {
	job := remove(failed(), func(ev attesttest.Event) bool {
		return ev.Kind == record.SourceVerified || starts("build_script")(ev) || ends("build_script")(ev) || ev.Kind == record.Blocked
	})
	st := one(t, job)
	if have := at(t, st, "predicate.hallmark_source.outcome"); have != "absent" {
		t.Errorf("outcome %v", have)
	}
	if have := at(t, st, "predicate.hallmark_completeness.sources"); have != "declared" {
		t.Errorf("sources are %v", have)
	}
}

// TestOtherRepository holds that only exchanges with the job's own repository
// are folded into the commit.
func TestOtherRepository(t *testing.T) {
	for _, u := range []string{
		"https://gitlab.example.com/group/other.git/git-upload-pack",
		"https://gitlab.example.com/group/project-evil.git/git-upload-pack",
		"https://gitlab.example.com.evil.test/group/project.git/git-upload-pack",
		"https://gitlab.example.com:8443/group/project.git/git-upload-pack",
		"http://gitlab.example.com/group/project.git/git-upload-pack",
		"https://gitlab.example.com/group/project.git/info/refs",
		"https://gitlab.example.com/group/project.git/info/refs?service=git-upload-pack&x=1",
		"https://gitlab.example.com/group/project.git/git-upload-pack?x",
		"https://gitlab.example.com/group/project.git/info/lfs/objects/batch",
		"https://gitlab.example.com/group/project.git/-/raw/git-upload-pack",
	} {
		job := insert(attesttest.Job(), attesttest.Event{Kind: record.Fetched, Data: attesttest.Fetch("get_sources", "GET", u, u)}, ends("get_sources"))
		if !slices.ContainsFunc(dependencies(t, one(t, job)), func(d map[string]any) bool { return d["uri"] == u }) {
			t.Errorf("%s is no dependency", u)
		}
	}
}

// TestOtherObjects holds that a pack counts as the source only if nothing but
// the job's commit was asked for, and that this is known.
func TestOtherObjects(t *testing.T) {
	repository := "https://gitlab.example.com/group/project.git"
	u, other := repository+"/git-upload-pack", strings.Repeat("f", 40)
	commit := attesttest.Opened().Job.SHA
	pack := func(change func(*record.Fetch)) map[string]any {
		f := attesttest.GitFetch(repository, commit)
		change(&f)
		job := insert(attesttest.Job(), attesttest.Event{Kind: record.Fetched, Data: f}, ends("get_sources"))
		deps := dependencies(t, one(t, job))
		if i := slices.IndexFunc(deps, func(d map[string]any) bool { return d["uri"] == u }); i >= 0 {
			return deps[i]
		}
		return nil
	}
	if d := pack(func(*record.Fetch) {}); d != nil {
		t.Errorf("the commit alone: %v", d)
	}
	if d := pack(func(f *record.Fetch) { f.Git.Command, f.Git.Wants = "refs", nil }); d != nil {
		t.Errorf("a list of refs: %v", d)
	}
	if d := pack(func(f *record.Fetch) { f.Git = nil }); d == nil {
		t.Error("a request that nobody could read is no dependency")
	}
	d := pack(func(f *record.Fetch) { f.Git.Wants = []string{commit, other} })
	if want := []any{commit, other}; d == nil || !slices.Equal(d["annotations"].(map[string]any)["wants"].([]any), want) {
		t.Errorf("another commit: %v", d)
	}
}

// TestOtherStage holds that git's exchanges count as sources in get_sources
// alone.
func TestOtherStage(t *testing.T) {
	u := "https://gitlab.example.com/group/project.git/git-upload-pack"
	job := insert(attesttest.Dependencies(0), attesttest.Event{Kind: record.Fetched, Data: attesttest.Fetch("build_script", "POST", u, "x")}, ends("build_script"))
	if !slices.ContainsFunc(dependencies(t, one(t, job)), func(d map[string]any) bool { return d["uri"] == u }) {
		t.Error("a clone by the script is no dependency")
	}
}

func TestFetches(t *testing.T) {
	file := attesttest.Fetch("build_script", "GET", "https://modules.example.com/a", "a")
	change := func(f record.Fetch, c func(*record.Fetch)) attesttest.Event {
		c(&f)
		return attesttest.Event{Kind: record.Fetched, Data: f}
	}
	job := attesttest.Dependencies(0)
	for _, ev := range []attesttest.Event{
		change(file, func(f *record.Fetch) {}),
		change(file, func(f *record.Fetch) {}),                                    // the same again
		change(file, func(f *record.Fetch) { f.SHA256 = attesttest.SHA256("b") }), // changed in between
		// Bodies that a job could have used, although no success says so.
		change(file, func(f *record.Fetch) { f.URL += "/404"; f.Status = 404 }),
		change(file, func(f *record.Fetch) { f.URL += "/302"; f.Status = 302 }),
		change(file, func(f *record.Fetch) { f.URL += "/cut"; f.Incomplete = "the client went away" }),
		// An empty file is a file.
		change(file, func(f *record.Fetch) { f.URL += "/empty"; f.Bytes = 0 }),
		// Nothing came.
		change(file, func(f *record.Fetch) { f.URL += "/head"; f.Method, f.Bytes = "HEAD", 0 }),
		change(file, func(f *record.Fetch) { f.URL += "/304"; f.Status, f.Bytes = 304, 0 }),
		change(file, func(f *record.Fetch) { f.URL += "/502"; f.Status, f.Bytes, f.Incomplete = 502, 0, "no answer" }),
	} {
		job = insert(job, ev, ends("build_script"))
	}
	st := one(t, job)
	var uris []string
	for _, d := range dependencies(t, st) {
		if notes, ok := d["annotations"].(map[string]any); ok && notes["kind"] == "fetched" {
			uris = append(uris, fmt.Sprint(d["uri"], " ", d["digest"].(map[string]any)["sha256"], " ", notes["status"], " ", notes["incomplete"]))
		}
	}
	want := []string{
		file.URL + " " + attesttest.SHA256("b") + " <nil> <nil>",
		file.URL + " " + file.SHA256 + " <nil> <nil>",
		file.URL + "/404 " + file.SHA256 + " 404 <nil>",
		file.URL + "/302 " + file.SHA256 + " 302 <nil>",
		file.URL + "/cut " + file.SHA256 + " <nil> the client went away",
		file.URL + "/empty " + file.SHA256 + " <nil> <nil>",
	}
	slices.Sort(want)
	slices.Sort(uris)
	if diff := cmp.Diff(want, uris); diff != "" {
		t.Error(diff)
	}
	moved := insert(attesttest.Dependencies(0), change(file, func(f *record.Fetch) { f.Redirects = []string{"https://a.example.com/1", "https://cdn.example.com/2"} }), ends("build_script"))
	if !slices.ContainsFunc(dependencies(t, one(t, moved)), func(d map[string]any) bool { return d["downloadLocation"] == "https://cdn.example.com/2" }) {
		t.Error("nothing says where a redirect led")
	}
	for _, b := range at(t, st, "predicate.runDetails.byproducts").([]any) {
		if b := b.(map[string]any); b["name"] == "other-exchanges" {
			if n := at(t, b, "annotations.count"); n != 3.0 {
				t.Errorf("%v other exchanges, want 3", n)
			}
			return
		}
	}
	t.Error("no byproduct stands for the other exchanges")
}

func TestCompleteness(t *testing.T) {
	cached := fromStorage("k")
	downloaded := insert(attesttest.Job(), attesttest.Event{Kind: record.StageStarted, Data: attesttest.Started("download_artifacts")}, starts("build_script"))
	downloaded = insert(downloaded, attesttest.Event{Kind: record.Fetched, Data: attesttest.Fetch("download_artifacts", "GET", "https://gitlab.example.com/api/v4/jobs/1/artifacts", "z")}, starts("build_script"))
	downloaded = insert(downloaded, attesttest.Event{Kind: record.StageEnded, Data: attesttest.Ended("download_artifacts", "success")}, starts("build_script"))
	all := func(word string) map[string]any {
		return map[string]any{"sources": word, "images": word, "packages": word, "files": word, "artifacts": word, "caches": word}
	}
	with := func(m map[string]any, name, word string) map[string]any { m[name] = word; return m }
	for name, c := range map[string]struct {
		events []attesttest.Event
		want   map[string]any
	}{
		"hermetic":   {attesttest.Job(), all("hermetic")},
		"firewalled": {attesttest.Dependencies(2), all("border")},
		"mismatch":   {mismatch(), with(all("hermetic"), "sources", "declared")},
		"cache":      {cached, with(all("hermetic"), "caches", "border")},
		"artifacts":  {downloaded, with(all("hermetic"), "artifacts", "border")},
	} {
		if diff := cmp.Diff(c.want, at(t, one(t, c.events), "predicate.hallmark_completeness")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func subjectNames(all []attest.Statement) []string {
	var out []string
	for _, st := range all {
		for _, s := range st.Subjects {
			out = append(out, s.Name)
		}
	}
	return out
}

func uploads(us ...record.Upload) []attesttest.Event {
	job := remove(attesttest.Job(), kind(record.Uploaded))
	for _, u := range us {
		job = insert(job, attesttest.Event{Kind: record.Uploaded, Data: u}, ends("upload_artifacts_on_success"))
	}
	return job
}

func TestSubjectNames(t *testing.T) {
	zip := attesttest.Upload("artifacts.zip", "archive", "dist/app")
	rejected := attesttest.Upload("late.zip", "archive", "dist/late")
	rejected.Status = 503
	same := attesttest.Upload("copy.zip", "archive", "dist/app")
	same.Entries[1].SHA256 = zip.Entries[1].SHA256
	retyped := attesttest.Upload("artifacts.zip", "trace", "dist/app")
	retyped.Entries[1].SHA256 = attesttest.SHA256("another")
	nested := attesttest.Upload("artifacts.zip", "archive", "artifacts.zip")
	crafted := attesttest.Upload("other.zip", "archive", "dist/app", "artifacts.zip:dist/app")
	link := attesttest.Upload("artifacts.zip", "archive")
	link.Entries = append(link.Entries, record.UploadEntry{Path: "dist/link", Kind: "symlink", Target: "app"})
	for name, c := range map[string]struct {
		us   []record.Upload
		want []string
	}{
		"one":      {[]record.Upload{zip}, []string{"artifacts.zip", "dist/app"}},
		"twice":    {[]record.Upload{zip, zip}, []string{"artifacts.zip", "dist/app"}},
		"rejected": {[]record.Upload{rejected, zip}, []string{"artifacts.zip", "dist/app"}},
		"same":     {[]record.Upload{zip, same}, []string{"artifacts.zip", "copy.zip", "dist/app"}},
		"differs": {[]record.Upload{zip, attesttest.Upload("b.zip", "archive", "dist/app")},
			[]string{"artifacts.zip", "artifacts.zip:dist/app", "b.zip", "b.zip:dist/app"}},
		"types": {[]record.Upload{zip, retyped},
			[]string{"archive:artifacts.zip", "archive:artifacts.zip:dist/app", "trace:artifacts.zip", "trace:artifacts.zip:dist/app"}},
		"nested": {[]record.Upload{nested}, []string{"archive:artifacts.zip", "artifacts.zip:artifacts.zip"}},
		"crafted": {[]record.Upload{zip, crafted}, []string{"archive:artifacts.zip:dist/app", "artifacts.zip",
			"other.zip", "other.zip:artifacts.zip:dist/app", "other.zip:dist/app"}},
		"symlinks and directories": {[]record.Upload{link}, []string{"artifacts.zip"}},
	} {
		t.Run(name, func(t *testing.T) {
			all := statements(t, uploads(c.us...))
			if diff := cmp.Diff(c.want, subjectNames(all)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNoOutputIsDropped(t *testing.T) {
	a, b := attesttest.Upload("x:y", "archive", "p"), attesttest.Upload("x", "archive", "y:p", "y")
	all := statements(t, uploads(a, b, a, b))
	digests := map[string]bool{}
	for _, s := range all[0].Subjects {
		digests[s.SHA256] = true
	}
	for _, want := range []string{a.SHA256, b.SHA256, a.Entries[1].SHA256, b.Entries[1].SHA256, b.Entries[2].SHA256} {
		if !digests[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestManySubjects(t *testing.T) {
	var us []record.Upload
	for i := range 3 {
		var paths []string
		for k := range 1000 {
			paths = append(paths, fmt.Sprintf("dist/%d/%04d", i, k))
		}
		us = append(us, attesttest.Upload(fmt.Sprintf("%d.zip", i), "archive", paths...))
	}
	all := statements(t, uploads(us...))
	if len(all) != 3 {
		t.Fatalf("%d statements for 3003 subjects, want 3", len(all))
	}
	names := subjectNames(all)
	if len(names) != 3003 || !slices.IsSorted(names) || len(slices.Compact(names)) != 3003 {
		t.Errorf("%d subjects, or not sorted, or not unique", len(names))
	}
	invocation := ""
	for i, st := range all {
		v := decoded(t, st.JSON)
		if len(st.Subjects) > attest.MaxSubjects || len(v["subject"].([]any)) != len(st.Subjects) {
			t.Errorf("part %d has %d subjects", i, len(st.Subjects))
		}
		part := at(t, v, "predicate.hallmark_part").(map[string]any)
		if part["part"] != float64(i+1) || part["parts"] != 3.0 || part["subjects"] != 3003.0 {
			t.Errorf("part %d says %v", i, part)
		}
		id := at(t, v, "predicate.runDetails.metadata.invocationId").(string)
		if invocation != "" && id != invocation {
			t.Error("parts have different invocation ids")
		}
		invocation = id
	}
}

// TestTooLarge has little evidence that makes many statements, and large ones.
func TestTooLarge(t *testing.T) {
	value := strings.Repeat("x", 3<<20)
	var us []record.Upload
	for i := range 3 {
		paths := make([]string, 15*attest.MaxSubjects)
		for k := range paths {
			paths[k] = fmt.Sprint(k)
		}
		us = append(us, attesttest.Upload(fmt.Sprintf("%d.zip", i), "archive", paths...))
	}
	job := replace(uploads(us...), func(o *record.Opened) {
		o.External.Variables = []record.Variable{{Name: "V", Value: &value, Public: true}}
	})
	_, err := attest.Statements(entries(t, job), facts("hermetic"))
	if reason(err) != attest.TooLarge {
		t.Errorf("46 parts of 3 MiB: %v", err)
	}
}

func TestRefusalSecurity(t *testing.T) {
	for _, r := range []attest.Reason{attest.NoOutputs, attest.UploadsRejected, attest.SystemFailure, attest.NotClosed, attest.TooLarge} {
		if (&attest.Refusal{Reason: r}).Security() {
			t.Errorf("%s is a security failure", r)
		}
	}
	if !(&attest.Refusal{Reason: "anything else"}).Security() {
		t.Error("an unknown reason is harmless")
	}
}

func TestBuilderIDOfProfile(t *testing.T) {
	for _, id := range []string{"https://ci.example.com/hallmark/firewalled", "https://ci.example.com/hallmark/nothermetic", "hermetic"} {
		_, err := attest.Statements(entries(t, attesttest.Job()), attest.Facts{BuilderID: id})
		if reason(err) != attest.BuilderContradiction {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestBuilderIDRequired(t *testing.T) {
	if _, err := attest.Statements(entries(t, attesttest.Job()), attest.Facts{}); err == nil {
		t.Error("a statement without a builder")
	}
}

func reason(err error) attest.Reason {
	if r, ok := errors.AsType[*attest.Refusal](err); ok {
		return r.Reason
	}
	return ""
}
