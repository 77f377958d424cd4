package host

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hallmark.build/executor"
	"hallmark.build/sandbox/record"
)

var kills = flag.Int("kills", 25, "how often TestHostKilledUnderLoad kills the host")

// victimVariable makes a process of this test's program the host that is killed.
const victimVariable = "HALLMARK_TEST_VICTIM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimVariable); dir != "" {
		if err := victim(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestHostKilledUnderLoad kills a host at random moments while the authority
// comes and goes. No job that was let go is forgotten; no other is closed as a
// success but by the call that was under way; no line contradicts another.
func TestHostKilledUnderLoad(t *testing.T) {
	dir := t.TempDir()
	ledger := &Ledger{t: t, chains: map[string]*record.Chain{}, lines: map[string][]string{}, told: map[string]bool{}, ends: map[string]end{}}
	serveLedger(t, dir, ledger)
	for range *kills {
		mood, calls := rand.IntN(3), 1+rand.IntN(30)
		if mood == down {
			calls = 1 + rand.IntN(3) // they are made less and less often
		}
		ledger.mood.set(mood)
		cmd := startVictim(t, dir, "work")
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		ledger.await(calls, ended)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended
	}
	ledger.mood.set(up)
	if err := startVictim(t, dir, "drain").Wait(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"records", "late"} {
		if left, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(left) > 0 {
			t.Errorf("%d files left in %s, %v", len(left), d, err)
		}
	}
	ledger.check()
}

func startVictim(t *testing.T, dir, what string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", what)
	cmd.Env = append(os.Environ(), victimVariable+"="+dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// How the authority is.
const (
	up = iota
	down
	broken // acknowledges, and cannot close
)

type mood struct {
	mu  sync.Mutex
	now int
}

func (m *mood) set(now int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now = now
}

func (m *mood) is(any ...int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range any {
		if m.now == a {
			return true
		}
	}
	return false
}

// An end is a closing that the authority took.
type end struct {
	result string
	inTime bool
}

// A Ledger is an authority that remembers what it was told, across the host's
// deaths.
type Ledger struct {
	t    *testing.T
	mood mood

	mu     sync.Mutex
	calls  int
	chains map[string]*record.Chain
	lines  map[string][]string
	told   map[string]bool // attempts whose job was let go
	ends   map[string]end
}

const away = "away"

// await returns after so many further calls, so that a host is killed at work
// however slow the machine is. A host that ends by itself, having said why,
// would never make them.
func (l *Ledger) await(n int, ended <-chan error) {
	l.t.Helper()
	l.mu.Lock()
	until := l.calls + n
	l.mu.Unlock()
	for {
		l.mu.Lock()
		calls := l.calls
		l.mu.Unlock()
		if calls >= until {
			return
		}
		select {
		case err := <-ended:
			l.t.Fatalf("the host ends (%v) when it should work", err)
		case <-time.After(time.Millisecond):
		}
	}
}

func (l *Ledger) called() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
}

// AppendArgs are those of Append.
type AppendArgs struct {
	Attempt string
	Lines   [][]byte
}

// Append checks lines as the authority does.
func (l *Ledger) Append(a AppendArgs, head *record.Head) error {
	l.called()
	if l.mood.is(down) {
		return errors.New(away)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	chain := l.chains[a.Attempt]
	if chain == nil {
		chain = &record.Chain{}
		l.chains[a.Attempt] = chain
	}
	for _, line := range a.Lines {
		known := false
		for _, have := range l.lines[a.Attempt] {
			known = known || have == string(line)
		}
		if known {
			continue
		}
		if _, err := chain.Add(line); err != nil {
			l.t.Errorf("attempt %s: %v", a.Attempt, err)
			return err
		}
		l.lines[a.Attempt] = append(l.lines[a.Attempt], string(line))
	}
	*head = chain.Head()
	return nil
}

// CloseArgs are those of Close.
type CloseArgs struct{ Attempt, Hash, Token string }

// Close takes the closing of an attempt whose record is whole.
func (l *Ledger) Close(a CloseArgs, _ *bool) error {
	l.called()
	if l.mood.is(down, broken) {
		return errors.New(away)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	chain := l.chains[a.Attempt]
	if chain == nil || !chain.Closed() || chain.Head().Hash != a.Hash {
		l.t.Errorf("attempt %s: closed without its whole record", a.Attempt)
		return errors.New("not whole")
	}
	if _, again := l.ends[a.Attempt]; again {
		return nil
	}
	last := l.lines[a.Attempt][len(l.lines[a.Attempt])-1]
	_, result, _ := strings.Cut(last, `"result":"`)
	result, _, _ = strings.Cut(result, `"`)
	l.ends[a.Attempt] = end{result, a.Token != ""}
	return nil
}

// Told notes that a job was let go.
func (l *Ledger) Told(attempt string, _ *bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told[attempt] = true
	return nil
}

func (l *Ledger) check() {
	l.mu.Lock()
	defer l.mu.Unlock()
	late, unsaid := 0, 0
	for attempt := range l.told {
		if e := l.ends[attempt]; e.result != "success" {
			l.t.Errorf("attempt %s: its job was let go, and it ended in %q", attempt, e.result)
		}
	}
	for attempt, e := range l.ends {
		switch {
		case e.result == "success" && !e.inTime && l.told[attempt]:
			late++
		case e.result == "success" && !l.told[attempt]:
			unsaid++ // killed between the closing, or the keeping, and the word
		case e.result != "success" && e.result != "system_failure":
			l.t.Errorf("attempt %s: ended in %q", attempt, e.result)
		}
	}
	if unsaid > *kills {
		l.t.Errorf("%d closed that were not let go", unsaid)
	}
	l.t.Logf("%d kills: %d attempts, %d jobs let go, of these %d closed late; %d closed whose job died", *kills, len(l.lines), len(l.told), late, unsaid)
}

func serveLedger(t *testing.T, dir string, l *Ledger) {
	t.Helper()
	s := rpc.NewServer()
	if err := s.Register(l); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.ServeConn(c) }) // until the host's end
		}
	})
	t.Cleanup(func() { _ = listener.Close(); wg.Wait() })
}

