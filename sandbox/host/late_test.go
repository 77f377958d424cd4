package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// fakeAuthority holds lines as the real one does. down and broken say what it
// does not answer.
type fakeAuthority struct {
	mu     sync.Mutex
	down   bool // answers nothing
	broken bool // acknowledges lines, and cannot close
	refuse error
	ill    string // the attempt about which it never answers
	lost   int    // so many answers to Close get lost
	lines  [][]byte
	closes []string // the tokens that came with them
}

func (f *fakeAuthority) set(change func(*fakeAuthority)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeAuthority) Open(context.Context, Opening) (Opened, error) {
	return Opened{}, errors.New("not asked here")
}

func (f *fakeAuthority) Append(_ context.Context, attempt string, lines [][]byte) (record.Head, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.down || f.ill == attempt && f.ill != "":
		return record.Head{}, &UnavailableError{errors.New("nobody there")}
	case f.refuse != nil:
		return record.Head{}, f.refuse
	}
	for _, l := range lines {
		if !bytes.Contains(bytes.Join(f.lines, nil), l) {
			f.lines = append(f.lines, bytes.Clone(l))
		}
	}
	last := lines[len(lines)-1]
	return record.Head{Entries: int64(len(f.lines)), Hash: record.HashLine(last)}, nil
}

func (f *fakeAuthority) Close(_ context.Context, attempt string, head record.Head, token string) (Closed, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.down || f.broken || f.ill == attempt && f.ill != "":
		return Closed{}, &UnavailableError{errors.New("no signature to be had")}
	case head.Entries != int64(len(f.lines)):
		return Closed{}, errors.New("another head")
	}
	f.closes = append(f.closes, token)
	if f.lost > 0 {
		f.lost--
		return Closed{}, context.DeadlineExceeded
	}
	return Closed{Attestations: []Attestation{{URL: "https://ci.example.com/v1/bundles/x"}}}, nil
}

func (f *fakeAuthority) Provenance(context.Context, string, string, int64) ([]Origin, error) {
	return nil, errors.New("not asked here")
}

// lateWorld is a host with one job that has run so far as to be sealed.
type lateWorld struct {
	*Host
	authority *fakeAuthority
	j         *job
	said      *bytes.Buffer
}

func newLateWorld(t *testing.T, spool bool) *lateWorld {
	t.Helper()
	w := &lateWorld{authority: &fakeAuthority{}, said: &bytes.Buffer{}}
	w.Host = &Host{
		cfg: Config{StateDir: t.TempDir(), Spool: spool}, authority: w.authority, log: slog.New(slog.DiscardHandler),
		ids: newIDPool(1_000_000, 1), postponed: make(chan struct{}, 1), jobs: map[string]*job{},
	}
	for _, dir := range []string{w.records(), w.late()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.j = &job{session: "s", payload: &executor.Job{Token: "glcbt-token"}, dir: t.TempDir(), recordPath: filepath.Join(w.records(), "s.jsonl"), spool: spool}
	w.j.life, w.j.stop = context.WithCancel(t.Context())
	w.jobs["s"] = w.j
	var err error
	if w.j.record, err = record.Create(w.j.recordPath, time.Now); err != nil {
		t.Fatal(err)
	}
	w.append(t, record.JobOpened, record.Opened{Attempt: strings.Repeat("0", 32)})
	w.j.pump = newPump(w.j.record, w.authority, "attempt", time.Millisecond, spool).start()
	if err := w.j.pump.acknowledged(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.j.pump != nil {
			w.j.pump.close()
			_ = w.j.record.Close()
		}
	})
	return w
}

func (w *lateWorld) append(t *testing.T, kind record.Kind, data any) {
	t.Helper()
	if _, err := w.j.record.Append(kind, data); err != nil {
		t.Fatal(err)
	}
}

