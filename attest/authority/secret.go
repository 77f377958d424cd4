package authority

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"hallmark.build/attest/internal/durable"
	"hallmark.build/attest/internal/private"
)

// Secret reads the secret that commitment keys are derived from, and makes it
// on first use, with its directory: both are for their owner alone. A reader of
// the file can test guesses of hidden values in published statements.
func Secret(name string) ([]byte, error) {
	if err := private.Dir(filepath.Dir(name)); err != nil {
		return nil, fmt.Errorf("authority: secret: %w", err)
	}
	text, err := private.ReadFile(name, 1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		b := make([]byte, secretLength)
		rand.Read(b) // never fails
		err = durable.Create(name, []byte(hex.EncodeToString(b)+"\n"), 0o600)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("authority: secret: %w", err)
		}
		text, err = private.ReadFile(name, 1<<10)
	}
	if err != nil {
		return nil, fmt.Errorf("authority: secret: %w", err)
	}
	secret, err := hex.DecodeString(strings.TrimSuffix(string(text), "\n"))
	if err != nil || len(secret) != secretLength {
		return nil, fmt.Errorf("authority: secret: %s: want %d hex digits", name, 2*secretLength)
	}
	return secret, nil
}
