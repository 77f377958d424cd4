package authority_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/tlog"
	"hallmark.build/sandbox/record"
)

const session = "00112233445566778899aabbccddeeff"

// fakeGitLab confirms the sample job, and whatever else it is told.
type fakeGitLab struct {
	mu      sync.Mutex
	err     error // of Check
	closing error
	ended   error
	asked   []string // tokens, and the results of jobs that have ended
	facts   gitlab.Facts
	result  string           // that Closing was told
	bad     map[string]error // of Check, by token
	jobs    map[int64]error  // of Ended, by job
	during  func()           // while Check is on its way
}

func (f *fakeGitLab) Check(_ context.Context, token string, _ gitlab.Facts) (gitlab.Confirmed, error) {
	f.mu.Lock()
	during := f.during
	f.mu.Unlock()
	if during != nil {
		during()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, token)
	if err := f.bad[token]; err != nil {
		return gitlab.Confirmed{}, err
	}
	return gitlab.Confirmed{Project: "group/project", Host: "gitlab.example.com", Runner: 7, Manager: "s_0123456789ab"}, f.err
}

func (f *fakeGitLab) Closing(_ context.Context, token string, want gitlab.Facts, result string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.facts, f.result = append(f.asked, token), want, result
	return f.closing
}

func (f *fakeGitLab) Ended(_ context.Context, want gitlab.Facts, result string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked, f.facts = append(f.asked, "ended in "+result), want
	if err := f.jobs[want.ID]; err != nil {
		return err
	}
	return f.ended
}

func (f *fakeGitLab) set(change func(*fakeGitLab)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// countingSigner counts, and fails when told to.
type countingSigner struct {
	*sign.Signer
	mu    sync.Mutex
	count int
	err   error
}

func (s *countingSigner) Sign(ctx context.Context, st attest.Statement) ([]byte, error) {
	s.mu.Lock()
	s.count++
	err := s.err
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.Signer.Sign(ctx, st)
}

// world is an authority with all that is around it.
type world struct {
	t      testing.TB
	dir    string
	now    time.Time
	gitlab *fakeGitLab
	signer *countingSigner
	store  store.Store
	a      *authority.Authority
	log    *lockedBuffer
	limits authority.Limits
	clock  func() time.Time // in place of now, where that is set
	hostCA *authority.HostCA
	caKey  string                  // URI; empty: a file
	change func(*authority.Config) // has the last word on the configuration
	cfg    authority.Config
}

func newWorld(t testing.TB) *world { return newWorldWith(t, func(*world) {}) }

func newWorldWith(t testing.TB, change func(*world)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), now: attesttest.Start(), gitlab: &fakeGitLab{}, log: &lockedBuffer{},
		limits: authority.Limits{OpenAttempts: 1 << 20, OpensPerMinute: 1 << 20}, change: func(*authority.Config) {}}
	change(w)
	w.start()
	t.Cleanup(func() {
		if err := w.store.Check(context.Background()); err != nil {
			t.Error(err)
		}
		w.store.Close()
	})
	return w
}