// seal brings the job to where its outputs have been uploaded.
func (w *lateWorld) seal(t *testing.T) {
	t.Helper()
	w.j.sealed = true
	up := record.Upload{FileName: "out.zip", SHA256: strings.Repeat("1", 64), Status: 201}
	w.append(t, record.Uploaded, up)
	w.j.inputs.count(up)
}

func (w *lateWorld) files(t *testing.T, dir string) int {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func (w *lateWorld) summary() string {
	w.said.Reset()
	w.j.summarize(joblog.New(w.said))
	return w.said.String()
}

func TestJobEndsAlthoughTheAuthorityIsSilent(t *testing.T) {
	for name, silence := range map[string]struct {
		set  func(*fakeAuthority)
		says string
	}{
		"down":   {func(f *fakeAuthority) { f.down = true }, "the last 2 of 3 entries come too late"},
		"broken": {func(f *fakeAuthority) { f.broken = true }, "it holds all entries already"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLateWorld(t, true)
			w.authority.set(silence.set)
			w.seal(t)
			if err := w.j.held(t.Context()); err != nil {
				t.Fatalf("the stage fails: %v", err)
			}
			if err := w.attest(t.Context(), w.j); err != nil {
				t.Fatalf("the job fails: %v", err)
			}
			if w.files(t, w.late()) != 1 || w.files(t, w.records()) != 0 {
				t.Fatal("the record is not kept")
			}
			for _, want := range []string{"kept         out.zip", "not attested yet", silence.says} {
				if said := w.summary(); !strings.Contains(said, want) {
					t.Errorf("the job's log does not say %q:\n%s", want, said)
				}
			}
			w.closeLateOnes(t.Context()) // while the job is there: not touched
			if err := w.teardown(w.j); err != nil {
				t.Fatal(err)
			}
			w.closeLateOnes(t.Context())
			if w.files(t, w.late()) != 1 {
				t.Fatal("the record went although the authority is silent")
			}
			w.authority.set(func(f *fakeAuthority) { f.down, f.broken = false, false })
			w.closeLateOnes(t.Context())
			if w.files(t, w.late()) != 0 || len(w.authority.closes) != 1 || w.authority.closes[0] != "" {
				t.Errorf("%d records left, closed with %q", w.files(t, w.late()), w.authority.closes)
			}
		})
	}
}

// TestLostAnswerFailsNoJob holds that the authority is asked again for what it
// may have decided.
func TestLostAnswerFailsNoJob(t *testing.T) {
	w := newLateWorld(t, false)
	w.authority.set(func(f *fakeAuthority) { f.lost = 2 })
	w.j.pump.patience = time.Minute
	w.seal(t)
	if err := w.attest(t.Context(), w.j); err != nil {
		t.Fatal(err)
	}
	if w.j.fate() != attested || len(w.authority.closes) != 3 {
		t.Errorf("%s, closed %d times", w.j.fate(), len(w.authority.closes))
	}
}

// TestPatienceOfJobs holds that a job which may end without the authority does
// not wait for it as long as others.
func TestPatienceOfJobs(t *testing.T) {
	w := newLateWorld(t, true)
	w.j.pump.patience = patience
	for sealed, want := range map[bool]time.Duration{false: patience, true: latePatience} {
		if w.j.sealed = sealed; w.j.patience() != want {
			t.Errorf("sealed %v: %v, want %v", sealed, w.j.patience(), want)
		}
	}
}

// TestLateRecordSurvivesTheDaemon closes it from another daemon's state.
func TestLateRecordSurvivesTheDaemon(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.broken = true })
	w.seal(t)
	if err := w.attest(t.Context(), w.j); err != nil {
		t.Fatal(err)
	}
	w.j.pump.close()
	authority := &fakeAuthority{lines: w.authority.lines}
	next := &Host{cfg: w.cfg, authority: authority, log: slog.New(slog.DiscardHandler), jobs: map[string]*job{}, postponed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); next.closeLate(ctx) }()
	for deadline := time.Now().Add(time.Minute); w.files(t, w.late()) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if len(authority.closes) != 1 {
		t.Errorf("closed %d times", len(authority.closes))
	}
}

