package sigstore

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// publish puts the trusted root and the signing configuration into a TUF
// repository and serves it.
func (s *Sigstore) publish() error {
	dir := s.file("tuf")
	targets := metadata.Targets(time.Now().Add(24 * time.Hour))
	for _, file := range []string{s.TrustedRoot, s.SigningConfig} {
		target, err := metadata.TargetFile().FromFile(file, "sha256")
		if err != nil {
			return err
		}
		name := filepath.Base(file)
		targets.Signed.Targets[name] = target
		if err := copyFile(file, filepath.Join(dir, "targets", target.Hashes["sha256"].String()+"."+name)); err != nil {
			return err
		}
	}
	if err := writeRoles(dir, targets); err != nil {
		return err
	}
	s.TUFRoot = filepath.Join(dir, "1.root.json")
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	s.servers = append(s.servers, server)
	s.TUFURL = server.URL
	return nil
}

// writeRoles signs all roles, each with a key of its own, under a new root.
func writeRoles(dir string, targets *metadata.Metadata[metadata.TargetsType]) error {
	expires := time.Now().Add(24 * time.Hour)
	root, snapshot, timestamp := metadata.Root(expires), metadata.Snapshot(expires), metadata.Timestamp(expires)
	signers := map[string]signature.Signer{}
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		key, err := metadata.KeyFromPublicKey(private.Public())
		if err != nil {
			return err
		}
		if err := root.Signed.AddKey(key, role); err != nil {
			return err
		}
		if signers[role], err = signature.LoadSigner(private, crypto.Hash(0)); err != nil {
			return err
		}
	}
	for _, role := range []struct {
		name, file string
		sign       func(signature.Signer) (*metadata.Signature, error)
		write      func(string, bool) error
	}{
		{"root", "1.root.json", root.Sign, root.ToFile},
		{"targets", "1.targets.json", targets.Sign, targets.ToFile},
		{"snapshot", "1.snapshot.json", snapshot.Sign, snapshot.ToFile},
		{"timestamp", "timestamp.json", timestamp.Sign, timestamp.ToFile},
	} {
		if _, err := role.sign(signers[role.name]); err != nil {
			return err
		}
		if err := role.write(filepath.Join(dir, role.file), false); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}