func (w *world) start() {
	w.t.Helper()
	st, err := embedded.Open(w.t.Context(), filepath.Join(w.dir, "store"))
	if err != nil {
		w.t.Fatal(err)
	}
	signer, err := sign.Open(w.t.Context(), sign.Options{Dir: filepath.Join(w.dir, "keys"), Issuer: "https://ci.example.com/hallmark", CAKey: w.caKey, Now: w.time})
	if err != nil {
		w.t.Fatal(err)
	}
	secret, err := authority.Secret(filepath.Join(w.dir, "secret", "commitment.key"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.store, w.signer = st, &countingSigner{Signer: signer}
	cfg := authority.Config{
		Store: st, Signer: w.signer, GitLab: w.gitlab, GitLabURL: "https://gitlab.internal",
		BuilderURI: "https://ci.example.com/hallmark", PublicURL: "https://ci.example.com/", Version: "0.1.0", Limits: w.limits, HostCA: w.hostCA,
		Secret: secret, Now: w.time, Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	w.change(&cfg)
	w.cfg = cfg
	if w.a, err = authority.New(cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) time() time.Time {
	if w.clock != nil {
		return w.clock()
	}
	return w.now
}

// lockedBuffer takes a log and lets it be read meanwhile.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// restart stops and starts the authority on the same state.
func (w *world) restart() {
	w.t.Helper()
	if err := w.store.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

func openRequest() *authoritypb.OpenRequest {
	j := attesttest.Opened().Job
	return &authoritypb.OpenRequest{
		Session: session, Profile: "hermetic", JobToken: "glcbt-token",
		Job: &authoritypb.JobFacts{
			Id: j.ID, Name: j.Name, Stage: j.Stage, ProjectId: j.ProjectID, PipelineId: j.PipelineID, UserId: j.UserID,
			Ref: j.Ref, Sha: j.SHA,
		},
	}
}

func (w *world) open() *authoritypb.OpenResponse {
	w.t.Helper()
	res, err := w.a.Open(w.t.Context(), openRequest())
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// opened is the sample's first entry, as a host would write it for an attempt.
func opened(res *authoritypb.OpenResponse) record.Opened {
	o := attesttest.Opened()
	o.Session, o.Attempt, o.Nonce, o.InvocationID = session, res.GetAttempt(), res.GetNonce(), res.GetInvocationId()
	return o
}

func (w *world) lines(events []attesttest.Event) [][]byte {
	w.t.Helper()
	lines, err := attesttest.Lines(attesttest.Start(), events)
	if err != nil {
		w.t.Fatal(err)
	}
	return lines
}

func (w *world) job(res *authoritypb.OpenResponse) [][]byte {
	w.t.Helper()
	return w.lines(attesttest.JobOf(opened(res)))
}

func (w *world) append(res *authoritypb.OpenResponse, lines ...[]byte) (*authoritypb.AppendResponse, error) {
	return w.a.Append(w.t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: lines})
}

func (w *world) mustAppend(res *authoritypb.OpenResponse, lines ...[]byte) *authoritypb.AppendResponse {
	w.t.Helper()
	out, err := w.append(res, lines...)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) close(res *authoritypb.OpenResponse, head string) (*authoritypb.CloseResponse, error) {
	return w.a.Close(w.t.Context(), &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head, JobToken: "glcbt-token"})
}

// run takes the sample job through its whole life.
func (w *world) run() (*authoritypb.OpenResponse, string, *authoritypb.CloseResponse) {
	w.t.Helper()
	res := w.open()
	head := w.mustAppend(res, w.job(res)...).GetHead()
	closed, err := w.close(res, head)
	if err != nil {
		w.t.Fatal(err)
	}
	return res, head, closed
}

func (w *world) state(res *authoritypb.OpenResponse) store.State {
	w.t.Helper()
	at, err := w.store.Attempt(w.t.Context(), res.GetAttempt())
	if err != nil {
		w.t.Fatal(err)
	}
	return at.State
}

func wantCode(t testing.TB, err error, want codes.Code) {
	t.Helper()
	if have := status.Code(err); have != want {
		t.Errorf("%v, want %v (%v)", have, want, err)
	}
}

func TestWholeLife(t *testing.T) {
	w := newWorld(t)
	res, _, closed := w.run()
	if len(closed.GetAttestations()) != 1 || closed.GetReason() != "" {
		t.Fatalf("%d attestations, reason %q", len(closed.GetAttestations()), closed.GetReason())
	}
	at := closed.GetAttestations()[0]
	if len(at.GetBundle()) == 0 || at.GetSubjectCount() != 3 || len(at.GetSubjects()) != 3 ||
		at.GetUrl() != "https://ci.example.com/v1/bundles/sha256:"+at.GetSha256() {
		t.Errorf("%d bytes, %d of %d subjects, url %s", len(at.GetBundle()), len(at.GetSubjects()), at.GetSubjectCount(), at.GetUrl())
	}
	if res.GetBuilderId() != "https://ci.example.com/hallmark/hermetic" ||
		res.GetInvocationId() != "https://ci.example.com/hallmark/attempts/"+res.GetAttempt() ||
		len(res.GetCommitmentKey()) != 32 || len(res.GetNonce()) != 64 || res.GetGitlabUrl() != "https://gitlab.internal" {
		t.Errorf("%+v", res)
	}
	if strings.Contains(w.log.String(), "glcbt-token") {
		t.Error("the log tells the job token")
	}
}

// TestRecomputed rebuilds the statement from the stored record, as an auditor
// can.
func TestRecomputed(t *testing.T) {
	w := newWorld(t)
	res, _, closed := w.run()
	data, err := w.store.Record(w.t.Context(), res.GetAttempt())
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := record.Read(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	all, err := attest.Statements(entries, attest.Facts{
		BuilderID: res.GetBuilderId(), BuilderVersion: map[string]string{"hallmark-attestd": "0.1.0"}, GitLabURL: "https://gitlab.internal",
	})
	if err != nil {
		t.Fatal(err)
	}
	if have := payload(t, closed.GetAttestations()[0].GetBundle()); !bytes.Equal(have, all[0].JSON) {
		t.Error("the signed bytes are not the record's statement")
	}
}

func TestOpenRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*authoritypb.OpenRequest)
		want   codes.Code
	}{
		"no session":         {func(r *authoritypb.OpenRequest) { r.Session = "" }, codes.InvalidArgument},
		"upper-case session": {func(r *authoritypb.OpenRequest) { r.Session = strings.ToUpper(session) }, codes.InvalidArgument},
		"unknown profile":    {func(r *authoritypb.OpenRequest) { r.Profile = "open" }, codes.InvalidArgument},
		"profile with path":  {func(r *authoritypb.OpenRequest) { r.Profile = "../hermetic" }, codes.InvalidArgument},
		"no token":           {func(r *authoritypb.OpenRequest) { r.JobToken = "" }, codes.InvalidArgument},
		"no job":             {func(r *authoritypb.OpenRequest) { r.Job = nil }, codes.InvalidArgument},
		"no commit":          {func(r *authoritypb.OpenRequest) { r.Job.Sha = "" }, codes.InvalidArgument},
		"zero id":            {func(r *authoritypb.OpenRequest) { r.Job.Id = 0 }, codes.InvalidArgument},
		"negative project":   {func(r *authoritypb.OpenRequest) { r.Job.ProjectId = -1 }, codes.InvalidArgument},
		"large pipeline":     {func(r *authoritypb.OpenRequest) { r.Job.PipelineId = 1 << 53 }, codes.InvalidArgument},
		"no user":            {func(r *authoritypb.OpenRequest) { r.Job.UserId = 0 }, codes.InvalidArgument},
		"no name":            {func(r *authoritypb.OpenRequest) { r.Job.Name = "" }, codes.InvalidArgument},
		"name with NUL":      {func(r *authoritypb.OpenRequest) { r.Job.Name = "a\x00" }, codes.InvalidArgument},
		"long ref":           {func(r *authoritypb.OpenRequest) { r.Job.Ref = strings.Repeat("x", 5000) }, codes.InvalidArgument},
	} {
		w := newWorld(t)
		req := openRequest()
		c.change(req)
		_, err := w.a.Open(t.Context(), req)
		wantCode(t, err, c.want)
		if t.Failed() {
			t.Fatal(name)
		}
		if len(w.gitlab.asked) > 0 {
			t.Errorf("%s: GitLab was asked", name)
		}
	}
}

func TestOpenGitLab(t *testing.T) {
	w := newWorld(t)
	w.gitlab.err = &gitlab.Disagreement{Field: "commit", Host: "a", Have: "b"}
	_, err := w.a.Open(t.Context(), openRequest())
	wantCode(t, err, codes.PermissionDenied)
	if !strings.Contains(err.Error(), "commit") || !strings.Contains(w.log.String(), "audit=true") {
		t.Errorf("%v; log: %s", err, w.log)
	}
	w.gitlab.err = errors.New("connection refused")
	_, err = w.a.Open(t.Context(), openRequest())
	wantCode(t, err, codes.Unavailable)
	if all, err := w.store.AttemptsOfJob(t.Context(), 4242); err != nil || len(all) != 0 {
		t.Errorf("%d attempts, %v", len(all), err)
	}
	w.gitlab.err = nil
	w.open()
}

func TestOpenAgain(t *testing.T) {
	prepared := func(w *world, res *authoritypb.OpenResponse, n int) { w.mustAppend(res, w.job(res)[:n]...) }
	failedPrepare := func(w *world, res *authoritypb.OpenResponse) {
		lines := w.lines([]attesttest.Event{
			{Kind: record.JobOpened, Data: opened(res)}, {Kind: record.Closed, Data: record.Closing{Result: "system_failure"}}})
		out, err := w.close(res, w.mustAppend(res, lines...).GetHead())
		if err != nil || len(out.GetAttestations()) != 0 || !strings.HasPrefix(out.GetReason(), "system_failure") {
			w.t.Errorf("%v, %v", out, err)
		}
	}
	for name, c := range map[string]struct {
		before func(*world, *authoritypb.OpenResponse)
		want   codes.Code
		first  store.State
	}{
		"nothing recorded":   {func(*world, *authoritypb.OpenResponse) {}, codes.OK, store.StateSuperseded},
		"images resolved":    {func(w *world, r *authoritypb.OpenResponse) { prepared(w, r, 3) }, codes.OK, store.StateSuperseded},
		"prepare_script ran": {func(w *world, r *authoritypb.OpenResponse) { prepared(w, r, 5) }, codes.OK, store.StateSuperseded},
		"closed in prepare":  {failedPrepare, codes.OK, store.StateClosed},
		"get_sources ran":    {func(w *world, r *authoritypb.OpenResponse) { prepared(w, r, 6) }, codes.PermissionDenied, store.StateOpen},
		"build_script ran":   {func(w *world, r *authoritypb.OpenResponse) { prepared(w, r, 11) }, codes.PermissionDenied, store.StateOpen},
		"refused": {func(w *world, r *authoritypb.OpenResponse) {
			_, err := w.append(r, w.job(r)[1])
			wantCode(w.t, err, codes.PermissionDenied)
		}, codes.PermissionDenied, store.StateRefused},
		"attested": {func(w *world, r *authoritypb.OpenResponse) {
			_, err := w.close(r, w.mustAppend(r, w.job(r)...).GetHead())
			wantCode(w.t, err, codes.OK)
		}, codes.PermissionDenied, store.StateClosed},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(name, restart), func(t *testing.T) {
				w := newWorld(t)
				first := w.open()
				c.before(w, first)
				if restart {
					w.restart()
				}
				second, err := w.a.Open(t.Context(), openRequest())
				wantCode(t, err, c.want)
				if have := w.state(first); have != c.first {
					t.Errorf("the first attempt is %s, want %s", have, c.first)
				}
				if err != nil {
					return
				}
				if second.GetAttempt() == first.GetAttempt() || second.GetNonce() == first.GetNonce() || bytes.Equal(second.GetCommitmentKey(), first.GetCommitmentKey()) {
					t.Error("the attempts are not told apart")
				}
				_, err = w.append(first, w.job(first)[0])
				wantCode(t, err, codes.FailedPrecondition)
				w.mustAppend(second, w.job(second)...)
			})
		}
	}
}

