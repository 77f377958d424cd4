package workspace

import (
	"context"
	"errors"

	"hallmark.build/sandbox/record"
)

// Seal makes the builds directory unchangeable.
func (w *Workspace) Seal(ctx context.Context, projectDir string) (record.Seal, error) {
	return record.Seal{}, errors.New("workspace: seal: undecided")
}
