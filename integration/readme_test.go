package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"hallmark.build/integration/coordinator"
)

// TestSessionsOfTheReadme runs what the README tells people to type, after a
// job that made the file which it speaks of, and compares what it shows.
func TestSessionsOfTheReadme(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(theWorld.Root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	job := hermetic("sh src/main.sh > age")
	job.Artifacts = coordinator.Archive("age")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	files := map[string]string{
		"age":               archive(t, r)["age"],
		"age.sigstore.json": string(attested(t, r).Bundle),
		"age.toml":          policyOf(t, string(readme)),
		"attestd.toml":      string(read(t, "/etc/hallmark/attestd.toml")),
		"sandboxd.toml":     string(read(t, "/etc/hallmark/sandboxd.toml")),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sessions := sessionsOf(string(readme))
	for _, name := range []string{"admin", "root", "verify", "auditor", "cosign"} {
		if len(sessions[name]) == 0 {
			t.Errorf("the README has no session %q", name)
		}
		for _, c := range sessions[name] {
			t.Run(name+"/"+c.command, func(t *testing.T) { c.run(t, dir) })
		}
	}
}

// A step is one command of a session with the output that the README shows. No
// output shown means any; … stands for any text in a line.
type step struct {
	command string
	want    []string
}

var sessionStart = regexp.MustCompile("<!-- session: ([a-z]+) -->\n```console\n")

func sessionsOf(readme string) map[string][]step {
	all := map[string][]step{}
	for _, m := range sessionStart.FindAllStringSubmatchIndex(readme, -1) {
		name := readme[m[2]:m[3]]
		text, _, _ := strings.Cut(readme[m[1]:], "```")
		var steps []step
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			last := len(steps) - 1
			command, is := strings.CutPrefix(line, "$ ")
			switch {
			case is:
				steps = append(steps, step{command: command})
			case last >= 0 && len(steps[last].want) == 0 && strings.HasSuffix(steps[last].command, `\`):
				steps[last].command = strings.TrimSuffix(steps[last].command, `\`) + strings.TrimSpace(line)
			case last >= 0:
				steps[last].want = append(steps[last].want, line)
			}
		}
		all[name] = append(all[name], steps...)
	}
	return all
}

func (s step) run(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", s.command)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NO_COLOR=1",
		"PATH=/usr/lib/hallmark:"+filepath.Join(theWorld.Root, ".cache/bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	for i, want := range s.want {
		if i >= len(got) || !shows(want, got[i]) {
			t.Fatalf("line %d is not %q:\n%s", i+1, want, out)
		}
	}
	if len(s.want) > 0 && len(got) != len(s.want) {
		t.Errorf("%d lines, the README shows %d:\n%s", len(got), len(s.want), out)
	}
}

// shows compares a line with what the README shows of it.
func shows(want, got string) bool {
	parts := strings.Split(want, "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$").MatchString(got)
}

// policyOf is the auditor's policy that the README shows: of its blocks of TOML
// the one that begins with the builders.
func policyOf(t *testing.T, readme string) string {
	t.Helper()
	const first = "builder_ids"
	_, rest, ok := strings.Cut(readme, "```toml\n"+first)
	body, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("the README shows no policy")
	}
	return first + body
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
