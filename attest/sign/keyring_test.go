package sign_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/attest/sign"
	"hallmark.build/attest/sign/key"
)

// keyFile is the private key of a role.
func keyFile(t *testing.T, dir, role string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, role+"-*.pem"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v: want one %s key", found, err, role)
	}
	return found[0]
}

func reopen(t *testing.T, dir string) error {
	t.Helper()
	s, err := sign.Open(t.Context(), sign.Options{Dir: dir, Issuer: issuer})
	if err == nil {
		s.Close()
	}
	return err
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	open(t, dir, nil)
	want := map[string]os.FileMode{dir: 0o700}
	for _, name := range []string{"keyring.json", "keyring.lock", filepath.Base(keyFile(t, dir, "ca")), filepath.Base(keyFile(t, dir, "timestamp"))} {
		want[filepath.Join(dir, name)] = 0o600
	}
	for name, mode := range want {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if have := info.Mode().Perm(); have != mode {
			t.Errorf("%s: mode %o, want %o", name, have, mode)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != len(want)-1 {
		t.Errorf("%d files (%v), want %d", len(names), err, len(want)-1)
	}
}

func TestKeysThatOthersCanReach(t *testing.T) {
	for name, spoil := range map[string]func(file string) error{
		"file for group":      func(file string) error { return os.Chmod(file, 0o640) },
		"file for others":     func(file string) error { return os.Chmod(file, 0o604) },
		"file group-writable": func(file string) error { return os.Chmod(file, 0o620) },
		"directory for group": func(file string) error { return os.Chmod(filepath.Dir(file), 0o750) },
		"directory for all":   func(file string) error { return os.Chmod(filepath.Dir(file), 0o701) },
		"symbolic link": func(file string) error {
			return errors.Join(os.Rename(file, file+".real"), os.Symlink(file+".real", file))
		},
		"fifo": func(file string) error {
			return errors.Join(os.Remove(file), exec.Command("mkfifo", "-m", "600", file).Run())
		},
		"directory instead": func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
		"another owner": func(file string) error {
			if os.Geteuid() != 0 {
				return os.Chmod(file, 0o640) // root alone can give files away
			}
			return os.Chown(file, 12345, 12345)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, which := range []string{"ca", "timestamp", "keyring.json"} {
				dir := filepath.Join(t.TempDir(), "keys")
				open(t, dir, nil)
				file := filepath.Join(dir, which)
				if which != "keyring.json" {
					file = keyFile(t, dir, which)
				}
				if err := spoil(file); err != nil {
					t.Fatal(err)
				}
				if reopen(t, dir) == nil {
					t.Errorf("%s: opened", which)
				}
			}
		})
	}
}

func TestDamagedKeyring(t *testing.T) {
	read := func(t *testing.T) (string, []byte) {
		dir := filepath.Join(t.TempDir(), "keys")
		open(t, dir, nil)
		text, err := os.ReadFile(filepath.Join(dir, "keyring.json"))
		if err != nil {
			t.Fatal(err)
		}
		return dir, text
	}
	replace := func(old, new string) func(mine, other []byte) []byte {
		return func(mine, _ []byte) []byte { return bytes.Replace(mine, []byte(old), []byte(new), 1) }
	}
	for name, damage := range map[string]func(mine, other []byte) []byte{
		"empty":           func(mine, _ []byte) []byte { return nil },
		"cut":             func(mine, _ []byte) []byte { return mine[:len(mine)/2] },
		"rubbish":         func(mine, _ []byte) []byte { return []byte("rubbish") },
		"more":            func(mine, _ []byte) []byte { return append(bytes.Clone(mine), "more"...) },
		"too much":        func(mine, _ []byte) []byte { return append(bytes.Clone(mine), make([]byte, 8<<20)...) },
		"of another":      func(_, other []byte) []byte { return other },
		"another version": replace(`"version": 1`, `"version": 2`),
		"unknown member":  replace(`"version": 1`, `"version": 1, "trust": "all"`),
		"role swapped":    replace(`"role": "ca"`, `"role": "timestamp"`),
		"role unknown":    replace(`"role": "ca"`, `"role": "log"`),
		"id changed":      replace(`"id": "ca-`, `"id": "ca-0`),
		"window widened":  replace(`"until": "20`, `"until": "21`),
		"certificate cut": replace(`"certificates": [`, `"certificates": [ "AAAA",`),
		"no generation": func([]byte, []byte) []byte {
			return []byte(`{"version":1,"generations":[{"id":"ca-00","role":"ca","from":"2026-01-01T00:00:00Z","until":"2027-01-01T00:00:00Z","certificates":[]}]}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, mine := read(t)
			_, other := read(t)
			damaged := damage(mine, other)
			if bytes.Equal(damaged, mine) {
				t.Fatal("not damaged")
			}
			if err := os.WriteFile(filepath.Join(dir, "keyring.json"), damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := reopen(t, dir); err == nil {
				t.Error("opened")
			}
			if after, err := os.ReadFile(filepath.Join(dir, "keyring.json")); err != nil || !bytes.Equal(after, damaged) {
				t.Error("a keyring that could not be read was written over")
			}
		})
	}
}

func TestAnotherKeyInPlace(t *testing.T) {
	dir, other := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "keys")
	open(t, dir, nil)
	open(t, other, nil)
	text, err := os.ReadFile(keyFile(t, other, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile(t, dir, "ca"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reopen(t, dir); err == nil || !strings.Contains(err.Error(), "another key is where it was") {
		t.Errorf("%v", err)
	}
}

// keyURI makes a key outside of the keyring.
func keyURI(t testing.TB) string {
	t.Helper()
	_, data, err := key.Generate()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return key.FileURI(name)
}
