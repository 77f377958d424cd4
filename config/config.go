// Package config reads and validates each program's one configuration file.
//
// A file is TOML. Everything in it must be known, of the right type and make
// sense, or the program does not start; see package
// [hallmark.build/config/tomlfile] for how problems are told. Nothing is merged
// from the environment or from a second file: what the program does is what
// the file says, and [Sandboxd.Digest] goes into the provenance.
//
// Each field's comment gives its default, its unit where it has one, and what
// trust it carries, in the form "a writer of this field can …". The files
// themselves carry no secrets; they should be writable by root alone, because a
// writer of either can weaken every later build.
package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"hallmark.build/config/tomlfile"
)

// An Error is one problem in a file, with its place and a hint.
type Error = tomlfile.Error

// Errors are all problems of a file. [errors.As] finds the first [*Error].
type Errors = tomlfile.Errors

// A Kind is a program that has a configuration file.
type Kind string

// The programs.
const (
	KindSandboxd Kind = "sandboxd"
	KindAttestd  Kind = "attestd"
)

// ParseKind refuses every name that is not a kind.
func ParseKind(name string) (Kind, error) {
	switch k := Kind(name); k {
	case KindSandboxd, KindAttestd:
		return k, nil
	}
	return "", fmt.Errorf("kind %q: want %q or %q", name, KindSandboxd, KindAttestd)
}

//go:embed example/sandboxd.toml
var exampleSandboxd string

//go:embed example/attestd.toml
var exampleAttestd string

// Example is a complete file with comments: every setting that has a default
// stands there with its default, and required ones with a value to replace.
func Example(kind Kind) string {
	switch kind {
	case KindSandboxd:
		return exampleSandboxd
	case KindAttestd:
		return exampleAttestd
	}
	return ""
}

// Check reads the file as the given program would, for its problems alone.
func Check(kind Kind, path string) error {
	switch kind {
	case KindSandboxd:
		_, err := LoadSandboxd(path)
		return err
	case KindAttestd:
		_, err := LoadAttestd(path)
		return err
	}
	_, err := ParseKind(string(kind))
	return err
}

// read reads a file, and says where to get one if it is not there.
func read(kind Kind, path string) ([]byte, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Msg: "no such file or directory", Hint: fmt.Sprintf("`hallmark config example %s` prints one with every setting explained", kind)}
	}
	return tomlfile.Read(path)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
