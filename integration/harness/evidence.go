package harness

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// Attestation is one bundle that the authority keeps for a job.
type Attestation struct {
	Bundle    json.RawMessage `json:"bundle"`
	Attempt   string          `json:"attempt"`
	Statement Statement       `json:"-"`
}

// Dependency is one input in a statement.
type Dependency struct {
	Name        string            `json:"name"`
	URI         string            `json:"uri"`
	Digest      map[string]string `json:"digest"`
	Annotations map[string]any    `json:"annotations"`
}

// Statement is as much of the in-toto statement as tests look at.
type Statement struct {
	Subject []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	Predicate struct {
		BuildDefinition struct {
			ExternalParameters   map[string]any `json:"externalParameters"`
			ResolvedDependencies []Dependency   `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
	} `json:"predicate"`
	Raw string `json:"-"`
}

// Get reads from the authority, as anybody may.
func Get(t *testing.T, path string) (int, []byte) {
	t.Helper()
	resp, err := http.Get(world.AttestdURL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// Attestations are the bundles that the authority keeps for a job.
func Attestations(t *testing.T, job int64) []Attestation {
	t.Helper()
	status, body := Get(t, fmt.Sprintf("/v1/jobs/%d", job))
	if status != http.StatusOK {
		t.Fatalf("bundles of job %d: %d %s", job, status, body)
	}
	var list struct {
		Attestations []Attestation `json:"attestations"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	for i := range list.Attestations {
		a := &list.Attestations[i]
		var b struct {
			Envelope struct {
				Payload []byte `json:"payload"`
			} `json:"dsseEnvelope"`
		}
		if err := json.Unmarshal(a.Bundle, &b); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b.Envelope.Payload, &a.Statement); err != nil {
			t.Fatal(err)
		}
		a.Statement.Raw = string(b.Envelope.Payload)
	}
	return list.Attestations
}

// Attested requires exactly one bundle for a job.
func Attested(t *testing.T, r coordinator.Result) Attestation {
	t.Helper()
	list := Attestations(t, r.ID)
	if len(list) != 1 {
		t.Fatalf("job %d has %d attestations, want 1", r.ID, len(list))
	}
	return list[0]
}

// Unattested requires that there is none.
func Unattested(t *testing.T, r coordinator.Result) {
	t.Helper()
	if list := Attestations(t, r.ID); len(list) != 0 {
		t.Errorf("job %d has %d attestations, want none: %s", r.ID, len(list), list[0].Statement.Raw)
	}
}

var attemptLine = regexp.MustCompile(`attempt ([0-9a-f]{32})`)

// AttemptOf is the attempt that a job's log names, or nothing.
func AttemptOf(r coordinator.Result) string {
	if m := attemptLine.FindStringSubmatch(Plain(r.Trace)); m != nil {
		return m[1]
	}
	return ""
}

// Evidence reads the record that the authority holds of a job, once it is closed.
func Evidence(t *testing.T, r coordinator.Result) []record.Entry {
	t.Helper()
	attempt := AttemptOf(r)
	if attempt == "" {
		t.Fatalf("job %d: its log names no attempt:\n%s", r.ID, Plain(r.Trace))
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		status, body := Get(t, "/v1/attempts/"+attempt+"/record")
		if status == http.StatusOK {
			entries, _, err := record.Read(bytes.NewReader(body))
			if err != nil {
				t.Fatalf("job %d: record: %v", r.ID, err)
			}
			return entries
		}
		if time.Now().After(deadline) {
			t.Fatalf("job %d: no closed record: %d %s", r.ID, status, body)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// DataOf decodes all entries of one kind.
func DataOf[T any](t *testing.T, entries []record.Entry, kind record.Kind) []T {
	t.Helper()
	var out []T
	for _, e := range entries {
		if e.Kind != kind {
			continue
		}
		var v T
		if err := e.Decode(&v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// Keep writes bytes to a file of the test.
func Keep(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TrustedRoot is the authority's, in a file.
func TrustedRoot(t *testing.T) string {
	t.Helper()
	status, body := Get(t, "/trusted-root.json")
	if status != http.StatusOK {
		t.Fatalf("trusted root: %d %s", status, body)
	}
	return Keep(t, "trusted-root.json", body)
}

// AuditPolicy is what an auditor of the usual project expects.
func AuditPolicy(t *testing.T, profile string) string {
	t.Helper()
	return Keep(t, "policy.toml", fmt.Appendf(nil, "builder_ids = [%q]\nissuer = %q\nsource = %q\nref = %q\n",
		world.BuilderURI+"/"+profile, world.BuilderURI, "https://"+world.GitLabName+"/group/project.git", "refs/heads/main"))
}

// Program runs one of the world's programs.
func Program(t *testing.T, name string, args ...string) (out string, code int) {
	t.Helper()
	stdout, stderr, code, err := World.Program(Within(t, time.Minute), name, args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return stdout + stderr, code
}

// Cosign verifies an artifact with a bundle, as docs/verify.md tells auditors to.
func Cosign(t *testing.T, profile, bundle, root, file string) (string, int) {
	t.Helper()
	return Program(t, "cosign", "verify-blob-attestation", "--bundle", bundle, "--trusted-root", root,
		"--certificate-identity", world.BuilderURI+"/"+profile, "--certificate-oidc-issuer", world.BuilderURI,
		"--type", "slsaprovenance1", "--use-signed-timestamps", "--insecure-ignore-sct", file)
}
