package integration

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

// attestation is one bundle that the authority keeps for a job.
type attestation struct {
	Bundle    json.RawMessage `json:"bundle"`
	Attempt   string          `json:"attempt"`
	statement statement
}

// statement is as much of the in-toto statement as tests look at.
type statement struct {
	Subject []struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	} `json:"subject"`
	Predicate struct {
		BuildDefinition struct {
			ExternalParameters   map[string]any `json:"externalParameters"`
			ResolvedDependencies []struct {
				URI    string            `json:"uri"`
				Digest map[string]string `json:"digest"`
			} `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
	} `json:"predicate"`
	raw string
}

// get reads from the authority, as anybody may.
func get(t *testing.T, path string) (int, []byte) {
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

// attestations are the bundles of a job.
func attestations(t *testing.T, job int64) []attestation {
	t.Helper()
	status, body := get(t, fmt.Sprintf("/v1/jobs/%d", job))
	if status != http.StatusOK {
		t.Fatalf("bundles of job %d: %d %s", job, status, body)
	}
	var list struct {
		Attestations []attestation `json:"attestations"`
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
		if err := json.Unmarshal(b.Envelope.Payload, &a.statement); err != nil {
			t.Fatal(err)
		}
		a.statement.raw = string(b.Envelope.Payload)
	}
	return list.Attestations
}

// attested requires exactly one bundle for a job.
func attested(t *testing.T, r coordinator.Result) attestation {
	t.Helper()
	list := attestations(t, r.ID)
	if len(list) != 1 {
		t.Fatalf("job %d has %d attestations, want 1", r.ID, len(list))
	}
	return list[0]
}

// unattested requires that there is none.
func unattested(t *testing.T, r coordinator.Result) {
	t.Helper()
	if list := attestations(t, r.ID); len(list) != 0 {
		t.Errorf("job %d has %d attestations, want none: %s", r.ID, len(list), list[0].statement.raw)
	}
}

var attemptLine = regexp.MustCompile(`attempt ([0-9a-f]{32})`)

// evidence reads the record that the authority holds of a job, once it is closed.
func evidence(t *testing.T, r coordinator.Result) []record.Entry {
	t.Helper()
	m := attemptLine.FindStringSubmatch(plain(r.Trace))
	if m == nil {
		t.Fatalf("job %d: its log names no attempt:\n%s", r.ID, plain(r.Trace))
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		status, body := get(t, "/v1/attempts/"+m[1]+"/record")
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

// dataOf decodes all entries of one kind.
func dataOf[T any](t *testing.T, entries []record.Entry, kind record.Kind) []T {
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

// keep writes bytes to a file of the test.
func keep(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// trustedRoot is the authority's, in a file.
func trustedRoot(t *testing.T) string {
	t.Helper()
	status, body := get(t, "/trusted-root.json")
	if status != http.StatusOK {
		t.Fatalf("trusted root: %d %s", status, body)
	}
	return keep(t, "trusted-root.json", body)
}

// auditPolicy is what an auditor of the usual project expects.
func auditPolicy(t *testing.T, profile string) string {
	t.Helper()
	return keep(t, "policy.toml", fmt.Appendf(nil, "builder_ids = [%q]\nissuer = %q\nsource = %q\nref = %q\n",
		world.BuilderURI+"/"+profile, world.BuilderURI, "https://"+world.GitLabName+"/group/project.git", "refs/heads/main"))
}

// program runs one of the world's programs.
func program(t *testing.T, name string, args ...string) (out string, code int) {
	t.Helper()
	stdout, stderr, code, err := theWorld.Program(within(t, time.Minute), name, args...)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return stdout + stderr, code
}

// cosign verifies an artifact with a bundle, as SECURITY.md tells auditors to.
func cosign(t *testing.T, profile, bundle, root, file string) (string, int) {
	t.Helper()
	return program(t, "cosign", "verify-blob-attestation", "--bundle", bundle, "--trusted-root", root,
		"--certificate-identity", world.BuilderURI+"/"+profile, "--certificate-oidc-issuer", world.BuilderURI,
		"--type", "slsaprovenance1", "--use-signed-timestamps", "--insecure-ignore-tlog", "--insecure-ignore-sct", file)
}
