// Package store keeps attempts, their evidence records and bundles, found by digest, project and job.
//
// # Layout
//
//	index.db      SQLite: attempts, bundles, subjects. Write-ahead log, every
//	              commit synced
//	records/      one file an attempt, lines appended and synced
//	content/      bundles, each named by its SHA-256, never changed
//	staged/       bundles whose decision is being made
//	lock          held while a process has the store open
//
// All of it is for its owner alone.
//
// # Crashes
//
// A record's file is the truth about the record: lines are acknowledged once
// they are synced, and a line without its newline, left by a crash, was never
// acknowledged and is cut off by the next append. The decision about an attempt
// is one transaction. Bundles are staged before it and moved after it; opening
// the store finishes the move of those that were decided, and removes the
// others, which nobody ever saw. So a bundle is whole and decided, or absent.
package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver

	"hallmark.build/attest"
	"hallmark.build/attest/internal/durable"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("store: not found")
	ErrDecided  = errors.New("store: the attempt was decided already")
)

// A State says what became of an attempt. Only open attempts change.
type State string

// The states.
const (
	StateOpen       State = "open"
	StateClosed     State = "closed"     // decided: bundles, or a reason why there are none
	StateRefused    State = "refused"    // for security: nothing will ever be signed
	StateSuperseded State = "superseded" // a later attempt took its place before tenant code ran
)

// An Attempt is what the authority decided when it opened one, and what became
// of it.
type Attempt struct {
	ID           string
	Session      string
	Profile      string
	Nonce        string
	InvocationID string
	BuilderID    string
	Job          Job
	Opened       time.Time

	State   State
	Reason  string    // why there are no bundles
	Project string    // full path, once closed with bundles
	Ended   time.Time // zero while open
}

// Job holds the facts that GitLab confirmed.
type Job struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Stage      string `json:"stage"`
	ProjectID  int64  `json:"project_id"`
	Project    string `json:"project,omitempty"` // full path
	Host       string `json:"host,omitempty"`    // by which people reach GitLab
	PipelineID int64  `json:"pipeline_id"`
	UserID     int64  `json:"user_id"`
	Ref        string `json:"ref"`
	Tag        bool   `json:"tag"`
	SHA        string `json:"sha"`
}

// A Decision ends an attempt.
type Decision struct {
	State   State
	Reason  string
	Project string
	Ended   time.Time
	Bundles []Bundle
}

// A Bundle is one signed statement.
type Bundle struct {
	JSON     []byte
	Subjects []attest.Subject
}

// Found is a bundle by what leads to it.
type Found struct {
	Attempt string
	Part    int
	SHA256  string // of the bundle, for Content
	JobID   int64
	Project string
	Closed  time.Time
}

// A Store is the embedded store. It is safe for concurrent use, and one process
// at a time has it.
type Store struct {
	dir  string
	db   *sql.DB
	lock *os.File
}

const schema = `
CREATE TABLE IF NOT EXISTS attempts (
	id            TEXT PRIMARY KEY,
	session       TEXT NOT NULL,
	profile       TEXT NOT NULL,
	nonce         TEXT NOT NULL UNIQUE,
	invocation_id TEXT NOT NULL UNIQUE,
	builder_id    TEXT NOT NULL,
	job_id        INTEGER NOT NULL,
	job           TEXT NOT NULL,
	opened        INTEGER NOT NULL,
	state         TEXT NOT NULL CHECK (state IN ('open', 'closed', 'refused', 'superseded')),
	reason        TEXT NOT NULL DEFAULT '',
	project       TEXT NOT NULL DEFAULT '',
	ended         INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS attempts_job ON attempts (job_id);
CREATE INDEX IF NOT EXISTS attempts_project ON attempts (project, ended);
CREATE UNIQUE INDEX IF NOT EXISTS attempts_one_open ON attempts (job_id) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS bundles (
	attempt TEXT NOT NULL REFERENCES attempts (id),
	part    INTEGER NOT NULL,
	sha256  TEXT NOT NULL UNIQUE,
	PRIMARY KEY (attempt, part)
) STRICT;
CREATE TABLE IF NOT EXISTS subjects (
	sha256  TEXT NOT NULL,
	attempt TEXT NOT NULL,
	part    INTEGER NOT NULL,
	name    TEXT NOT NULL,
	PRIMARY KEY (sha256, attempt, part, name),
	FOREIGN KEY (attempt, part) REFERENCES bundles (attempt, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS subjects_bundle ON subjects (attempt, part, name);
PRAGMA user_version = 1;
`

