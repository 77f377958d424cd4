package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
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

// readme runs the commands of the README's sessions of a name, with the script's
// configuration files in place of those in /etc, and compares what they print:
// … stands for any text.
func readme(ts *testscript.TestScript, neg bool, args []string) {
	text, err := os.ReadFile("../../README.md")
	ts.Check(err)
	bin := ts.MkAbs("readme-bin")
	ts.Check(os.Mkdir(bin, 0o755))
	wrap(ts, bin, "hallmark-attestd", `"$@" -config `+ts.MkAbs("attestd.toml"))
	wrap(ts, bin, "hallmark-sandboxd", `"$1" -config `+ts.MkAbs("sandboxd.toml")+` "${@:2}"`)
	sessions := regexp.MustCompile("(?s)<!-- session: "+args[0]+" -->\n```console\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(sessions) == 0 {
		ts.Fatalf("the README has no session %q", args[0])
	}
	for _, s := range sessions {
		for _, step := range strings.Split("\n"+s[1], "\n$ ")[1:] {
			command, want, _ := strings.Cut(step, "\n")
			cmd := exec.Command("bash", "-c", command)
			cmd.Dir = ts.MkAbs(".")
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			out, err := cmd.CombinedOutput()
			if err != nil || !shows(strings.TrimSpace(want), strings.TrimSpace(string(out))) {
				ts.Fatalf("$ %s: %v\n%s\nthe README shows\n%s", command, err, out, want)
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

// shows compares an output with what the README shows of it. Blanks that make
// columns do not matter.
func shows(want, got string) bool {
	parts := strings.Split(strings.Join(strings.Fields(want), " "), "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$").MatchString(strings.Join(strings.Fields(got), " "))
}
