// Package migration reads a schema's numbered steps.
package migration

import (
	"fmt"
	"io/fs"
	"slices"
)

// Read returns the steps in the directory's files, which are named by their
// number: 0001.sql is the first, and none is missing.
func Read(files fs.FS) ([]string, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	steps := make([]string, len(names))
	for i, name := range names {
		if want := fmt.Sprintf("%04d.sql", i+1); name != want {
			return nil, fmt.Errorf("migration: %s: want %s", name, want)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		steps[i] = string(text)
	}
	return steps, nil
}
