package fleet

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/internal/migration"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// The advisory lock of migrations has two numbers, so that it is no job's.
const migrationLock = "SELECT pg_advisory_lock(1213222221, 1)"

// PostgreSQL's names of what happened.
const (
	codeUnique        = "23505"
	codeSerialization = "40001"
	codeDeadlock      = "40P01"
)

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// session is what the database must know about every connection: how long to
// wait for us, and for the network between.
func session() map[string]string {
	return map[string]string{
		"application_name":                    "hallmark-attestd",
		"TimeZone":                            "UTC",
		"statement_timeout":                   millis(maxCall),
		"lock_timeout":                        millis(maxCall),
		"idle_in_transaction_session_timeout": millis(maxCall),
		"client_connection_check_interval":    "5000",
		"tcp_keepalives_idle":                 "20",
		"tcp_keepalives_interval":             "5",
		"tcp_keepalives_count":                "4",
		"tcp_user_timeout":                    "40000",
	}
}

func config(o Options, connections int32, extra map[string]string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(o.Database)
	if err != nil {
		return nil, err
	}
	if err := checkTLS(&cfg.ConnConfig.Config); err != nil {
		return nil, err
	}
	if o.Password != "" {
		cfg.ConnConfig.Password = o.Password
	}
	cfg.ConnConfig.ConnectTimeout = maxConnect
	for _, settings := range []map[string]string{session(), extra} {
		for name, value := range settings {
			cfg.ConnConfig.RuntimeParams[name] = value
		}
	}
	cfg.MaxConns = connections
	cfg.MaxConnIdleTime = maxHold / 2 // before the database ends them
	cfg.MaxConnLifetime = time.Hour
	// A database that was restarted costs no call more than the one it was in.
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	return cfg, nil
}

// checkTLS refuses to speak to another machine without TLS that proves who it
// is, which is less than what a URL says that says nothing.
func checkTLS(cfg *pgconn.Config) error {
	ways := append([]*pgconn.FallbackConfig{{Host: cfg.Host, TLSConfig: cfg.TLSConfig}}, cfg.Fallbacks...)
	for _, w := range ways {
		if !local(w.Host) && (w.TLSConfig == nil || w.TLSConfig.InsecureSkipVerify) {
			return fmt.Errorf("%s is another machine: the URL must say sslmode=verify-full", w.Host)
		}
	}
	return nil
}

func connect(ctx context.Context, o Options, connections int32, extra map[string]string) (*pgxpool.Pool, error) {
	cfg, err := config(o, connections, extra)
	if err != nil {
		return nil, err
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// prepare refuses a database that forgets, and brings its schema up to date.
// Both happen on a connection without the bounds of a call.
func prepare(ctx context.Context, o Options, atHome func(context.Context, *pgx.Conn) error) error {
	cfg, err := config(o, 1, map[string]string{"statement_timeout": "0", "lock_timeout": "0"})
	if err != nil {
		return err
	}
	c, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return err
	}
	defer c.Close(context.WithoutCancel(ctx))
	var commit, fsync string
	if err := c.QueryRow(ctx, "SELECT current_setting('synchronous_commit'), current_setting('fsync')").Scan(&commit, &fsync); err != nil {
		return err
	}
	if commit == "off" || fsync == "off" {
		return fmt.Errorf("synchronous_commit is %s, fsync is %s: it would acknowledge what it then forgets", commit, fsync)
	}
	if err := migrate(ctx, c); err != nil {
		return err
	}
	return atHome(ctx, c)
}

func migrate(ctx context.Context, c *pgx.Conn) error {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	steps, err := migration.Read(files)
	if err != nil {
		return err
	}
	if _, err := c.Exec(ctx, migrationLock); err != nil { // until the connection is closed
		return err
	}
	version, err := schemaVersion(ctx, c)
	if err != nil {
		return err
	}
	if version > len(steps) {
		return fmt.Errorf("its schema is of version %d, made by a newer program: this one knows %d", version, len(steps))
	}
	for n := version; n < len(steps); n++ {
		err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, steps[n]); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "UPDATE schema_version SET version = $1", n+1)
			return err
		})
		if err != nil {
			return fmt.Errorf("migration %d: %w", n+1, err)
		}
	}
	return nil
}

// schemaVersion asks before it makes the table: a replica whose schema is made
// needs no right to make one.
func schemaVersion(ctx context.Context, c *pgx.Conn) (int, error) {
	var there bool
	if err := c.QueryRow(ctx, "SELECT to_regclass('schema_version') IS NOT NULL").Scan(&there); err != nil {
		return 0, err
	}
	if !there {
		_, err := c.Exec(ctx, "CREATE TABLE schema_version (version integer NOT NULL); INSERT INTO schema_version VALUES (0)")
		return 0, err
	}
	var version int
	err := c.QueryRow(ctx, "SELECT version FROM schema_version").Scan(&version)
	return version, err
}

// here names the cluster and the database in it. Neither is in a dump.
const here = `SELECT system_identifier::text AS cluster, (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS name
	FROM pg_control_system()`

// mustBeHome refuses a database whose contents come from another one.
func mustBeHome(ctx context.Context, c *pgx.Conn) error {
	var home bool
	if err := c.QueryRow(ctx, "SELECT EXISTS (SELECT cluster, name FROM home INTERSECT "+here+")").Scan(&home); err != nil {
		return err
	}
	if !home {
		return store.ErrRestored
	}
	return nil
}

