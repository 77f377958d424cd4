package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/store"
)

// isCopy is the index's application_id in a backup, and in what was restored
// from one until it is settled.
const isCopy = 0x48414c4d // "HALM"

// A Summary says what a backup holds.
type Summary struct {
	Attempts, Bundles, Records int
	Bytes                      int64 // of bundles and records
}

// Backup copies the store in dir to a new directory, while another process has
// it open or not. The copy is of one moment, but for records, which may have
// lines more.
func Backup(ctx context.Context, dir, to string) (Summary, error) {
	sum, err := backup(ctx, dir, to+durable.TempPrefix)
	if err != nil {
		return Summary{}, fmt.Errorf("store: backup: %w", errors.Join(err, os.RemoveAll(to+durable.TempPrefix)))
	}
	// A directory that is there is never replaced, unless it is empty.
	if err := os.Rename(to+durable.TempPrefix, to); err != nil {
		return Summary{}, fmt.Errorf("store: backup: %w", errors.Join(err, os.RemoveAll(to+durable.TempPrefix)))
	}
	return sum, durable.SyncDir(filepath.Dir(to))
}

func backup(ctx context.Context, dir, to string) (Summary, error) {
	if _, err := os.Stat(filepath.Join(dir, "index.db")); err != nil {
		return Summary{}, err
	}
	for _, d := range []string{to, filepath.Join(to, "content"), filepath.Join(to, "records")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return Summary{}, err
		}
	}
	if err := copyIndex(ctx, dir, to); err != nil {
		return Summary{}, err
	}
	sum, err := copyFiles(ctx, dir, to)
	if err != nil {
		return Summary{}, err
	}
	return sum, syncAll(to)
}

// copyIndex makes a snapshot of the index. It comes first: what it speaks of is
// in its place already, or is staged, and is never changed.
func copyIndex(ctx context.Context, dir, to string) error {
	db, err := openDatabase(filepath.Join(dir, "index.db"))
	if err != nil {
		return err
	}
	defer db.Close()
	name := filepath.Join(to, "index.db")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // SQLite would use the umask
	if err != nil {
		return err
	}
	f.Close()
	if _, err := db.ExecContext(ctx, "VACUUM INTO ?", name); err != nil {
		return fmt.Errorf("index: %w", err)
	}
	made, err := openDatabase(name)
	if err != nil {
		return err
	}
	defer made.Close()
	_, err = made.ExecContext(ctx, fmt.Sprintf("PRAGMA application_id = %d", isCopy))
	return err
}

func copyFiles(ctx context.Context, dir, to string) (Summary, error) {
	db, err := openDatabase(filepath.Join(to, "index.db"))
	if err != nil {
		return Summary{}, err
	}
	defer db.Close()
	from := &Store{dir: dir, db: db} // knows what the snapshot knows
	var sum Summary
	digests, err := from.strings(ctx, "SELECT sha256 FROM bundles")
	if err != nil {
		return Summary{}, err
	}
	for _, digest := range digests {
		data, err := from.Content(ctx, digest)
		if err != nil {
			return Summary{}, err
		}
		if err := os.WriteFile(filepath.Join(to, "content", digest), data, 0o600); err != nil {
			return Summary{}, err
		}
		sum.Bundles++
		sum.Bytes += int64(len(data))
	}
	attempts, err := from.strings(ctx, "SELECT id FROM attempts")
	if err != nil {
		return Summary{}, err
	}
	sum.Attempts = len(attempts)
	for _, id := range attempts {
		data, err := from.Record(ctx, id)
		if err != nil {
			return Summary{}, err
		}
		if len(data) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, "records", id+".jsonl"), data, 0o600); err != nil {
			return Summary{}, err
		}
		sum.Records++
		sum.Bytes += int64(len(data))
	}
	return sum, nil
}

// syncAll makes all files of the backup durable at once.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// Restored settles a store that was restored from a backup: attempts that it
// has as open are refused, and invitations are void. It returns the attempts'
// names. From then on the store opens.
func Restored(ctx context.Context, dir string, at time.Time) ([]string, error) {
	if _, err := os.Stat(filepath.Join(dir, "index.db")); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: %s: no store is there", dir)
	}
	s, err := open(ctx, dir)
	if err != nil {
		return nil, err
	}
	var ended []string
	err = s.transact(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "UPDATE attempts SET state = 'refused', reason = ?, ended = ? WHERE state = 'open' RETURNING id",
			store.WasOpen, at.UnixMicro())
		if ended, err = collect(rows, err, scanString); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM invitations"); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "PRAGMA application_id = 0")
		return err
	})
	return ended, errors.Join(err, s.Close())
}

// mustNotBeCopy refuses a backup, and what was restored from one.
func (s *Store) mustNotBeCopy(ctx context.Context) error {
	var id int64
	if err := s.db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return wrap(err)
	}
	if id == isCopy {
		return store.ErrRestored
	}
	return nil
}
