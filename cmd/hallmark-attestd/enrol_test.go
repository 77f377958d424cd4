package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"hallmark.build/integration/document"
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

// documented runs the sessions of a name that documents show, with the script's
// configuration files in place of those in /etc, and compares what is printed.
func documented(ts *testscript.TestScript, neg bool, args []string) {
	sessions, err := document.Marked("../..", "session", args[0])
	ts.Check(err)
	bin := ts.MkAbs("documented-bin")
	ts.Check(os.MkdirAll(bin, 0o755))
	wrap(ts, bin, "hallmark-attestd", `"$@" -config `+ts.MkAbs("attestd.toml"))
	wrap(ts, bin, "hallmark-sandboxd", `"$1" -config `+ts.MkAbs("sandboxd.toml")+` "${@:2}"`)
	for _, s := range sessions {
		for _, step := range s.Steps() {
			cmd := exec.Command("bash", "-c", step.Command)
			if asUser, ok := strings.CutPrefix(step.Command, "runuser -u hallmark-attestd -- hallmark-attestd "); ok {
				cmd = command(ts, append(strings.Fields(asUser), "-config", ts.MkAbs("attestd.toml"))...)
			}
			cmd.Dir = ts.MkAbs(".")
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil {
				ts.Fatalf("$ %s: %v\n%s", step.Command, err, out)
			}
			if wrong := step.Explain(string(out)); wrong != "" {
				ts.Fatalf("%s: %s", s.Document, wrong)
			}
		}
	}
}

// wrap makes a program that calls the one of the same name with other arguments.
func wrap(ts *testscript.TestScript, bin, name, args string) {
	path := ""
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil && path == "" {
			path = filepath.Join(dir, name)
		}
	}
	ts.Check(os.WriteFile(filepath.Join(bin, name), fmt.Appendf(nil, "#!/bin/bash\nexec %s %s\n", path, args), 0o755))
}
