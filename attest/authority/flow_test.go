package authority_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/grpc/codes"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// fakeLog marks what was entered, and fails when told to.
type fakeLog struct {
	mu      sync.Mutex
	err     error
	entered map[string]int // by draft
	during  func()         // is called while something is entered
}

func (l *fakeLog) Enter(_ context.Context, draft []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.during != nil {
		l.during()
	}
	if l.err != nil {
		return nil, l.err
	}
	if l.entered == nil {
		l.entered = map[string]int{}
	}
	l.entered[string(draft)]++
	return append(bytes.TrimSuffix(bytes.Clone(draft), []byte("}")), []byte(`,"proof":1}`)...), nil
}

func (l *fakeLog) Trusted() []*trustpb.TransparencyLogInstance {
	return []*trustpb.TransparencyLogInstance{{BaseUrl: "https://ci.example.com/log/"}}
}

func (l *fakeLog) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *fakeLog) statements() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entered)
}

// logged is a world with a log.
func logged(t testing.TB, change func(*authority.Config)) (*world, *fakeLog) {
	w, log := newWorld(t), &fakeLog{}
	w.change = func(c *authority.Config) {
		c.Transparency = log
		change(c)
	}
	w.restart()
	return w, log
}

// whole opens an attempt and has its whole record acknowledged.
func (w *world) whole() (*authoritypb.OpenResponse, string) {
	w.t.Helper()
	res := w.open()
	return res, w.mustAppend(res, w.job(res)...).GetHead()
}

func (w *world) resume() {
	w.t.Helper()
	if err := w.a.ResumeOnce(w.t.Context()); err != nil {
		w.t.Error(err)
	}
}

// closeLate closes as a host does after the job has ended.
func (w *world) closeLate(res *authoritypb.OpenResponse, head string) (*authoritypb.CloseResponse, error) {
	return w.a.Close(w.t.Context(), &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head})
}

// status is what a reader is told of an attempt.
func (w *world) status(res *authoritypb.OpenResponse) (s struct {
	State, Reason string
	Bundles       []string
	IDToken       *store.IDToken `json:"id_token"`
}) {
	w.t.Helper()
	rec := w.get("/v1/attempts/" + res.GetAttempt())
	if rec.Code != http.StatusOK || json.Unmarshal(rec.Body.Bytes(), &s) != nil {
		w.t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	return s
}

func TestClosingAsksGitLabAgain(t *testing.T) {
	w := newWorld(t)
	w.run()
	want := gitlab.Facts{
		ID: 4242, Name: "compile", Stage: "build", ProjectID: 77, PipelineID: 9001, UserID: 3, Ref: "main", SHA: attesttest.Commit,
		Runner: 7, Manager: "s_0123456789ab",
	}
	if w.gitlab.facts != want || w.gitlab.result != "success" || len(w.gitlab.asked) != 2 {
		t.Errorf("asked %q about %+v", w.gitlab.asked, w.gitlab.facts)
	}
}

// TestClosingDisagreements has a GitLab in which the job was canceled, erased
// or given to another runner.
func TestClosingDisagreements(t *testing.T) {
	for name, late := range map[string]bool{"in time": false, "late": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			differ := &gitlab.Disagreement{Field: "status", Host: "running", Have: "canceled"}
			w.gitlab.set(func(g *fakeGitLab) { g.closing, g.ended = differ, differ })
			res, head := w.whole()
			again := w.close
			if late {
				again = w.closeLate
			}
			for range 2 {
				_, err := again(res, head)
				wantCode(t, err, codes.PermissionDenied)
				if !strings.Contains(err.Error(), "canceled") {
					t.Errorf("%v", err)
				}
				w.gitlab.set(func(g *fakeGitLab) { g.closing, g.ended = nil, nil })
				w.restart()
			}
			if w.state(res) != store.StateRefused || w.signer.count > 0 || !strings.Contains(w.log.String(), "event=gitlab_disagrees") {
				t.Errorf("%s, signed %d times", w.state(res), w.signer.count)
			}
			_, err := w.a.Open(t.Context(), openRequest())
			wantCode(t, err, codes.PermissionDenied)
		})
	}
}

