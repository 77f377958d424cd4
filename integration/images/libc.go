package images

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed testdata/get.c
var clientSource []byte

// Clients makes the programs that stand beside the probe: one client, linked
// against each C library.
func Clients(probe string) error {
	for _, compiler := range []string{"gcc", "musl-gcc"} {
		file := client(probe, compiler)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		cmd := exec.Command(compiler, "-O1", "-s", "-x", "c", "-o", file+".new", "-")
		cmd.Stdin = bytes.NewReader(clientSource)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", compiler, err, out)
		}
		if err := os.Rename(file+".new", file); err != nil {
			return err
		}
	}
	return nil
}

// client is where the client of one C library is, or empty.
func client(probe, compiler string) string {
	sum := sha256.Sum256(clientSource)
	return filepath.Join(filepath.Dir(probe), "get-"+compiler+"-"+hex.EncodeToString(sum[:4]))
}

// library is what a program of that compiler needs at run time, from the host.
func library(compiler string) []File {
	patterns := []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/*-linux-gnu/libc.so.6"}
	if compiler == "musl-gcc" {
		patterns = []string{"/lib/ld-musl-*.so.1"}
	}
	var files []File
	for _, pattern := range patterns {
		names, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, name := range names {
			files = append(files, File{Path: name, Host: name, Mode: 0o755})
		}
	}
	return files
}
