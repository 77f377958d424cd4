package fleet_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"hallmark.build/attest/store/fleet"
	"hallmark.build/attest/store/storetest"
)

func run(t *testing.T, url, statement string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if _, err := c.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestManyOpenAtFirst has many replicas find an empty database.
func TestManyOpenAtFirst(t *testing.T) {
	o := running.Fresh(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := fleet.Open(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
	}
	wg.Wait()
	storetest.Fill(t, open(t, o))
}

func TestDatabasesThatAreRefused(t *testing.T) {
	for why, statement := range map[string]string{
		"newer program":       "UPDATE schema_version SET version = 99",
		"not settled":         "UPDATE home SET name = 'another'",
		"acknowledge what it": "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
		"migration 1":         "UPDATE schema_version SET version = 0", // what is there already is no step's to make
	} {
		o := running.Fresh(t)
		open(t, o).Close()
		run(t, o.Database, statement)
		refused(t, o, why)
	}
	o := running.Fresh(t)
	o.Bucket = "none"
	refused(t, o, "does not exist")
	o = running.Fresh(t)
	o.SecretKey = "another"
	refused(t, o, "bucket")
}

func refused(t *testing.T, o fleet.Options, why string) {
	t.Helper()
	s, err := fleet.Open(t.Context(), o)
	if !contains(err, why) {
		t.Errorf("%s: %v", why, err)
	}
	if err == nil {
		s.Close()
	}
}

// TestLeastPrivilege opens a store that another role made, with no right to
// make anything.
func TestLeastPrivilege(t *testing.T) {
	o := running.Fresh(t)
	open(t, o).Close()
	run(t, o.Database, `CREATE ROLE replica LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC;
		GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO replica; REVOKE INSERT, UPDATE, DELETE ON schema_version, home FROM replica`)
	o.Database = running.URL(o.Bucket, "replica")
	s := open(t, o)
	storetest.Fill(t, s)
	check(t, s)
}