const schemaVersion = 1

// Open opens the store in dir, which it makes if it is not there, and finishes
// what a crash interrupted.
func Open(ctx context.Context, dir string) (*Store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "records"), filepath.Join(dir, "content"), filepath.Join(dir, "staged")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, lock: lock}
	if err := s.openIndex(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.recover(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("store: %s: another process has the store open", name)
	}
	return f, nil
}

func (s *Store) openIndex(ctx context.Context) error {
	name := filepath.Join(s.dir, "index.db")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) // SQLite would use the umask
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	f.Close()
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(ON)", "trusted_schema(OFF)",
	}}
	s.db, err = sql.Open("sqlite", "file:"+(&url.URL{Path: name}).EscapedPath()+"?"+q.Encode())
	if err != nil {
		return fmt.Errorf("store: index: %w", err)
	}
	s.db.SetMaxOpenConns(8)
	var version int
	if err := s.db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return fmt.Errorf("store: index: %w", err)
	}
	if version > schemaVersion {
		return fmt.Errorf("store: index is of version %d, made by a newer program", version)
	}
	if _, err := s.db.ExecContext(ctx, schema); err != nil {
		return fmt.Errorf("store: index: %w", err)
	}
	return nil
}

// recover finishes or undoes decisions that a crash interrupted.
func (s *Store) recover(ctx context.Context) error {
	for _, d := range []string{"content", "staged"} {
		if err := removeUnfinished(filepath.Join(s.dir, d)); err != nil {
			return fmt.Errorf("store: recover: %w", err)
		}
	}
	staged, err := os.ReadDir(filepath.Join(s.dir, "staged"))
	if err != nil {
		return fmt.Errorf("store: recover: %w", err)
	}
	for _, e := range staged {
		decided, err := s.HasBundle(ctx, e.Name())
		if err != nil {
			return fmt.Errorf("store: recover: %w", err)
		}
		if !decided {
			err = os.Remove(s.stagedPath(e.Name()))
		} else {
			err = s.publish(e.Name())
		}
		if err != nil {
			return fmt.Errorf("store: recover: %w", err)
		}
	}
	return nil
}

func removeUnfinished(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, durable.TempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(n); err != nil {
			return err
		}
	}
	return nil
}

// HasBundle reports whether a decision holds the bundle.
func (s *Store) HasBundle(ctx context.Context, digest string) (bool, error) {
	var n int
	err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM bundles WHERE sha256 = ?", digest).Scan(&n)
	return n > 0, err
}

// Close releases the store.
func (s *Store) Close() error {
	var err error
	if s.db != nil {
		err = s.db.Close()
	}
	return errors.Join(err, s.lock.Close())
}

