package embedded

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/internal/migration"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// openIndex opens the database after it was brought up to date.
func (s *Store) openIndex(ctx context.Context) error {
	name := filepath.Join(s.dir, "index.db")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) // SQLite would use the umask
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	f.Close()
	if err := migrate(ctx, name); err != nil {
		return fmt.Errorf("store: index: %w", err)
	}
	s.db, err = openDatabase(name, "foreign_keys(ON)", "journal_mode(WAL)")
	if err != nil {
		return fmt.Errorf("store: index: %w", err)
	}
	s.db.SetMaxOpenConns(8)
	return nil
}

func openDatabase(name string, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": append([]string{
		"busy_timeout(10000)", "synchronous(FULL)", "trusted_schema(OFF)",
	}, pragmas...)}
	return sql.Open("sqlite", "file:"+(&url.URL{Path: name}).EscapedPath()+"?"+q.Encode())
}

// migrate takes the steps that the index lacks. References are checked at the
// end: tables that are made again are missing in between.
func migrate(ctx context.Context, name string) error {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	steps, err := migration.Read(files)
	if err != nil {
		return err
	}
	db, err := openDatabase(name, "foreign_keys(OFF)", "journal_mode(WAL)")
	if err != nil {
		return err
	}
	defer db.Close()
	var version int
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(steps) {
		return fmt.Errorf("it is of version %d, made by a newer program: this one knows %d", version, len(steps))
	}
	for n := version; n < len(steps); n++ {
		if err := migrateTo(ctx, db, n+1, steps[n]); err != nil {
			return fmt.Errorf("migration %d: %w", n+1, err)
		}
	}
	return nil
}

func migrateTo(ctx context.Context, db *sql.DB, version int, step string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, step); err != nil {
		return err
	}
	var broken int
	if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM pragma_foreign_key_check").Scan(&broken); err != nil {
		return err
	}
	if broken > 0 {
		return fmt.Errorf("%d references to nothing", broken)
	}
	if _, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version)); err != nil {
		return err
	}
	return tx.Commit()
}

func (s *Store) transact(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return wrap(err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("store: commit: %w", err)
	}
	return nil
}

// wrap says where an error comes from, unless it says so itself.
func wrap(err error) error {
	if err == nil || errors.Is(err, store.ErrDecided) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return err
	}
	return fmt.Errorf("store: %w", err)
}

// one wants a statement to have changed one row.
func one(res sql.Result, err, otherwise error) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return otherwise
	}
	return nil
}

// collect reads all rows.
func collect[T any](rows *sql.Rows, err error, scan func(row) (T, error)) ([]T, error) {
	if err != nil {
		return nil, wrap(err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, wrap(err)
		}
		out = append(out, v)
	}
	return out, wrap(rows.Err())
}

type row interface{ Scan(...any) error }
