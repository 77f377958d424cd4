package authority_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// openJob opens an attempt of another job, with a record that has begun.
func (w *world) openJob(id, project int64, change ...func(*record.Opened)) (*authoritypb.OpenResponse, record.Opened) {
	w.t.Helper()
	req := openRequest()
	req.Job.Id, req.Job.ProjectId = id, project
	res, err := w.a.Open(w.t.Context(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	o := opened(res)
	o.Job.ID, o.Job.ProjectID = id, project
	for _, c := range change {
		c(&o)
	}
	return res, o
}

func dependsOn(id int64) func(*record.Opened) {
	return func(o *record.Opened) {
		o.External.Dependencies = []record.DependencyChoice{{ID: id, Name: "compile"}}
	}
}

func (w *world) provenance(res *authoritypb.OpenResponse, sha256 string, job int64) []*authoritypb.Origin {
	w.t.Helper()
	out, err := w.a.Provenance(w.t.Context(), &authoritypb.ProvenanceRequest{Attempt: res.GetAttempt(), Sha256: sha256, JobId: job})
	if err != nil {
		w.t.Fatal(err)
	}
	return out.GetOrigins()
}

var artifact = attesttest.SHA256("artifacts.zip" + "archive")

func TestProvenance(t *testing.T) {
	w := newWorld(t)
	made, _, closed := w.run()
	want := &authoritypb.Origin{
		BundleSha256: closed.GetAttestations()[0].GetSha256(), InvocationId: made.GetInvocationId(), Project: "group/project",
		Ref: "main", Protected: true, JobId: 4242, Result: "success", BuilderId: made.GetBuilderId(),
	}
	for name, c := range map[string]struct {
		project int64
		change  func(*record.Opened)
		sha256  string
		job     int64
		want    []*authoritypb.Origin
	}{
		"same project":               {77, nil, artifact, 0, []*authoritypb.Origin{want}},
		"same project, by job":       {77, nil, artifact, 4242, []*authoritypb.Origin{want}},
		"another job":                {77, nil, artifact, 4243, nil},
		"another digest":             {77, nil, attesttest.SHA256("x"), 0, nil},
		"another project":            {78, nil, artifact, 0, nil},
		"another project's job":      {78, nil, artifact, 4242, nil},
		"any of a job":               {77, nil, "", 4242, []*authoritypb.Origin{want}},
		"any of another job":         {77, nil, "", 4243, nil},
		"any of another project's":   {78, nil, "", 4242, nil},
		"any of a named job":         {78, dependsOn(4242), "", 4242, []*authoritypb.Origin{want}},
		"another project's, named":   {78, dependsOn(4242), artifact, 4242, []*authoritypb.Origin{want}},
		"another job of it is named": {78, dependsOn(4241), artifact, 4242, nil},
	} {
		t.Run(name, func(t *testing.T) {
			id := 5000 + int64(len(name))*100 + int64(name[len(name)-1])
			res, o := w.openJob(id, c.project)
			if c.change != nil {
				c.change(&o)
			}
			w.mustAppend(res, w.lines(attesttest.JobOf(o)[:3])...)
			if diff := cmp.Diff(c.want, w.provenance(res, c.sha256, c.job), protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCrowdOfOrigins: a branch that anybody may push to cannot fill the answer with
// its own attestations of the same bytes, so that a protected job misses them.
func TestCrowdOfOrigins(t *testing.T) {
	w := newWorld(t)
	w.run()
	unprotected := func(o *record.Opened) { o.Job.Protected = new(bool) }
	attested := func(id int64) {
		res, o := w.openJob(id, 77, unprotected)
		if _, err := w.close(res, w.mustAppend(res, w.lines(attesttest.JobOf(o))...).GetHead()); err != nil {
			t.Fatal(err)
		}
	}
	for id := range int64(20) {
		attested(5000 + id)
	}
	ask := func(id int64, change ...func(*record.Opened)) (jobs []int64) {
		res, o := w.openJob(id, 77, change...)
		w.mustAppend(res, w.lines(attesttest.JobOf(o)[:3])...)
		for _, o := range w.provenance(res, artifact, 0) {
			if o.GetProtected() != (o.GetJobId() == 4242) {
				t.Errorf("%v", o)
			}
			jobs = append(jobs, o.GetJobId())
		}
		return jobs
	}
	if jobs := ask(6000); !slices.Equal(jobs, []int64{4242}) {
		t.Errorf("a protected job learns of %v", jobs)
	}
	if jobs := ask(6001, unprotected); len(jobs) != 16 || slices.Contains(jobs, 4242) {
		t.Errorf("an unprotected job learns of %v", jobs)
	}
}

func TestProvenanceRefusals(t *testing.T) {
	w := newWorld(t)
	made, _, _ := w.run()
	res, _ := w.openJob(4243, 77)
	for name, c := range map[string]struct {
		req  *authoritypb.ProvenanceRequest
		want codes.Code
	}{
		"attempt": {&authoritypb.ProvenanceRequest{Attempt: "x", Sha256: artifact}, codes.InvalidArgument},
		"unknown": {&authoritypb.ProvenanceRequest{Attempt: strings.Repeat("0", 32), Sha256: artifact}, codes.NotFound},
		"closed":  {&authoritypb.ProvenanceRequest{Attempt: made.GetAttempt(), Sha256: artifact}, codes.FailedPrecondition},
		"digest":  {&authoritypb.ProvenanceRequest{Attempt: res.GetAttempt(), Sha256: strings.ToUpper(artifact)}, codes.InvalidArgument},
		"any":     {&authoritypb.ProvenanceRequest{Attempt: res.GetAttempt()}, codes.InvalidArgument},
		"job":     {&authoritypb.ProvenanceRequest{Attempt: res.GetAttempt(), Sha256: artifact, JobId: -1}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.a.Provenance(t.Context(), c.req)
			wantCode(t, err, c.want)
		})
	}
}

// TestProvenanceOfAnotherHost: a host asks about its own attempts alone.
func TestProvenanceOfAnotherHost(t *testing.T) {
	f := newFleet(t)
	one, other := f.join("runner-1"), f.join("runner-2")
	if _, err := f.attest(t.Context(), one, 4242); err != nil {
		t.Fatal(err)
	}
	res, err := one.Open(t.Context(), requestFor(4243))
	if err != nil {
		t.Fatal(err)
	}
	req := &authoritypb.ProvenanceRequest{Attempt: res.GetAttempt(), Sha256: artifact, JobId: 4242}
	if out, err := one.Provenance(t.Context(), req); err != nil || len(out.GetOrigins()) != 1 {
		t.Errorf("its own: %v, %v", out, err)
	}
	_, err = other.Provenance(t.Context(), req)
	wantCode(t, err, codes.NotFound)
}

// TestOriginsAreLookedUp: the host may name no attestation as an input's but one
// that the authority made, of that digest, and that the job may be given.
func TestOriginsAreLookedUp(t *testing.T) {
	w := newWorld(t)
	made, _, closed := w.run()
	id := int64(4300)
	for name, c := range map[string]struct {
		project int64
		change  func(*record.Cache)
		depends int64
		refused bool
	}{
		"as it is":                  {77, func(*record.Cache) {}, 0, false},
		"nobody vouches":            {77, func(k *record.Cache) { k.Attestation, k.Invocation = "", "" }, 0, false},
		"no such bundle":            {77, func(k *record.Cache) { k.Attestation = attesttest.SHA256("x") }, 0, true},
		"bundle of other bytes":     {77, func(k *record.Cache) { k.SHA256 = attesttest.SHA256("x") }, 0, true},
		"another invocation":        {77, func(k *record.Cache) { k.Invocation += "x" }, 0, true},
		"another project":           {78, func(*record.Cache) {}, 0, true},
		"another project's, named":  {78, func(*record.Cache) {}, 4242, false},
		"another job of it, named":  {78, func(*record.Cache) {}, 4241, true},
		"nobody vouches, elsewhere": {78, func(k *record.Cache) { k.Attestation, k.Invocation = "", "" }, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			id++
			res, o := w.openJob(id, c.project)
			o.External.Caches = []record.CacheRule{{Key: "deps", Paths: []string{"x"}}}
			if c.depends != 0 {
				dependsOn(c.depends)(&o)
			}
			k := attesttest.Restored()
			k.SHA256, k.Attestation, k.Invocation = artifact, closed.GetAttestations()[0].GetSha256(), made.GetInvocationId()
			c.change(&k)
			job := attesttest.JobOf(o)
			i := slices.IndexFunc(job, func(ev attesttest.Event) bool { return ev.Kind == record.SourceVerified }) + 1
			head := w.mustAppend(res, w.lines(slices.Insert(job, i, attesttest.Event{Kind: record.CacheUsed, Data: k}))...).GetHead()
			_, err := w.close(res, head)
			if !c.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantCode(t, err, codes.PermissionDenied)
			if w.state(res) != store.StateRefused {
				t.Errorf("the attempt is %s", w.state(res))
			}
		})
	}
}

// TestDownloadsAreLookedUp: what a host hands over as an earlier job's artifact
// must be what that job made, wherever the authority knows.
func TestDownloadsAreLookedUp(t *testing.T) {
	w := newWorld(t)
	made, _, closed := w.run()
	id := int64(4400)
	for name, c := range map[string]struct {
		project, job int64
		change       func(*record.Fetch)
		refused      bool
	}{
		"as it is":                       {77, 4242, func(*record.Fetch) {}, false},
		"of another project, named":      {78, 4242, func(*record.Fetch) {}, false},
		"of another job":                 {77, 4241, func(*record.Fetch) {}, true},
		"no such bundle":                 {77, 4242, func(f *record.Fetch) { f.Attestation = attesttest.SHA256("x") }, true},
		"other bytes":                    {77, 4242, func(f *record.Fetch) { f.SHA256 = attesttest.SHA256("x") }, true},
		"other bytes, said unattested":   {77, 4242, func(f *record.Fetch) { unattested(f); f.SHA256 = attesttest.SHA256("x") }, true},
		"attested, said unattested":      {77, 4242, unattested, false},
		"unattested":                     {77, 4241, unattested, false},
		"other bytes, cut off":           {77, 4242, func(f *record.Fetch) { unattested(f); f.SHA256, f.Incomplete = attesttest.SHA256("x"), "cut off" }, false},
		"other bytes, another project's": {78, 4242, func(f *record.Fetch) { unattested(f); f.SHA256 = attesttest.SHA256("x") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			id++
			res, o := w.openJob(id, c.project, dependsOn(c.job))
			f := attesttest.Fetch("download_artifacts", "GET", fmt.Sprintf("https://gitlab.example.com/api/v4/jobs/%d/artifacts", c.job), "")
			f.SHA256, f.Bytes, f.Attestation, f.Invocation = artifact, 100, closed.GetAttestations()[0].GetSha256(), made.GetInvocationId()
			c.change(&f)
			job := attesttest.JobOf(o)
			i := slices.IndexFunc(job, func(ev attesttest.Event) bool { return ev.Kind == record.SourceVerified }) + 1
			job = slices.Insert(job, i, attesttest.Event{Kind: record.StageStarted, Data: attesttest.Started("download_artifacts")},
				attesttest.Event{Kind: record.Fetched, Data: f}, attesttest.Event{Kind: record.StageEnded, Data: attesttest.Ended("download_artifacts", "success")})
			_, err := w.close(res, w.mustAppend(res, w.lines(job)...).GetHead())
			if !c.refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantCode(t, err, codes.PermissionDenied)
			if w.state(res) != store.StateRefused {
				t.Errorf("the attempt is %s", w.state(res))
			}
		})
	}
}

func unattested(f *record.Fetch) { f.Attestation, f.Invocation = "", "" }
