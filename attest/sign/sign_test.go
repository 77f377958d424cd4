package sign_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/sign"
	"hallmark.build/sandbox/record"
)

const (
	issuer    = "https://ci.example.com/hallmark"
	builderID = "https://ci.example.com/hallmark/hermetic"
)

func open(t testing.TB, dir string, now func() time.Time) *sign.Signer {
	t.Helper()
	s, err := sign.Open(t.Context(), sign.Options{Dir: dir, Issuer: issuer, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// statement is about the given file, whose content is "content".
func statement(t testing.TB, events []attesttest.Event, builder string) attest.Statement {
	t.Helper()
	entries, err := attesttest.Entries(attesttest.Start(), events)
	if err != nil {
		t.Fatal(err)
	}
	all, err := attest.Statements(entries, attest.Facts{BuilderID: builder, GitLabURL: "https://gitlab.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	return all[0]
}

func job() []attesttest.Event {
	events := attesttest.Job()
	for i, ev := range events {
		if u, ok := ev.Data.(record.Upload); ok {
			u.Entries[1].SHA256 = attesttest.SHA256("content")
			events[i].Data = u
		}
	}
	return events
}

func signed(t testing.TB, s *sign.Signer) []byte {
	t.Helper()
	b, err := s.Sign(t.Context(), statement(t, job(), builderID))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rootOf(s *sign.Signer) ([]byte, error) {
	trusted, err := s.Trusted()
	if err != nil {
		return nil, err
	}
	return sign.EncodeTrustedRoot(trusted)
}

// check verifies a bundle as an auditor would with sigstore-go.
func check(s *sign.Signer, bundleJSON []byte, builder, issuer string, content string) error {
	rootJSON, err := rootOf(s)
	if err != nil {
		return err
	}
	return checkRoot(rootJSON, bundleJSON, builder, issuer, content)
}

func checkRoot(rootJSON, bundleJSON []byte, builder, issuer, content string) error {
	trusted, err := root.NewTrustedRootFromJSON(rootJSON)
	if err != nil {
		return fmt.Errorf("trusted root: %w", err)
	}
	var b bundle.Bundle
	if err := b.UnmarshalJSON(bundleJSON); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	v, err := verify.NewVerifier(trusted, verify.WithSignedTimestamps(1))
	if err != nil {
		return err
	}
	id, err := verify.NewShortCertificateIdentity(issuer, "", builder, "")
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(content))
	res, err := v.Verify(&b, verify.NewPolicy(verify.WithArtifactDigest("sha256", sum[:]), verify.WithCertificateIdentity(id)))
	if err != nil {
		return err
	}
	if res.Statement.GetPredicateType() != attest.PredicateType {
		return errors.New("another predicate type")
	}
	return nil
}

func TestSignedBundleVerifies(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	if err := check(s, signed(t, s), builderID, issuer, "content"); err != nil {
		t.Fatal(err)
	}
}

func TestVerifiesAfterLeafEnded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	open(t, dir, func() time.Time { return time.Now().Add(-48 * time.Hour) })
	s := open(t, dir, func() time.Time { return time.Now().Add(-24 * time.Hour) })
	if err := check(s, signed(t, s), builderID, issuer, "content"); err != nil {
		t.Fatal(err)
	}
}

func TestOtherExpectationsAreRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	other := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	b := signed(t, s)
	for name, err := range map[string]error{
		"builder":      check(s, b, "https://ci.example.com/hallmark/firewalled", issuer, "content"),
		"builder case": check(s, b, strings.ToUpper(builderID), issuer, "content"),
		"issuer":       check(s, b, builderID, issuer+"/", "content"),
		"artifact":     check(s, b, builderID, issuer, "Content"),
		"root":         check(other, b, builderID, issuer, "content"),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// mutate changes each string of a JSON document in turn, and calls f with what
// it makes. Base64 is changed in one bit near its start, middle and end.
func mutate(t *testing.T, doc []byte, f func(path string, mutant []byte)) {
	t.Helper()
	var v any
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	emit := func(path string) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		f(path, text)
	}
	var walk func(path string, v any, set func(any))
	walk = func(path string, v any, set func(any)) {
		switch x := v.(type) {
		case map[string]any:
			for name, member := range x {
				walk(path+"."+name, member, func(n any) { x[name] = n })
				delete(x, name)
				emit(path + "." + name + " removed")
				x[name] = member
			}
		case []any:
			for i, member := range x {
				walk(fmt.Sprintf("%s[%d]", path, i), member, func(n any) { x[i] = n })
			}
			set([]any{})
			emit(path + " emptied")
			set(append(append([]any{}, x...), x...))
			emit(path + " doubled")
			set(x)
		case string:
			for name, m := range mutants(x) {
				set(m)
				emit(path + " " + name)
			}
			set(x)
		}
	}
	walk("", v, func(any) {})
}

func mutants(s string) map[string]string {
	out := map[string]string{"cleared": "", "changed": s + "x"}
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) < 16 {
		return out
	}
	for _, i := range []int{0, 5, len(raw) / 3, len(raw) / 2, len(raw) - 1} {
		flipped := bytes.Clone(raw)
		flipped[i] ^= 1
		out[fmt.Sprintf("bit of byte %d", i)] = base64.StdEncoding.EncodeToString(flipped)
	}
	out["cut"] = base64.StdEncoding.EncodeToString(raw[:len(raw)-1])
	out["longer"] = base64.StdEncoding.EncodeToString(append(raw, 0))
	return out
}

// TestMutantsAreRefused changes each field of a bundle. The only fields that do
// not matter are those that repeat what is authenticated elsewhere.
func TestMutantsAreRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	n := 0
	mutate(t, signed(t, s), func(path string, mutant []byte) {
		n++
		err := check(s, mutant, builderID, issuer, "content")
		switch {
		case err != nil:
		case strings.HasPrefix(path, ".verificationMaterial.timestampVerificationData.rfc3161Timestamps doubled"):
			// Counted once: still one timestamp of one authority.
		default:
			t.Errorf("%s: accepted", path)
		}
	})
	if n < 40 {
		t.Errorf("%d mutants only", n)
	}
}

// TestPartsOfOthers puts parts of one bundle into another.
func TestPartsOfOthers(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	a := signed(t, s)
	events := job()
	events[len(events)-1].Data = record.Closing{Result: "canceled"}
	b, err := s.Sign(t.Context(), statement(t, events, builderID))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range [][]string{
		{"dsseEnvelope", "payload"},
		{"dsseEnvelope", "signatures"},
		{"dsseEnvelope"},
		{"verificationMaterial", "timestampVerificationData"},
	} {
		var into, from map[string]any
		if err := errors.Join(json.Unmarshal(a, &into), json.Unmarshal(b, &from)); err != nil {
			t.Fatal(err)
		}
		dst, src := into, from
		for _, p := range path[:len(path)-1] {
			dst, src = dst[p].(map[string]any), src[p].(map[string]any)
		}
		dst[path[len(path)-1]] = src[path[len(path)-1]]
		mixed, err := json.Marshal(into)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(s, mixed, builderID, issuer, "content"); err == nil {
			t.Errorf("%v of another bundle: accepted", path)
		}
	}
}

func TestPayloadIsTheStatement(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	st := statement(t, job(), builderID)
	text, err := s.Sign(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	var b struct {
		MediaType    string `json:"mediaType"`
		DSSEEnvelope struct {
			Payload     []byte `json:"payload"`
			PayloadType string `json:"payloadType"`
			Signatures  []any  `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.DSSEEnvelope.Payload, st.JSON) {
		t.Error("payload is not the statement's bytes")
	}
	if b.DSSEEnvelope.PayloadType != "application/vnd.in-toto+json" || len(b.DSSEEnvelope.Signatures) != 1 ||
		b.MediaType != "application/vnd.dev.sigstore.bundle.v0.3+json" {
		t.Errorf("payload type %q, %d signatures, media type %q", b.DSSEEnvelope.PayloadType, len(b.DSSEEnvelope.Signatures), b.MediaType)
	}
}

func TestForeignStatementsAreNotSigned(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	st := statement(t, job(), builderID)
	changed := st
	changed.JSON = bytes.Replace(bytes.Clone(st.JSON), []byte(`"success"`), []byte(`"Success"`), 1)
	renamed := st
	renamed.BuilderID = "https://ci.example.com/hallmark/firewalled"
	for name, foreign := range map[string]attest.Statement{
		"empty": {}, "by hand": {JSON: st.JSON, Subjects: st.Subjects, BuilderID: st.BuilderID}, "changed": changed, "renamed": renamed,
	} {
		if _, err := s.Sign(t.Context(), foreign); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestOddBuilderIDsAreNotSigned(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	for _, id := range []string{"ci/hermetic", "https:///hermetic", "https://ci.example.com/ä/hermetic", "https://ci.example.com/a b/hermetic"} {
		if _, err := s.Sign(t.Context(), statement(t, job(), id)); err == nil {
			t.Errorf("%q: signed", id)
		}
	}
}

func TestCanceled(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sign(ctx, statement(t, job(), builderID)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestKeysStay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	first := open(t, dir, nil)
	second := open(t, dir, nil)
	if err := check(second, signed(t, first), builderID, issuer, "content"); err != nil {
		t.Fatal(err)
	}
	a, err := rootOf(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := rootOf(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("the trusted root changed")
	}
}

func TestFirstUseByMany(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	var (
		wg    sync.WaitGroup
		roots [8]string
	)
	for i := range roots {
		wg.Go(func() {
			s, err := sign.Open(t.Context(), sign.Options{Dir: dir, Issuer: issuer})
			if err != nil {
				t.Error(err)
				return
			}
			text, err := rootOf(s)
			if err != nil {
				t.Error(err)
			}
			roots[i] = string(text)
		})
	}
	wg.Wait()
	for _, r := range roots {
		if r != roots[0] {
			t.Fatal("two identities")
		}
	}
}

func TestIssuerRequired(t *testing.T) {
	if _, err := sign.Open(t.Context(), sign.Options{Dir: filepath.Join(t.TempDir(), "keys")}); err == nil {
		t.Error("opened")
	}
}

func cosign(t *testing.T) string {
	t.Helper()
	made, err := filepath.Abs("../../.cache/bin/cosign")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{os.Getenv("COSIGN"), filepath.Join(os.Getenv("HALLMARK_BIN"), "cosign"), made} {
		if _, err := os.Stat(name); err == nil && filepath.IsAbs(name) {
			return name
		}
	}
	name, err := exec.LookPath("cosign")
	if err != nil {
		t.Fatal("no cosign: run `make tools`, set COSIGN or HALLMARK_BIN, or put it on PATH")
	}
	return name
}

// TestCosign runs the command that the documentation shows.
func TestCosign(t *testing.T) {
	bin := cosign(t)
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "keys"), nil)
	rootJSON, err := rootOf(s)
	if err != nil {
		t.Fatal(err)
	}
	good := signed(t, s)
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	rootFile, artifact := write("root.json", rootJSON), write("app", []byte("content"))
	run := func(bundle []byte, identity, artifact string) error {
		cmd := exec.Command(bin, "verify-blob-attestation", "--bundle", write("bundle.json", bundle), "--trusted-root", rootFile,
			"--certificate-identity", identity, "--certificate-oidc-issuer", issuer, "--type", "slsaprovenance1",
			"--insecure-ignore-tlog", "--insecure-ignore-sct", "--use-signed-timestamps", artifact)
		cmd.Env = append(os.Environ(), "HOME="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := run(good, builderID, artifact); err != nil {
		t.Fatal(err)
	}
	if run(good, builderID+"x", artifact) == nil {
		t.Error("another identity: accepted")
	}
	if run(good, builderID, write("evil", []byte("Content"))) == nil {
		t.Error("another artifact: accepted")
	}
	mutate(t, good, func(path string, mutant []byte) {
		if strings.HasSuffix(path, "rfc3161Timestamps doubled") {
			return // see TestMutantsAreRefused
		}
		if run(mutant, builderID, artifact) == nil {
			t.Errorf("%s: accepted", path)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprintf("deps=%d", n), func(b *testing.B) {
			s := open(b, filepath.Join(b.TempDir(), "keys"), nil)
			st := statement(b, attesttest.Dependencies(n), "https://ci.example.com/hallmark/firewalled")
			b.SetBytes(int64(len(st.JSON)))
			for b.Loop() {
				if _, err := s.Sign(b.Context(), st); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestLeaf(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "keys"), nil)
	var b bundle.Bundle
	if err := b.UnmarshalJSON(signed(t, s)); err != nil {
		t.Fatal(err)
	}
	content, err := b.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	leaf := content.Certificate()
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life != 10*time.Minute {
		t.Errorf("leaf lives %s", life)
	}
	if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != builderID || len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) != 0 {
		t.Errorf("leaf names %v, or is a ca", leaf.URIs)
	}
	for oid, want := range map[string]string{
		"1.3.6.1.4.1.57264.1.1": hex.EncodeToString([]byte(issuer)),
		"1.3.6.1.4.1.57264.1.8": fmt.Sprintf("0c%02x%x", len(issuer), issuer),
	} {
		have := ""
		for _, e := range leaf.Extensions {
			if e.Id.String() == oid {
				have = hex.EncodeToString(e.Value)
			}
		}
		if have != want {
			t.Errorf("%s is %s, want %s", oid, have, want)
		}
	}
}