// farAuthority speaks to the ledger.
type farAuthority struct{ c *rpc.Client }

func (f farAuthority) call(method string, args, reply any) error {
	err := f.c.Call("Ledger."+method, args, reply)
	if err != nil && err.Error() == away {
		return &UnavailableError{err}
	}
	return err
}

func (f farAuthority) Open(context.Context, Opening) (Opened, error) {
	return Opened{}, errors.New("not asked here")
}

func (f farAuthority) Append(_ context.Context, attempt string, lines [][]byte) (head record.Head, err error) {
	return head, f.call("Append", AppendArgs{attempt, lines}, &head)
}

func (f farAuthority) Close(_ context.Context, attempt string, head record.Head, token string) (Closed, error) {
	var ok bool
	return Closed{Attestations: []Attestation{{}}}, f.call("Close", CloseArgs{attempt, head.Hash, token}, &ok)
}

func (f farAuthority) Provenance(context.Context, string, string, int64) ([]Origin, error) {
	return nil, errors.New("not asked here")
}

// victim is a host that takes one job after another to its end, until it is
// killed; or that only goes on with what earlier ones left.
func victim(dir string) error {
	c, err := rpc.Dial("unix", filepath.Join(dir, "authority"))
	if err != nil {
		return err
	}
	h := &Host{
		cfg: Config{StateDir: dir, Spool: true}, authority: farAuthority{c}, log: slog.New(slog.DiscardHandler),
		ids: newIDPool(1_000_000, 1), postponed: make(chan struct{}, 1), jobs: map[string]*job{},
	}
	for _, d := range []string{h.records(), h.late()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if h.leftover, err = os.ReadDir(h.records()); err != nil {
		return err
	}
	h.settleRecords(context.Background())
	h.closeLateOnes(context.Background())
	if os.Args[1] == "drain" {
		return nil
	}
	for {
		if err := h.oneJob(c); err != nil {
			return err
		}
		h.closeLateOnes(context.Background())
	}
}

// oneJob goes through a job's life from its opening to its end, without a
// sandbox. A job that the authority's silence fails is no error.
func (h *Host) oneJob(c *rpc.Client) error {
	session := fmt.Sprintf("%016x%016x", rand.Uint64(), rand.Uint64())
	j := &job{session: session, payload: &executor.Job{Token: "glcbt-token"}, dir: filepath.Join(h.cfg.StateDir, "none"),
		recordPath: filepath.Join(h.records(), session+".jsonl"), spool: true, opened: Opened{Attempt: session}}
	j.life, j.stop = context.WithCancel(context.Background())
	h.jobs[session] = j
	var err error
	if j.record, err = record.Create(j.recordPath, time.Now); err != nil {
		return err
	}
	if _, err := j.record.Append(record.JobOpened, record.Opened{Attempt: session}); err != nil {
		return err
	}
	j.pump = newPump(j.record, h.authority, session, time.Millisecond, true).start()
	steps := []struct {
		kind record.Kind
		data any
	}{
		{record.StageStarted, record.Started{Stage: "build_script", Role: "build"}},
		{record.StageEnded, record.Ended{Stage: "build_script", Role: "build", Outcome: "success"}},
		{record.Sealed, record.Seal{}},
		{record.Uploaded, record.Upload{FileName: "out.zip", Status: 201}},
	}
	for _, s := range steps {
		if _, err := j.record.Append(s.kind, s.data); err != nil {
			return err
		}
		j.sealed = j.sealed || s.kind == record.Sealed
		if err := j.acknowledged(context.Background()); err != nil {
			j.results.note("", "system_failure", 0)
			h.finish(j, h.log)
			return h.teardown(j)
		}
	}
	j.inputs.count(record.Upload{FileName: "out.zip", Status: 201})
	if err := h.attest(context.Background(), j); err == nil {
		var ok bool
		if err := c.Call("Ledger.Told", session, &ok); err != nil {
			return err
		}
	}
	return h.teardown(j)
}
