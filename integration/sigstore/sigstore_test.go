package sigstore

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestWholeRound signs a file as a service and as a job, with cosign that knows
// nothing but the TUF repository, and verifies it so.
func TestWholeRound(t *testing.T) {
	tools, err := filepath.Abs("../../.cache/bin")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	s, err := Start(t.Context(), t.TempDir(), tools)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	t.Logf("up after %s", time.Since(began))
	home := t.TempDir()
	cosign := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(tools, "cosign"), args...)
		cmd.Env = append(os.Environ(), "HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := cosign("initialize", "--mirror", s.TUFURL, "--root", s.TUFRoot); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file := filepath.Join(home, "file")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name     string
		issuer   *Issuer
		claims   map[string]any
		identity string
	}{
		{"service", s.Login, Account("hallmark@ci.example.test"), "hallmark@ci.example.test"},
		{"job", s.GitLab, Job("1", "gitlab.example.test", "group/project", "refs/heads/main", "00"),
			"https://gitlab.example.test/group/project//.gitlab-ci.yml@refs/heads/main"},
	} {
		token, err := tt.issuer.Token(tt.claims)
		if err != nil {
			t.Fatal(err)
		}
		bundle := filepath.Join(home, tt.name+".sigstore.json")
		if out, err := cosign("sign-blob", "--identity-token", token, "--bundle", bundle, "--yes", file); err != nil {
			t.Fatalf("%s: %v\n%s", tt.name, err, out)
		}
		verify := []string{"verify-blob", "--bundle", bundle, "--insecure-ignore-sct", "--certificate-oidc-issuer", tt.issuer.URL, file}
		if out, err := cosign(append(verify, "--certificate-identity", tt.identity)...); err != nil {
			t.Errorf("%s: %v\n%s", tt.name, err, out)
		}
		if _, err := cosign(append(verify, "--certificate-identity", "other@ci.example.test")...); err == nil {
			t.Errorf("%s: verified as somebody else", tt.name)
		}
	}
}
