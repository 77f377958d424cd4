package containerd

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

var instanceForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

// instance is the name by which the runtime that has root knows what is its own
// where the whole machine has one place: the cgroups. Another runtime, with
// another root or in another mount namespace, must not take ours for leftovers.
// It is made on first use; the caller has the runtime's lock.
func instance(root string) (string, error) {
	name := filepath.Join(root, "instance")
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		b := make([]byte, 8)
		rand.Read(b) // never fails
		text = []byte(hex.EncodeToString(b))
		err = writeNew(name, text)
	}
	if err != nil {
		return "", fmt.Errorf("containerd: %w", err)
	}
	if !instanceForm.Match(text) {
		return "", fmt.Errorf("containerd: %s: not a name; remove the file when no job is running", name)
	}
	return string(text), nil
}

// writeNew makes a file whole or not at all.
func writeNew(name string, text []byte) error {
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
