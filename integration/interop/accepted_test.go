package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/integration/sigstore"
)

// TestBuiltIn: the authority has its own certificate authority, clock and log,
// and every verifier accepts what they make. The log's key is Ed25519 unless it is
// where only ECDSA is to be had, as in tokens and key services.
func TestBuiltIn(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, config string
		files        map[string][]byte
	}{
		{name: "with nothing configured"},
		{name: "with an ECDSA key for the log", config: "[keys]\nlog = \"file://DIR/log.pem\"\n", files: map[string][]byte{"log.pem": ecdsaKey(t)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := startAuthority(t, tt.config, tt.files)
			first, second := a.run(t.Context(), t), a.run(t.Context(), t)
			for _, bundle := range [][]byte{first, second} {
				q := a.question(t, bundle, builderID, builderURI)
				for _, p := range peers() {
					if err := p.accept(t.Context(), t, q); err != nil {
						t.Errorf("%s: %v", p.name, err)
					}
				}
			}
		})
	}
}

func ecdsaKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestGenerations: every verifier accepts what an old key signed beside what a
// new one signs, under one trusted root; and none does what a lost key signed.
func TestGenerations(t *testing.T) {
	t.Parallel()
	a := startAuthority(t, "", nil)
	bundles := [][]byte{a.run(t.Context(), t)}
	first, _, _ := strings.Cut(a.command(t, "keys", "list", "-config", a.config), " ")

	a.command(t, "keys", "rotate", "-config", a.config, "ca")
	a.command(t, "keys", "rotate", "-config", a.config, "timestamp")
	bundles = append(bundles, a.run(t.Context(), t))

	a.stop(t)
	a.command(t, "log", "rotate", "-config", a.config)
	a.start(t)
	bundles = append(bundles, a.run(t.Context(), t))
	for i, bundle := range bundles {
		q := a.question(t, bundle, builderID, builderURI)
		for _, p := range peers() {
			if err := p.accept(t.Context(), t, q); err != nil {
				t.Errorf("bundle %d: %s: %v", i+1, p.name, err)
			}
		}
	}

	if !strings.HasPrefix(first, "ca-") {
		t.Fatalf("the first key is %q", first)
	}
	a.command(t, "keys", "revoke", "-config", a.config, "-lost", "never-good", first)
	for i, bundle := range bundles {
		q := a.question(t, bundle, builderID, builderURI)
		for _, p := range peers() {
			if err := p.accept(t.Context(), t, q); (err == nil) != (i > 0) {
				t.Errorf("bundle %d after the first key was lost: %s: %v", i+1, p.name, err)
			}
		}
	}
}

const (
	// account is the authority's own at the login of a Sigstore.
	account = "hallmark@ci.example.test"
	// definition is what a Fulcio calls a job of the sample project.
	definition = "https://gitlab.example.com/group/project//.gitlab-ci.yml@refs/heads/main"
)