// TestNothingToSignNeedsNoGitLab holds that a job without outputs ends as it
// is, also when it was canceled by force.
func TestNothingToSignNeedsNoGitLab(t *testing.T) {
	w := newWorld(t)
	w.gitlab.set(func(g *fakeGitLab) { g.closing = &gitlab.Disagreement{Field: "token"} })
	res := w.open()
	events := attesttest.JobOf(opened(res))
	events = append(events[:15], events[16:]...)
	out, err := w.close(res, w.mustAppend(res, w.lines(events)...).GetHead())
	if err != nil || out.GetPending() || !strings.HasPrefix(out.GetReason(), "no_outputs") || len(w.gitlab.asked) != 1 {
		t.Errorf("%v, %v; asked %q", out, err, w.gitlab.asked)
	}
}

func TestGitLabAwayAtClosing(t *testing.T) {
	w := newWorld(t)
	w.gitlab.set(func(g *fakeGitLab) { g.closing = errors.New("connection refused") })
	res, head := w.whole()
	_, err := w.close(res, head)
	wantCode(t, err, codes.Unavailable)
	w.resume()
	if w.state(res) != store.StateOpen || w.signer.count > 0 {
		t.Fatalf("%s, signed %d times", w.state(res), w.signer.count)
	}
	w.gitlab.set(func(g *fakeGitLab) { g.closing = nil })
	if out, err := w.close(res, head); err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}

func spool(c *authority.Config) { c.Spool = true }

// waiting is a world in which an attempt waits for GitLab.
func waiting(t *testing.T) (*world, *authoritypb.OpenResponse) {
	t.Helper()
	w, _ := logged(t, spool)
	w.gitlab.set(func(g *fakeGitLab) {
		g.closing, g.ended = errors.New("connection refused"), errors.New("connection refused")
	})
	res, head := w.whole()
	out, err := w.close(res, head)
	if err != nil || !out.GetPending() || out.GetUrl() != "https://ci.example.com/v1/attempts/"+res.GetAttempt() {
		t.Fatalf("%v, %v", out, err)
	}
	if s := w.status(res); s.State != "waiting" || !strings.Contains(s.Reason, "GitLab") {
		t.Errorf("%+v", s)
	}
	if err := w.a.ResumeOnce(t.Context()); err == nil || w.signer.count > 0 {
		t.Errorf("%v; signed %d times without GitLab", err, w.signer.count)
	}
	if rec := w.get("/readyz"); !strings.Contains(rec.Body.String(), "waiting for gitlab: 1") {
		t.Errorf("%s", rec.Body)
	}
	return w, res
}

var tokenEnded = &gitlab.Disagreement{Field: "token", Host: "the token of a running job", Have: "403 Forbidden"}

// TestWaitingForGitLab lets GitLab come back in each of the ways it can.
func TestWaitingForGitLab(t *testing.T) {
	for name, c := range map[string]struct {
		restart        bool
		closing, ended error
		later          time.Duration
		state          string
		reason         string
	}{
		"while the job runs":          {state: "closed"},
		"after the job":               {closing: tokenEnded, state: "closed"},
		"after a restart":             {restart: true, closing: errors.New("has no token to ask with"), state: "closed"},
		"and disagrees":               {closing: &gitlab.Disagreement{Field: "runner"}, state: "refused", reason: "runner"},
		"and disagrees later":         {closing: tokenEnded, ended: &gitlab.Disagreement{Field: "status"}, state: "refused", reason: "status"},
		"after the job, untold":       {closing: tokenEnded, ended: gitlab.ErrNoToken, state: "closed", reason: "unconfirmed"},
		"after a restart, untold":     {restart: true, ended: gitlab.ErrNoToken, state: "waiting", reason: "GitLab"},
		"after a restart, never told": {restart: true, ended: gitlab.ErrNoToken, later: 25 * time.Hour, state: "closed", reason: "unconfirmed"},
	} {
		t.Run(name, func(t *testing.T) {
			w, res := waiting(t)
			if c.restart {
				w.restart()
			}
			w.now = w.now.Add(c.later)
			w.gitlab.set(func(g *fakeGitLab) { g.closing, g.ended = c.closing, c.ended })
			w.resume() // confirmed and signed
			w.resume() // logged
			s := w.status(res)
			if s.State != c.state || !strings.Contains(s.Reason, c.reason) || (c.reason == "") != (len(s.Bundles) == 1) {
				t.Errorf("%+v", s)
			}
			if strings.Contains(w.log.String(), "glcbt-token") {
				t.Error("the log tells the job token")
			}
		})
	}
}

