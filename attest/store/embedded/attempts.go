package embedded

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/store"
)

// Begin adds an open attempt.
func (s *Store) Begin(ctx context.Context, a store.Attempt, supersede ...string) error {
	job, err := json.Marshal(a.Job)
	if err != nil {
		return wrap(err)
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		for _, id := range supersede {
			d := store.Decision{State: store.StateSuperseded, Reason: "superseded by attempt " + a.ID, Ended: a.Opened}
			if err := end(ctx, tx, id, store.StateOpen, &d); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO attempts
			(id, session, host, profile, nonce, invocation_id, builder_id, job_id, job, opened, state)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open')`,
			a.ID, a.Session, a.Host, a.Profile, a.Nonce, a.InvocationID, a.BuilderID, a.Job.ID, string(job), a.Opened.UnixMicro())
		return err
	})
}

// end ends an attempt that is in one state, and in no other.
func end(ctx context.Context, tx *sql.Tx, id string, from store.State, d *store.Decision) error {
	res, err := tx.ExecContext(ctx, `UPDATE attempts SET state = ?, reason = ?, project = ?, ended = ? WHERE id = ? AND state = ?`,
		string(d.State), store.Text(d.Reason), d.Project, d.Ended.UnixMicro(), id, string(from))
	return one(res, err, store.ErrDecided)
}

