package embedded_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/store/storetest"
)

func TestBackup(t *testing.T) {
	dir, copied := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "copy")
	s := open(t, dir)
	defer s.Close()
	storetest.Fill(t, s)
	sum, err := embedded.Backup(t.Context(), dir, copied) // while it is open
	if err != nil {
		t.Fatal(err)
	}
	if sum.Attempts != 6 || sum.Bundles != 3 || sum.Records != 5 || sum.Bytes == 0 {
		t.Errorf("%+v", sum)
	}
	if _, err := embedded.Backup(t.Context(), dir, copied); err == nil {
		t.Error("a backup was replaced")
	}
	if _, err := embedded.Open(t.Context(), copied); !errors.Is(err, store.ErrRestored) {
		t.Errorf("opened: %v", err)
	}
	// What happens after the backup is lost with the store.
	if err := s.Sign(t.Context(), storetest.Attempt(1, 0).ID, storetest.Drafts(1, 1), "group/project", true); err != nil {
		t.Fatal(err)
	}
	ended, err := embedded.Restored(t.Context(), copied, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, copied)
	defer again.Close()
	storetest.Restored(t, again, ended)
}

func TestNoBackup(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	if _, err := embedded.Backup(t.Context(), none, none+"-copy"); err == nil {
		t.Error("backed up nothing")
	}
	if _, err := embedded.Restored(t.Context(), none, time.Now()); err == nil {
		t.Error("settled nothing")
	}
	// A backup with a hole in it is none.
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	storetest.Fill(t, s)
	found, err := s.ByJob(t.Context(), 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "content", found[0].SHA256), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if _, err := embedded.Backup(t.Context(), dir, to); err == nil {
		t.Error("backed up altered content")
	}
	if left, err := filepath.Glob(to + "*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestBackupUnderLoad backs up again and again while attempts are opened,
// signed and closed.
func TestBackupUnderLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := lifeOf(t.Context(), s, 1000*w+n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 3 {
		to := filepath.Join(t.TempDir(), "copy")
		sum, err := embedded.Backup(t.Context(), dir, to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := embedded.Restored(t.Context(), to, time.Now()); err != nil {
			t.Fatal(err)
		}
		copied := open(t, to)
		if err := copied.Check(t.Context()); err != nil {
			t.Errorf("%+v: %v", sum, err)
		}
		copied.Close()
	}
	cancel()
	wg.Wait()
}

func lifeOf(ctx context.Context, s store.Store, n int) error {
	a := storetest.Attempt(n, int64(n))
	return errors.Join(
		s.Begin(ctx, a),
		s.AppendRecord(ctx, a.ID, 0, [][]byte{[]byte("line")}),
		s.Sign(ctx, a.ID, storetest.Drafts(n, 2), "group/project", true),
		s.Decide(ctx, a.ID, storetest.Decision(n, 2)))
}
