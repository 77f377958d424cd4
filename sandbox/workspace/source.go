package workspace

import (
	"context"
	"errors"

	"hallmark.build/sandbox/record"
)

// VerifySource compares the work tree with the tree of a commit.
func (w *Workspace) VerifySource(ctx context.Context, projectDir, commit, format string) (record.Source, error) {
	return record.Source{}, errors.New("workspace: source: undecided")
}