// TestFirstGoesOn holds that a refused second opening does not hurt the first.
func TestFirstGoesOn(t *testing.T) {
	w := newWorld(t)
	first := w.open()
	lines := w.job(first)
	w.mustAppend(first, lines[:11]...)
	_, err := w.a.Open(t.Context(), openRequest())
	wantCode(t, err, codes.PermissionDenied)
	out, err := w.close(first, w.mustAppend(first, lines[11:]...).GetHead())
	if err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}

func TestTooManyAttempts(t *testing.T) {
	w := newWorld(t)
	for range authority.MaxAttempts {
		w.open()
	}
	_, err := w.a.Open(t.Context(), openRequest())
	wantCode(t, err, codes.ResourceExhausted)
}

func TestAppendIsIdempotent(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	lines := w.job(res)
	want := w.mustAppend(res, lines[:5]...)
	for _, again := range [][][]byte{lines[:5], lines[2:4], lines[4:5], nil, {lines[3], lines[1]}} {
		have := w.mustAppend(res, again...)
		if diff := cmp.Diff(want, have, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	w.restart()
	have := w.mustAppend(res, lines[:7]...)
	if have.GetEntries() != 7 {
		t.Errorf("%d entries", have.GetEntries())
	}
	if data, err := w.store.Record(w.t.Context(), res.GetAttempt()); err != nil || !bytes.Equal(data, append(bytes.Join(lines[:7], []byte("\n")), '\n')) {
		t.Errorf("record is not the lines: %v", err)
	}
}

func replaceIn(line []byte, from, to string) []byte {
	out := bytes.Replace(line, []byte(from), []byte(to), 1)
	if bytes.Equal(out, line) {
		panic("nothing to replace")
	}
	return out
}

// TestAppendRefusals has what a host that changed its mind, or was taken over,
// would send. Each ends the attempt.
func TestAppendRefusals(t *testing.T) {
	for name, bad := range map[string]func(w *world, res *authoritypb.OpenResponse, lines [][]byte) [][]byte{
		"gap": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte { return [][]byte{l[6]} },
		"fork": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], `"prev":"`, `"prev":"0`)}
		},
		"changed line": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[3], "prepare_script", "prepare_Script")}
		},
		"changed space": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{append(bytes.Clone(l[2]), ' ')}
		},
		"changed first": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[0], "4096", "4097")}
		},
		"good, then gap": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte { return [][]byte{l[5], l[7]} },
		"unknown kind": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], "stage_started", "stage_begun")}
		},
		"unknown field": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], `"kind"`, `"x":1,"kind"`)}
		},
		"duplicate key": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], `"kind"`, `"seq":5,"kind"`)}
		},
		"time goes back": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], "15:04:10", "15:04:01")}
		},
		"from the future": func(w *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			w.now = attesttest.Start().Add(-5*time.Minute + 4*time.Second)
			return [][]byte{l[5]}
		},
		"negative number": func(_ *world, _ *authoritypb.OpenResponse, l [][]byte) [][]byte {
			return [][]byte{replaceIn(l[5], `"seq":5`, `"seq":-5`)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			res := w.open()
			lines := w.job(res)
			w.mustAppend(res, lines[:5]...)
			_, err := w.append(res, bad(w, res, lines)...)
			wantCode(t, err, codes.PermissionDenied)
			if have := w.state(res); have != store.StateRefused {
				t.Errorf("attempt is %s", have)
			}
			w.now = attesttest.Start()
			_, err = w.append(res, lines[5])
			wantCode(t, err, codes.PermissionDenied)
			_, err = w.close(res, "")
			wantCode(t, err, codes.PermissionDenied)
			if data, err := w.store.Record(w.t.Context(), res.GetAttempt()); err != nil || bytes.Count(data, []byte("\n")) != 5 {
				t.Errorf("%d lines, %v", bytes.Count(data, []byte("\n")), err)
			}
			if !strings.Contains(w.log.String(), "audit=true") || w.signer.count > 0 {
				t.Error("no audit event, or signed")
			}
		})
	}
}

