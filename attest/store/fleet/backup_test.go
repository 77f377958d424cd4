package fleet_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
)

// TestBackup dumps and copies, in the order that the package comment gives, and
// loads both elsewhere.
func TestBackup(t *testing.T) {
	from, to := running.Fresh(t), running.Fresh(t)
	s := open(t, from)
	storetest.Fill(t, s)
	dump := filepath.Join(t.TempDir(), "hallmark.dump")
	running.Tool(t, "pg_dump", "--format=custom", "--file="+dump, from.Database)
	// What happens after the dump is lost with the database.
	if err := s.Sign(t.Context(), storetest.Attempt(1, 0).ID, storetest.Drafts(1, 1), "group/project", true); err != nil {
		t.Fatal(err)
	}
	if err := s.Decide(t.Context(), storetest.Attempt(1, 0).ID, storetest.Decision(1, 1)); err != nil {
		t.Fatal(err)
	}
	running.CopyBucket(t, from.Bucket, to.Bucket)
	running.Tool(t, "pg_restore", "--no-owner", "--dbname="+to.Database, dump)
	if _, err := fleet.Open(t.Context(), to); !errors.Is(err, store.ErrRestored) {
		t.Fatalf("opened: %v", err)
	}
	ended, err := fleet.Restored(t.Context(), to, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	again := open(t, to)
	found, err := s.ByJob(t.Context(), 1, 10)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	// The check names what the dump does not know. It is not swept.
	if err := again.Sweep(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if err := again.Check(t.Context()); !contains(err, found[0].SHA256+" belongs to no decision") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(running.BucketDir(to.Bucket), "bundles", found[0].SHA256)); err != nil {
		t.Fatal(err)
	}
	storetest.Restored(t, again, ended)
}

// TestLostContent restores a bucket with a hole in it.
func TestLostContent(t *testing.T) {
	o := running.Fresh(t)
	s := open(t, o)
	storetest.Fill(t, s)
	found, err := s.ByJob(t.Context(), 3, 10)
	if err != nil || len(found) != 3 {
		t.Fatal(found, err)
	}
	object := func(i int) string { return filepath.Join(running.BucketDir(o.Bucket), "bundles", found[i].SHA256) }
	if err := errors.Join(os.Remove(object(0)), os.WriteFile(object(1), []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for i, word := range []string{"lost", "altered"} {
		_, err := s.Content(t.Context(), found[i].SHA256)
		if err == nil || errors.Is(err, store.ErrNotFound) || !contains(err, word) {
			t.Errorf("%s: %v", word, err)
		}
		if err := s.Check(t.Context()); !contains(err, word) {
			t.Errorf("the invariant checker does not see what was %s: %v", word, err)
		}
	}
	if _, err := storetest.Bundles(t.Context(), s, storetest.Attempt(3, 0).ID); err == nil {
		t.Error("half of the bundles were given out")
	}
}
