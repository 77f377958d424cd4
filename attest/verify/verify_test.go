package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/policy"
	"hallmark.build/attest/verify/verifytest"
	"hallmark.build/sandbox/record"
)

func now() time.Time { return verifytest.SignedAt().Add(24 * time.Hour) }

func parsePolicy(t testing.TB, more ...string) policy.Policy {
	t.Helper()
	pol, err := policy.Parse([]byte(verifytest.Policy + strings.Join(more, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return pol
}

func judgeBundle(t testing.TB, a *verifytest.Authority, bundle []byte, more ...string) Verdict {
	t.Helper()
	return artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, parsePolicy(t, more...), a.TrustedRoot())
}

func status(v Verdict, name string) Status {
	for _, c := range v.Checks {
		if c.Name == name {
			return c.Status
		}
	}
	return ""
}

func dump(v Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", v.Outcome(), v.Reason)
	for _, c := range v.Checks {
		fmt.Fprintf(&b, "%-11s %-12s %s\n", c.Status, c.Name, c.Detail)
		for _, e := range c.Evidence {
			fmt.Fprintf(&b, "            %s\n", e)
		}
	}
	return b.String()
}

func TestVerified(t *testing.T) {
	a := verifytest.New(t)
	v := judgeBundle(t, a, a.Bundle(verifytest.Statement()))
	if !v.Verified() || v.Outcome() != Verified {
		t.Fatal(dump(v))
	}
	var asked []string
	for _, c := range v.Checks {
		if c.Required {
			asked = append(asked, c.Name)
		}
		if c.Required != (c.Status == Pass) {
			t.Errorf("%+v", c)
		}
	}
	want := "bundle signature timestamp certificate statement builder subject parameters source ref result completeness time"
	if got := strings.Join(asked, " "); got != want {
		t.Errorf("asked for %s", got)
	}
	if v.Claim == nil || v.Claim.JobID != "4711" || v.Claim.Commit != verifytest.Commit || !v.Claim.SignedAt.Equal(verifytest.SignedAt()) {
		t.Errorf("claim %+v", v.Claim)
	}
	if v.Bundle != 1 || v.Bundles != 1 || len(v.BundleDigest) != 64 || len(v.PolicyDigest) != 64 || len(v.TrustedRootDigest) != 64 {
		t.Errorf("%+v", v)
	}
}

func TestVerifiedUnderTheFullPolicy(t *testing.T) {
	a := verifytest.New(t)
	log := a.NewLog("log.example.com")
	a.Logs = []any{log.Trusted()}
	bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
		f.Leaf = mailLeaf("hallmark@ci.example.com", "https://login.example.com", f.SignedAt)
		f.LogEntries = func(s verifytest.Signed) []any {
			return []any{a.NewWitness("witness.example.com", 1).Cosign(log.Entry(s))}
		}
	})
	pol, err := policy.Parse([]byte(policy.Example()))
	if err != nil {
		t.Fatal(err)
	}
	v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, pol, a.TrustedRoot())
	if !v.Verified() {
		t.Fatal(dump(v))
	}
	for _, c := range v.Checks {
		if c.Status != Pass {
			t.Errorf("%+v", c)
		}
	}
}

// mailLeaf is the certificate of a signer that is known by a mail address.
func mailLeaf(address, issuer string, at time.Time) *x509.Certificate {
	leaf := verifytest.LeafTemplate("https://none.example", issuer, at)
	leaf.URIs, leaf.EmailAddresses = nil, []string{address}
	return leaf
}

func TestVerifiedWithIntermediateAndLargeStatement(t *testing.T) {
	a := verifytest.New(t).WithIntermediate(verifytest.SignedAt().Add(-time.Hour), verifytest.SignedAt().Add(time.Hour))
	bundle := a.Bundle(verifytest.Statement(func(s map[string]any) {
		def := verifytest.At(s, "predicate", "buildDefinition")
		deps := def["resolvedDependencies"].([]any)
		for i := range 5000 {
			deps = append(deps, map[string]any{
				"uri": fmt.Sprintf("https://proxy.example.com/%d", i), "digest": map[string]any{"sha256": strings.Repeat("4", 64)},
			})
		}
		def["resolvedDependencies"] = deps
		for i := range 1022 {
			s["subject"] = append(s["subject"].([]any), map[string]any{
				"name": fmt.Sprintf("f%d", i), "digest": map[string]any{"sha256": strings.Repeat("5", 64)},
			})
		}
	}))
	if v := judgeBundle(t, a, bundle, `allowed_input_hosts = "proxy.example.com"`); !v.Verified() {
		t.Fatal(dump(v))
	}
}

// edit changes a statement, forge how it is signed.
type (
	edit  = func(s map[string]any)
	forge = func(f *verifytest.Forgery)
)

func set(value any, path ...string) edit {
	return func(s map[string]any) {
		at := verifytest.At(s, path[:len(path)-1]...)
		if value == nil {
			delete(at, path[len(path)-1])
			return
		}
		at[path[len(path)-1]] = value
	}
}

func dep(i int, value any, key string) edit {
	return func(s map[string]any) {
		d := verifytest.At(s, "predicate", "buildDefinition")["resolvedDependencies"].([]any)[i].(map[string]any)
		d[key] = value
	}
}

func external(key string, value any) edit {
	return set(value, "predicate", "buildDefinition", "externalParameters", key)
}

func subject(i int, key string, value any) edit {
	return func(s map[string]any) {
		s["subject"].([]any)[i].(map[string]any)[key] = value
	}
}

func all(edits ...edit) edit {
	return func(s map[string]any) {
		for _, e := range edits {
			e(s)
		}
	}
}

func hash() string { return fmt.Sprintf("%x", sha256.Sum256(verifytest.Artifact())) }

