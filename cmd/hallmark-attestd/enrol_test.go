package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// sandboxdDir is a directory with hallmark-sandboxd in it, for hosts that join.
func sandboxdDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", filepath.Join(dir, "hallmark-sandboxd"), "hallmark.build/cmd/hallmark-sandboxd")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}