// TestWaitingHoldsUpNoOther has attempts before all others of which GitLab does
// not say a word, as of projects that were deleted.
func TestWaitingHoldsUpNoOther(t *testing.T) {
	w := newWorld(t)
	w.change = spool
	w.restart()
	w.gitlab.set(func(g *fakeGitLab) { g.closing, g.jobs = errors.New("connection refused"), map[int64]error{} })
	var all []*authoritypb.OpenResponse
	for i := range int64(12) {
		req := openRequest()
		req.Job.Id += i
		res, err := w.a.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		o := opened(res)
		o.Job.ID += i
		if out, err := w.close(res, w.mustAppend(res, w.lines(attesttest.JobOf(o))...).GetHead()); err != nil || !out.GetPending() {
			t.Fatalf("%v, %v", out, err)
		}
		if all = append(all, res); i < 4 {
			w.gitlab.jobs[req.Job.Id] = fmt.Errorf("%w: 404 Not Found", gitlab.ErrHidden)
		}
	}
	w.restart() // the jobs' tokens are gone
	if err := w.a.ResumeOnce(t.Context()); !errors.Is(err, gitlab.ErrHidden) {
		t.Errorf("%v", err)
	}
	_ = w.a.ResumeOnce(t.Context()) // logged
	for i, res := range all {
		want := store.StateClosed
		if i < 4 {
			want = store.StateOpen
		}
		if have := w.state(res); have != want {
			t.Errorf("attempt %d is %s, want %s", i, have, want)
		}
	}
}

func TestWaitingEndsAfterADay(t *testing.T) {
	w, res := waiting(t)
	w.now = w.now.Add(25 * time.Hour)
	w.resume()
	if s := w.status(res); s.State != "closed" || !strings.HasPrefix(s.Reason, "unconfirmed: connection refused") || w.signer.count > 0 {
		t.Errorf("%+v, signed %d times", s, w.signer.count)
	}
}

// TestTokensGoWithTheirAttempts has another replica decide an attempt whose
// job's token is kept here.
func TestTokensGoWithTheirAttempts(t *testing.T) {
	w, res := waiting(t)
	tidy := func(want int) {
		t.Helper()
		if err := w.a.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		if have := w.a.Tokens(); have != want {
			t.Errorf("%d tokens kept, want %d", have, want)
		}
	}
	tidy(1)
	d := store.Decision{State: store.StateClosed, Reason: "unconfirmed", Ended: w.now}
	if err := w.store.Decide(t.Context(), res.GetAttempt(), d); err != nil {
		t.Fatal(err)
	}
	tidy(0)
}

// TestWaitingJobIsNotOpenedAgain holds that waiting does not let another
// outcome be picked.
func TestWaitingJobIsNotOpenedAgain(t *testing.T) {
	w, _ := waiting(t)
	_, err := w.a.Open(t.Context(), openRequest())
	wantCode(t, err, codes.PermissionDenied)
}

func TestLateClosing(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		later  time.Duration
		code   codes.Code
		reason string
	}{
		"confirmed":      {nil, 0, codes.OK, ""},
		"no token":       {gitlab.ErrNoToken, 0, codes.OK, "unconfirmed"},
		"down":           {errors.New("connection refused"), 0, codes.Unavailable, ""},
		"down for a day": {errors.New("connection refused"), 25 * time.Hour, codes.OK, "unconfirmed"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.gitlab.set(func(g *fakeGitLab) { g.ended = c.err })
			res, head := w.whole()
			w.now = w.now.Add(c.later)
			out, err := w.closeLate(res, head)
			if wantCode(t, err, c.code); err != nil {
				return
			}
			if !strings.HasPrefix(out.GetReason(), c.reason) || (c.reason == "") != (len(out.GetAttestations()) == 1) {
				t.Errorf("%v", out)
			}
			if last := w.gitlab.asked[len(w.gitlab.asked)-1]; last != "ended in success" {
				t.Errorf("asked %q", last)
			}
		})
	}
}

// mustClosePending closes an attempt that is signed, and lacks the log's proof.
func (w *world) mustClosePending(res *authoritypb.OpenResponse, head string) {
	w.t.Helper()
	out, err := w.close(res, head)
	if err != nil || !out.GetPending() || len(out.GetAttestations()) != 0 || !strings.Contains(out.GetReason(), "log proof follows") {
		w.t.Fatalf("%v, %v", out, err)
	}
}