// TestEachCheckFailsAlone changes one thing about a sound bundle and expects one
// check to fail, and every other to pass or not to be made.
func TestEachCheckFailsAlone(t *testing.T) {
	stranger := verifytest.New(t)
	for _, tt := range []struct {
		name, check, detail string
		edit                edit
		forge               forge
		policy              string
	}{
		// bundle
		{name: "media type v0.2", check: "bundle", detail: "media type", forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.2" }
		}},
		{name: "unknown key", check: "bundle", detail: `unknown key "note"`, forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { b["note"] = "x" }
		}},
		{name: "key of another case", check: "bundle", detail: `key "MediaType": want "mediaType"`, forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { b["MediaType"] = b["mediaType"]; delete(b, "mediaType") }
		}},
		{name: "protobuf's name of a key", check: "bundle", detail: `unknown key "media_type"`, forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { b["media_type"] = b["mediaType"]; delete(b, "mediaType") }
		}},
		{name: "two signatures", check: "bundle", detail: "2 signatures", forge: envelope(func(e map[string]any) {
			e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0])
		})},
		{name: "no signature", check: "bundle", detail: "0 signatures", forge: envelope(func(e map[string]any) { e["signatures"] = []any{} })},
		{name: "empty signature", check: "bundle", detail: "the signature is empty", forge: envelope(func(e map[string]any) {
			e["signatures"] = []any{map[string]any{"sig": ""}}
		})},
		{name: "key id", check: "bundle", detail: "key id", forge: envelope(func(e map[string]any) {
			e["signatures"].([]any)[0].(map[string]any)["keyid"] = "prod"
		})},
		{name: "base64 with a newline", check: "bundle", detail: "line breaks", forge: envelope(func(e map[string]any) {
			e["payload"] = e["payload"].(string)[:8] + "\n" + e["payload"].(string)[8:]
		})},
		{name: "url base64", check: "bundle", detail: "illegal base64", forge: envelope(func(e map[string]any) {
			e["payload"] = "_" + e["payload"].(string)[1:]
		})},
		{name: "no envelope", check: "bundle", detail: "no DSSE envelope", forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { delete(b, "dsseEnvelope") }
		}},
		{name: "message signature", check: "bundle", detail: "signs bytes", forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { b["messageSignature"] = map[string]any{"signature": "AA=="} }
		}},
		{name: "public key", check: "bundle", detail: "public key", forge: material(func(m map[string]any) {
			delete(m, "certificate")
			m["publicKey"] = map[string]any{"hint": "x"}
		})},
		{name: "chain", check: "bundle", detail: "chain", forge: material(func(m map[string]any) {
			m["x509CertificateChain"] = map[string]any{"certificates": []any{m["certificate"]}}
			delete(m, "certificate")
		})},
		{name: "no certificate", check: "bundle", detail: "no certificate", forge: material(func(m map[string]any) { delete(m, "certificate") })},
		{name: "no material", check: "bundle", detail: "no verification material", forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { delete(b, "verificationMaterial") }
		}},
		{name: "garbled certificate", check: "bundle", detail: "certificate:", forge: material(func(m map[string]any) {
			m["certificate"] = map[string]any{"rawBytes": "AAAA"}
		})},
		{name: "a million log entries", check: "bundle", detail: "log entries", forge: material(func(m map[string]any) {
			m["tlogEntries"] = make([]struct{}, 1_000_000)
		})},
		{name: "empty log entry", check: "bundle", detail: "names no log", forge: material(func(m map[string]any) { m["tlogEntries"] = []any{map[string]any{}} })},
		{name: "too many timestamps", check: "bundle", detail: "9 timestamps", forge: func(f *verifytest.Forgery) {
			f.Timestamps = func(tok []byte) [][]byte { return slices.Repeat([][]byte{tok}, 9) }
		}},
		{name: "depth", check: "bundle", detail: "nested deeper", forge: func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) {
				b["messageSignature"] = json.RawMessage(strings.Repeat("[", 100) + strings.Repeat("]", 100))
			}
		}},

		// signature
		{name: "other payload", check: "signature", detail: "does not verify", forge: func(f *verifytest.Forgery) {
			f.Payload = func(p []byte) []byte { return bytes.Replace(p, []byte("acme/app"), []byte("evil/app"), 1) }
		}},
		{name: "payload with white space", check: "signature", detail: "does not verify", forge: func(f *verifytest.Forgery) {
			f.Payload = func(p []byte) []byte { return append(p, '\n') }
		}},
		{name: "other signature", check: "signature", detail: "does not verify", forge: func(f *verifytest.Forgery) {
			f.Signature = func(sig []byte) []byte { sig[len(sig)-1] ^= 1; return sig }
		}},
		{name: "other payload type in the envelope", check: "signature", detail: "does not verify", forge: envelope(func(e map[string]any) {
			e["payloadType"] = "application/json"
		})},
		{name: "P-384", check: "signature", detail: "not ECDSA P-256", forge: func(f *verifytest.Forgery) {
			f.LeafKey = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
		}},
		{name: "Ed25519", check: "signature", detail: "not ECDSA P-256", forge: func(f *verifytest.Forgery) {
			f.LeafKey = ed25519Key{must2(ed25519.GenerateKey(rand.Reader))}
		}},

		// timestamp
		{name: "no timestamp", check: "timestamp", detail: "no RFC 3161 timestamp", forge: func(f *verifytest.Forgery) {
			f.Timestamps = func([]byte) [][]byte { return nil }
		}},
		{name: "timestamp of another signature", check: "timestamp", detail: "not of this signature", forge: func(f *verifytest.Forgery) {
			f.Stamped = func([]byte) []byte { return []byte("another signature") }
		}},
		{name: "untrusted timestamp authority with its certificate in the token", check: "timestamp", detail: "not of this signature by a trusted authority", forge: func(f *verifytest.Forgery) {
			f.TSA = &stranger.TSA
		}},
		{name: "same timestamp twice", check: "timestamp", detail: "not each of 2", forge: func(f *verifytest.Forgery) {
			f.Timestamps = func(tok []byte) [][]byte { return [][]byte{tok, tok} }
		}},
		{name: "second timestamp is junk", check: "timestamp", detail: "not each of 2", forge: func(f *verifytest.Forgery) {
			f.Timestamps = func(tok []byte) [][]byte { return [][]byte{tok, []byte("junk")} }
		}},
		{name: "empty timestamp", check: "timestamp", detail: "not of this signature", forge: func(f *verifytest.Forgery) {
			f.Timestamps = func([]byte) [][]byte { return [][]byte{{}} }
		}},
		{name: "timestamp before the authority's own certificate", check: "timestamp", detail: "not of this signature", forge: func(f *verifytest.Forgery) {
			f.SignedAt = time.Date(2025, 12, 31, 0, 0, 0, 0, time.UTC)
		}},

		// certificate
		{name: "signed after the certificate's end", check: "certificate", detail: "no chain", forge: func(f *verifytest.Forgery) {
			f.SignedAt = f.SignedAt.Add(11 * time.Minute)
		}},
		{name: "signed before the certificate's start", check: "certificate", detail: "no chain", forge: func(f *verifytest.Forgery) {
			f.SignedAt = f.SignedAt.Add(-time.Second)
		}},
		{name: "unknown authority", check: "certificate", detail: "no chain", forge: func(f *verifytest.Forgery) { f.Parent = &stranger.Root }},
		{name: "self-signed", check: "certificate", detail: "no chain", forge: func(f *verifytest.Forgery) { f.Parent = nil }},
		{name: "not for code signing", check: "certificate", detail: "no chain", forge: func(f *verifytest.Forgery) {
			f.Leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}},
		{name: "not for signatures", check: "certificate", detail: "not for signatures", forge: func(f *verifytest.Forgery) {
			f.Leaf.KeyUsage = x509.KeyUsageKeyEncipherment
		}},
		{name: "an authority's certificate", check: "certificate", detail: "that of an authority", forge: func(f *verifytest.Forgery) {
			f.Leaf.IsCA, f.Leaf.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
		}},
		{name: "two identities", check: "certificate", detail: "names 2 identities", forge: func(f *verifytest.Forgery) {
			f.Leaf.URIs = append(f.Leaf.URIs, must(url.Parse("https://ci.example.com/hallmark/firewalled")))
		}},
		{name: "URI and mail address", check: "certificate", detail: "names 2 identities", forge: func(f *verifytest.Forgery) {
			f.Leaf.EmailAddresses = []string{"a@example.com"}
		}},
		{name: "host name", check: "certificate", detail: "neither a URI nor a mail address", forge: func(f *verifytest.Forgery) {
			f.Leaf.URIs, f.Leaf.DNSNames = nil, []string{"ci.example.com"}
		}},
		{name: "builder id as a mail address", check: "certificate", detail: "not of the kind", forge: func(f *verifytest.Forgery) {
			f.Leaf.URIs, f.Leaf.EmailAddresses = nil, []string{verifytest.BuilderID}
		}},
		{name: "mail address as a URI", check: "certificate", detail: "not of the kind", forge: func(f *verifytest.Forgery) {
			f.Leaf.URIs = []*url.URL{{Path: "a@example.com"}}
		}},
		{name: "no identity", check: "certificate", detail: "names no identity", forge: func(f *verifytest.Forgery) { f.Leaf.URIs = nil }},
		{name: "no issuer", check: "certificate", detail: "names no issuer", forge: func(f *verifytest.Forgery) { f.Leaf.ExtraExtensions = nil }},
		{name: "two issuers", check: "certificate", detail: "two different issuers", forge: func(f *verifytest.Forgery) {
			f.Leaf.ExtraExtensions[0].Value = []byte("https://other.example.com")
		}},
		{name: "garbled issuer", check: "certificate", detail: "issuer does not parse", forge: func(f *verifytest.Forgery) {
			f.Leaf.ExtraExtensions[1].Value = []byte("https://ci.example.com/hallmark")
		}},

		// log
		{name: "entry of no trusted log", check: "log", detail: "not each entry", forge: func(f *verifytest.Forgery) {
			f.LogEntries = func(s verifytest.Signed) []any { return []any{stranger.NewLog("log.example.com").Entry(s)} }
		}},

		// statement
		{name: "other payload type", check: "statement", detail: "payload type", forge: func(f *verifytest.Forgery) { f.PayloadType = "application/json" }},
		{name: "_type v0.1", check: "statement", detail: "_type", edit: set("https://in-toto.io/Statement/v0.1", "_type")},
		{name: "_type with a slash", check: "statement", detail: "_type", edit: set("https://in-toto.io/Statement/v1/", "_type")},
		{name: "predicate type", check: "statement", detail: "predicateType", edit: set("https://slsa.dev/provenance/v0.2", "predicateType")},
		{name: "build type", check: "statement", detail: "buildType", edit: set("https://hallmark.build/gitlab-job/v2", "predicate", "buildDefinition", "buildType")},
		{name: "no invocation id", check: "statement", detail: "invocation id", edit: set("", "predicate", "runDetails", "metadata", "invocationId")},
		{name: "subject twice", check: "statement", detail: "is there twice", edit: subject(0, "name", "dist/app")},
		{name: "subject without a name", check: "statement", detail: "without a name", edit: subject(0, "name", "")},
		{name: "subject without a digest", check: "statement", detail: "has no digest", edit: subject(0, "digest", map[string]any{})},
		{name: "subject of unknown algorithm", check: "statement", detail: "no digest that is known", edit: subject(0, "digest", map[string]any{"md5": "00"})},
		{name: "short digest", check: "statement", detail: "lower-case hex", edit: subject(0, "digest", map[string]any{"sha256": "11"})},
		{name: "time with an offset", check: "statement", detail: "RFC 3339 in UTC", edit: set("2026-11-22T10:00:00+00:00", "predicate", "runDetails", "metadata", "startedOn")},
		{name: "too many subjects", check: "statement", detail: "more than 1024", edit: func(s map[string]any) {
			for i := range 1023 {
				s["subject"] = append(s["subject"].([]any), map[string]any{"name": fmt.Sprint(i), "digest": map[string]any{"sha256": strings.Repeat("0", 64)}})
			}
		}},

		// builder
		{name: "signer of another mode", check: "builder", detail: "another builder than the one that signed", forge: identity("https://ci.example.com/hallmark/firewalled")},
		{name: "statement of another mode", check: "builder", detail: "another builder than the one that signed", edit: set("https://ci.example.com/hallmark/firewalled", "predicate", "runDetails", "builder", "id")},
		{name: "builder with a slash", check: "builder", detail: "another builder", edit: set(verifytest.BuilderID+"/", "predicate", "runDetails", "builder", "id")},
		{name: "builder in another case", check: "builder", detail: "another builder", edit: set("https://CI.example.com/hallmark/hermetic", "predicate", "runDetails", "builder", "id")},
		{name: "builder percent-encoded", check: "builder", detail: "another builder", edit: set("https://ci.example.com/hallmark/%68ermetic", "predicate", "runDetails", "builder", "id")},
		{name: "builder not in the policy", check: "builder", detail: "not one that the policy accepts",
			forge: identity("https://staging.example.com/hallmark/hermetic"), edit: set("https://staging.example.com/hallmark/hermetic", "predicate", "runDetails", "builder", "id")},
		{name: "other issuer", check: "builder", detail: "issuer is not the policy's", forge: func(f *verifytest.Forgery) {
			f.Leaf = verifytest.LeafTemplate(f.Identity, "https://other.example.com", f.SignedAt)
		}},
		{name: "issuer that a pattern would match", check: "builder", detail: "issuer is not the policy's", forge: func(f *verifytest.Forgery) {
			f.Leaf = verifytest.LeafTemplate(f.Identity, strings.ReplaceAll(verifytest.Issuer, ".", "-"), f.SignedAt)
		}},
		{name: "issuer that goes on", check: "builder", detail: "issuer is not the policy's", forge: func(f *verifytest.Forgery) {
			f.Leaf = verifytest.LeafTemplate(f.Identity, verifytest.Issuer+".evil.example", f.SignedAt)
		}},
		{name: "other profile", check: "builder", detail: `not the builder of profile "firewalled"`, edit: external("profile", "firewalled")},

		// subject
		{name: "another artifact", check: "subject", detail: "not among its 2 outputs", edit: subject(1, "digest", map[string]any{"sha256": strings.Repeat("9", 64)})},
		{name: "a digest that cannot be compared", check: "subject", detail: "cannot be compared", edit: subject(1, "digest", map[string]any{"sha256": hash(), "sha512": strings.Repeat("0", 128)})},
		{name: "an unknown digest", check: "subject", detail: "cannot be compared", edit: subject(1, "digest", map[string]any{"sha256": hash(), "blake3": "00"})},
		{name: "another name", check: "subject", detail: "a name that the policy does not accept", policy: `subject = "dist/*.zip"`},

		// parameters
		{name: "unknown parameter", check: "parameters", detail: "does not know", edit: external("hallmark_new", "x")},
		{name: "unknown parameter within", check: "parameters", detail: "does not know", edit: external("image", map[string]any{"name": "x", "privileged": true})},

		// source
		{name: "other repository", check: "source", detail: "not a repository that the policy accepts", edit: all(
			external("source", "https://gitlab.example.com/evil/app.git"), dep(0, "git+https://gitlab.example.com/evil/app.git@refs/heads/main", "uri"))},
		{name: "repository without .git", check: "source", detail: "not a repository", edit: all(
			external("source", "https://gitlab.example.com/acme/app"), dep(0, "git+https://gitlab.example.com/acme/app@refs/heads/main", "uri"))},
		{name: "workspace differed", check: "source", detail: "was not the commit's", edit: set("mismatch", "predicate", "hallmark_source", "outcome")},
		{name: "workspace never compared", check: "source", detail: "was not the commit's", edit: set(nil, "predicate", "hallmark_source")},
		{name: "compared with another commit", check: "source", detail: "was compared with", edit: set(strings.Repeat("a", 40), "predicate", "hallmark_source", "commit")},
		{name: "another commit built", check: "source", detail: "the commit built is", edit: dep(0, map[string]any{"gitCommit": strings.Repeat("a", 40)}, "digest")},
		{name: "GitLab named another commit", check: "source", detail: "GitLab named aaaaaaaaaaaa", edit: set(strings.Repeat("a", 40), "predicate", "buildDefinition", "internalParameters", "gitlab", "sha")},
		{name: "source not listed", check: "source", detail: "listed 0 times", edit: dep(0, "git+https://gitlab.example.com/acme/app.git@refs/heads/other", "uri")},
		{name: "source listed twice", check: "source", detail: "listed 2 times", edit: func(s map[string]any) {
			def := verifytest.At(s, "predicate", "buildDefinition")
			deps := def["resolvedDependencies"].([]any)
			def["resolvedDependencies"] = append(deps, deps[0])
		}},

		// ref
		{name: "other branch", check: "ref", detail: "not a branch or tag that the policy accepts", edit: all(
			external("ref", "refs/heads/dev"), dep(0, "git+"+verifytest.Source+"@refs/heads/dev", "uri"))},
		{name: "tag of the branch's name", check: "ref", detail: "not a branch or tag", edit: all(
			external("ref", "refs/tags/main"), dep(0, "git+"+verifytest.Source+"@refs/tags/main", "uri"))},
		{name: "not protected", check: "ref", detail: "did not say that it is protected", policy: "require_protected = true",
			edit: set(false, "predicate", "buildDefinition", "internalParameters", "gitlab", "protected")},
		{name: "protection unknown", check: "ref", detail: "did not say that it is protected", policy: "require_protected = true",
			edit: set(nil, "predicate", "buildDefinition", "internalParameters", "gitlab", "protected")},

		// project
		{name: "other project", check: "project", detail: "not one that the policy accepts", policy: `project = "acme/*"`, edit: external("project", "evil/app")},

		// result
		{name: "failed", check: "result", detail: `ended as "failed"`, edit: set("failed", "predicate", "hallmark_result", "result")},
		{name: "canceled", check: "result", detail: `ended as "canceled"`, edit: set("canceled", "predicate", "hallmark_result", "result")},
		{name: "no result", check: "result", detail: `ended as ""`, edit: set(nil, "predicate", "hallmark_result")},
		{name: "success not accepted", check: "result", detail: `ended as "success"`, policy: `result = "failed"`},

		// completeness
		{name: "declared packages", check: "completeness", detail: "1 of 6", edit: set("declared", "predicate", "hallmark_completeness", "packages")},
		{name: "no word", check: "completeness", detail: "1 of 6", edit: set(nil, "predicate", "hallmark_completeness", "caches")},
		{name: "unknown word", check: "completeness", detail: "1 of 6", edit: set("Hermetic", "predicate", "hallmark_completeness", "files")},
		{name: "no completeness", check: "completeness", detail: "6 of 6", edit: set(nil, "predicate", "hallmark_completeness")},
		{name: "border where hermetic is wanted", check: "completeness", detail: "1 of 6", policy: "[completeness]\ncaches = 'hermetic'"},

		// images
		{name: "image from elsewhere", check: "images", detail: "1 of 1 are not from where", policy: `allowed_images = "registry.example.com/other/**"`},
		{name: "image by another digest", check: "images", detail: "1 of 1 are not named by digest", edit: dep(1, map[string]any{"sha256": strings.Repeat("6", 64)}, "digest")},
		{name: "services without an image", check: "images", detail: "asked for 1 services", edit: set([]any{map[string]any{"name": "redis"}}, "predicate", "buildDefinition", "externalParameters", "services")},
		{name: "image by tag", check: "images", detail: "not named by digest", edit: dep(1, "pkg:oci/go@1?repository_url=registry.example.com%2Fci%2Fgo", "uri")},
		{name: "image of two repositories", check: "images", detail: "not named by digest", edit: func(s map[string]any) {
			d := verifytest.At(s, "predicate", "buildDefinition")["resolvedDependencies"].([]any)[1].(map[string]any)
			d["uri"] = d["uri"].(string) + "&repository_url=evil.example.com%2Fgo"
		}},

		// inputs
		{name: "input from elsewhere", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "other.example.com"`},
		{name: "no input allowed", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = []`},
		{name: "input by an odd scheme", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "ftp://proxy.example.com/mod.zip", "uri")},
		{name: "input without a uri", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "", "uri")},
		{name: "submodule of unknown origin", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: func(s map[string]any) {
			dep(2, "", "uri")(s)
			dep(2, map[string]any{"gitCommit": strings.Repeat("c", 40), "gitTree": strings.Repeat("d", 40)}, "digest")(s)
		}},
		{name: "input with a user", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "https://proxy.example.com@evil.example/", "uri")},
		{name: "input on another port", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "https://proxy.example.com:8443/mod.zip", "uri")},
		{name: "git input from elsewhere", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "git+https://evil.example/x.git", "uri")},
		{name: "input redirected elsewhere", check: "inputs", detail: "1 of 3 came from a host", policy: `allowed_input_hosts = "proxy.example.com"`, edit: dep(2, "https://evil.example/mod.zip", "downloadLocation")},
		{name: "input without a digest", check: "inputs", detail: "1 of 3 have no usable digest", edit: dep(2, map[string]any{}, "digest")},
		{name: "input with an upper-case digest", check: "inputs", detail: "1 of 3 have no usable digest", edit: dep(2, map[string]any{"sha256": strings.Repeat("A", 64)}, "digest")},

		// time
		{name: "ended before it started", check: "time", detail: "before it started", edit: set("2026-11-22T09:00:00Z", "predicate", "runDetails", "metadata", "finishedOn")},
		{name: "signed before the job ended", check: "time", detail: "before the job ended", edit: set("2026-11-22T10:30:00Z", "predicate", "runDetails", "metadata", "finishedOn")},
		{name: "too old", check: "time", detail: "older than 23h0m0s", policy: `max_age = "23h"`},
		{name: "too young", check: "time", detail: "younger than 25h0m0s", policy: `min_age = "25h"`},
		{name: "signed in the future", check: "time", detail: "yet to come", forge: func(f *verifytest.Forgery) {
			f.SignedAt = f.SignedAt.AddDate(1, 0, 0)
			f.Leaf = verifytest.LeafTemplate(f.Identity, verifytest.Issuer, f.SignedAt)
		}},
	} {
		t.Run(tt.check+"/"+tt.name, func(t *testing.T) {
			a := verifytest.New(t)
			var edits []edit
			if tt.edit != nil {
				edits = append(edits, tt.edit)
			}
			var forges []forge
			if tt.forge != nil {
				forges = append(forges, tt.forge)
			}
			v := judgeBundle(t, a, a.Bundle(verifytest.Statement(edits...), forges...), tt.policy)
			if v.Verified() || v.Outcome() != Refused {
				t.Fatalf("accepted\n%s", dump(v))
			}
			for _, c := range v.Checks {
				switch {
				case c.Name == tt.check && (c.Status != Fail || !strings.Contains(c.Detail, tt.detail)):
					t.Errorf("%s is %s: %s, want %s", c.Name, c.Status, c.Detail, tt.detail)
				case c.Name != tt.check && c.Status == Fail:
					t.Errorf("%s fails too: %s", c.Name, c.Detail)
				}
			}
			if t.Failed() {
				t.Log(dump(v))
			}
		})
	}
}

