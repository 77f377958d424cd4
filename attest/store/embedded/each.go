package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// EachBundle calls each with every decided bundle of the store in dir, also while
// a process has the store open. It verifies what it reads.
func EachBundle(ctx context.Context, dir string, each func(digest string, bundle []byte) error) error {
	content := filepath.Join(dir, "content")
	names, err := os.ReadDir(content)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: %w", err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(name.Name()) != 2*sha256.Size {
			continue // being written
		}
		data, err := os.ReadFile(filepath.Join(content, name.Name()))
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != name.Name() {
			return fmt.Errorf("store: bundle %s: content was altered", name.Name())
		}
		if err := each(name.Name(), data); err != nil {
			return err
		}
	}
	return nil
}