// TestOutsideSigstore: the authority has its certificates, time and log from
// services of others, under an identity of its own.
func TestOutsideSigstore(t *testing.T) {
	t.Parallel()
	s, err := sigstore.Start(t.Context(), t.TempDir(), module(t, ".cache/bin"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	token, err := s.Login.Token(sigstore.Account(account))
	if err != nil {
		t.Fatal(err)
	}
	a := startAuthority(t, outside(s, account, s.Login.URL), files(t, s, token))
	bundle := a.run(t.Context(), t)
	q := a.question(t, bundle, account, s.Login.URL)

	t.Run("everybody accepts it", func(t *testing.T) {
		for _, p := range peers() {
			if err := p.accept(t.Context(), t, q); err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
		}
	})
	t.Run("cosign that knows the TUF repository alone", func(t *testing.T) {
		home := initialized(t, s)
		if out, err := cosign(t, home, "verify-blob-attestation", "--bundle", q.bundle, "--certificate-identity", account,
			"--certificate-oidc-issuer", s.Login.URL, "--type", "slsaprovenance1", "--insecure-ignore-sct", q.artifact); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("a job signs the same with its own token", func(t *testing.T) { jobSigns(t, s, a, bundle) })
	t.Run("an authority is given a job's token", func(t *testing.T) { signsForNoJob(t, s) })
}

// outside is the configuration for a Sigstore of others.
func outside(s *sigstore.Sigstore, identity, issuer string) string {
	return fmt.Sprintf(`trusted_root = "DIR/root.json"
[fulcio]
url = %q
token_file = "DIR/token"
identity = %q
identity_issuer = %q
[timestamp]
url = %q
[log]
kind = "rekor"
url = %q
`, s.FulcioURL, identity, issuer, s.TimestampURL, s.RekorURL)
}

func files(t *testing.T, s *sigstore.Sigstore, token string) map[string][]byte {
	t.Helper()
	root, err := os.ReadFile(s.TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"root.json": root, "token": []byte(token)}
}

// jobSigns: the job has a token of its own, takes a true statement of the
// authority's, and has it signed at the same Fulcio, with a log entry and all.
// Only the name in the certificate tells.
func jobSigns(t *testing.T, s *sigstore.Sigstore, a *authority, bundle []byte) {
	var b struct {
		Envelope struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	home := initialized(t, s)
	for _, tt := range []struct {
		name   string
		claims map[string]any
	}{
		{"with its own token", nil},
		{"with a claim that changes whose repository the certificate names", map[string]any{"url": "https://ci.example.test"}},
		{"with the authority's name as its subject", map[string]any{"sub": account}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			claims := sigstore.Job("4242", "gitlab.example.com", "group/project", "refs/heads/main", strings.Repeat("0", 40))
			for key, value := range tt.claims {
				claims[key] = value
			}
			token, err := s.GitLab.Token(claims)
			if err != nil {
				t.Fatal(err)
			}
			forged := filepath.Join(t.TempDir(), "forged.sigstore.json")
			if out, err := cosign(t, home, "attest-blob", "--statement", write(t, "statement.json", b.Envelope.Payload),
				"--identity-token", token, "--bundle", forged, "--yes", write(t, "app", []byte(content))); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			text, err := os.ReadFile(forged)
			if err != nil {
				t.Fatal(err)
			}
			// What the job made is sound, and who asks the others for the job gets
			// it. Ours takes no job for a builder, even if the policy does.
			own := a.question(t, text, definition, s.GitLab.URL)
			for _, p := range peers() {
				if err := p.accept(t.Context(), t, own); (err == nil) != (p.name != ours) {
					t.Errorf("%s, asked for the job: %v", p.name, err)
				}
			}
			// As the authority's it is nobody's.
			for _, q := range []question{a.question(t, text, account, s.Login.URL), a.question(t, text, builderID, s.GitLab.URL)} {
				for _, p := range peers() {
					if err := p.accept(t.Context(), t, q); err == nil {
						t.Errorf("%s took a job for %s", p.name, q.identity)
					}
				}
			}
		})
	}
}

// signsForNoJob: an authority that is given a job's token to sign under signs
// nothing, even if the configuration names the job.
func signsForNoJob(t *testing.T, s *sigstore.Sigstore) {
	token, err := s.GitLab.Token(sigstore.Job("4242", "gitlab.example.com", "group/project", "refs/heads/main", strings.Repeat("0", 40)))
	if err != nil {
		t.Fatal(err)
	}
	a := startAuthority(t, outside(s, definition, s.GitLab.URL), files(t, s, token))
	if err := a.host(t.Context(), a.next); err == nil || !strings.Contains(a.said.String(), "names a job") {
		t.Errorf("%v\n%s", err, a.said.String())
	}
}

// initialized is the home of somebody who has cosign and the address of the TUF
// repository.
func initialized(t *testing.T, s *sigstore.Sigstore) string {
	t.Helper()
	home := t.TempDir()
	if out, err := cosign(t, home, "initialize", "--mirror", s.TUFURL, "--root", s.TUFRoot); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return home
}

func cosign(t *testing.T, home string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), module(t, ".cache/bin/cosign"), args...)
	cmd.Env = append(os.Environ(), "HOME="+home)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