func envelope(f func(e map[string]any)) forge {
	return func(g *verifytest.Forgery) {
		g.Bundle = func(b map[string]any) { f(b["dsseEnvelope"].(map[string]any)) }
	}
}

func material(f func(m map[string]any)) forge {
	return func(g *verifytest.Forgery) {
		g.Bundle = func(b map[string]any) { f(b["verificationMaterial"].(map[string]any)) }
	}
}

func identity(id string) forge {
	return func(f *verifytest.Forgery) {
		f.Identity = id
		f.Leaf = verifytest.LeafTemplate(id, verifytest.Issuer, f.SignedAt)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func must2[A, B any](_ A, v B, err error) B { return must(v, err) }

// ed25519Key signs what others sign, in its own way.
type ed25519Key struct{ ed25519.PrivateKey }

func (k ed25519Key) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	return ed25519.Sign(k.PrivateKey, message), nil
}

// TestPayloadThatIsNoStatement: a sound signature over something else. Other
// tools have said OK here, because reading the payload failed.
func TestPayloadThatIsNoStatement(t *testing.T) {
	a := verifytest.New(t)
	sound := string(verifytest.Statement())
	for name, payload := range map[string]string{
		"nothing":                       "",
		"not JSON":                      "hello",
		"null":                          "null",
		"a list":                        "[]",
		"an object":                     "{}",
		"two statements":                sound + sound,
		"cut off":                       sound[:len(sound)-1],
		"invalid UTF-8":                 strings.Replace(sound, "acme/app", "acme/\xff", 1),
		"duplicate key":                 strings.Replace(sound, `{"_type"`, `{"_type":"x","_type"`, 1),
		"duplicate subject":             strings.Replace(sound, `"subject":`, `"subject":[],"subject":`, 1),
		"duplicate key escaped":         strings.Replace(sound, `{"_type"`, `{"\u005ftype":"x","_type"`, 1),
		"duplicate key in a digest":     strings.Replace(sound, `"digest":{"sha256"`, `"digest":{"sha256":"00","sha256"`, 1),
		"duplicate key in the builder":  strings.Replace(sound, `"builder":{`, `"builder":{"id":"x",`, 1),
		"unknown key":                   strings.Replace(sound, `{"_type"`, `{"hallmark_x":1,"_type"`, 1),
		"key of another case":           strings.Replace(sound, `"subject":`, `"Subject":`, 1),
		"predicate of another case":     strings.Replace(sound, `"runDetails":`, `"rundetails":`, 1),
		"builder of another case":       strings.Replace(sound, `"builder":`, `"Builder":`, 1),
		"completeness of another case":  strings.Replace(sound, `"hallmark_completeness":`, `"Hallmark_completeness":`, 1),
		"second builder of other case":  strings.Replace(sound, `"builder":{`, `"BUILDER":{"id":"x"},"builder":{`, 1),
		"kelvin sign in place of a k":   strings.Replace(sound, `"hallmark_result":`, `"hallmar`+"\u212a"+`_result":`, 1),
		"subject with an unknown field": strings.Replace(sound, `"name":"dist/app"`, `"name":"dist/app","uri":"x"`, 1),
		"digest that is no string":      strings.Replace(sound, hash(), `"0`, 1),
		"subject is an object":          strings.Replace(sound, `"subject":[`, `"subject":{},"x":[`, 1),
		"deep":                          strings.Replace(sound, `"byproducts":[]`, `"byproducts":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000), 1),
		"no predicate":                  `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x"}`,
		"predicate is null":             `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x","predicate":null}`,
	} {
		t.Run(name, func(t *testing.T) {
			if payload == sound {
				t.Fatal("the edit changed nothing")
			}
			v := judgeBundle(t, a, a.Bundle([]byte(payload)))
			if v.Verified() || status(v, "signature") == Fail || status(v, "statement") == Pass {
				t.Error(dump(v))
			}
		})
	}
}

// TestParametersThatCannotBeRead: nothing is taken from them.
func TestParametersThatCannotBeRead(t *testing.T) {
	a := verifytest.New(t)
	for name, e := range map[string]edit{
		"a key of another case": external("Hooks", []any{}),
		"a value's type":        external("variables", "x"),
		"none":                  set(nil, "predicate", "buildDefinition", "externalParameters"),
		"null":                  set(json.RawMessage("null"), "predicate", "buildDefinition", "externalParameters"),
		"a list":                set([]any{}, "predicate", "buildDefinition", "externalParameters"),
		"empty":                 set(map[string]any{}, "predicate", "buildDefinition", "externalParameters"),
	} {
		v := judgeBundle(t, a, a.Bundle(verifytest.Statement(e)))
		if v.Verified() || status(v, "source") != Fail || status(v, "ref") != Fail || status(v, "builder") != Fail {
			t.Errorf("%s\n%s", name, dump(v))
		}
	}
}

// TestExtensionsAreIgnored: fields that a later version adds must not break
// readers, and must not be able to save a statement either.
func TestExtensionsAreIgnored(t *testing.T) {
	a := verifytest.New(t)
	v := judgeBundle(t, a, a.Bundle(verifytest.Statement(
		set("x", "predicate", "hallmark_later"), set("x", "predicate", "runDetails", "builder", "acme_note"),
		set("x", "predicate", "buildDefinition", "internalParameters", "new"))))
	if !v.Verified() {
		t.Error(dump(v))
	}
}

func TestDeclaredSources(t *testing.T) {
	a := verifytest.New(t)
	bundle := a.Bundle(verifytest.Statement(
		set("mismatch", "predicate", "hallmark_source", "outcome"),
		set("declared", "predicate", "hallmark_completeness", "sources"),
		func(s map[string]any) {
			d := verifytest.At(s, "predicate", "buildDefinition")["resolvedDependencies"].([]any)
			d[0] = map[string]any{"name": "workspace", "digest": map[string]any{"gitTree": strings.Repeat("7", 40)}}
		}))
	if v := judgeBundle(t, a, bundle); v.Verified() || status(v, "source") != Fail || status(v, "completeness") != Fail {
		t.Error(dump(v))
	}
	v := judgeBundle(t, a, bundle, "allowed_input_hosts = 'proxy.example.com'", "[completeness]", "sources = 'declared'")
	if !v.Verified() {
		t.Error(dump(v))
	}
	// Being content with declared sources does not make the repository or the
	// ref any less strict.
	v = judgeBundle(t, a, a.Bundle(verifytest.Statement(external("source", "https://evil.example/x.git"))), "[completeness]", "sources = 'declared'")
	if v.Verified() || status(v, "source") != Fail {
		t.Error(dump(v))
	}
}

// TestUndecided: where nothing can be judged, the verdict says so, and is no
// acceptance.
func TestUndecided(t *testing.T) {
	a := verifytest.New(t)
	sound := a.Bundle(verifytest.Statement())
	pol, trusted := parsePolicy(t), a.TrustedRoot()
	emptied := func(key string) []byte {
		var root map[string]any
		if err := json.Unmarshal(trusted, &root); err != nil {
			t.Fatal(err)
		}
		root[key] = []any{}
		return must(json.Marshal(root))
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name    string
		ctx     context.Context
		bundles [][]byte
		pol     policy.Policy
		trusted []byte
		reason  string
	}{
		{"no bundle", nil, nil, pol, trusted, "no bundle"},
		{"empty bundle", nil, [][]byte{{}}, pol, trusted, "not a bundle: empty"},
		{"truncated bundle", nil, [][]byte{sound[:len(sound)/2]}, pol, trusted, "not a bundle: not JSON, or cut off"},
		{"binary bundle", nil, [][]byte{{0x1f, 0x8b, 8, 0}}, pol, trusted, "not a bundle: not JSON, or cut off"},
		{"huge bundle", nil, [][]byte{make([]byte, MaxBundle+1)}, pol, trusted, "not a bundle: more than 64 MiB"},
		{"too many bundles", nil, slices.Repeat([][]byte{sound}, MaxBundles+1), pol, trusted, "129 bundles: more than 128"},
		{"bundles too large together", nil, slices.Repeat([][]byte{make([]byte, MaxBundle)}, 5), pol, trusted, "bundles of 320 MiB together: more than 256 MiB"},
		{"zero policy", nil, [][]byte{sound}, policy.Policy{}, trusted, "the policy expects nothing"},
		{"policy not from a file", nil, [][]byte{sound}, policy.Policy{BuilderIDs: []string{verifytest.BuilderID}}, trusted, "the policy expects nothing"},
		{"no trusted root", nil, [][]byte{sound}, pol, nil, "trusted root: empty"},
		{"trusted root is no JSON", nil, [][]byte{sound}, pol, []byte("x"), "trusted root: "},
		{"trusted root is an object", nil, [][]byte{sound}, pol, []byte("{}"), "trusted root: unsupported TrustedRoot media type"},
		{"trusted root of nobody", nil, [][]byte{sound}, pol, []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), "trusted root: trusts no certificate authority"},
		{"no certificate authority", nil, [][]byte{sound}, pol, emptied("certificateAuthorities"), "trusted root: trusts no certificate authority"},
		{"no timestamp authority", nil, [][]byte{sound}, pol, emptied("timestampAuthorities"), "trusted root: trusts no timestamp authority"},
		{"trusted root with a duplicate key", nil, [][]byte{sound}, pol, bytes.Replace(trusted, []byte(`{"`), []byte(`{"mediaType":"x","`), 1), "trusted root: json: duplicate key"},
		{"huge trusted root", nil, [][]byte{sound}, pol, make([]byte, MaxTrustedRoot+1), "trusted root: more than 1 MiB"},
		{"canceled", canceled, [][]byte{sound}, pol, trusted, "context canceled"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.ctx == nil {
				tt.ctx = t.Context()
			}
			v := artifact(tt.ctx, now(), sha256.Sum256(verifytest.Artifact()), "app", tt.bundles, tt.pol, tt.trusted)
			if v.Verified() || v.Outcome() != Undecided || !strings.HasPrefix(v.Reason, tt.reason) {
				t.Errorf("got %s %q, want %q", v.Outcome(), v.Reason, tt.reason)
			}
		})
	}
}

