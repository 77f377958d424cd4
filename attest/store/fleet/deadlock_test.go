package fleet_test

import (
	"fmt"
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
	ctx := t.Context()
	c, err := pgx.Connect(ctx, o.Database)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	// Whoever has waited this long looks for a deadlock, once, and ends itself: it
	// shall be the call, even where the test comes late to its part.
	if _, err := c.Exec(ctx, fmt.Sprintf("ALTER DATABASE %q SET deadlock_timeout = '10s'", c.Config().Database)); err != nil {
		t.Fatal(err)
	}
	s := open(t, o)
	a, b := storetest.Attempt(1, 1), storetest.Attempt(2, 2)
	for _, at := range []store.Attempt{a, b} {
		if err := s.Begin(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := c.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "SET LOCAL deadlock_timeout = '5min'"); err != nil {
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
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))").Scan(&waits); err != nil {
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
