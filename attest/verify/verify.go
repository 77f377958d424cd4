package verify

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/policy"
)

// Artifact decides whether one of the bundles attests the artifact with the
// given digest as the policy wants. The name is for people alone.
//
// If several bundles are given, the verdict is about the first that is
// accepted, else about the one that came closest.
func Artifact(ctx context.Context, digest Digest, name string, bundles [][]byte, pol policy.Policy, trustedRoot []byte) Verdict {
	return artifact(ctx, time.Now(), digest, name, bundles, pol, trustedRoot)
}

func artifact(ctx context.Context, now time.Time, digest Digest, name string, bundles [][]byte, pol policy.Policy, trustedRoot []byte) Verdict {
	v := Verdict{
		Name: name, Digest: digest, PolicyDigest: pol.Digest, TrustedRootDigest: sum(trustedRoot), Bundles: len(bundles),
	}
	if !pol.Valid() {
		return undecided(v, "the policy expects nothing", "write one with at least builder_ids, issuer, source and ref")
	}
	trusted, err := parseRoot(trustedRoot)
	if err != nil {
		return undecided(v, oneLine(err), "ask for the file that hallmark-attestd trusted-root prints")
	}
	if len(bundles) == 0 {
		return undecided(v, "no bundle", "without one nothing is known of the artifact")
	}
	if err := limits(bundles); err != nil {
		return undecided(v, oneLine(err), "give only those that attest this artifact")
	}
	best := v
	for i, text := range bundles {
		if err := ctx.Err(); err != nil {
			return undecided(v, oneLine(err), "")
		}
		one := v
		one.Bundle, one.BundleDigest = i+1, sum(text)
		one = guarded(one, func() Verdict { return judge(one, now, text, pol, trusted) })
		if one.Verified() {
			return one
		}
		if i == 0 || score(one) > score(best) {
			best = one
		}
	}
	return best
}

func undecided(v Verdict, reason, hint string) Verdict {
	v.outcome, v.Reason, v.Hint = Undecided, reason, hint
	return v
}

func limits(bundles [][]byte) error {
	if len(bundles) > MaxBundles {
		return fmt.Errorf("%d bundles: more than %d", len(bundles), MaxBundles)
	}
	total := 0
	for _, text := range bundles {
		total += len(text)
	}
	if total > MaxTotal {
		return fmt.Errorf("bundles of %d MiB together: more than %d MiB", total>>20, MaxTotal>>20)
	}
	return nil
}

// guarded turns a panic over hostile input, in whatever library, into a verdict
// that is no acceptance.
func guarded(v Verdict, f func() Verdict) (out Verdict) {
	defer func() {
		if cause := recover(); cause != nil {
			out = undecided(v, fmt.Sprintf("internal error: %v", cause), "please report this, with the bundle")
		}
	}()
	return f()
}

// score orders verdicts that are no acceptance by how near they came: a bundle
// for this artifact before others, then by checks passed.
func score(v Verdict) int {
	const authentic, subject = 1000, 100
	n := 0
	if v.outcome != Undecided {
		n++
	}
	if v.Claim != nil {
		n += authentic
	}
	for _, c := range v.Checks {
		if c.Status == Pass {
			n++
			if c.Name == "subject" {
				n += subject
			}
		}
	}
	return n
}

// judge makes every check on one bundle.
func judge(v Verdict, now time.Time, text []byte, pol policy.Policy, trusted *trust) Verdict {
	b, err := parseBundle(text)
	if errors.Is(err, errUnreadable) {
		return undecided(v, oneLine(err), "")
	}
	if err != nil {
		v.Checks = append([]Check{{Name: "bundle", Status: Fail, Detail: oneLine(err), Required: true}}, rest(1, "the bundle is not of the right form")...)
		return settle(v)
	}
	form := Check{Name: "bundle", Status: Pass, Required: true, Detail: "Sigstore bundle v0.3, one signature, one certificate"}
	stamped, times := checkTimestamp(b, trusted)
	certified, who := checkCertificate(b, trusted, times)
	logged := checkLog(b, trusted, pol, times)
	others := stamped.Status == Pass && certified.Status == Pass && logged.Status != Fail
	s, err := readStatement(b.payload) // says nothing yet
	sound := s != nil && err == nil && b.payloadType == attest.PayloadType
	signed := checkSignature(b, trusted, who, others && sound)
	v.Checks = []Check{form, signed, stamped, certified, logged}
	if !others || signed.Status != Pass {
		v.Checks = append(v.Checks, rest(len(v.Checks), "nobody trusted has signed it")...)
		return settle(v)
	}
	if s == nil {
		v.Checks = append(v.Checks, Check{Name: "statement", Status: Fail, Detail: oneLine(err), Required: true})
		v.Checks = append(v.Checks, rest(len(v.Checks), "the statement could not be read")...)
		return settle(v)
	}
	j := &content{s: s, form: err, pol: pol, digest: v.Digest, who: who, signed: times, now: now}
	v.Claim = j.claim()
	v.Checks = append(v.Checks, j.checks(b.payloadType)...)
	return settle(v)
}

// rest are the checks from the nth on, none of which could be made.
func rest(n int, why string) []Check {
	var out []Check
	for _, name := range checkNames()[n:] {
		out = append(out, Check{Name: name, Status: NotChecked, Detail: why, Required: true})
	}
	return out
}

func (j *content) claim() *Claim {
	def, run := j.s.Predicate.BuildDefinition, j.s.Predicate.RunDetails
	return &Claim{
		BuilderID: run.Builder.ID, Issuer: j.who.Issuer,
		Project: j.s.external.Project, Source: j.s.external.Source, Ref: j.s.external.Ref,
		Commit: def.InternalParameters.GitLab.SHA, JobID: def.InternalParameters.GitLab.JobID, JobName: j.s.external.JobName,
		InvocationID: run.Metadata.InvocationID, Result: j.s.Predicate.Result.Result,
		SignedAt: j.signed[0], StartedOn: j.s.started, FinishedOn: j.s.finished,
		Subjects: len(j.s.Subject), Inputs: len(def.ResolvedDependencies),
	}
}