// slowGitLab answers nothing about jobs that have ended until the gate opens.
type slowGitLab struct {
	*fakeGitLab
	gate  chan struct{}
	asked chan struct{}
}

func (g slowGitLab) Ended(ctx context.Context, want gitlab.Facts, result string) error {
	g.asked <- struct{}{}
	<-g.gate
	return g.fakeGitLab.Ended(ctx, want, result)
}

// fewLocks is a store with as many locks as it has places.
type fewLocks struct {
	store.Store
	places chan struct{}
}

func (s fewLocks) Lock(ctx context.Context, job int64) (context.Context, func(), error) {
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	locked, unlock, err := s.Store.Lock(ctx, job)
	return locked, func() { unlock(); <-s.places }, err
}

// TestOneHostHasNotAllLocks has a host close more jobs at once than the store
// has locks, while GitLab takes its time.
func TestOneHostHasNotAllLocks(t *testing.T) {
	const many, locks = 24, 20
	w := newWorld(t)
	g := slowGitLab{w.gitlab, make(chan struct{}), make(chan struct{}, many)}
	w.change = func(c *authority.Config) { c.GitLab, c.Store = g, fewLocks{c.Store, make(chan struct{}, locks)} }
	w.restart()
	var (
		all     [many]*authoritypb.OpenResponse
		heads   [many]string
		closing sync.WaitGroup
	)
	for i := range int64(many) {
		req := openRequest()
		req.Job.Id += i
		res, err := w.a.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		o := opened(res)
		o.Job.ID += i
		all[i], heads[i] = res, w.mustAppend(res, w.lines(attesttest.JobOf(o))...).GetHead()
	}
	for i, res := range all {
		closing.Go(func() {
			if out, err := w.closeLate(res, heads[i]); err != nil || len(out.GetAttestations()) != 1 {
				t.Errorf("%v, %v", out, err)
			}
		})
	}
	for range authority.LockedPerHost {
		<-g.asked
	}
	req := openRequest()
	req.Job.Id += many
	ctx, cancel := context.WithTimeout(authority.FromHost(t.Context(), "another"), 10*time.Second)
	defer cancel()
	if _, err := w.a.Open(ctx, req); err != nil {
		t.Errorf("another host is kept out: %v", err)
	}
	close(g.gate)
	closing.Wait()
}

// TestLateClosingUsesTheTokenThatWasKept has a host close again, without a
// token, what it closed before with one that still lives.
func TestLateClosingUsesTheTokenThatWasKept(t *testing.T) {
	w, res := waiting(t)
	at, err := w.store.Record(t.Context(), res.GetAttempt())
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(at), []byte("\n"))
	head := record.HashLine(lines[len(lines)-1])
	if out, err := w.closeLate(res, head); err != nil || !out.GetPending() {
		t.Fatalf("%v, %v", out, err)
	}
	w.gitlab.set(func(g *fakeGitLab) { g.closing, g.ended = nil, gitlab.ErrNoToken })
	if out, err := w.closeLate(res, head); err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}

// TestBundlesCarryTheLogsProof holds that nobody gets a bundle without it.
func TestBundlesCarryTheLogsProof(t *testing.T) {
	w, log := logged(t, func(*authority.Config) {})
	res, head := w.whole()
	log.set(errors.New("the log is down"))
	w.mustClosePending(res, head)
	if w.state(res) != store.StateSigned || w.signer.count != 1 {
		t.Fatalf("%s, signed %d times", w.state(res), w.signer.count)
	}
	if f := w.found("/v1/jobs/4242"); len(f.Attestations) != 0 {
		t.Error("a bundle without proof is shown")
	}
	if s := w.status(res); s.State != "signed" || len(s.Bundles) != 0 {
		t.Errorf("%+v", s)
	}
	if rec := w.get("/readyz"); !strings.Contains(rec.Body.String(), "signed, without log proof: 1") {
		t.Errorf("%s", rec.Body)
	}
	log.set(nil)
	out, err := w.close(res, head)
	if err != nil || len(out.GetAttestations()) != 1 || !bytes.Contains(out.GetAttestations()[0].GetBundle(), []byte(`"proof":1`)) {
		t.Errorf("%v, %v", out, err)
	}
	if w.signer.count != 1 || log.statements() != 1 {
		t.Errorf("signed %d times, %d entered", w.signer.count, log.statements())
	}
}