func TestZeroVerdictRefuses(t *testing.T) {
	var v Verdict
	if v.Verified() || v.Outcome() != Refused || v.Outcome().String() != "refused" {
		t.Errorf("%s", v.Outcome())
	}
	if settle(v).Verified() {
		t.Error("accepted without a check")
	}
	for _, name := range checkNames() {
		v.Checks = append(v.Checks, Check{Name: name, Status: Pass})
	}
	if !settle(v).Verified() {
		t.Error("not accepted although all passed")
	}
	for i := range v.Checks {
		for _, bad := range []Check{
			{Name: v.Checks[i].Name}, {Name: v.Checks[i].Name, Status: Fail}, {Name: v.Checks[i].Name, Status: "pass"},
			{Name: v.Checks[i].Name, Status: NotChecked, Required: true}, {Name: "other", Status: Pass},
		} {
			w := v
			w.Checks = slices.Clone(v.Checks)
			w.Checks[i] = bad
			if settle(w).Verified() {
				t.Errorf("accepted with %+v", bad)
			}
		}
		w := v
		w.Checks = slices.Delete(slices.Clone(v.Checks), i, i+1)
		if settle(w).Verified() {
			t.Errorf("accepted without %s", v.Checks[i].Name)
		}
	}
}

func TestPanicIsNoAcceptance(t *testing.T) {
	v := guarded(Verdict{}, func() Verdict { panic("x") })
	if v.Verified() || v.Outcome() != Undecided || !strings.Contains(v.Reason, "internal error") {
		t.Errorf("%s %s", v.Outcome(), v.Reason)
	}
}