// TestFirstEntry has first entries that are not about the attempt.
func TestFirstEntry(t *testing.T) {
	for name, change := range map[string]func(*record.Opened){
		"session":       func(o *record.Opened) { o.Session = strings.Repeat("0", 32) },
		"attempt":       func(o *record.Opened) { o.Attempt = strings.Repeat("0", 32) },
		"nonce":         func(o *record.Opened) { o.Nonce = strings.Repeat("0", 64) },
		"invocation id": func(o *record.Opened) { o.InvocationID += "x" },
		"profile":       func(o *record.Opened) { o.Profile = "firewalled" },
		"job id":        func(o *record.Opened) { o.Job.ID++ },
		"job name":      func(o *record.Opened) { o.Job.Name = "x" },
		"job stage":     func(o *record.Opened) { o.Job.Stage = "x" },
		"project id":    func(o *record.Opened) { o.Job.ProjectID++ },
		"project":       func(o *record.Opened) { o.Job.Project = "group/other" },
		"pipeline id":   func(o *record.Opened) { o.Job.PipelineID++ },
		"user id":       func(o *record.Opened) { o.Job.UserID++ },
		"ref":           func(o *record.Opened) { o.Job.Ref = "release" },
		"ref type":      func(o *record.Opened) { o.Job.RefType = "tag" },
		"commit":        func(o *record.Opened) { o.Job.SHA = strings.Repeat("0", 40) },
		"source":        func(o *record.Opened) { o.Job.SourceURI = "https://evil.example.com/group/project.git" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			res := w.open()
			o := opened(res)
			change(&o)
			_, err := w.append(res, w.lines([]attesttest.Event{{Kind: record.JobOpened, Data: o}})...)
			wantCode(t, err, codes.PermissionDenied)
			if !strings.Contains(status.Convert(err).Message(), "another "+name) {
				t.Errorf("%v", err)
			}
			if have := w.state(res); have != store.StateRefused {
				t.Errorf("attempt is %s", have)
			}
		})
	}
}