// TestSignedIsResumed has an authority that ended, or lost its log, after it had
// signed.
func TestSignedIsResumed(t *testing.T) {
	w, log := logged(t, func(*authority.Config) {})
	log.set(errors.New("the log is down"))
	res, head := w.whole()
	w.mustClosePending(res, head)
	if err := w.a.ResumeOnce(t.Context()); err == nil {
		t.Error("resumed without a log")
	}
	w.restart() // its signer counts anew
	log.set(nil)
	w.resume()
	w.resume()
	if w.state(res) != store.StateClosed || w.signer.count != 0 || log.statements() != 1 {
		t.Errorf("%s, signed %d times again, %d entered", w.state(res), w.signer.count, log.statements())
	}
	out, err := w.close(res, head)
	if err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("%v, %v", out, err)
	}
}

// leavingSigner signs for a caller who goes away meanwhile.
type leavingSigner struct {
	authority.Signer
	leave func()
}

func (s leavingSigner) Sign(ctx context.Context, st attest.Statement) ([]byte, error) {
	s.leave()
	return s.Signer.Sign(context.WithoutCancel(ctx), st)
}

// TestNothingIsSignedForWhoLeft holds that a host which got no answer, and so
// fails its job, finds no attestation of it later.
func TestNothingIsSignedForWhoLeft(t *testing.T) {
	w := newWorld(t)
	ctx, leave := context.WithCancel(t.Context())
	w.change = func(c *authority.Config) { c.Signer = leavingSigner{c.Signer, leave} }
	w.restart()
	res, head := w.whole()
	req := &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head, JobToken: "glcbt-token"}
	_, err := w.a.Close(ctx, req)
	wantCode(t, err, codes.Canceled)
	if w.state(res) != store.StateOpen {
		t.Fatalf("the attempt is %s", w.state(res))
	}
	if out, err := w.close(res, head); err != nil || len(out.GetAttestations()) != 1 {
		t.Errorf("asked again: %v, %v", out, err)
	}
}

// TestTheLogHoldsUpNobody holds that while a signature is entered nobody waits
// for the job's lock or for the host's turn.
func TestTheLogHoldsUpNobody(t *testing.T) {
	w, log := logged(t, func(*authority.Config) {})
	entered := 0
	log.during = func() {
		entered++
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, unlock, err := w.store.Lock(ctx, 4242)
		if err != nil {
			t.Errorf("the job is locked: %v", err)
			return
		}
		unlock()
		if n := w.a.Running(); n != 0 {
			t.Errorf("%d turns taken", n)
		}
	}
	log.set(errors.New("the log is down"))
	res, head := w.whole()
	req := &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head, JobToken: "glcbt-token"}
	for range 2 {
		if _, err := w.a.Close(w.a.InTurn(t.Context()), req); err != nil {
			t.Fatal(err)
		}
	}
	log.set(nil)
	w.resume()
	if entered != 3 || w.state(res) != store.StateClosed {
		t.Errorf("%s after %d tries", w.state(res), entered)
	}
}

// TestBackgroundProfilesDoNotWait holds that their hosts are told the truth.
func TestBackgroundProfilesDoNotWait(t *testing.T) {
	w, log := logged(t, func(c *authority.Config) { c.Background = []string{"hermetic"} })
	res, head := w.whole()
	for range 2 {
		w.mustClosePending(res, head)
	}
	if log.statements() != 0 || w.state(res) != store.StateSigned {
		t.Errorf("%d entered, %s", log.statements(), w.state(res))
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.a.Resume(ctx) }()
	for deadline := time.Now().Add(time.Minute); w.state(res) != store.StateClosed && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	out, err := w.close(res, head)
	if err != nil || out.GetPending() || len(out.GetAttestations()) != 1 || w.signer.count != 1 {
		t.Errorf("%v, %v, signed %d times", out, err, w.signer.count)
	}
}

func TestTrustedRootNamesTheLog(t *testing.T) {
	w, _ := logged(t, func(c *authority.Config) {
		c.LogHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })
	})
	if rec := w.get("/trusted-root.json"); !strings.Contains(rec.Body.String(), "https://ci.example.com/log/") {
		t.Errorf("%s", rec.Body)
	}
	if rec := w.get("/log/tile/0/000"); rec.Code != 200 || rec.Body.String() != "/tile/0/000" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	without := newWorld(t)
	if rec := without.get("/log/checkpoint"); rec.Code != 404 {
		t.Errorf("no log, but %d", rec.Code)
	}
}