// Sign keeps the signed statements of an open attempt.
func (s *Store) Sign(ctx context.Context, id string, drafts []store.Bundle, project string, protected bool) error {
	if len(drafts) == 0 || project == "" {
		return errors.New("store: nothing was signed, or for no project")
	}
	return s.transact(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "UPDATE attempts SET state = 'signed', reason = '', project = ?, protected = ? WHERE id = ? AND state = 'open'", project, protected, id)
		if err := one(res, err, store.ErrDecided); err != nil {
			return err
		}
		for i, d := range drafts {
			subjects, err := json.Marshal(d.Subjects)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO drafts (attempt, part, bundle, subjects) VALUES (?, ?, ?, ?)",
				id, i+1, d.JSON, string(subjects)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Drafts returns the signed statements of a signed attempt.
func (s *Store) Drafts(ctx context.Context, id string) ([]store.Bundle, error) {
	return drafts(ctx, s.db, id)
}

type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func drafts(ctx context.Context, q querier, id string) ([]store.Bundle, error) {
	rows, err := q.QueryContext(ctx, "SELECT bundle, subjects FROM drafts WHERE attempt = ? ORDER BY part", id)
	return collect(rows, err, func(r row) (b store.Bundle, err error) {
		var subjects string
		if err := r.Scan(&b.JSON, &subjects); err != nil {
			return b, err
		}
		return b, json.Unmarshal([]byte(subjects), &b.Subjects)
	})
}

// Decide ends an open or signed attempt. When it returns, decision and bundles
// are durable.
func (s *Store) Decide(ctx context.Context, id string, d store.Decision) error {
	if err := d.Valid(); err != nil {
		return err
	}
	s.staging.RLock()
	defer s.staging.RUnlock()
	digests, err := s.stageAll(d.Bundles)
	if err != nil {
		return fmt.Errorf("store: bundle: %w", err)
	}
	err = s.transact(ctx, func(tx *sql.Tx) error { return decide(ctx, tx, id, &d, digests) })
	if errors.Is(err, store.ErrDecided) {
		return errors.Join(err, s.settleAll(ctx, digests))
	}
	if err != nil {
		// The commit may have happened all the same: what is staged stays for
		// recovery to sort out.
		return err
	}
	for _, digest := range digests {
		if err := s.publish(digest); err != nil {
			return fmt.Errorf("store: bundle: %w", err)
		}
	}
	return nil
}

func decide(ctx context.Context, tx *sql.Tx, id string, d *store.Decision, digests []string) error {
	a, err := scanAttempt(tx.QueryRowContext(ctx, "SELECT "+attemptColumns+" FROM attempts WHERE id = ?", id))
	if errors.Is(err, store.ErrNotFound) || err == nil && a.State != store.StateOpen && a.State != store.StateSigned {
		return store.ErrDecided
	}
	if err != nil {
		return err
	}
	if a.State == store.StateSigned {
		signed, err := drafts(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := d.Completes(&a, signed); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM drafts WHERE attempt = ?", id); err != nil {
			return err
		}
	}
	if err := end(ctx, tx, id, a.State, d); err != nil {
		return err
	}
	return insertBundles(ctx, tx, id, digests, d.Bundles)
}

func insertBundles(ctx context.Context, tx *sql.Tx, id string, digests []string, bundles []store.Bundle) error {
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

const attemptColumns = `id, session, host, profile, nonce, invocation_id, builder_id, job, opened, state, reason, project, protected, ended`

func scanAttempt(r row) (store.Attempt, error) {
	var (
		a             store.Attempt
		job, state    string
		opened, ended int64
	)
	err := r.Scan(&a.ID, &a.Session, &a.Host, &a.Profile, &a.Nonce, &a.InvocationID, &a.BuilderID, &job, &opened, &state, &a.Reason, &a.Project, &a.Protected, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return store.Attempt{}, store.ErrNotFound
	}
	if err != nil {
		return store.Attempt{}, wrap(err)
	}
	if err := json.Unmarshal([]byte(job), &a.Job); err != nil {
		return store.Attempt{}, fmt.Errorf("store: attempt %s: %w", a.ID, err)
	}
	a.State = store.State(state)
	a.Opened, a.Ended = instant(opened), instant(ended)
	return a, nil
}

// instant reads a moment; the zero time is kept as 0.
func instant(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}

// Attempt finds an attempt by its name.
func (s *Store) Attempt(ctx context.Context, id string) (store.Attempt, error) {
	return scanAttempt(s.db.QueryRowContext(ctx, "SELECT "+attemptColumns+" FROM attempts WHERE id = ?", id))
}

// AttemptsOfJob lists all attempts of a job in the order of their opening.
func (s *Store) AttemptsOfJob(ctx context.Context, job int64) ([]store.Attempt, error) {
	return s.attempts(ctx, "job_id = ? ORDER BY rowid", job)
}

// OpenBefore lists open attempts that were opened before a moment.
func (s *Store) OpenBefore(ctx context.Context, t time.Time) ([]store.Attempt, error) {
	return s.attempts(ctx, "state = 'open' AND opened < ? ORDER BY rowid", t.UnixMicro())
}

// Signed lists signed attempts, oldest first.
func (s *Store) Signed(ctx context.Context, limit int) ([]store.Attempt, error) {
	return s.attempts(ctx, "state = 'signed' ORDER BY opened, rowid LIMIT ?", limit)
}

// Wait notes what an open attempt waits for.
func (s *Store) Wait(ctx context.Context, id, reason string) error {
	if reason == "" {
		return errors.New("store: nothing to wait for")
	}
	res, err := s.db.ExecContext(ctx, "UPDATE attempts SET reason = ? WHERE id = ? AND state = 'open'", store.Text(reason), id)
	return wrap(one(res, err, store.ErrDecided))
}

// Waiting lists open attempts that wait, oldest first.
func (s *Store) Waiting(ctx context.Context, limit int) ([]store.Attempt, error) {
	return s.attempts(ctx, "state = 'open' AND reason <> '' ORDER BY opened, rowid LIMIT ?", limit)
}

func (s *Store) attempts(ctx context.Context, where string, args ...any) ([]store.Attempt, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT "+attemptColumns+" FROM attempts WHERE "+where, args...)
	return collect(rows, err, scanAttempt)
}

// Parts lists what an attempt was closed with, in order.
func (s *Store) Parts(ctx context.Context, attempt string, subjects int) ([]store.Part, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT part, sha256, (SELECT count(*) FROM subjects s WHERE s.attempt = b.attempt AND s.part = b.part)
		FROM bundles b WHERE attempt = ? ORDER BY part`, attempt)
	parts, err := collect(rows, err, func(r row) (p store.Part, err error) { return p, r.Scan(&p.Number, &p.SHA256, &p.Count) })
	if err != nil {
		return nil, err
	}
	for i := range parts {
		if parts[i].Subjects, err = s.subjects(ctx, attempt, parts[i].Number, subjects); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func (s *Store) subjects(ctx context.Context, attempt string, part, limit int) ([]attest.Subject, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT name, sha256 FROM subjects WHERE attempt = ? AND part = ? ORDER BY name LIMIT ?", attempt, part, limit)
	return collect(rows, err, func(r row) (sub attest.Subject, err error) {
		return sub, r.Scan(&sub.Name, &sub.SHA256)
	})
}

// BySubject finds the bundles that speak of an output, newest first.
func (s *Store) BySubject(ctx context.Context, sha256 string, only store.Filter, limit int) ([]store.Found, error) {
	where, args := bySubject(sha256, only, limit)
	return s.find(ctx, where, args...)
}

// bySubject starts from the bundle or the job where that is given, else from the
// output: a project has many more. Hence a plus before columns that SQLite is to
// use no index for.
func bySubject(sha256 string, only store.Filter, limit int) (string, []any) {
	const speaks = " AND EXISTS (SELECT 1 FROM subjects s WHERE s.sha256 = ? AND s.attempt = b.attempt AND s.part = b.part)"
	where, args := "(b.attempt, b.part) IN (SELECT attempt, part FROM subjects WHERE sha256 = ?)", []any{sha256}
	switch {
	case only.Bundle != "":
		where, args = "b.sha256 = ?"+speaks, []any{only.Bundle, sha256}
	case only.Job != 0:
		where, args = "a.job_id = ?"+speaks, []any{only.Job, sha256}
	}
	args = append(args, only.Project, only.Job, only.Profile, only.Protected, limit)
	return where + ` AND ? IN ('', +a.project) AND ? IN (0, +a.job_id) AND ? IN ('', a.profile)
		AND coalesce(a.protected = ?, true) ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?`, args
}

// ByJob finds a job's bundles, in order.
func (s *Store) ByJob(ctx context.Context, job int64, limit int) ([]store.Found, error) {
	return s.find(ctx, "a.job_id = ? ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?", job, limit)
}

// ByProject finds a project's bundles, newest first.
func (s *Store) ByProject(ctx context.Context, project string, limit int) ([]store.Found, error) {
	return s.find(ctx, "a.project = ? ORDER BY a.ended DESC, b.attempt, b.part LIMIT ?", project, limit)
}

const selectFound = `SELECT b.attempt, b.part, b.sha256, a.job_id, a.project, a.ended
	FROM bundles b JOIN attempts a ON a.id = b.attempt WHERE `

func (s *Store) find(ctx context.Context, where string, args ...any) ([]store.Found, error) {
	rows, err := s.db.QueryContext(ctx, selectFound+where, args...)
	return collect(rows, err, func(r row) (f store.Found, err error) {
		var ended int64
		err = r.Scan(&f.Attempt, &f.Part, &f.SHA256, &f.JobID, &f.Project, &ended)
		f.Closed = instant(ended)
		return f, err
	})
}

// HasBundle reports whether a decision holds the bundle.
func (s *Store) HasBundle(ctx context.Context, digest string) (bool, error) {
	var n int
	err := s.db.QueryRowContext(ctx, "SELECT count(*) FROM bundles WHERE sha256 = ?", digest).Scan(&n)
	return n > 0, wrap(err)
}