func TestLateRecordThatIsRefusedStaysAsEvidence(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.down = true })
	w.seal(t)
	if err := w.attest(t.Context(), w.j); err != nil {
		t.Fatal(err)
	}
	if err := w.teardown(w.j); err != nil {
		t.Fatal(err)
	}
	w.authority.set(func(f *fakeAuthority) { f.down, f.refuse = false, errors.New("entry 1 is from yesterday") })
	w.closeLateOnes(t.Context())
	if w.files(t, w.late()) != 0 || w.files(t, w.records()) != 1 || len(w.authority.closes) != 0 {
		t.Errorf("%d late, %d kept, closed %d times", w.files(t, w.late()), w.files(t, w.records()), len(w.authority.closes))
	}
}

// keep leaves a whole record to be closed late, of a job that ended a while ago.
func (w *lateWorld) keep(t *testing.T, name, attempt string, ago time.Duration) {
	t.Helper()
	l, err := record.Create(filepath.Join(w.late(), name+".jsonl"), func() time.Time { return time.Now().Add(-ago) })
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Append(record.JobOpened, record.Opened{Attempt: attempt})
	_, end := l.Append(record.Closed, record.Closing{Result: "success"})
	if err := errors.Join(err, end, l.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestUndecidedRecordIsKept has an authority that lets this host in no longer:
// records wait for that to pass, a day long.
func TestUndecidedRecordIsKept(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.refuse = &UndecidedError{errors.New("the certificate expired")} })
	w.keep(t, "young", strings.Repeat("1", 32), 23*time.Hour)
	w.keep(t, "old", strings.Repeat("2", 32), 25*time.Hour)
	for range 2 { // to try does not make it younger
		w.closeLateOnes(t.Context())
	}
	for file, want := range map[string]bool{
		filepath.Join(w.late(), "young.jsonl"): true, filepath.Join(w.late(), "old.jsonl"): false, filepath.Join(w.records(), "old.jsonl"): true,
	} {
		if _, err := os.Stat(file); (err == nil) != want {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestLateRecordHoldsUpNoOther has records before all others about which the
// authority never answers.
func TestLateRecordHoldsUpNoOther(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.ill, f.lines = strings.Repeat("1", 32), nil })
	for i := range 2 * lateInRow {
		w.keep(t, fmt.Sprintf("a%d", i), w.authority.ill, 0)
	}
	w.keep(t, "b", strings.Repeat("2", 32), 0)
	for range 3 {
		w.closeLateOnes(t.Context())
	}
	if w.files(t, w.late()) != 2*lateInRow || len(w.authority.closes) != 1 {
		t.Errorf("%d records left, closed %d times", w.files(t, w.late()), len(w.authority.closes))
	}
}

// TestLeftoversHoldUpNoLateRecord has an authority that does not answer about a
// record which an earlier daemon left.
func TestLeftoversHoldUpNoLateRecord(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.ill, f.lines = strings.Repeat("1", 32), nil })
	w.keep(t, "left", w.authority.ill, 0)
	if err := os.Rename(filepath.Join(w.late(), "left.jsonl"), filepath.Join(w.records(), "left.jsonl")); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(w.records())
	if err != nil {
		t.Fatal(err)
	}
	w.leftover = left[:1]
	w.keep(t, "late", strings.Repeat("2", 32), 0)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket")})
	if err != nil {
		t.Fatal(err)
	}
	delete(w.jobs, "s")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Serve(ctx, l) }()
	for deadline := time.Now().Add(time.Minute); w.files(t, w.late()) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
	if w.files(t, w.late()) != 0 {
		t.Error("the late record waits")
	}
}

