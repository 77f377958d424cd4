package fleet_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/storetest"
)

// TestDeadlock has a call wait for a transaction that then waits for the call:
// PostgreSQL ends the call's, and the store tries it again.
func TestDeadlock(t *testing.T) {
	o := running.Fresh(t)
	s := open(t, o)
	ctx := t.Context()
	a, b := storetest.Attempt(1, 1), storetest.Attempt(2, 2)
	for _, at := range []store.Attempt{a, b} {
		if err := s.Begin(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
	c, err := pgx.Connect(ctx, o.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	tx, err := c.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	touch := func(id string) {
		if _, err := tx.Exec(ctx, "UPDATE attempts SET record_size = record_size WHERE id = $1", id); err != nil {
			t.Error(err)
		}
	}
	touch(b.ID)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Begin(ctx, storetest.Attempt(3, 3), a.ID, b.ID); err != nil {
			t.Errorf("not tried again: %v", err)
		}
	})
	for waits := false; !waits; {
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)").Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	touch(a.ID)
	if err := tx.Commit(ctx); err != nil {
		t.Error(err)
	}
	wg.Wait()
	check(t, s)
}
