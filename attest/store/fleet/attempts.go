package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"hallmark.build/attest"
	"hallmark.build/attest/store"
)

// Begin adds an open attempt.
func (s *Store) Begin(ctx context.Context, a store.Attempt, supersede ...string) error {
	job, err := json.Marshal(a.Job)
	if err != nil {
		return wrap(err)
	}
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for _, id := range supersede {
			d := store.Decision{State: store.StateSuperseded, Reason: "superseded by attempt " + a.ID, Ended: a.Opened}
			if err := end(ctx, tx, id, store.StateOpen, &d); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO attempts
			(id, session, host, profile, nonce, invocation_id, builder_id, job_id, job, opened, state)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'open')`,
			a.ID, a.Session, a.Host, a.Profile, a.Nonce, a.InvocationID, a.BuilderID, a.Job.ID, string(job), a.Opened)
		return err
	})
}

// end ends an attempt that is in one state, and in no other.
func end(ctx context.Context, tx pgx.Tx, id string, from store.State, d *store.Decision) error {
	tag, err := tx.Exec(ctx, "UPDATE attempts SET state = $1, reason = $2, project = $3, ended = $4 WHERE id = $5 AND state = $6",
		d.State, store.Text(d.Reason), d.Project, d.Ended, id, from)
	return one(tag, err, store.ErrDecided)
}

// Sign keeps the signed statements of an open attempt.
func (s *Store) Sign(ctx context.Context, id string, drafts []store.Bundle, project string, protected bool) error {
	if len(drafts) == 0 || project == "" {
		return errors.New("store: nothing was signed, or for no project")
	}
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "UPDATE attempts SET state = 'signed', reason = '', project = $1, protected = $2 WHERE id = $3 AND state = 'open'", project, protected, id)
		if err := one(tag, err, store.ErrDecided); err != nil {
			return err
		}
		for i, d := range drafts {
			subjects, err := json.Marshal(d.Subjects)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO drafts (attempt, part, bundle, subjects) VALUES ($1, $2, $3, $4)",
				id, i+1, d.JSON, string(subjects)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Drafts returns the signed statements of a signed attempt.
func (s *Store) Drafts(ctx context.Context, id string) ([]store.Bundle, error) {
	return list(ctx, s, scanDraft, "SELECT bundle, subjects FROM drafts WHERE attempt = $1 ORDER BY part", id)
}

func scanDraft(r pgx.CollectableRow) (store.Bundle, error) {
	var (
		b        store.Bundle
		subjects string
	)
	if err := r.Scan(&b.JSON, &subjects); err != nil {
		return b, err
	}
	return b, json.Unmarshal([]byte(subjects), &b.Subjects)
}

// Decide ends an open or signed attempt. When it returns, decision and bundles
// are durable.
func (s *Store) Decide(ctx context.Context, id string, d store.Decision) error {
	if err := d.Valid(); err != nil {
		return err
	}
	from, err := s.decidable(ctx, id, &d)
	if err != nil {
		return err
	}
	digests, err := s.upload(ctx, d.Bundles)
	if err != nil {
		return err
	}
	err = s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error { return decide(ctx, tx, id, from, &d, digests) })
	if errors.Is(err, store.ErrDecided) {
		s.tidy(ctx, digests)
	}
	return err
}

// decidable returns the state in which d can end the attempt. What else d must
// fit cannot change while the attempt is in that state.
func (s *Store) decidable(ctx context.Context, id string, d *store.Decision) (store.State, error) {
	a, err := s.Attempt(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return "", store.ErrDecided
	case err != nil:
		return "", err
	case a.State == store.StateOpen:
		return a.State, nil
	case a.State != store.StateSigned:
		return "", store.ErrDecided
	}
	drafts, err := s.Drafts(ctx, id)
	if err != nil {
		return "", err
	}
	if len(drafts) == 0 {
		return "", store.ErrDecided // closed between the two
	}
	return a.State, d.Completes(&a, drafts)
}

// upload puts bundles in the bucket, after it noted that they will be there.
func (s *Store) upload(ctx context.Context, bundles []store.Bundle) ([]string, error) {
	if len(bundles) == 0 {
		return nil, nil
	}
	digests := make([]string, len(bundles))
	for i, b := range bundles {
		digests[i] = digestOf(b.JSON)
	}
	err := s.with(ctx, func(ctx context.Context, c conn) error {
		// In one order, so that those who note the same do not wait in a ring.
		_, err := c.Exec(ctx, `INSERT INTO uploads (sha256) SELECT DISTINCT d FROM unnest($1::text[]) d ORDER BY d
			ON CONFLICT (sha256) DO UPDATE SET started = now()`, digests)
		return err
	})
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxUploads)
	for i, b := range bundles {
		g.Go(func() error { return s.bucket.put(ctx, digests[i], b.JSON) })
	}
	return digests, wrap(g.Wait())
}

func decide(ctx context.Context, tx pgx.Tx, id string, from store.State, d *store.Decision, digests []string) error {
	if err := end(ctx, tx, id, from, d); err != nil || len(digests) == 0 {
		return err
	}
	tag, err := tx.Exec(ctx, "DELETE FROM uploads WHERE sha256 = ANY ($1)", digests)
	if err != nil {
		return err
	}
	if tag.RowsAffected() != int64(len(digests)) {
		return errors.New("bundles were swept before they were decided, or are not distinct: try again")
	}
	if _, err := tx.Exec(ctx, "DELETE FROM drafts WHERE attempt = $1", id); err != nil {
		return err
	}
	var bundles, subjects [][]any
	for i, b := range d.Bundles {
		bundles = append(bundles, []any{id, i + 1, digests[i]})
		for _, sub := range b.Subjects {
			subjects = append(subjects, []any{sub.SHA256, id, i + 1, []byte(sub.Name)})
		}
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"bundles"}, []string{"attempt", "part", "sha256"}, pgx.CopyFromRows(bundles)); err != nil {
		return err
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"subjects"}, []string{"sha256", "attempt", "part", "name"}, pgx.CopyFromRows(subjects))
	return err
}

const attemptColumns = `id, session, host, profile, nonce, invocation_id, builder_id, job, opened, state, reason, project, protected, ended`

func scanAttempt(r pgx.CollectableRow) (store.Attempt, error) {
	var (
		a     store.Attempt
		job   string
		ended *time.Time
	)
	if err := r.Scan(&a.ID, &a.Session, &a.Host, &a.Profile, &a.Nonce, &a.InvocationID, &a.BuilderID, &job, &a.Opened, &a.State,
		&a.Reason, &a.Project, &a.Protected, &ended); err != nil {
		return a, err
	}
	if err := json.Unmarshal([]byte(job), &a.Job); err != nil {
		return a, fmt.Errorf("attempt %s: %w", a.ID, err)
	}
	a.Opened, a.Ended = a.Opened.UTC(), instant(ended)
	return a, nil
}

// instant reads a moment; the zero time is kept as NULL.
func instant(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

// Attempt finds an attempt by its name.
func (s *Store) Attempt(ctx context.Context, id string) (store.Attempt, error) {
	return get(ctx, s, scanAttempt, "SELECT "+attemptColumns+" FROM attempts WHERE id = $1", id)
}

// AttemptsOfJob lists all attempts of a job in the order of their opening.
func (s *Store) AttemptsOfJob(ctx context.Context, job int64) ([]store.Attempt, error) {
	return list(ctx, s, scanAttempt, "SELECT "+attemptColumns+" FROM attempts WHERE job_id = $1 ORDER BY number", job)
}

// OpenBefore lists open attempts that were opened before a moment.
func (s *Store) OpenBefore(ctx context.Context, t time.Time) ([]store.Attempt, error) {
	return list(ctx, s, scanAttempt, "SELECT "+attemptColumns+" FROM attempts WHERE state = 'open' AND opened < $1 ORDER BY number", t)
}

// Signed lists signed attempts, oldest first.
func (s *Store) Signed(ctx context.Context, limit int) ([]store.Attempt, error) {
	return list(ctx, s, scanAttempt, "SELECT "+attemptColumns+" FROM attempts WHERE state = 'signed' ORDER BY opened, number LIMIT $1", limit)
}

// Wait notes what an open attempt waits for.
func (s *Store) Wait(ctx context.Context, id, reason string) error {
	if reason == "" {
		return errors.New("store: nothing to wait for")
	}
	return s.with(ctx, func(ctx context.Context, c conn) error {
		tag, err := c.Exec(ctx, "UPDATE attempts SET reason = $1 WHERE id = $2 AND state = 'open'", store.Text(reason), id)
		return one(tag, err, store.ErrDecided)
	})
}

// Waiting lists open attempts that wait, oldest first.
func (s *Store) Waiting(ctx context.Context, limit int) ([]store.Attempt, error) {
	return list(ctx, s, scanAttempt, "SELECT "+attemptColumns+" FROM attempts WHERE state = 'open' AND reason <> '' ORDER BY opened, number LIMIT $1", limit)
}

// Parts lists what an attempt was closed with, in order.
func (s *Store) Parts(ctx context.Context, attempt string, subjects int) ([]store.Part, error) {
	scan := func(r pgx.CollectableRow) (p store.Part, err error) { return p, r.Scan(&p.Number, &p.SHA256, &p.Count) }
	parts, err := list(ctx, s, scan, `SELECT part, sha256, (SELECT count(*) FROM subjects s WHERE s.attempt = b.attempt AND s.part = b.part)
		FROM bundles b WHERE attempt = $1 ORDER BY part`, attempt)
	if err != nil {
		return nil, err
	}
	for i := range parts {
		parts[i].Subjects, err = list(ctx, s, scanSubject, "SELECT name, sha256 FROM subjects WHERE attempt = $1 AND part = $2 ORDER BY name LIMIT $3",
			attempt, parts[i].Number, subjects)
		if err != nil {
			return nil, err
		}
	}
	return parts, nil
}

func scanSubject(r pgx.CollectableRow) (attest.Subject, error) {
	var (
		sub  attest.Subject
		name []byte
	)
	err := r.Scan(&name, &sub.SHA256)
	sub.Name = string(name)
	return sub, err
}

// BySubject finds the bundles that speak of an output, newest first.
func (s *Store) BySubject(ctx context.Context, sha256 string, only store.Filter, limit int) ([]store.Found, error) {
	where := "EXISTS (SELECT 1 FROM subjects s WHERE s.sha256 = $1 AND s.attempt = b.attempt AND s.part = b.part)"
	// What is given is found by it, however many others speak of the same.
	switch {
	case only.Bundle != "":
		where += " AND b.sha256 = $4"
	case only.Job != 0:
		where += " AND a.job_id = $3"
	}
	return s.find(ctx, where+` AND $2::text IN ('', a.project) AND $3::bigint IN (0, a.job_id) AND $4::text IN ('', b.sha256)
		AND $5::text IN ('', a.profile) AND coalesce(a.protected = $6::boolean, true)
		ORDER BY a.ended DESC, b.attempt, b.part LIMIT $7`, sha256, only.Project, only.Job, only.Bundle, only.Profile, only.Protected, limit)
}

// ByJob finds a job's bundles, in order.
func (s *Store) ByJob(ctx context.Context, job int64, limit int) ([]store.Found, error) {
	return s.find(ctx, "a.job_id = $1 ORDER BY a.ended DESC, b.attempt, b.part LIMIT $2", job, limit)
}

// ByProject finds a project's bundles, newest first.
func (s *Store) ByProject(ctx context.Context, project string, limit int) ([]store.Found, error) {
	return s.find(ctx, "a.project = $1 ORDER BY a.ended DESC, b.attempt, b.part LIMIT $2", project, limit)
}

func (s *Store) find(ctx context.Context, where string, args ...any) ([]store.Found, error) {
	return list(ctx, s, func(r pgx.CollectableRow) (f store.Found, err error) {
		err = r.Scan(&f.Attempt, &f.Part, &f.SHA256, &f.JobID, &f.Project, &f.Closed)
		f.Closed = f.Closed.UTC()
		return f, err
	}, `SELECT b.attempt, b.part, b.sha256, a.job_id, a.project, a.ended FROM bundles b JOIN attempts a ON a.id = b.attempt WHERE `+where, args...)
}
