package verify

import (
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/verify/verifytest"
)

// TestGenerations: keys are rotated and revoked. Old is an authority whose keys
// were trusted until an hour before the usual signature, next the one after it.
func TestGenerations(t *testing.T) {
	const ended = "2026-11-22T09:04:05Z"
	before, after := verifytest.SignedAt().Add(-2*time.Hour), verifytest.SignedAt()
	old, next, stranger := verifytest.New(t), verifytest.New(t), verifytest.New(t)
	rotated := next.TrustedRoot(func(root map[string]any) {
		ca, tsa := old.Authorities(ended)
		root["certificateAuthorities"] = append(root["certificateAuthorities"].([]any), ca)
		root["timestampAuthorities"] = append(root["timestampAuthorities"].([]any), tsa)
	})
	revoked := next.TrustedRoot(func(root map[string]any) {
		_, tsa := old.Authorities(ended)
		root["timestampAuthorities"] = append(root["timestampAuthorities"].([]any), tsa)
	})
	at := func(when time.Time) forge {
		return func(f *verifytest.Forgery) {
			f.SignedAt, f.Leaf = when, verifytest.LeafTemplate(f.Identity, verifytest.Issuer, when)
		}
	}
	ca := func(a *verifytest.Authority) forge { return func(f *verifytest.Forgery) { f.Parent = &a.Root } }
	tsa := func(a *verifytest.Authority) forge { return func(f *verifytest.Forgery) { f.TSA = &a.TSA } }
	for _, tt := range []struct {
		name          string
		root          []byte
		forge         []forge
		check, detail string // that fails
	}{
		{name: "old bundle after a rotation", root: rotated, forge: []forge{ca(old), tsa(old), at(before)}},
		{name: "new bundle after a rotation", root: rotated, forge: []forge{ca(next), tsa(next), at(after)}},
		{name: "old certificates, new time", root: rotated, forge: []forge{ca(old), tsa(next), at(before)}},
		{name: "old key after its end", root: rotated, forge: []forge{ca(old), tsa(next), at(after)},
			check: "certificate", detail: "test root is trusted from 2026-01-01T00:00:00Z until " + ended},
		{name: "old clock after its end", root: rotated, forge: []forge{ca(next), tsa(old), at(after)}, check: "timestamp", detail: "after the validity period end"},
		{name: "old key, back-dated by a clock of one's own", root: rotated, forge: []forge{ca(old), tsa(stranger), at(before)}, check: "timestamp"},
		{name: "old key, old clock, back-dated certificate alone", root: rotated, check: "certificate", forge: []forge{ca(old), tsa(next), at(before), func(f *verifytest.Forgery) {
			f.SignedAt = after
		}}},
		{name: "revoked key, even before its end", root: revoked, forge: []forge{ca(old), tsa(old), at(before)}, check: "certificate", detail: "no chain"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle := next.Bundle(verifytest.Statement(
				set(before.Add(-time.Minute).Format(time.RFC3339), "predicate", "runDetails", "metadata", "startedOn"),
				set(before.Format(time.RFC3339), "predicate", "runDetails", "metadata", "finishedOn"),
			), tt.forge...)
			v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, parsePolicy(t), tt.root)
			if v.Verified() != (tt.check == "") || tt.check != "" && status(v, tt.check) != Fail || !strings.Contains(dump(v), tt.detail) {
				t.Error(dump(v))
			}
		})
	}
}

// TestJobIsNoSigner: a certificate that a Fulcio made for a CI job's token, even
// if the policy names the job, or the token managed to name the builder.
func TestJobIsNoSigner(t *testing.T) {
	a := verifytest.New(t)
	for _, last := range []int{2, 9, 12, 18, 20, 21} {
		bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.Leaf.ExtraExtensions = append(f.Leaf.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, last}, Value: []byte("x")})
		})
		if v := judgeBundle(t, a, bundle); v.Verified() || status(v, "certificate") != Fail || !strings.Contains(dump(v), "CI job") {
			t.Errorf("extension %d: %s", last, dump(v))
		}
	}
}

// TestSigners: who may sign for a builder when the policy has pairs.
func TestSigners(t *testing.T) {
	const own, login = "hallmark@ci.example.com", "https://login.example.com"
	const pairs = "[[signers]]\nbuilder_id = \"" + verifytest.BuilderID + "\"\nidentity = \"" + own + "\"\nissuer = \"" + login + "\"\n"
	const job = "https://gitlab.example.com/acme/app//.gitlab-ci.yml@refs/heads/main"
	a := verifytest.New(t)
	mail := func(address, issuer string) forge {
		return func(f *verifytest.Forgery) { f.Leaf = mailLeaf(address, issuer, f.SignedAt) }
	}
	uri := func(identity, issuer string) forge {
		return func(f *verifytest.Forgery) { f.Leaf = verifytest.LeafTemplate(identity, issuer, f.SignedAt) }
	}
	for _, tt := range []struct {
		name, policy string
		forge        forge
		detail       string // of the builder check, which fails
	}{
		{name: "the pair", policy: pairs, forge: mail(own, login)},
		{name: "no pair for it", forge: mail(own, login), detail: "another builder than the one that signed"},
		{name: "the builder itself, which has a pair", policy: pairs, forge: uri(verifytest.BuilderID, verifytest.Issuer), detail: "another builder than the one that signed"},
		{name: "other issuer", policy: pairs, forge: mail(own, "https://gitlab.example.com"), detail: "issuer is not the policy's"},
		{name: "the policy's issuer in place of the pair's", policy: pairs, forge: mail(own, verifytest.Issuer), detail: "issuer is not the policy's"},
		{name: "another account", policy: pairs, forge: mail("mallory@ci.example.com", login), detail: "another builder than the one that signed"},
		{name: "another case", policy: pairs, forge: mail("Hallmark@ci.example.com", login), detail: "another builder than the one that signed"},
		{name: "longer", policy: pairs, forge: mail(own+".evil.example", login), detail: "another builder than the one that signed"},
		{name: "a job's own token", policy: pairs, forge: uri(job, "https://gitlab.example.com"), detail: "another builder than the one that signed"},
		{name: "a job's own token, without a pair", forge: uri(job, verifytest.Issuer), detail: "another builder than the one that signed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := judgeBundle(t, a, a.Bundle(verifytest.Statement(), tt.forge), tt.policy)
			want := Pass
			if tt.detail != "" {
				want = Fail
			}
			if status(v, "builder") != want || v.Verified() != (want == Pass) || !strings.Contains(dump(v), tt.detail) {
				t.Error(dump(v))
			}
		})
	}
}