// TestReplicas takes one job through two authorities that share a store.
func TestReplicas(t *testing.T) {
	w, log := logged(t, func(*authority.Config) {})
	first := w.a
	second, err := authority.New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	res := w.open()
	lines := w.job(res)
	ctx := t.Context()
	head := ""
	for i := range lines {
		for _, a := range []*authority.Authority{first, second, first} {
			if i%2 == 1 && a == first {
				continue // it never saw this one
			}
			// The last lines, so that some are known to this replica and some are not.
			sum, err := a.Append(ctx, &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: lines[max(0, i-1) : i+1]})
			if err != nil {
				t.Fatalf("line %d: %v", i, err)
			}
			head = sum.GetHead()
		}
	}
	if _, err := second.Open(ctx, openRequest()); err == nil {
		t.Error("the other replica opens the job again")
	}
	var wg sync.WaitGroup
	answers := make([]string, 8)
	for i := range answers {
		wg.Go(func() {
			a := []*authority.Authority{first, second}[i%2]
			out, err := a.Close(ctx, &authoritypb.CloseRequest{Attempt: res.GetAttempt(), Head: head, JobToken: "glcbt-token"})
			if err != nil {
				t.Error(err)
				return
			}
			answers[i] = out.GetAttestations()[0].GetSha256()
		})
	}
	wg.Wait()
	for _, sha := range answers {
		if sha != answers[0] {
			t.Error("two attestations of one attempt")
		}
	}
	if w.signer.count != 1 || log.statements() != 1 {
		t.Errorf("signed %d times, %d entered", w.signer.count, log.statements())
	}
}

// fakeIDTokens believes one token.
type fakeIDTokens struct{ err error }

func (f fakeIDTokens) Verify(_ context.Context, token string, want gitlab.Facts) (gitlab.Identity, error) {
	if token != "a.b.c" || want.Runner != 7 {
		return gitlab.Identity{}, &gitlab.Disagreement{Field: "id token"}
	}
	return gitlab.Identity{Issuer: "https://gitlab.example.com", ID: "0c7c", ConfigSHA: attesttest.Commit}, f.err
}

func TestIDTokenIsEvidence(t *testing.T) {
	w := newWorld(t)
	w.change = func(c *authority.Config) { c.IDTokens = fakeIDTokens{} }
	w.restart()
	with := func(token string) *authoritypb.OpenRequest {
		req := openRequest()
		req.IdToken = token
		return req
	}
	_, err := w.a.Open(t.Context(), with("x.y.z"))
	wantCode(t, err, codes.PermissionDenied)
	if !strings.Contains(w.log.String(), "event=id_token_refused") || strings.Contains(w.log.String(), "x.y.z") {
		t.Errorf("%s", w.log)
	}
	res, err := w.a.Open(t.Context(), with("a.b.c"))
	if err != nil {
		t.Fatal(err)
	}
	if s := w.status(res); s.IDToken == nil || s.IDToken.ID != "0c7c" || s.State != "open" {
		t.Errorf("%+v", s)
	}
	out, err := w.close(res, w.mustAppend(res, w.job(res)...).GetHead())
	if err != nil || bytes.Contains(out.GetAttestations()[0].GetBundle(), []byte("a.b.c")) {
		t.Errorf("%v", err)
	}
	w.change = func(c *authority.Config) { c.IDTokens = fakeIDTokens{errors.New("keys not to be had")} }
	w.restart()
	req := with("a.b.c")
	req.Job.Id++
	_, err = w.a.Open(t.Context(), req)
	wantCode(t, err, codes.Unavailable)
}