// Ready reports whether the index answers.
func (s *Store) Ready(ctx context.Context) error {
	var n int
	if err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM attempts WHERE state = 'open'").Scan(&n); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Begin adds an open attempt. The open attempts named in supersede are ended
// in the same instant.
func (s *Store) Begin(ctx context.Context, a Attempt, supersede ...string) error {
	job, err := json.Marshal(a.Job)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		for _, id := range supersede {
			d := Decision{State: StateSuperseded, Reason: "superseded by attempt " + a.ID, Ended: a.Opened}
			if err := decide(ctx, tx, id, d); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO attempts
			(id, session, profile, nonce, invocation_id, builder_id, job_id, job, opened, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'open')`,
			a.ID, a.Session, a.Profile, a.Nonce, a.InvocationID, a.BuilderID, a.Job.ID, string(job), a.Opened.UnixMicro())
		return err
	})
}

func (s *Store) transact(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		if errors.Is(err, ErrDecided) || errors.Is(err, ErrNotFound) {
			return err
		}
		return fmt.Errorf("store: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("store: commit: %w", err)
	}
	return nil
}

// decide ends an open attempt, and no other.
func decide(ctx context.Context, tx *sql.Tx, id string, d Decision) error {
	res, err := tx.ExecContext(ctx, `UPDATE attempts SET state = ?, reason = ?, project = ?, ended = ?
		WHERE id = ? AND state = 'open'`, string(d.State), d.Reason, d.Project, d.Ended.UnixMicro(), id)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err != nil {
		return err
	}
	if n != 1 {
		return ErrDecided
	}
	return nil
}

// Decide ends an open attempt. Of several decisions the first holds: later ones
// get ErrDecided. When it returns, decision and bundles are durable.
func (s *Store) Decide(ctx context.Context, id string, d Decision) error {
	if d.State == StateOpen || d.State != StateClosed && len(d.Bundles) > 0 || len(d.Bundles) == 0 && d.Reason == "" {
		return errors.New("store: not a decision")
	}
	digests := make([]string, len(d.Bundles))
	for i, b := range d.Bundles {
		var err error
		if digests[i], err = s.stage(b.JSON); err != nil {
			return fmt.Errorf("store: bundle: %w", err)
		}
	}
	err := s.transact(ctx, func(tx *sql.Tx) error {
		if err := decide(ctx, tx, id, d); err != nil {
			return err
		}
		return insertBundles(ctx, tx, id, digests, d.Bundles)
	})
	if err != nil {
		// The commit may have happened all the same: what is staged stays for
		// recovery to sort out, unless it certainly did not.
		if errors.Is(err, ErrDecided) {
			s.unstage(digests)
		}
		return err
	}
	for _, digest := range digests {
		if err := s.publish(digest); err != nil {
			return fmt.Errorf("store: bundle: %w", err)
		}
	}
	return nil
}

func insertBundles(ctx context.Context, tx *sql.Tx, id string, digests []string, bundles []Bundle) error {
	insert, err := tx.PrepareContext(ctx, "INSERT INTO subjects (sha256, attempt, part, name) VALUES (?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for i, b := range bundles {
		part := i + 1
		if _, err := tx.ExecContext(ctx, "INSERT INTO bundles (attempt, part, sha256) VALUES (?, ?, ?)", id, part, digests[i]); err != nil {
			return err
		}
		for _, sub := range b.Subjects {
			if _, err := insert.ExecContext(ctx, sub.SHA256, id, part, sub.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) stagedPath(digest string) string  { return filepath.Join(s.dir, "staged", digest) }
func (s *Store) contentPath(digest string) string { return filepath.Join(s.dir, "content", digest) }

func (s *Store) stage(data []byte) (digest string, err error) {
	sum := sha256.Sum256(data)
	digest = hex.EncodeToString(sum[:])
	err = durable.Create(s.stagedPath(digest), data, 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return digest, err
}

func (s *Store) unstage(digests []string) {
	for _, d := range digests {
		os.Remove(s.stagedPath(d))
	}
}

// publish moves a decided bundle to its place.
func (s *Store) publish(digest string) error {
	if err := os.Rename(s.stagedPath(digest), s.contentPath(digest)); err != nil {
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Join(s.dir, "content")), durable.SyncDir(filepath.Join(s.dir, "staged")))
}

const attemptColumns = `id, session, profile, nonce, invocation_id, builder_id, job, opened, state, reason, project, ended`

func scanAttempt(row interface{ Scan(...any) error }) (Attempt, error) {
	var (
		a             Attempt
		job, state    string
		opened, ended int64
	)
	err := row.Scan(&a.ID, &a.Session, &a.Profile, &a.Nonce, &a.InvocationID, &a.BuilderID, &job, &opened, &state, &a.Reason, &a.Project, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return Attempt{}, ErrNotFound
	}
	if err != nil {
		return Attempt{}, fmt.Errorf("store: %w", err)
	}
	if err := json.Unmarshal([]byte(job), &a.Job); err != nil {
		return Attempt{}, fmt.Errorf("store: attempt %s: %w", a.ID, err)
	}
	a.State = State(state)
	a.Opened = time.UnixMicro(opened).UTC()
	if ended != 0 {
		a.Ended = time.UnixMicro(ended).UTC()
	}
	return a, nil
}

// Attempt finds an attempt by its name.
func (s *Store) Attempt(ctx context.Context, id string) (Attempt, error) {
	return scanAttempt(s.db.QueryRowContext(ctx, "SELECT "+attemptColumns+" FROM attempts WHERE id = ?", id))
}

// AttemptsOfJob lists all attempts of a job in the order of their opening.
func (s *Store) AttemptsOfJob(ctx context.Context, job int64) ([]Attempt, error) {
	return s.attempts(ctx, "job_id = ? ORDER BY rowid", job)
}

func (s *Store) attempts(ctx context.Context, where string, args ...any) ([]Attempt, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+attemptColumns+" FROM attempts WHERE "+where, args...)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer rows.Close()
	var out []Attempt
	for rows.Next() {
		a, err := scanAttempt(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, wrap(rows.Err())
}

func wrap(err error) error {
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// OpenBefore lists open attempts that were opened before a moment.
func (s *Store) OpenBefore(ctx context.Context, t time.Time) ([]Attempt, error) {
	return s.attempts(ctx, "state = 'open' AND opened < ? ORDER BY rowid", t.UnixMicro())
}

// Bundles returns what an attempt was closed with, in order.
func (s *Store) Bundles(ctx context.Context, attempt string) ([]Bundle, error) {
	found, err := s.find(ctx, "b.attempt = ? ORDER BY b.part", attempt)
	if err != nil {
		return nil, err
	}
	out := make([]Bundle, len(found))
	for i, f := range found {
		if out[i].JSON, err = s.Content(f.SHA256); err != nil {
			return nil, err
		}
		if out[i].Subjects, err = s.subjects(ctx, f); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (s *Store) subjects(ctx context.Context, f Found) ([]attest.Subject, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT name, sha256 FROM subjects WHERE attempt = ? AND part = ? ORDER BY name", f.Attempt, f.Part)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer rows.Close()
	var out []attest.Subject
	for rows.Next() {
		var sub attest.Subject
		if err := rows.Scan(&sub.Name, &sub.SHA256); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		out = append(out, sub)
	}
	return out, wrap(rows.Err())
}

// BySubject finds the bundles that speak of an output, newest first.
func (s *Store) BySubject(ctx context.Context, sha256 string, limit int) ([]Found, error) {
	return s.find(ctx, `EXISTS (SELECT 1 FROM subjects s WHERE s.sha256 = ? AND s.attempt = b.attempt AND s.part = b.part)
		ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?`, sha256, limit)
}

// ByJob finds a job's bundles, in order.
func (s *Store) ByJob(ctx context.Context, job int64, limit int) ([]Found, error) {
	return s.find(ctx, "a.job_id = ? ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?", job, limit)
}

// ByProject finds a project's bundles, newest first.
func (s *Store) ByProject(ctx context.Context, project string, limit int) ([]Found, error) {
	return s.find(ctx, "a.project = ? ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?", project, limit)
}

func (s *Store) find(ctx context.Context, where string, args ...any) ([]Found, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT b.attempt, b.part, b.sha256, a.job_id, a.project, a.ended
		FROM bundles b JOIN attempts a ON a.id = b.attempt WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	defer rows.Close()
	var out []Found
	for rows.Next() {
		var (
			f     Found
			ended int64
		)
		if err := rows.Scan(&f.Attempt, &f.Part, &f.SHA256, &f.JobID, &f.Project, &ended); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
		f.Closed = time.UnixMicro(ended).UTC()
		out = append(out, f)
	}
	return out, wrap(rows.Err())
}

// Content reads a bundle and checks that it is the one that was stored.
func (s *Store) Content(digest string) ([]byte, error) {
	if len(digest) != 2*sha256.Size || strings.ContainsAny(digest, "/.") {
		return nil, ErrNotFound
	}
	data, err := os.ReadFile(s.contentPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(s.stagedPath(digest)) // decided, about to be moved
	}
	if errors.Is(err, fs.ErrNotExist) {
		data, err = os.ReadFile(s.contentPath(digest)) // moved in between
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("store: bundle %s: content was altered", digest)
	}
	return data, nil
}
