package host

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

const (
	gitlabCA = "-----BEGIN CERTIFICATE-----\nR0lUTEFC\n-----END CERTIFICATE-----\n"
	jobCA    = "-----BEGIN CERTIFICATE-----\nT1VS\nT1dO\n-----END CERTIFICATE-----\n"
)

func TestStandInReplacesGitLabsChainInBothQuotings(t *testing.T) {
	escaped := func(pem, nl string) string { return strings.ReplaceAll(strings.TrimSpace(pem), "\n", nl) }
	for name, nl := range map[string]string{"ansi-c quoting": `\\n`, "posix quoting": "\n", "single": `\n`} {
		script := func(pem string) string {
			return "eval $'export A=b\nprintf \\'%s\\' $\\'" + escaped(pem, nl) + nl + "\\' > \"/builds/g/p.tmp/" + serverCAFile + "\"\n" +
				"export " + serverCAFile + "=\"/builds/g/p.tmp/" + serverCAFile + "\"\ngit fetch'"
		}
		t.Run(name, func(t *testing.T) {
			got := string(standIn([]byte(script(gitlabCA+gitlabCA)), []byte(jobCA)))
			if diff := cmp.Diff(script(jobCA), got); diff != "" {
				t.Errorf("script differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStandInLeavesOtherTextAlone(t *testing.T) {
	for name, script := range map[string]string{
		"no such file":          "printf '%s' $'" + gitlabCA + "' > \"/builds/g/p.tmp/OTHER\"",
		"certificate elsewhere": "echo '" + gitlabCA + "'; cat /builds/g/p.tmp/" + serverCAFile,
		"two commands":          "printf '%s' '" + gitlabCA + "' > /tmp/x; cat < /a/" + serverCAFile,
		"one-line certificate":  "printf '%s' '-----BEGIN CERTIFICATE-----R0k=-----END CERTIFICATE-----' > \"/a/" + serverCAFile + "\"",
		"empty":                 "",
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(standIn([]byte(script), []byte(jobCA))); got != script {
				t.Errorf("changed to %q", got)
			}
		})
	}
}

func TestResultsKeepTheFirstFailureThatStands(t *testing.T) {
	type note struct {
		stage   sandbox.Stage
		outcome string
		code    int
	}
	for name, tc := range map[string]struct {
		notes []note
		want  result
	}{
		"nothing ran":             {nil, result{"success", 0}},
		"success":                 {[]note{{sandbox.BuildScript, "success", 0}}, result{"success", 0}},
		"script failed":           {[]note{{sandbox.BuildScript, "failed", 42}, {sandbox.UploadFailure, "success", 0}}, result{"failed", 42}},
		"retried source":          {[]note{{sandbox.GetSources, "failed", 1}, {sandbox.GetSources, "success", 0}}, result{"success", 0}},
		"after_script is ignored": {[]note{{sandbox.BuildScript, "success", 0}, {sandbox.AfterScript, "failed", 1}}, result{"success", 0}},
		"and when it is stopped":  {[]note{{sandbox.BuildScript, "success", 0}, {sandbox.AfterScript, "canceled", 143}, {sandbox.UploadSuccess, "success", 0}}, result{"success", 0}},
		"unless the job asks":     {[]note{{sandbox.BuildScript, "success", 0}, {sandbox.AfterScript, "failed", 7}, {sandbox.UploadFailure, "success", 0}}, result{"failed", 7}},
		"its sandbox is not":      {[]note{{sandbox.AfterScript, "system_failure", 1}}, result{"system_failure", 1}},
		"canceled":                {[]note{{sandbox.BuildScript, "canceled", 143}, {sandbox.AfterScript, "success", 0}}, result{"canceled", 143}},
		"a host's is worse":       {[]note{{sandbox.BuildScript, "failed", 3}, {sandbox.UploadFailure, "system_failure", 1}}, result{"system_failure", 1}},
		"taken down":              {[]note{{sandbox.BuildScript, "failed", 3}, {"", "system_failure", 0}}, result{"system_failure", 0}},
		"first one wins":          {[]note{{sandbox.BuildScript, "failed", 3}, {sandbox.UploadFailure, "failed", 1}}, result{"failed", 3}},
		"upload turns it red":     {[]note{{sandbox.BuildScript, "success", 0}, {sandbox.UploadSuccess, "failed", 1}}, result{"failed", 1}},
	} {
		t.Run(name, func(t *testing.T) {
			var r results
			for _, n := range tc.notes {
				r.note(n.stage, n.outcome, n.code)
			}
			if got := r.sum(); got != tc.want {
				t.Errorf("sum = %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestCanceledStageIsNobodysSuccess(t *testing.T) {
	asked, cancel := context.WithCancelCause(t.Context())
	cancel(errCanceled)
	down, cancel := context.WithCancelCause(t.Context())
	cancel(errTakenDown)
	for name, tc := range map[string]struct {
		ctx  context.Context
		exit int
		err  error
		want int
		ours bool // the failure
	}{
		"never begun, or trapped": {asked, 0, errCanceled, 143, false},
		"ended by the signal":     {asked, 137, errCanceled, 137, false},
		"over before":             {asked, 0, nil, 0, false},
		"broken besides":          {asked, 0, errors.New("no"), 0, true},
		"taken down":              {down, 0, errTakenDown, 0, true},
	} {
		exit, err := asAsked(tc.ctx, sandbox.Exit{Code: tc.exit}, tc.err)
		if exit.Code != tc.want || (err != nil) != tc.ours {
			t.Errorf("%s: code %d, %v; want %d, error %v", name, exit.Code, err, tc.want, tc.ours)
		}
	}
}

func TestSourceIsVerifiedAnewAfterAnotherTry(t *testing.T) {
	for stage, want := range map[sandbox.Stage]bool{
		sandbox.GetSources: false, sandbox.ClearWorktree: false,
		sandbox.RestoreCache: true, sandbox.DownloadArtifacts: true, sandbox.BuildScript: true,
	} {
		j := &job{sourced: true}
		j.forget(stage)
		if err := j.allows(sandbox.BuildScript); (err == nil) != want {
			t.Errorf("script after %s: %v, want allowed %v", stage, err, want)
		}
	}
}

// stubborn is a container that Delete removes only at the second try.
type stubborn struct{ tries int }

func (*stubborn) Run(context.Context, sandbox.Process) (sandbox.Exit, error) {
	return sandbox.Exit{}, nil
}

func (*stubborn) Kill(context.Context) error { return nil }

func (s *stubborn) Hits() []sandbox.Hit { return nil }

func (s *stubborn) Delete(context.Context) error {
	if s.tries++; s.tries == 1 {
		return errors.New("busy")
	}
	return nil
}

func TestContainerThatStaysKeepsWhatItUses(t *testing.T) {
	h := &Host{log: slog.New(slog.DiscardHandler), ids: newIDPool(1_000_000, 1), jobs: map[string]*job{}}
	j := &job{session: "s", payload: &executor.Job{}, dir: t.TempDir()}
	j.life, j.stop = context.WithCancel(t.Context())
	var err error
	if j.ids, err = h.ids.take(); err != nil {
		t.Fatal(err)
	}
	if err := h.adopt(j); err != nil {
		t.Fatal(err)
	}
	j.keep(sandbox.Build, &stubborn{})
	if err := h.teardown(j); err == nil {
		t.Error("teardown without the container gone")
	}
	_, taken := h.ids.take()
	if !exists(j.dir) || taken == nil || len(h.all()) != 1 {
		t.Errorf("files there: %v, ids free: %v, jobs: %d", exists(j.dir), taken == nil, len(h.all()))
	}
	if err := h.teardown(j); err != nil {
		t.Error(err)
	}
	_, taken = h.ids.take()
	if exists(j.dir) || taken != nil || len(h.all()) != 0 {
		t.Errorf("afterwards files there: %v, ids free: %v, jobs: %d", exists(j.dir), taken == nil, len(h.all()))
	}
}

func TestIDRangesAreDisjointAndComeBack(t *testing.T) {
	p := newIDPool(1_000_000, 2)
	a, errA := p.take()
	b, errB := p.take()
	if errA != nil || errB != nil || a.First == b.First || a.Count != idRange || b.First-a.First != idRange {
		t.Fatalf("ranges %+v, %+v (%v, %v)", a, b, errA, errB)
	}
	if _, err := p.take(); err == nil {
		t.Fatal("a third range out of two")
	} else if h, ok := errors.AsType[*hintedError](err); !ok || h.hint == "" {
		t.Errorf("error without a hint: %v", err)
	}
	p.give(a)
	if again, err := p.take(); err != nil || again != a {
		t.Errorf("after giving back: %+v, %v", again, err)
	}
}

func TestFailureClassifies(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want executor.Reply
	}{
		"user":         {&sandbox.UserError{Err: errors.New("no"), Hint: "do"}, executor.Reply{Outcome: executor.BuildFailure, ExitCode: 1, Message: "no", Hint: "do"}},
		"security":     {&sandbox.SecurityError{Err: errors.New("no")}, executor.Reply{Outcome: executor.SystemFailure, Message: "security: no"}},
		"hinted":       {&hintedError{errors.New("no"), "do"}, executor.Reply{Outcome: executor.SystemFailure, Message: "no", Hint: "do"}},
		"unclassified": {errors.New("no"), executor.Reply{Outcome: executor.SystemFailure, Message: "no"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, failure(tc.err)); diff != "" {
				t.Errorf("reply differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVariablesOfATenantAreHiddenUnlessPublic(t *testing.T) {
	vars := []executor.Variable{
		{Key: "SHOWN", Value: "a", Public: true},
		{Key: "MASKED", Value: "b", Public: true, Masked: true},
		{Key: "PRIVATE", Value: "c"},
		{Key: "SHOWN", Value: "", Public: true},
	}
	got := committer{[]byte("key")}.variables(vars)
	if *got[0].Value != "a" || got[0].Commitment != "" || got[3].Value == nil || *got[3].Value != "" {
		t.Errorf("public variables: %+v, %+v", got[0], got[3])
	}
	for _, v := range got[1:3] {
		if v.Value != nil || len(v.Commitment) != 64 {
			t.Errorf("%s: value %v, commitment %q", v.Name, v.Value, v.Commitment)
		}
	}
	other := committer{[]byte("another key")}.variables(vars)
	if other[1].Commitment == got[1].Commitment {
		t.Error("commitments of two attempts are equal: values could be compared")
	}
	if c := (committer{[]byte("key")}); c.to("A", "BC") == c.to("AB", "C") {
		t.Error("name and value run together")
	}
}

func TestRunnerThatDiesIsNoticed(t *testing.T) {
	// A shell stands for the runner, a sleep for the driver that it started.
	cmd := exec.Command("sh", "-c", "sleep 1000 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	driver := readInt(t, out)
	t.Cleanup(func() { kill(driver) })
	runner := parentOf(driver)
	if runner == nil || runner.gone() {
		t.Fatalf("runner = %v, want a process that lives", runner)
	}
	defer runner.close()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for deadline := time.Now().Add(10 * time.Second); !runner.gone(); {
		if time.Now().After(deadline) {
			t.Fatal("the runner's end was not noticed")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestReaperIsHeldUpByNoJob(t *testing.T) {
	h := &Host{log: slog.New(slog.DiscardHandler), jobs: map[string]*job{}}
	dir := t.TempDir()
	for _, session := range []string{"busy", "idle"} {
		j := &job{session: session, payload: &executor.Job{}, started: time.Now(), dir: filepath.Join(dir, session), tempDir: filepath.Join(dir, "dropped")}
		j.life, j.stop = context.WithCancel(t.Context())
		h.jobs[session] = j
	}
	busy, idle := h.jobs["busy"], h.jobs["idle"]
	busy.mu.Lock() // by a call that does not end
	var wg sync.WaitGroup
	for range 3 {
		h.takeAbandoned(time.Now(), &wg)
	}
	for !isGone(idle) {
		time.Sleep(time.Millisecond)
	}
	<-busy.life.Done() // it was told to stop
	busy.mu.Unlock()
	wg.Wait()
	if len(h.all()) != 0 {
		t.Error("a job is left")
	}
}

func isGone(j *job) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.gone
}

func TestBlocksAreBoundedAndCounted(t *testing.T) {
	var b blockLog
	for range maxReported + 5 {
		b.note(record.Block{Target: "x"})
	}
	b.note(record.Block{Target: "x", Count: 100})
	pending, unsaid := b.take()
	if len(pending) != maxReported || unsaid != 5 || b.total() != maxReported+5+100 {
		t.Errorf("%d pending, %d unsaid, %d in all", len(pending), unsaid, b.total())
	}
	if pending, _ := b.take(); pending != nil {
		t.Errorf("taken twice: %v", pending)
	}
}

func TestScriptFileCannotBeChanged(t *testing.T) {
	f, err := sealedFile([]byte("echo hello\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt([]byte("X"), 0); err == nil {
		t.Error("write to a sealed script succeeded")
	}
	again, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err == nil {
		_ = again.Close()
		t.Errorf("the script has a name: %s", f.Name())
	}
	got, err := readScript(f)
	if err != nil || string(got) != "echo hello\n" {
		t.Errorf("script = %q, %v", got, err)
	}
}