func settle(ctx context.Context, c *pgx.Conn, at time.Time) (ended []string, err error) {
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "WITH here AS ("+here+") UPDATE home SET cluster = here.cluster, name = here.name FROM here"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM agreed"); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM invitations"); err != nil {
			return err
		}
		ended, err = collect(ctx, tx, pgx.RowTo[string],
			"UPDATE attempts SET state = 'refused', reason = $1, ended = $2 WHERE state = 'open' RETURNING id", store.WasOpen, at)
		return err
	})
	return ended, err
}

// conn is a connection, of the pool or a lock's.
type conn interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Begin(ctx context.Context) (pgx.Tx, error)
}

// with lends a connection: the lock's, if ctx is that of a lock. Errors in
// expected are none.
func (s *Store) with(ctx context.Context, f func(context.Context, conn) error, expected ...error) error {
	ctx, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	err := s.lend(ctx, f)
	if slices.ContainsFunc(expected, func(e error) bool { return errors.Is(err, e) }) {
		return nil
	}
	return wrap(err)
}

func (s *Store) lend(ctx context.Context, f func(context.Context, conn) error) error {
	if h, ok := ctx.Value(heldKey{s}).(*held); ok {
		return h.use(ctx, f)
	}
	c, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	return f(ctx, c)
}

// transact runs f in a transaction, again if the database could not fit it
// between others.
func (s *Store) transact(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	return s.with(ctx, func(ctx context.Context, c conn) error {
		for attempt := 1; ; attempt++ {
			err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return f(ctx, tx) })
			if attempt == maxTries || !hasCode(err, codeSerialization, codeDeadlock) {
				return err
			}
			select {
			case <-time.After(rand.N(time.Duration(attempt) * 20 * time.Millisecond)):
			case <-ctx.Done():
				return err
			}
		}
	})
}

const maxTries = 8

func hasCode(err error, codes ...string) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, pg.Code)
}

// wrap says where an error comes from, unless it says so itself.
func wrap(err error) error {
	if err == nil || errors.Is(err, store.ErrDecided) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrRestored) {
		return err
	}
	return fmt.Errorf("store: %w", err)
}

// one wants a statement to have changed one row.
func one(tag pgconn.CommandTag, err, otherwise error) error {
	if err != nil {
		return err
	}
	if tag.RowsAffected() != 1 {
		return otherwise
	}
	return nil
}

// list reads all rows.
func list[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	var out []T
	err := s.with(ctx, func(ctx context.Context, c conn) (err error) {
		out, err = collect(ctx, c, scan, query, args...)
		return err
	})
	return out, err
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

func collect[T any](ctx context.Context, q querier, scan pgx.RowToFunc[T], query string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, scan)
	if len(out) == 0 {
		return nil, err
	}
	return out, err
}

// get reads one row, or is ErrNotFound.
func get[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], query string, args ...any) (T, error) {
	var zero T
	all, err := list(ctx, s, scan, query, args...)
	if err != nil {
		return zero, err
	}
	if len(all) == 0 {
		return zero, store.ErrNotFound
	}
	return all[0], nil
}

// held is the connection that has a job's lock.
type held struct {
	mu   sync.Mutex
	conn *pgxpool.Conn // nil once the lock was given back
}

type heldKey struct{ *Store }

func (h *held) use(ctx context.Context, f func(context.Context, conn) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conn == nil {
		return errors.New("the job's lock was given back")
	}
	if h.conn.Conn().IsClosed() {
		return errors.New("the job's lock was lost with its connection")
	}
	err := f(ctx, h.conn)
	if err != nil && h.conn.Conn().IsClosed() {
		return fmt.Errorf("the job's lock was lost with its connection: %w", err)
	}
	return err
}

// Lock makes those who work on a job take turns, in all replicas.
func (s *Store) Lock(ctx context.Context, job int64) (context.Context, func(), error) {
	waiting, cancel := context.WithTimeout(ctx, maxCall)
	defer cancel()
	leave, err := s.jobs.Take(waiting, job)
	if err != nil {
		return nil, nil, fmt.Errorf("store: lock of job %d: %w", job, err)
	}
	c, err := s.lock(waiting, job)
	if err != nil {
		leave()
		return nil, nil, fmt.Errorf("store: lock of job %d: %w", job, err)
	}
	h := &held{conn: c}
	unlock := func() {
		defer leave()
		h.release(context.WithoutCancel(ctx), job)
	}
	return context.WithValue(ctx, heldKey{s}, h), unlock, nil
}

func (s *Store) lock(ctx context.Context, job int64) (*pgxpool.Conn, error) {
	c, err := s.locks.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := c.Exec(ctx, "SELECT pg_advisory_lock($1)", job); err != nil {
		discard(ctx, c) // it may have the lock all the same
		return nil, err
	}
	return c, nil
}

// release gives the lock back, with its connection if need be.
func (h *held) release(ctx context.Context, job int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.conn
	h.conn = nil
	ctx, cancel := context.WithTimeout(ctx, maxConnect)
	defer cancel()
	var had bool
	if err := c.QueryRow(ctx, "SELECT pg_advisory_unlock($1)", job).Scan(&had); err != nil || !had {
		discard(ctx, c)
		return
	}
	c.Release()
}

func discard(ctx context.Context, c *pgxpool.Conn) {
	_ = c.Conn().Close(context.WithoutCancel(ctx)) // the pool drops what is closed
	c.Release()
}
