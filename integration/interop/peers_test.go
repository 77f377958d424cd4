package interop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// A question is what a verifier is asked: all of it in files, as users have it.
type question struct {
	artifact, bundle, root, policy string
	identity, issuer               string
}

// A peer is a verifier.
type peer struct {
	name   string
	accept func(context.Context, *testing.T, question) error
}

// ours is the verifier that all of this is about.
const ours = "hallmark verify"

func peers() []peer {
	return []peer{
		{ours, func(ctx context.Context, t *testing.T, q question) error {
			return run(ctx, t, "bin/hallmark", "verify", q.artifact, "--bundle", q.bundle, "--policy", q.policy, "--trusted-root", q.root)
		}},
		{"cosign 3.1.3", func(ctx context.Context, t *testing.T, q question) error {
			return run(ctx, t, ".cache/bin/cosign", cosignArgs(q)...)
		}},
		{"cosign 2.6.5", func(ctx context.Context, t *testing.T, q question) error {
			return run(ctx, t, ".cache/bin/cosign2", append(cosignArgs(q), "--new-bundle-format")...)
		}},
		{"sigstore-go 1.3.0", func(_ context.Context, _ *testing.T, q question) error { return sigstoreGo(q) }},
		{"@sigstore/verify 4.1.3", func(ctx context.Context, t *testing.T, q question) error {
			return run(ctx, t, "node", "sigstore-js/verify.js", q.bundle, q.root, q.identity, q.issuer, "1")
		}},
	}
}

// cosignArgs are what docs/verify.md tells auditors to use.
func cosignArgs(q question) []string {
	return []string{"verify-blob-attestation", "--bundle", q.bundle, "--trusted-root", q.root,
		"--certificate-identity", q.identity, "--certificate-oidc-issuer", q.issuer,
		"--type", "slsaprovenance1", "--use-signed-timestamps", "--insecure-ignore-sct", q.artifact}
}

func sigstoreGo(q question) error {
	b, err := bundle.LoadJSONFromPath(q.bundle)
	if err != nil {
		return err
	}
	trusted, err := root.NewTrustedRootFromPath(q.root)
	if err != nil {
		return err
	}
	v, err := verify.NewVerifier(trusted, verify.WithSignedTimestamps(1), verify.WithTransparencyLog(1))
	if err != nil {
		return err
	}
	identity, err := verify.NewShortCertificateIdentity(q.issuer, "", q.identity, "")
	if err != nil {
		return err
	}
	content, err := os.ReadFile(q.artifact)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(content)
	_, err = v.Verify(b, verify.NewPolicy(verify.WithArtifactDigest("sha256", digest[:]), verify.WithCertificateIdentity(identity)))
	return err
}

// errRefused is a program's "no"; any other error is the test's own.
var errRefused = errors.New("refused")

// run runs a verifier. A name with a slash is below the module's root.
func run(ctx context.Context, t *testing.T, name string, args ...string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if strings.Contains(name, "/") {
		name = module(t, name)
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "NODE_PATH="+filepath.Join(module(t, ".cache"), "sigstore-js", "node_modules"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return fmt.Errorf("%w: exit status %d: %s", errRefused, exit.ExitCode(), out)
	}
	t.Fatalf("%s: %v\nhint: make build peers", name, err)
	return err
}

// module is a path below the module's root.
func module(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}
