package forgery

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/harness"
)

// provenance is as much of the predicate as these tests look at.
type provenance struct {
	BuildDefinition struct {
		External map[string]any `json:"externalParameters"`
		Internal struct {
			GitLab map[string]any `json:"gitlab"`
		} `json:"internalParameters"`
		Dependencies []map[string]any `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version"`
		} `json:"builder"`
		Metadata struct {
			InvocationID string    `json:"invocationId"`
			StartedOn    time.Time `json:"startedOn"`
			FinishedOn   time.Time `json:"finishedOn"`
		} `json:"metadata"`
		Byproducts []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"byproducts"`
	} `json:"runDetails"`
	Result struct {
		Result string `json:"result"`
	} `json:"hallmark_result"`
}

func predicate(t *testing.T, a harness.Attestation) provenance {
	t.Helper()
	var s struct {
		Predicate provenance `json:"predicate"`
	}
	if err := json.Unmarshal([]byte(a.Statement.Raw), &s); err != nil {
		t.Fatal(err)
	}
	return s.Predicate
}

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

// scriptDigest is how the statement names a script: by its lines, each ended.
func scriptDigest(lines ...string) string { return digestOf(strings.Join(lines, "\n") + "\n") }