func TestSources(t *testing.T) {
	for uri, ok := range map[string]bool{
		"https://gitlab.example.com/group/project.git":       true,
		"https://gitlab.example.com/group/project":           true,
		"https://GitLab.example.com/group/project.git":       true,
		"http://gitlab.internal:8080/group/project.git":      true,
		"https://gitlab.example.com/of/group/project.git":    false,
		"https://gitlab.example.com/group%2fproject.git":     false,
		"https://gitlab.example.com/evilgroup/project.git":   false,
		"https://gitlab.example.com/group/project.git.git":   false,
		"https://gitlab.example.com/group/project/x.git":     false,
		"https://gitlab.example.com.evil.test/group/project": false,
		"https://u:p@gitlab.example.com/group/project.git":   false,
		"https://gitlab.example.com/group/project.git?x":     false,
		"https://gitlab.example.com/group/project.git#x":     false,
		"file:///group/project.git":                          false,
		"ssh://gitlab.example.com/group/project.git":         false,
		"https:///group/project.git":                         false,
		"":                                                   false,
	} {
		w := newWorld(t)
		res := w.open()
		o := opened(res)
		o.Job.SourceURI = uri
		_, err := w.append(res, w.lines([]attesttest.Event{{Kind: record.JobOpened, Data: o}})...)
		if (err == nil) != ok {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// TestReplayed sends one attempt's record to another attempt.
func TestReplayed(t *testing.T) {
	w := newWorld(t)
	first := w.open()
	lines := w.job(first)
	second := w.open()
	_, err := w.append(second, lines[0])
	wantCode(t, err, codes.PermissionDenied)
}

// TestHarmlessRefusals leave the attempt open.
func TestHarmlessRefusals(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	lines := w.job(res)
	w.mustAppend(res, lines[:5]...)
	for name, bad := range map[string][]byte{
		"empty": {}, "rubbish": []byte("rubbish"), "array": []byte("[]"), "no number": []byte("{}"),
		"newline": append(bytes.Clone(lines[5][:4]), '\n'), "not utf-8": []byte("\xff"),
		"long": append([]byte(`{"seq":5,"x":"`), bytes.Repeat([]byte("x"), record.MaxLine)...),
	} {
		_, err := w.append(res, bad)
		if wantCode(t, err, codes.InvalidArgument); t.Failed() {
			t.Fatal(name)
		}
	}
	w.now = attesttest.Start().Add(authority.MaxSkew + 6*time.Second)
	_, err := w.append(res, lines[5])
	wantCode(t, err, codes.FailedPrecondition)
	w.now = attesttest.Start()
	_, err = w.a.Append(t.Context(), &authoritypb.AppendRequest{Attempt: "x"})
	wantCode(t, err, codes.InvalidArgument)
	_, err = w.a.Append(t.Context(), &authoritypb.AppendRequest{Attempt: strings.Repeat("0", 32)})
	wantCode(t, err, codes.NotFound)
	_, err = w.close(res, w.mustAppend(res).GetHead())
	wantCode(t, err, codes.FailedPrecondition)
	if have := w.state(res); have != store.StateOpen {
		t.Errorf("attempt is %s", have)
	}
	w.mustAppend(res, lines[5:]...)
}

func TestRecordTooLarge(t *testing.T) {
	w := newWorld(t)
	w.a.SetMaxRecord(128 << 10)
	res := w.open()
	var events []attesttest.Event
	events = append(events, attesttest.Event{Kind: record.JobOpened, Data: opened(res)})
	for range 44 {
		events = append(events, attesttest.Event{Kind: record.Blocked, Data: record.Block{Target: strings.Repeat("x", 3<<10)}})
	}
	var err error
	for _, line := range w.lines(events) {
		if _, err = w.append(res, line); err != nil {
			break
		}
	}
	wantCode(t, err, codes.ResourceExhausted)
}

func TestCloseIsIdempotent(t *testing.T) {
	w := newWorld(t)
	res, head, first := w.run()
	for range 3 {
		again, err := w.close(res, head)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
		w.restart()
	}
	_, err := w.append(res, w.job(res)[0])
	wantCode(t, err, codes.FailedPrecondition)
	if w.signer.count != 0 { // the signer of the last start
		t.Errorf("signed %d times after the first", w.signer.count)
	}
}

// unreadable has records that nobody can read any more.
type unreadable struct{ store.Store }

func (unreadable) RecordSize(context.Context, string) (int64, error) {
	return 0, errors.New("input/output error")
}

// TestCloseOfTheDecidedReadsNoRecord holds that what was decided is answered from the
// decision, however long the record.
func TestCloseOfTheDecidedReadsNoRecord(t *testing.T) {
	w := newWorld(t)
	res, head, first := w.run()
	w.change = func(c *authority.Config) { c.Store = unreadable{c.Store} }
	w.restart()
	again, err := w.close(res, head)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestManyClose closes an attempt from many sides at once.
func TestManyClose(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	head := w.mustAppend(res, w.job(res)...).GetHead()
	var (
		wg   sync.WaitGroup
		outs [8]*authoritypb.CloseResponse
	)
	for i := range outs {
		wg.Go(func() {
			out, err := w.close(res, head)
			if err != nil {
				t.Error(err)
			}
			outs[i] = out
		})
	}
	wg.Wait()
	for _, out := range outs {
		if diff := cmp.Diff(outs[0], out, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	if w.signer.count != 1 {
		t.Errorf("signed %d times", w.signer.count)
	}
}

// TestRace opens, appends and closes from several sides: one story must come
// out, whichever.
func TestRace(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			res, err := w.a.Open(t.Context(), openRequest())
			if err != nil {
				return
			}
			lines, err := attesttest.Lines(attesttest.Start(), attesttest.JobOf(opened(res)))
			if err != nil {
				t.Error(err)
				return
			}
			for _, l := range lines {
				if _, err := w.append(res, l); err != nil {
					return
				}
			}
			if sum, err := w.append(res); err == nil {
				_, _ = w.close(res, sum.GetHead())
			}
		})
	}
	wg.Wait()
	all, err := w.store.AttemptsOfJob(t.Context(), 4242)
	if err != nil {
		t.Fatal(err)
	}
	attested := 0
	for _, at := range all {
		if bs, err := w.store.Parts(t.Context(), at.ID, 1); err != nil || len(bs) > 0 {
			attested++
		}
	}
	if attested != 1 {
		t.Errorf("%d attempts of %d were attested, want 1", attested, len(all))
	}
}

func TestCloseRefusals(t *testing.T) {
	t.Run("other head", func(t *testing.T) {
		w := newWorld(t)
		res := w.open()
		w.mustAppend(res, w.job(res)...)
		_, err := w.close(res, strings.Repeat("0", 64))
		wantCode(t, err, codes.PermissionDenied)
		if have := w.state(res); have != store.StateRefused {
			t.Errorf("attempt is %s", have)
		}
	})
	t.Run("contradiction", func(t *testing.T) {
		w := newWorld(t)
		res := w.open()
		events := attesttest.JobOf(opened(res))
		events = append(events[:9], events[10:]...) // the source was never compared
		head := w.mustAppend(res, w.lines(events)...).GetHead()
		_, err := w.close(res, head)
		wantCode(t, err, codes.PermissionDenied)
		if !strings.Contains(err.Error(), string(attest.SourceUnverified)) {
			t.Errorf("%v", err)
		}
		w.restart()
		_, err = w.close(res, head)
		wantCode(t, err, codes.PermissionDenied)
	})
	t.Run("no outputs", func(t *testing.T) {
		w := newWorld(t)
		res := w.open()
		events := attesttest.JobOf(opened(res))
		events = append(events[:15], events[16:]...)
		head := w.mustAppend(res, w.lines(events)...).GetHead()
		for range 2 {
			out, err := w.close(res, head)
			if err != nil || len(out.GetAttestations()) != 0 || !strings.HasPrefix(out.GetReason(), string(attest.NoOutputs)) {
				t.Errorf("%v, %v", out, err)
			}
			w.restart()
		}
	})
	t.Run("signer fails", func(t *testing.T) {
		w := newWorld(t)
		w.signer.err = errors.New("no key")
		res := w.open()
		head := w.mustAppend(res, w.job(res)...).GetHead()
		_, err := w.close(res, head)
		wantCode(t, err, codes.Unavailable)
		if strings.Contains(err.Error(), "no key") {
			t.Error("the host learns what went wrong here")
		}
		w.signer.err = nil
		if out, err := w.close(res, head); err != nil || len(out.GetAttestations()) != 1 {
			t.Errorf("%v, %v", out, err)
		}
	})
}

func TestStoreFails(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	lines := w.job(res)
	w.mustAppend(res, lines[:5]...)
	file := filepath.Join(w.dir, "store", "records", res.GetAttempt()+".jsonl")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/full", file); err != nil {
		t.Fatal(err)
	}
	_, err := w.append(res, lines[5])
	wantCode(t, err, codes.Unavailable)
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	if out := w.mustAppend(res, lines[5:]...); out.GetEntries() != int64(len(lines)) {
		t.Errorf("%d entries", out.GetEntries())
	}
}

func TestManySubjects(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	events := attesttest.JobOf(opened(res))
	var paths []string
	for i := range 3000 {
		paths = append(paths, fmt.Sprintf("dist/%04d", i))
	}
	events[15].Data = attesttest.Upload("artifacts.zip", "archive", paths...)
	head := w.mustAppend(res, w.lines(events)...).GetHead()
	out, err := w.close(res, head)
	if err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	for _, at := range out.GetAttestations() {
		n += at.GetSubjectCount()
	}
	if len(out.GetAttestations()) != 3 || n != 3001 {
		t.Errorf("%d attestations of %d subjects", len(out.GetAttestations()), n)
	}
}

func TestTidy(t *testing.T) {
	w := newWorld(t)
	res := w.open()
	w.mustAppend(res, w.job(res)[:3]...)
	if err := w.a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have := w.state(res); have != store.StateOpen {
		t.Errorf("a young attempt is %s", have)
	}
	w.now = w.now.Add(authority.MaxAge + time.Hour)
	if err := w.a.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if have := w.state(res); have != store.StateRefused {
		t.Errorf("an old attempt is %s", have)
	}
}

// stuckStore cannot decide about some attempts.
type stuckStore struct {
	store.Store
	stuck map[string]func() error
}

func (s *stuckStore) Decide(ctx context.Context, id string, d store.Decision) error {
	if fail := s.stuck[id]; fail != nil {
		return fail()
	}
	return s.Store.Decide(ctx, id, d)
}

// TestTidyGoesOn holds that an attempt which cannot be given up, or panics, keeps
// no other from it.
func TestTidyGoesOn(t *testing.T) {
	w := newWorld(t)
	stuck := &stuckStore{stuck: map[string]func() error{}}
	w.change = func(c *authority.Config) { stuck.Store = c.Store; c.Store = stuck }
	w.restart()
	var all []*authoritypb.OpenResponse
	for i := range int64(3) {
		req := openRequest()
		req.Job.Id += i
		res, err := w.a.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, res)
	}
	stuck.stuck[all[0].GetAttempt()] = func() error { return errors.New("no space left") }
	stuck.stuck[all[1].GetAttempt()] = func() error { panic("no index") }
	w.now = w.now.Add(authority.MaxAge + time.Hour)
	err := w.a.Tidy(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), "no index") {
		t.Errorf("%v", err)
	}
	if have := w.state(all[2]); have != store.StateRefused {
		t.Errorf("the last attempt is %s", have)
	}
}