// TestSeveralBundles: any one suffices, none can lend another a check, and the
// nearest is told.
func TestSeveralBundles(t *testing.T) {
	a := verifytest.New(t)
	sound := a.Bundle(verifytest.Statement())
	failed := a.Bundle(verifytest.Statement(set("failed", "predicate", "hallmark_result", "result")))
	otherFile := a.Bundle(verifytest.Statement(subject(1, "digest", map[string]any{"sha256": strings.Repeat("9", 64)})))
	otherRef := a.Bundle(verifytest.Statement(all(external("ref", "refs/heads/x"), dep(0, "git+"+verifytest.Source+"@refs/heads/x", "uri"))))
	unsigned := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) { f.Parent = &verifytest.New(t).Root })
	junk := []byte("junk")
	for _, tt := range []struct {
		name    string
		bundles [][]byte
		want    Outcome
		which   int
	}{
		{"sound last", [][]byte{junk, unsigned, otherFile, failed, sound}, Verified, 5},
		{"sound first", [][]byte{sound, junk}, Verified, 1},
		{"sound twice", [][]byte{sound, sound}, Verified, 1},
		{"two halves", [][]byte{otherRef, failed}, Refused, 1},
		{"this file before others", [][]byte{otherFile, failed}, Refused, 2},
		{"signed before unsigned", [][]byte{unsigned, otherFile}, Refused, 2},
		{"anything before junk", [][]byte{junk, unsigned}, Refused, 2},
		{"junk alone", [][]byte{junk, {}}, Undecided, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", tt.bundles, parsePolicy(t), a.TrustedRoot())
			if v.Outcome() != tt.want || v.Bundle != tt.which || v.Bundles != len(tt.bundles) {
				t.Errorf("got %s by bundle %d\n%s", v.Outcome(), v.Bundle, dump(v))
			}
		})
	}
}

