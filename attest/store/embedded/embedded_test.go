package embedded_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/store/storetest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_WORKER"); dir != "" {
		if err := work(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func open(t *testing.T, dir string) *embedded.Store {
	t.Helper()
	s, err := embedded.Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string) (store.Store, func()) {
		s := open(t, filepath.Join(dir, "store"))
		return s, func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// work opens, appends and decides without end, and says after each step what
// was acknowledged.
func work(ctx context.Context, dir string) error {
	s, err := embedded.Open(ctx, dir)
	if err != nil {
		return err
	}
	start := 0
	for ; ; start++ { // behind what earlier workers made
		if _, err := s.Attempt(ctx, storetest.Attempt(start, 0).ID); err != nil {
			break
		}
	}
	line := bytes.Repeat([]byte("x"), 3000)
	for n := start; ; n++ {
		a := storetest.Attempt(n, int64(n))
		if err := s.Begin(ctx, a); err != nil {
			return err
		}
		fmt.Println("begun", n, 0)
		for k := range 3 {
			if err := s.AppendRecord(ctx, a.ID, int64(k*(len(line)+1)), [][]byte{line}); err != nil {
				return err
			}
			fmt.Println("appended", n, k+1)
		}
		if err := s.Decide(ctx, a.ID, storetest.Decision(n, 3)); err != nil {
			return err
		}
		fmt.Println("decided", n, 3)
	}
}

// TestKilled kills a process that writes, at whatever point it is, and looks
// whether all that was acknowledged is there and nothing is half there.
func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	total := 0
	for round := range rounds {
		acknowledged := killAfter(t, dir, 5+7*round)
		total += len(acknowledged)
		s := open(t, dir)
		if err := s.Check(t.Context()); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		for _, ack := range acknowledged {
			verifyAcknowledged(t, s, ack)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if total < rounds {
		t.Errorf("%d steps in %d rounds", total, rounds)
	}
}

// killAfter kills a worker a moment after its n-th acknowledgement.
func killAfter(t *testing.T, dir string, n int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_WORKER="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acks []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		acks = append(acks, lines.Text())
		if len(acks) == n {
			time.Sleep(time.Duration(n%5) * 700 * time.Microsecond)
			cmd.Process.Kill()
		}
	}
	cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatal(stderr.String())
	}
	return acks
}

func verifyAcknowledged(t *testing.T, s *embedded.Store, ack string) {
	t.Helper()
	var (
		what     string
		n, count int
	)
	if _, err := fmt.Sscan(ack, &what, &n, &count); err != nil {
		return // the last line may be cut
	}
	a, err := s.Attempt(t.Context(), storetest.Attempt(n, 0).ID)
	if err != nil {
		t.Errorf("%s: %v", ack, err)
		return
	}
	switch what {
	case "appended":
		if data, err := s.Record(t.Context(), a.ID); err != nil || bytes.Count(data, []byte("\n")) < count {
			t.Errorf("%s: %d lines, %v", ack, bytes.Count(data, []byte("\n")), err)
		}
	case "decided":
		if bs, err := storetest.Bundles(t.Context(), s, a.ID); err != nil || len(bs) != count || a.State != store.StateClosed {
			t.Errorf("%s: %d bundles, state %s, %v", ack, len(bs), a.State, err)
		}
	}
}

// TestTornLine cuts a record at each byte of its last line.
func TestTornLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	whole := "first line\n"
	file := filepath.Join(dir, "records", a.ID+".jsonl")
	for torn := range len("second line") {
		if err := os.WriteFile(file, []byte(whole+"second line"[:torn]), 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := s.Record(t.Context(), a.ID)
		if err != nil || string(data) != whole {
			t.Fatalf("cut at %d: %q, %v", torn, data, err)
		}
		if err := s.AppendRecord(t.Context(), a.ID, int64(len(whole)), [][]byte{[]byte("other line")}); err != nil {
			t.Fatal(err)
		}
		if data, err = s.Record(t.Context(), a.ID); err != nil || string(data) != whole+"other line\n" {
			t.Fatalf("cut at %d: %q, %v", torn, data, err)
		}
	}
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStagedAtCrash has the states between staging, deciding and publishing.
func TestStagedAtCrash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.Decide(t.Context(), a.ID, storetest.Decision(1, 2)); err != nil {
		t.Fatal(err)
	}
	found, err := s.ByJob(t.Context(), 1, 10)
	if err != nil || len(found) != 2 {
		t.Fatalf("%d found, %v", len(found), err)
	}
	s.Close()
	rename := func(from, to string) {
		if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rename("content/"+found[0].SHA256, "staged/"+found[0].SHA256) // decided, not published
	write("staged/" + strings.Repeat("0", 64))                    // staged, not decided
	write("staged/.writing-1")                                    // being staged
	s = open(t, dir)
	defer s.Close()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if bs, err := storetest.Bundles(t.Context(), s, a.ID); err != nil || len(bs) != 2 {
		t.Errorf("%d bundles, %v", len(bs), err)
	}
}

// TestUndecidableStage makes the transaction fail after bundles were staged.
func TestDecisionThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	d := storetest.Decision(1, 2)
	d.Bundles[1].Subjects[1] = d.Bundles[1].Subjects[0] // the index takes each once
	if err := s.Decide(t.Context(), a.ID, d); err == nil {
		t.Fatal("decided")
	}
	s.Close()
	s = open(t, dir)
	defer s.Close()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	have, err := s.Attempt(t.Context(), a.ID)
	if err != nil || have.State != store.StateOpen {
		t.Errorf("%+v, %v", have, err)
	}
	if err := s.Decide(t.Context(), a.ID, storetest.Decision(1, 2)); err != nil {
		t.Error(err)
	}
}

func TestDiskFull(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	// A device that is always full stands in for the record's file.
	if err := os.Symlink("/dev/full", filepath.Join(dir, "records", a.ID+".jsonl")); err != nil {
		t.Fatal(err)
	}
	if err := s.AppendRecord(t.Context(), a.ID, 0, [][]byte{[]byte("line")}); err == nil {
		t.Error("appended to a full disk")
	}
}

func TestAlteredContent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.Decide(t.Context(), a.ID, storetest.Decision(1, 1)); err != nil {
		t.Fatal(err)
	}
	found, err := s.ByJob(t.Context(), 1, 1)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "content", found[0].SHA256), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := storetest.Bundles(t.Context(), s, a.ID); err == nil || !strings.Contains(err.Error(), "altered") {
		t.Errorf("%v", err)
	}
	if s.Check(t.Context()) == nil {
		t.Error("the invariant checker sees nothing")
	}
}

func TestOneProcessAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	if _, err := embedded.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	s.Close()
	open(t, dir).Close()
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	a := storetest.Attempt(1, 1)
	if err := s.Begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if err := s.AppendRecord(t.Context(), a.ID, 0, [][]byte{[]byte("x")}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNewerIndex(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	open(t, dir).Close()
	s := open(t, dir)
	if err := s.SetVersion(t.Context(), 99); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := embedded.Open(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("%v", err)
	}
}