// TestOddJobs has jobs as GitLab makes them besides the plain one.
func TestOddJobs(t *testing.T) {
	upload := func(name, kind string, paths ...string) attesttest.Event {
		return attesttest.Event{Kind: record.Uploaded, Data: attesttest.Upload(name, kind, paths...)}
	}
	plain := func(name, kind string) attesttest.Event {
		u := attesttest.Upload(name, kind)
		u.Format, u.Entries = "gzip", nil
		return attesttest.Event{Kind: record.Uploaded, Data: u}
	}
	failed := func(outcome, result string, code int) func([]attesttest.Event) []attesttest.Event {
		return func(e []attesttest.Event) []attesttest.Event {
			const stage = "upload_artifacts_on_failure"
			end := attesttest.Ended("build_script", outcome)
			end.ExitCode = code
			e[12].Data = end
			e[14].Data, e[16].Data = attesttest.Started(stage), attesttest.Ended(stage, "success")
			u := attesttest.Upload("artifacts.zip", "archive", "dist/app")
			u.Stage = stage
			e[15].Data = u
			e[17].Data = record.Closing{Result: result, ExitCode: code}
			return e
		}
	}
	for name, c := range map[string]struct {
		change   func([]attesttest.Event) []attesttest.Event
		subjects int64
		result   string
	}{
		"failed, when: always":   {failed("failed", "failed", 3), 2, `"result":"failed"`},
		"canceled, when: always": {failed("canceled", "canceled", 143), 2, `"result":"canceled"`},
		"timed out":              {failed("canceled", "timeout", 143), 2, `"result":"timeout"`},
		"several types": {func(e []attesttest.Event) []attesttest.Event {
			more := []attesttest.Event{upload("artifacts.zip", "archive", "dist/app"), plain("junit.xml.gz", "junit"),
				plain(".env.gz", "dotenv"), plain("metadata.gz", "metadata"), plain("report.gz", "cyclonedx")}
			return append(append(append([]attesttest.Event{}, e[:15]...), more...), e[16:]...)
		}, 6, `"result":"success"`},
		"more than 1024 subjects": {func(e []attesttest.Event) []attesttest.Event {
			var paths []string
			for i := range 5000 {
				paths = append(paths, fmt.Sprintf("dist/%04d", i))
			}
			e[15] = upload("artifacts.zip", "archive", paths...)
			return e
		}, 5001, `"result":"success"`},
		"over 5 GiB": {func(e []attesttest.Event) []attesttest.Event {
			u := attesttest.Upload("artifacts.zip", "archive", "dist/huge")
			u.Bytes, u.Entries[1].Bytes = 6<<30, 6<<30
			e[15].Data = u
			return e
		}, 2, `"result":"success"`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			res := w.open()
			head := w.mustAppend(res, w.lines(c.change(attesttest.JobOf(opened(res))))...).GetHead()
			out, err := w.close(res, head)
			if err != nil {
				t.Fatal(err)
			}
			n := int64(0)
			for _, at := range out.GetAttestations() {
				n += at.GetSubjectCount()
				if at.GetSubjectCount() > 1024 {
					t.Errorf("a statement of %d subjects", at.GetSubjectCount())
				}
				if b := at.GetBundle(); len(b) > 0 && !bytes.Contains(payload(t, b), []byte(c.result)) {
					t.Errorf("the statement does not say %s", c.result)
				}
			}
			if n != c.subjects || len(out.GetAttestations()) != int((c.subjects+1023)/1024) {
				t.Errorf("%d subjects in %d statements", n, len(out.GetAttestations()))
			}
		})
	}
}

// TestSiblings has jobs that share all but the id: retried, parallel, matrix.
func TestSiblings(t *testing.T) {
	w := newWorld(t)
	seen := map[string]bool{}
	for id := range int64(4) {
		req := openRequest()
		req.Job.Id += id
		res, err := w.a.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		o := opened(res)
		o.Job.ID += id
		out, err := w.close(res, w.mustAppend(res, w.lines(attesttest.JobOf(o))...).GetHead())
		if err != nil || len(out.GetAttestations()) != 1 {
			t.Fatalf("%v, %v", out, err)
		}
		seen[out.GetAttestations()[0].GetSha256()] = true
		if f := w.found(fmt.Sprintf("/v1/jobs/%d", 4242+id)); len(f.Attestations) != 1 {
			t.Errorf("job %d: %d attestations", 4242+id, len(f.Attestations))
		}
	}
	// The same outputs, and each job speaks for itself.
	subject := attesttest.Upload("artifacts.zip", "archive").SHA256
	if f := w.found("/v1/subjects/sha256:" + subject); len(seen) != 4 || len(f.Attestations) != 4 {
		t.Errorf("%d different bundles, %d by subject", len(seen), len(f.Attestations))
	}
}