// TestEveryByteOfABundleMatters flips bits all over a sound bundle. What is
// accepted all the same must be the same statement, signed by the same
// certificate at the same time: the frame around a timestamp (its status, the
// version and list of algorithms of its CMS) is signed by nobody.
func TestEveryByteOfABundleMatters(t *testing.T) {
	a := verifytest.New(t)
	sound := a.Bundle(verifytest.Statement())
	want := must(parseBundle(sound))
	const step = 7 // FuzzBundle goes on from here
	accepted, tried := 0, 0
	for i := 0; i < len(sound); i += step {
		for _, mask := range []byte{1, 0x20} {
			mutated := bytes.Clone(sound)
			mutated[i] ^= mask
			tried++
			v := judgeBundle(t, a, mutated)
			if !v.Verified() {
				continue
			}
			accepted++
			got := must(parseBundle(mutated))
			if !bytes.Equal(got.payload, want.payload) || !bytes.Equal(got.leaf.Raw, want.leaf.Raw) ||
				!v.Claim.SignedAt.Equal(verifytest.SignedAt()) {
				t.Fatalf("byte %d of %d: accepted another statement, certificate or time\n%s", i, len(sound), mutated)
			}
		}
	}
	t.Logf("%d of %d mutants accepted, none with another statement, certificate or time", accepted, tried)
}

