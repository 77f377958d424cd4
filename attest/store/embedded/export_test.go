package embedded

import (
	"context"
	"fmt"
)

// SetVersion pretends that another program made the index.
func (s *Store) SetVersion(ctx context.Context, n int) error {
	_, err := s.db.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", n))
	return err
}
