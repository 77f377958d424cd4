package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/document"
)

// TestSessionsOfTheDocuments runs what documents tell people to type, after a
// job that made the file which they speak of, and compares what they show.
func TestSessionsOfTheDocuments(t *testing.T) {
	dir := t.TempDir()
	job := hermetic("sh src/main.sh > age")
	job.Artifacts = coordinator.Archive("age")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	files := map[string]string{
		"age":               archive(t, r)["age"],
		"age.sigstore.json": string(attested(t, r).Bundle),
		"age.toml":          marked(t, "config", "policy")[0].Text,
		"attestd.toml":      string(read(t, "/etc/hallmark/attestd.toml")),
		"sandboxd.toml":     string(read(t, "/etc/hallmark/sandboxd.toml")),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"admin", "root", "verify", "auditor", "cosign"} {
		for _, session := range marked(t, "session", name) {
			for _, step := range session.Steps() {
				t.Run(name+"/"+step.Command, func(t *testing.T) { perform(t, dir, step) })
			}
		}
	}
}

func marked(t *testing.T, mark, name string) []document.Block {
	t.Helper()
	blocks, err := document.Marked(theWorld.Root, mark, name)
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

func perform(t *testing.T, dir string, step document.Step) {
	t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", step.Command)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NO_COLOR=1",
		"PATH=/usr/lib/hallmark:"+filepath.Join(theWorld.Root, ".cache/bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if wrong := step.Explain(string(out)); wrong != "" {
		t.Error(wrong)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