// TestSilenceFailsTheJob has everything in which the job must not end well.
func TestSilenceFailsTheJob(t *testing.T) {
	for name, c := range map[string]struct {
		spool  bool
		before func(*lateWorld)
	}{
		"no spool":          {false, func(*lateWorld) {}},
		"not sealed":        {true, func(w *lateWorld) { w.j.sealed = false }},
		"security failure":  {true, func(w *lateWorld) { w.j.security = &sandbox.SecurityError{Err: errors.New("no")} }},
		"the host's fault":  {true, func(w *lateWorld) { w.j.results.note(sandbox.UploadSuccess, "system_failure", 1) }},
		"refused, not down": {true, func(w *lateWorld) { w.authority.refuse = errors.New("forked") }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newLateWorld(t, c.spool)
			w.authority.set(func(f *fakeAuthority) { f.down = true })
			w.j.sealed = true
			w.authority.set(func(f *fakeAuthority) { c.before(w); f.down = f.refuse == nil })
			w.append(t, record.Blocked, record.Block{Target: "x"})
			if err := w.attest(t.Context(), w.j); err == nil {
				t.Error("the job ends well")
			}
			if w.files(t, w.late()) != 0 || w.j.late != nil {
				t.Error("the record is kept to be closed late")
			}
		})
	}
}

// TestTenantNeverStartsUnacknowledged holds, spool or not, that silence before
// the sealing is an error.
func TestTenantNeverStartsUnacknowledged(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.down = true })
	w.append(t, record.StageStarted, record.Started{Stage: "build_script", Role: "build"})
	for range 2 {
		if err := w.j.held(t.Context()); err == nil {
			t.Error("acknowledged by nobody")
		}
	}
}

// TestPumpGoesOnAfterAnOutage holds that a short silence costs nothing.
func TestPumpGoesOnAfterAnOutage(t *testing.T) {
	w := newLateWorld(t, true)
	w.authority.set(func(f *fakeAuthority) { f.down = true })
	w.seal(t)
	if err := w.j.pump.acknowledged(t.Context()); !unavailable(err) {
		t.Fatalf("%v", err)
	}
	w.authority.set(func(f *fakeAuthority) { f.down = false })
	for w.j.pump.acknowledged(t.Context()) != nil {
		time.Sleep(time.Millisecond)
	}
	if err := w.attest(t.Context(), w.j); err != nil {
		t.Fatal(err)
	}
	if w.j.fate() != attested || w.authority.closes[0] != "glcbt-token" {
		t.Errorf("%s, closed with %q", w.j.fate(), w.authority.closes)
	}
}

func TestSummaryTellsWhatIsPending(t *testing.T) {
	w := newLateWorld(t, false)
	w.seal(t)
	w.j.closed = Closed{Pending: true, Reason: "signed; its log proof follows", URL: "https://ci.example.com/v1/attempts/0"}
	for _, want := range []string{"pending      out.zip", "not attested yet: signed; its log proof follows", "it will be at https://ci.example.com/v1/attempts/0"} {
		if said := w.summary(); !strings.Contains(said, want) {
			t.Errorf("the job's log does not say %q:\n%s", want, said)
		}
	}
}

func TestPayloadsRunnerAndIDToken(t *testing.T) {
	vars := []executor.Variable{
		{Key: "CI_RUNNER_ID", Value: "7"}, {Key: "HALLMARK_ID_TOKEN", Value: "a.b.c"},
		{Key: "CI_RUNNER_ID", Value: "8"}, {Key: "HALLMARK_ID_TOKEN", Value: "d.e.f"},
	}
	if runner, token := runnerOf(vars), idTokenOf(vars); runner != 7 || token != "d.e.f" {
		t.Errorf("runner %d, token %q", runner, token)
	}
	if runner, token := runnerOf(nil), idTokenOf(nil); runner != 0 || token != "" {
		t.Errorf("of nothing: runner %d, token %q", runner, token)
	}
}
