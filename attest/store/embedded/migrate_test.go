package embedded_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"

	"hallmark.build/attest/store"
)

// TestFromVersion1 brings a store up to date that another program made.
func TestFromVersion1(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile("migrations/0001.sql")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), string(first)+`
		INSERT INTO attempts (id, session, profile, nonce, invocation_id, builder_id, job_id, job, opened, state, reason, ended)
			VALUES ('b', 's', 'p', 'n1', 'i1', 'b', 7, '{"id":7}', 1000000, 'closed', 'no outputs', 2000000),
			       ('a', 's', 'p', 'n2', 'i2', 'b', 7, '{"id":7}', 3000000, 'open', '', 0);
		PRAGMA user_version = 1`)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := open(t, dir)
		if err := s.Check(t.Context()); err != nil {
			t.Error(err)
		}
		all, err := s.AttemptsOfJob(t.Context(), 7)
		if err != nil || len(all) != 2 || all[0].ID != "b" || all[0].Reason != "no outputs" || all[1].State != store.StateOpen {
			t.Errorf("%+v, %v", all, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
