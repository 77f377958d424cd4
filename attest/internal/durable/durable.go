// Package durable writes files so that each is whole or absent, also after a crash.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Create writes a new file. It is an error that wraps [fs.ErrExist] if the file
// is there already; of concurrent calls one wins. When Create returns, file
// and name are durable.
func Create(name string, data []byte, perm fs.FileMode) error {
	temp, err := write(name, data, perm)
	if err != nil {
		return err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, name); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(name))
}

// Replace writes a file that may be there already. A reader sees the old bytes
// or the new ones; when Replace returns, the new ones are durable.
func Replace(name string, data []byte, perm fs.FileMode) error {
	temp, err := write(name, data, perm)
	if err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return SyncDir(filepath.Dir(name))
}

// write makes a synced temporary file beside name.
func write(name string, data []byte, perm fs.FileMode) (temp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), TempPrefix+"*")
	if err != nil {
		return "", err
	}
	_, writeErr := f.Write(data)
	err = errors.Join(writeErr, f.Chmod(perm), f.Sync(), f.Close())
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	return f.Name(), nil
}

// TempPrefix begins the names of files that are being written. Those found
// after a crash are rubbish.
const TempPrefix = ".writing-"

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
