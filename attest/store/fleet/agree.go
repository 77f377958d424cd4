package fleet

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Agree makes sure that all replicas have the same of what must be the same:
// the first one's values hold, and who has another is refused. Values are
// public, as the digest of a key is.
func (s *Store) Agree(ctx context.Context, values map[string]string) error {
	return s.transact(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for _, what := range slices.Sorted(maps.Keys(values)) {
			var first string
			// The update changes nothing; it waits for others, and returns.
			err := tx.QueryRow(ctx, `INSERT INTO agreed (what, value) VALUES ($1, $2)
				ON CONFLICT (what) DO UPDATE SET what = excluded.what RETURNING value`, what, values[what]).Scan(&first)
			if err != nil {
				return err
			}
			if first != values[what] {
				return fmt.Errorf("%s is %s here, but the replicas agreed on %s", what, values[what], first)
			}
		}
		return nil
	})
}
