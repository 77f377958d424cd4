package forgery

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/sign"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
)

// attestd runs a command of the authority's, of two words, as its user.
func attestd(t *testing.T, args ...string) string {
	t.Helper()
	args = slices.Insert(args, 2, "-config", "/etc/hallmark/attestd.toml")
	cmd := exec.CommandContext(harness.Within(t, time.Minute), "/usr/lib/hallmark/hallmark-attestd", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: world.AttestdUID, Gid: world.AttestdUID}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("hallmark-attestd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// generation is the key of a role that signs now.
func generation(t *testing.T, role string) string {
	t.Helper()
	for line := range strings.Lines(attestd(t, "keys", "list")) {
		if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[0], role) && f[3] == "signs" {
			return f[0]
		}
	}
	t.Fatalf("no key of %s signs", role)
	return ""
}

// Cases 9, 37 and 38. A thief has copied every key of the authority. The admin
// goes through the drill while the daemon runs. What was signed before the theft
// stays good, what is signed since has new keys, and the thief's signatures are
// refused: those of today by the keys' windows, those that he dates back by the
// log, which they are not in. The log is proven throughout.
//
// Keys change below all jobs, so it runs before the tests that run together.
func TestSignWithStolenKeys(t *testing.T) {
	honest := build(t, harness.Hermetic("echo before > out.txt"))
	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(2 * time.Second))) // timestamps count seconds
	lost := time.Now().Truncate(time.Second)

	loot := filepath.Join(t.TempDir(), "keys")
	if err := os.CopyFS(loot, os.DirFS(filepath.Join(stateDir, "keys"))); err != nil {
		t.Fatal(err)
	}
	err := filepath.Walk(loot, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(path, map[bool]os.FileMode{true: 0o700, false: 0o600}[info.IsDir()])
	})
	if err != nil {
		t.Fatal(err)
	}
	thief := func(now time.Time) string {
		t.Helper()
		s, err := sign.Open(t.Context(), sign.Options{Dir: loot, Issuer: world.BuilderURI, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		p := predicate(t, honest.attestation)
		statements, err := attest.Statements(harness.Evidence(t, honest.result), attest.Facts{
			BuilderID: p.RunDetails.Builder.ID, BuilderVersion: p.RunDetails.Builder.Version, GitLabURL: "https://" + world.GitLabName,
		})
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := s.Sign(t.Context(), statements[0])
		if err != nil {
			t.Fatal(err)
		}
		return harness.Keep(t, "stolen.json", bundle)
	}

	ca, tsa := generation(t, "ca"), generation(t, "timestamp")
	attestd(t, "keys", "rotate", "ca")
	attestd(t, "keys", "rotate", "timestamp")
	attestd(t, "keys", "revoke", "-lost", lost.UTC().Format(time.RFC3339), ca)
	attestd(t, "keys", "revoke", "-lost", lost.UTC().Format(time.RFC3339), tsa)

	root := harness.TrustedRoot(t)
	if out, code := honest.verify(t, honest.bundle, root, honest.policy); code != 0 {
		t.Errorf("what was signed before the theft: exit %d\n%s", code, out)
	}
	honest.refused(t, thief(time.Now()), root, honest.policy, "FAIL")
	honest.refused(t, thief(lost.Add(-time.Second)), root, honest.policy, "FAIL         log")
	after := build(t, harness.Hermetic("echo after > out.txt"))
	if out, code := after.verify(t, after.bundle, root, after.policy); code != 0 {
		t.Errorf("what was signed after the drill: exit %d\n%s", code, out)
	}
	if out := attestd(t, "log", "verify"); !strings.Contains(out, "proven; bundles with their entry: ") {
		t.Errorf("hallmark-attestd log verify: %s", out)
	}
}