func TestConfig(t *testing.T) {
	w := newWorld(t)
	good := authority.Config{
		Store: w.store, Signer: w.signer, GitLab: w.gitlab, GitLabURL: "https://gitlab.internal",
		BuilderURI: "https://ci", Secret: make([]byte, 32), Log: slog.New(slog.DiscardHandler),
	}
	if _, err := authority.New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*authority.Config){
		"store":   func(c *authority.Config) { c.Store = nil },
		"signer":  func(c *authority.Config) { c.Signer = nil },
		"gitlab":  func(c *authority.Config) { c.GitLab = nil },
		"log":     func(c *authority.Config) { c.Log = nil },
		"url":     func(c *authority.Config) { c.GitLabURL = "" },
		"builder": func(c *authority.Config) { c.BuilderURI = "" },
		"slash":   func(c *authority.Config) { c.BuilderURI += "/" },
		"secret":  func(c *authority.Config) { c.Secret = nil },
	} {
		bad := good
		change(&bad)
		if _, err := authority.New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSecret(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	file := filepath.Join(dir, "commitment.key")
	first, err := authority.Secret(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := authority.Secret(file); err != nil || !bytes.Equal(first, again) {
		t.Errorf("%v", err)
	}
	for name, spoil := range map[string]func() error{
		"short":     func() error { return os.WriteFile(file, []byte("00\n"), 0o600) },
		"not hex":   func() error { return os.WriteFile(file, bytes.Repeat([]byte("x"), 64), 0o600) },
		"too much":  func() error { return os.WriteFile(file, bytes.Repeat([]byte("0"), 5000), 0o600) },
		"readable":  func() error { return os.Chmod(file, 0o644) },
		"directory": func() error { return os.Chmod(dir, 0o755) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := authority.Secret(file); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// listen serves the authority on a socket.
func (w *world) listen(hosts ...uint32) string {
	w.t.Helper()
	socket := filepath.Join(w.t.TempDir(), "s")
	l, err := authority.Listen(socket)
	if err != nil {
		w.t.Fatal(err)
	}
	s := authority.NewServer(w.a, hosts)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	w.t.Cleanup(func() { s.Stop(); <-done })
	return socket
}

func TestOverTheSocket(t *testing.T) {
	w := newWorld(t)
	stub, closer, err := client.Dial(t.Context(), w.listen(uint32(os.Getuid())))
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	res, err := stub.Open(t.Context(), openRequest())
	if err != nil {
		t.Fatal(err)
	}
	sum, err := stub.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: w.job(res)})
	if err != nil {
		t.Fatal(err)
	}
	out, err := stub.Close(t.Context(), &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: sum.GetHead(), JobToken: "glcbt-token"})
	if err != nil || len(out.GetAttestations()) != 1 {
		t.Fatalf("%v, %v", out, err)
	}
	_, err = stub.Append(t.Context(), &authoritypb.AppendRequest{Lines: [][]byte{make([]byte, authority.MaxMessage+1)}})
	if err == nil {
		t.Error("a message of more than MaxMessage")
	}
	_, err = stub.Open(t.Context(), openRequest())
	if !client.IsSecurity(err) || client.IsTemporary(err) || !strings.HasPrefix(client.Message(err), "job 4242") {
		t.Errorf("%v", err)
	}
}

func TestOtherUsers(t *testing.T) {
	w := newWorld(t)
	for _, hosts := range [][]uint32{nil, {uint32(os.Getuid()) + 1}} {
		stub, closer, err := client.Dial(t.Context(), w.listen(hosts...))
		if err != nil {
			t.Fatal(err)
		}
		_, err = stub.Open(t.Context(), openRequest())
		wantCode(t, err, codes.Unauthenticated)
		closer.Close()
	}
	if len(w.gitlab.asked) > 0 {
		t.Error("a stranger's call went through")
	}
}

func TestClientMessages(t *testing.T) {
	if _, _, err := client.Dial(t.Context(), "relative"); err == nil {
		t.Error("dialled a relative path")
	}
	if client.MaxMessage != authority.MaxMessage || client.MaxPiece != authority.MaxPiece {
		t.Error("client and authority bound messages differently")
	}
	if record.MaxLine+4<<10 > client.MaxMessage {
		t.Error("a line does not fit into a message")
	}
	stub, closer, err := client.Dial(t.Context(), filepath.Join(t.TempDir(), "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	_, err = stub.Open(t.Context(), openRequest())
	if !client.IsTemporary(err) || client.IsSecurity(err) {
		t.Errorf("%v", err)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	first, err := authority.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Listen(socket); err == nil {
		t.Error("took a socket from its listener")
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	second, err := authority.Listen(socket) // what a crash leaves
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Listen(socket); err == nil {
		t.Error("replaced a file")
	}
	if _, err := authority.Listen(filepath.Join(dir, "none", "s")); err == nil {
		t.Error("listens nowhere")
	}
}

// TestTCP holds that the credentials want a unix socket.
func TestTCP(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := authority.NewServer(w.a, []uint32{uint32(os.Getuid())})
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// FuzzAppend sends one line after a good start: nothing but the right next line
// or a line that is held may be taken.
func FuzzAppend(f *testing.F) {
	w := newWorld(f)
	sample := w.lines(attesttest.Job())
	for _, l := range sample {
		f.Add(l)
	}
	f.Add([]byte("{"))
	f.Add([]byte(`{"seq":null}`))
	f.Add([]byte(`{"seq":5,"kind":"closed","time":"2026-11-26T15:04:10.000000Z","prev":"","data":{}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		chain := record.Chain{}
		for _, l := range sample[:3] {
			if _, err := chain.Add(l); err != nil {
				t.Fatal(err)
			}
		}
		next := chain
		_, follows := next.Add(line)
		held := false
		for _, l := range sample[:3] {
			held = held || bytes.Equal(l, line)
		}
		if ok := authority.Takes(sample[:3], line); ok != (follows == nil || held) {
			t.Errorf("taken: %v; follows: %v; held: %v", ok, follows == nil, held)
		}
	})
}

func BenchmarkClose(b *testing.B) {
	for _, withLog := range []bool{false, true} {
		for _, n := range []int{10, 1_000, 10_000} {
			b.Run(fmt.Sprintf("log=%v/deps=%d", withLog, n), func(b *testing.B) { benchmarkClose(b, withLog, n) })
		}
	}
}

func benchmarkClose(b *testing.B, withLog bool, n int) {
	w := newWorld(b)
	if withLog {
		w.change = func(c *authority.Config) { c.Transparency = w.builtInLog() }
		w.restart()
	}
	job := int64(1)
	for b.Loop() {
		b.StopTimer()
		w.now = attesttest.Start()
		req := openRequest()
		req.Profile, req.Job.Id = "firewalled", job
		job++
		res, err := w.a.Open(b.Context(), req)
		if err != nil {
			b.Fatal(err)
		}
		events := attesttest.Dependencies(n)
		o := opened(res)
		o.Profile, o.External.Profile, o.Network.Build, o.Job.ID = "firewalled", "firewalled", "border", req.GetJob().GetId()
		events[0].Data = o
		head := ""
		for some := range slices.Chunk(w.lines(events), 200) { // of which each is a second later
			sum, err := w.append(res, some...)
			if err != nil {
				b.Fatal(err)
			}
			head = sum.GetHead()
			w.now = w.now.Add(time.Duration(len(some)) * time.Second)
		}
		b.StartTimer()
		if _, err := w.close(res, head); err != nil {
			b.Fatal(err)
		}
	}
}

// builtInLog is the log that an authority has by default.
func (w *world) builtInLog() *tlog.BuiltIn {
	w.t.Helper()
	key, err := tlog.FileKey(filepath.Join(w.dir, "keys", "log.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := tlog.Open(w.t.Context(), tlog.Options{
		Tiles: filepath.Join(w.dir, "log"), History: filepath.Join(w.dir, "log-history"), Key: key,
		BaseURL: &url.URL{Scheme: "https", Host: "ci.example.com", Path: "/log"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := l.Close(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	return l
}
