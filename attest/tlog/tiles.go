package tlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
)

// tileDir is the directory of a log, to be read.
type tileDir string

func (d tileDir) checkpoint(context.Context) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(d), layout.CheckpointPath))
}

func (d tileDir) tile(_ context.Context, level, index uint64, partial uint8) ([]byte, error) {
	return d.read(partial, func(p uint8) string { return layout.TilePath(level, index, p) })
}

func (d tileDir) entries(_ context.Context, index uint64, partial uint8) ([]byte, error) {
	return d.read(partial, func(p uint8) string { return layout.EntriesPath(index, p) })
}

// read falls back to the full tile: partial ones are removed in time.
func (d tileDir) read(partial uint8, path func(uint8) string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(string(d), path(partial)))
	if errors.Is(err, fs.ErrNotExist) && partial > 0 {
		return os.ReadFile(filepath.Join(string(d), path(0)))
	}
	return data, err
}

// rootAt computes the root that the tiles have at a size.
func rootAt(ctx context.Context, size uint64, tile client.TileFetcherFunc) ([]byte, error) {
	if size == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	hashes, err := client.FetchRangeNodes(ctx, size, tile)
	if err != nil {
		return nil, err
	}
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r, err := factory.NewRange(0, size, hashes)
	if err != nil {
		return nil, err
	}
	return r.GetRootHash(nil)
}

// extends proves that the tree of size and root contains that of a checkpoint.
func extends(ctx context.Context, old checkpoint, size uint64, root []byte, tile client.TileFetcherFunc) error {
	if size < old.size {
		return fmt.Errorf("%w: it has %d entries, and had %d", ErrContradiction, size, old.size)
	}
	if size == old.size {
		if !bytes.Equal(root, old.root) {
			return fmt.Errorf("%w: its %d entries are not those that it had", ErrContradiction, size)
		}
		return nil
	}
	if old.size == 0 {
		return nil
	}
	builder, err := client.NewProofBuilder(ctx, size, tile)
	if err != nil {
		return err
	}
	path, err := builder.ConsistencyProof(ctx, old.size, size)
	if err != nil {
		return fmt.Errorf("prove that %d entries were %d before: %w", size, old.size, err)
	}
	if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old.size, size, path, old.root, root); err != nil {
		return fmt.Errorf("%w: its first %d entries are not those that it had: %w", ErrContradiction, old.size, err)
	}
	return nil
}