// TestSignatureIsNotMalleable: (r, n-s) is a signature too, but not the one
// whose time was signed.
func TestSignatureIsNotMalleable(t *testing.T) {
	a := verifytest.New(t)
	var stamped []byte
	v := judgeBundle(t, a, a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
		f.Signature = func(sig []byte) []byte {
			stamped = sig
			var rs struct{ R, S *big.Int }
			must(asn1.Unmarshal(sig, &rs))
			rs.S.Sub(elliptic.P256().Params().N, rs.S)
			return must(asn1.Marshal(rs))
		}
		f.Stamped = func([]byte) []byte { return stamped }
	}))
	if v.Verified() || status(v, "signature") != Pass || status(v, "timestamp") != Fail {
		t.Error(dump(v))
	}
}

// TestTrustedRootDecides: the same bundle under somebody else's root, and under
// a root whose time is over.
func TestTrustedRootDecides(t *testing.T) {
	a, b := verifytest.New(t), verifytest.New(t)
	bundle := a.Bundle(verifytest.Statement())
	if v := judgeBundle(t, b, bundle); v.Verified() || status(v, "timestamp") != Fail {
		t.Error(dump(v))
	}
	for _, end := range []string{"2026-06-01T00:00:00Z", "2026-11-22T10:04:04Z"} {
		text := bytes.ReplaceAll(a.TrustedRoot(), []byte(`"start":"2026-01-01T00:00:00Z"`), []byte(`"start":"2026-01-01T00:00:00Z","end":"`+end+`"`))
		v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, parsePolicy(t), text)
		if v.Verified() {
			t.Errorf("trusted until %s\n%s", end, dump(v))
		}
	}
}

