package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hallmark.build/attest/store"
)

// Check looks for states that must not be, whatever happened. It is for tests
// and for admins, and wants a store that nobody is writing to.
func (s *Store) Check(ctx context.Context) error {
	return errors.Join(s.checkIndex(ctx), s.checkContent(ctx), s.checkRecords(ctx))
}

// Each query finds rows that must not exist.
func wrongRows() map[string]string {
	return map[string]string{
		"open, yet ended":                     `SELECT id FROM attempts WHERE state IN ('open', 'signed') AND ended <> 0`,
		"signed, yet waiting":                 `SELECT id FROM attempts WHERE state = 'signed' AND reason <> ''`,
		"open, yet with a project":            `SELECT id FROM attempts WHERE state = 'open' AND project <> ''`,
		"decided, yet without an end":         `SELECT id FROM attempts WHERE state NOT IN ('open', 'signed') AND ended = 0`,
		"not closed, yet with bundles":        `SELECT DISTINCT attempt FROM bundles JOIN attempts ON id = attempt WHERE state <> 'closed'`,
		"not signed, yet with drafts":         `SELECT DISTINCT attempt FROM drafts JOIN attempts ON id = attempt WHERE state <> 'signed'`,
		"signed, yet without drafts":          `SELECT id FROM attempts WHERE state = 'signed' AND id NOT IN (SELECT attempt FROM drafts)`,
		"drafts that do not count from one":   `SELECT attempt FROM drafts GROUP BY attempt HAVING min(part) <> 1 OR max(part) <> count(*)`,
		"without bundles, yet no reason":      `SELECT id FROM attempts WHERE state NOT IN ('open', 'signed') AND reason = '' AND id NOT IN (SELECT attempt FROM bundles)`,
		"a job with two attested attempts":    `SELECT job_id FROM attempts WHERE id IN (SELECT attempt FROM bundles UNION SELECT attempt FROM drafts) GROUP BY job_id HAVING count(*) > 1`,
		"a bundle without subjects":           `SELECT sha256 FROM bundles b WHERE NOT EXISTS (SELECT 1 FROM subjects s WHERE s.attempt = b.attempt AND s.part = b.part)`,
		"parts that do not count from one":    `SELECT attempt FROM bundles GROUP BY attempt HAVING min(part) <> 1 OR max(part) <> count(*)`,
		"damage found by the database itself": `SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'`,
		"a reference to nothing":              `SELECT "table" FROM pragma_foreign_key_check`,
	}
}

func (s *Store) checkIndex(ctx context.Context) error {
	var errs []error
	for what, query := range wrongRows() {
		names, err := s.strings(ctx, query)
		if err != nil {
			errs = append(errs, err)
		}
		if len(names) > 0 {
			errs = append(errs, fmt.Errorf("store: %s: %s", what, strings.Join(names, ", ")))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) strings(ctx context.Context, query string) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, query)
	return collect(rows, err, scanString)
}

func scanString(r row) (string, error) {
	var text string
	err := r.Scan(&text)
	return text, err
}

func (s *Store) checkContent(ctx context.Context) error {
	var errs []error
	digests, err := s.strings(ctx, "SELECT sha256 FROM bundles")
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, d := range digests {
		known[d] = true
		if _, err := s.Content(ctx, d); err != nil {
			errs = append(errs, fmt.Errorf("bundle %s: %w", d, err))
		}
	}
	for _, dir := range []string{"content", "staged"} {
		files, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, f := range files {
			if dir == "staged" || !known[f.Name()] {
				errs = append(errs, fmt.Errorf("store: %s/%s belongs to no decision", dir, f.Name()))
			}
		}
	}
	return errors.Join(errs...)
}

func (s *Store) checkRecords(ctx context.Context) error {
	var errs []error
	files, err := os.ReadDir(filepath.Join(s.dir, "records"))
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	for _, f := range files {
		a, err := s.Attempt(ctx, strings.TrimSuffix(f.Name(), ".jsonl"))
		if err != nil {
			errs = append(errs, fmt.Errorf("store: record %s: %w", f.Name(), err))
			continue
		}
		if a.State != store.StateClosed {
			continue // a crash may have torn its last line
		}
		data, err := os.ReadFile(filepath.Join(s.dir, "records", f.Name()))
		if err != nil || !bytes.HasSuffix(data, []byte("\n")) {
			errs = append(errs, fmt.Errorf("store: record %s: closed, but cut off (%v)", f.Name(), err))
		}
	}
	return errors.Join(errs...)
}
