package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLargeStatement: as many subjects as a statement may have, and ten thousand
// inputs.
func TestLargeStatement(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	q := f.question(t, mutation{statement: func(s map[string]any) {
		for i := range 1024 - len(s["subject"].([]any)) {
			s["subject"] = append(s["subject"].([]any), map[string]any{"name": fmt.Sprint(i), "digest": map[string]any{"sha256": strings.Repeat("4", 64)}})
		}
		def := object(s, "predicate", "buildDefinition")
		for i := range 10_000 {
			def["resolvedDependencies"] = append(def["resolvedDependencies"].([]any), map[string]any{
				"uri": fmt.Sprintf("https://proxy.example.com/%d", i), "digest": map[string]any{"sha256": strings.Repeat("5", 64)},
			})
		}
	}})
	for _, p := range peers() {
		if err := p.accept(t.Context(), t, q); err != nil {
			t.Errorf("%s: %.300v", p.name, err)
		}
	}
}

// TestLargeArtifact: cosign reads no file of more than 128 MiB, and must be told
// its digest, as the documentation says.
func TestLargeArtifact(t *testing.T) {
	t.Parallel()
	const size = 128<<20 + 1
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	digest := hex.EncodeToString(h.Sum(nil))
	q := newForger(t).question(t, mutation{statement: func(s map[string]any) {
		object(s["subject"].([]any)[1], "digest")["sha256"] = digest
	}})
	q.artifact = file
	for _, p := range peers() {
		err := p.accept(t.Context(), t, q)
		if cosign := strings.HasPrefix(p.name, "cosign"); (err != nil) != cosign || cosign && !strings.Contains(err.Error(), "exceeded") {
			t.Errorf("%s: %.300v", p.name, err)
		}
	}
	// Without a file, by what the documentation says to give in its place.
	args := cosignArgs(q)
	args = append(args[:len(args)-1], "--digest", digest, "--digestAlg", "sha256")
	for _, program := range [][]string{{".cache/bin/cosign"}, {".cache/bin/cosign2", "--new-bundle-format"}} {
		if err := run(t.Context(), t, program[0], append(args, program[1:]...)...); err != nil {
			t.Errorf("%s: %.300v", program[0], err)
		}
	}
	q.artifact = "sha256:" + digest
	if err := peers()[0].accept(t.Context(), t, q); err != nil {
		t.Errorf("%s: %v", ours, err)
	}
}