func TestDigest(t *testing.T) {
	d, err := Hash(bytes.NewReader(verifytest.Artifact()))
	if err != nil || d.Hex() != hash() {
		t.Fatalf("%s, %v", d, err)
	}
	if got, err := ParseDigest(d.String()); err != nil || got != d {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", hash(), "sha256:", "sha256:" + strings.ToUpper(hash()), "sha256:" + hash()[1:], "sha256:" + hash() + "0", "sha512:" + hash(), "SHA256:" + hash(), " sha256:" + hash()} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("%q is taken for a digest", bad)
		}
	}
	if _, err := Hash(&failing{}); err == nil {
		t.Error("a broken read has a digest")
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, fmt.Errorf("disk") }

func TestBase64IsCanonical(t *testing.T) {
	for text, ok := range map[string]bool{
		`"AAAA"`: true, `"AA=="`: true, `""`: true,
		`"AB=="`: false, `"AA"`: false, `"AA=\n="`: false, `"AA==AA=="`: false, `" AAAA"`: false, `5`: false, `null`: false, `"\u0041AAA"`: false,
	} {
		var b b64
		if err := json.Unmarshal([]byte(text), &b); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestDecodeAgreesWithRecord: what package record refuses is refused here, and
// what it accepts is refused only for its keys.
func TestDecodeAgreesWithRecord(t *testing.T) {
	for _, text := range jsonSeeds() {
		checkDecode(t, []byte(text))
	}
}

func jsonSeeds() []string {
	return []string{
		``, ` `, `null`, `{}`, ` [ ] `, `{"a":1}`, `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":{"b":1,"b":2}}`, `[{"a":1},{"a":1,"a":1}]`,
		`{"a":"\"}","b":"\\"}`, `{"":1,"":2}`, `1 2`, `{"a":1}{}`, `"\ud800"`, "\"\xff\"", `[1,2,`, `{"a"}`, `01`, `-0.5e3`, `[true,false,null]`,
		strings.Repeat("[", 32) + strings.Repeat("]", 32), strings.Repeat("[", 33) + strings.Repeat("]", 33),
		strings.Repeat("[", 34) + strings.Repeat("]", 34), strings.Repeat(`{"a":`, 33) + "1" + strings.Repeat("}", 33),
		`{"1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1,"10":1,"9":1}`, `{"1":1,"2":1,"3":1,"4":1,"5":1,"6":1,"7":1,"8":1,"9":1,"10":1,"1":1}`,
		"{\n\t\"a\" :\r1 , \"b\": [ 1 , { } ] }",
	}
}

func checkDecode(t *testing.T, text []byte) {
	t.Helper()
	var v any
	want, got := record.CheckJSON(text), decode(text, &v)
	if (want == nil) != (got == nil) {
		t.Errorf("%q: record says %v, decode says %v", text, want, got)
	}
}

func FuzzDecode(f *testing.F) {
	for _, text := range jsonSeeds() {
		f.Add([]byte(text))
	}
	f.Add(verifytest.Statement())
	f.Fuzz(func(t *testing.T, text []byte) {
		checkDecode(t, text)
		var s statementText
		if decode(text, &s) == nil && record.CheckJSON(text) != nil {
			t.Errorf("%q: decoded what record refuses", text)
		}
	})
}

func FuzzBundle(f *testing.F) {
	a := verifytest.New(f)
	log := a.NewLog("log.example.com")
	a.Logs = []any{log.Trusted()}
	sound := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
		f.LogEntries = func(s verifytest.Signed) []any { return []any{log.Entry(s)} }
	})
	f.Add(sound)
	f.Add(sound[:len(sound)/2])
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"tlogEntries":[{}]},"dsseEnvelope":{"signatures":[{}]}}`))
	pol, trusted := parsePolicy(f), must(parseRoot(a.TrustedRoot()))
	want := must(parseBundle(sound))
	f.Fuzz(func(t *testing.T, text []byte) {
		v := judge(Verdict{Digest: sha256.Sum256(verifytest.Artifact())}, now(), text, pol, trusted)
		if v.Verified() && !bytes.Equal(must(parseBundle(text)).payload, want.payload) {
			t.Errorf("accepted %q", text)
		}
		if len(v.Checks) != 0 && len(v.Checks) != len(checkNames()) {
			t.Errorf("%d checks", len(v.Checks))
		}
	})
}

func FuzzStatement(f *testing.F) {
	f.Add(verifytest.Statement())
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{}],"predicate":{"buildDefinition":{"externalParameters":{}}}}`))
	pol := parsePolicy(f, "allowed_input_hosts = []", "allowed_images = []", "project = 'acme/app'")
	f.Fuzz(func(t *testing.T, payload []byte) {
		s, err := readStatement(payload)
		if s == nil {
			return
		}
		j := &content{s: s, form: err, pol: pol, digest: sha256.Sum256(verifytest.Artifact()), now: now(),
			who: policy.Signer{Identity: verifytest.BuilderID, Issuer: verifytest.Issuer}, signed: []time.Time{verifytest.SignedAt()}}
		checks := append(rest(0, "")[:5], j.checks("application/vnd.in-toto+json")...)
		for i := range checks[:5] {
			checks[i].Status = Pass
		}
		if v := settle(Verdict{Checks: checks}); v.Verified() && !strings.Contains(string(payload), hash()) {
			t.Errorf("accepted %q", payload)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	a := verifytest.New(b)
	pol, trusted := parsePolicy(b), a.TrustedRoot()
	for _, inputs := range []int{3, 1000, 100_000} {
		bundle := a.Bundle(verifytest.Statement(func(s map[string]any) {
			def := verifytest.At(s, "predicate", "buildDefinition")
			deps := def["resolvedDependencies"].([]any)
			for i := range inputs - 3 {
				deps = append(deps, map[string]any{"uri": fmt.Sprintf("https://proxy.example.com/pkg/%d", i), "digest": map[string]any{"sha256": strings.Repeat("4", 64)}})
			}
			def["resolvedDependencies"] = deps
		}))
		b.Run(fmt.Sprintf("inputs=%d", inputs), func(b *testing.B) {
			b.SetBytes(int64(len(bundle)))
			b.ReportAllocs()
			for b.Loop() {
				v := artifact(b.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, pol, trusted)
				if !v.Verified() {
					b.Fatal(dump(v))
				}
			}
		})
	}
}
