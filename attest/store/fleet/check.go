package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Sweep removes bundles that were put in the bucket before a moment and never
// decided.
func (s *Store) Sweep(ctx context.Context, before time.Time) error {
	for {
		old, err := list(ctx, s, pgx.RowTo[string], "SELECT sha256 FROM uploads WHERE started < $1 ORDER BY started LIMIT 100", before)
		if err != nil || len(old) == 0 {
			return err
		}
		for _, digest := range old {
			if err := s.sweep(ctx, digest, before); err != nil {
				return err
			}
		}
	}
}

// sweep removes one bundle while it has its note, for which those wait who
// would put it there again or decide about it. If they have it, or had it,
// nothing is removed.
func (s *Store) sweep(ctx context.Context, digest string, before time.Time) error {
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "DELETE FROM uploads WHERE sha256 = $1 AND started < $2", digest, before)
		if err != nil || tag.RowsAffected() == 0 {
			return err
		}
		var decided bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM bundles WHERE sha256 = $1)", digest).Scan(&decided); err != nil || decided {
			return err
		}
		return s.bucket.remove(ctx, digest)
	})
}

// tidy sweeps what a call left that came too late. If it fails, Sweep will.
func (s *Store) tidy(ctx context.Context, digests []string) {
	for _, d := range digests {
		_ = s.sweep(ctx, d, time.Now().Add(maxCall))
	}
}

// Check looks for states that must not be.
func (s *Store) Check(ctx context.Context) error {
	return errors.Join(s.checkRows(ctx), s.checkRecords(ctx), s.checkBucket(ctx))
}

// Each query finds rows that must not exist. The schema's own constraints see
// to more.
func wrongRows() map[string]string {
	return map[string]string{
		"not closed, yet with bundles":      `SELECT DISTINCT attempt FROM bundles JOIN attempts ON id = attempt WHERE state <> 'closed'`,
		"not signed, yet with drafts":       `SELECT DISTINCT attempt FROM drafts JOIN attempts ON id = attempt WHERE state <> 'signed'`,
		"signed, yet without drafts":        `SELECT id FROM attempts WHERE state = 'signed' AND id NOT IN (SELECT attempt FROM drafts)`,
		"drafts that do not count from one": `SELECT attempt FROM drafts GROUP BY attempt HAVING min(part) <> 1 OR max(part) <> count(*)`,
		"without bundles, yet no reason":    `SELECT id FROM attempts WHERE state NOT IN ('open', 'signed') AND reason = '' AND id NOT IN (SELECT attempt FROM bundles)`,
		"a job with two attested attempts":  `SELECT job_id::text FROM attempts WHERE id IN (SELECT attempt FROM bundles UNION SELECT attempt FROM drafts) GROUP BY job_id HAVING count(*) > 1`,
		"a bundle without subjects":         `SELECT sha256 FROM bundles b WHERE NOT EXISTS (SELECT 1 FROM subjects s WHERE s.attempt = b.attempt AND s.part = b.part)`,
		"parts that do not count from one":  `SELECT attempt FROM bundles GROUP BY attempt HAVING min(part) <> 1 OR max(part) <> count(*)`,
	}
}

func (s *Store) checkRows(ctx context.Context) error {
	var errs []error
	for what, query := range wrongRows() {
		names, err := list(ctx, s, pgx.RowTo[string], query)
		if err != nil {
			errs = append(errs, err)
		}
		if len(names) > 0 {
			errs = append(errs, fmt.Errorf("store: %s: %s", what, strings.Join(names, ", ")))
		}
	}
	return errors.Join(errs...)
}

// checkRecords looks for records with a gap, or that end before they should. It
// reads all of them, a few at a time: a call has its bounds.
func (s *Store) checkRecords(ctx context.Context) error {
	type row struct {
		ID    string
		Whole bool
	}
	var errs []error
	for last := ""; ; {
		rows, err := list(ctx, s, pgx.RowToStructByPos[row], `SELECT id, record_size = coalesce(size, 0) AND coalesce(joined, true)
			FROM (SELECT id, record_size FROM attempts WHERE id > $1 ORDER BY id LIMIT 200) a LEFT JOIN LATERAL (
				SELECT sum(length(lines)) AS size, bool_and(at = before) AS joined FROM (
					SELECT at, lines, coalesce(sum(length(lines)) OVER (ORDER BY at ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before
					FROM record_lines WHERE attempt = a.id) parts) r ON true
			ORDER BY id`, last)
		if err != nil || len(rows) == 0 {
			return errors.Join(append(errs, err)...)
		}
		for _, r := range rows {
			if !r.Whole {
				errs = append(errs, fmt.Errorf("store: record %s: broken", r.ID))
			}
		}
		last = rows[len(rows)-1].ID
	}
}

// checkBucket reads every bundle, and looks for those that nobody knows of.
func (s *Store) checkBucket(ctx context.Context) error {
	var errs []error
	decided, err := list(ctx, s, pgx.RowTo[string], "SELECT sha256 FROM bundles")
	if err != nil {
		return err
	}
	for _, d := range decided {
		if _, err := s.Content(ctx, d); err != nil {
			errs = append(errs, fmt.Errorf("bundle %s: %w", d, err))
		}
	}
	known := map[string]bool{}
	noted, err := list(ctx, s, pgx.RowTo[string], "SELECT sha256 FROM uploads UNION ALL SELECT sha256 FROM bundles")
	if err != nil {
		return err
	}
	for _, d := range noted {
		known[d] = true
	}
	there, err := s.bucket.list(ctx)
	if err != nil {
		errs = append(errs, wrap(err))
	}
	for _, d := range there {
		if !known[d] {
			errs = append(errs, fmt.Errorf("store: %s%s belongs to no decision", prefix, d))
		}
	}
	return errors.Join(errs...)
}
