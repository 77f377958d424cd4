// Package report renders a verdict for people and for machines.
//
// # Text
//
// One line a check, label first, in columns; evidence is indented below its
// check; the verdict is the last line, so that it is what a terminal shows.
// Labels are words, and colour only repeats them. Names, references and errors
// come from tenants and from strangers' bundles: what is not a printable
// character is shown as an escape.
//
// # JSON
//
// An object with "schema": "hallmark.verdict/v1". Fields may be added; none
// changes its meaning or goes away. A reader must test "verified", and agrees
// with the exit code if it does.
//
//	{"schema":"hallmark.verdict/v1","verified":false,"outcome":"refused",
//	 "artifact":{"name":"app.tar.gz","digest":"sha256:…"},
//	 "checks":[{"name":"subject","status":"FAIL","required":true,"detail":"…","evidence":["…"]}],…}
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"hallmark.build/attest/verify"
)

// Schema names the JSON form.
const Schema = "hallmark.verdict/v1"

// Options of the text form.
type Options struct {
	Color bool // repeat labels in colour
	// Brief shows failures first, with their evidence, and names the rest.
	Brief bool
	// Policy and TrustedRoot are the files' names; empty leaves the lines away.
	Policy, TrustedRoot string
}

// Text writes the verdict for people.
func Text(w io.Writer, v verify.Verdict, o Options) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %s\n", Clean(v.Name), v.Digest)
	if o.Brief {
		brief(&b, v.Checks, o)
	} else {
		for _, c := range v.Checks {
			line(&b, c, o)
		}
	}
	if o.Policy != "" && v.PolicyDigest != "" {
		fmt.Fprintf(&b, "policy        %s  sha256:%s\n", Clean(o.Policy), v.PolicyDigest)
	}
	if o.TrustedRoot != "" {
		fmt.Fprintf(&b, "trusted root  %s  sha256:%s\n", Clean(o.TrustedRoot), v.TrustedRootDigest)
	}
	if v.Bundles > 1 && v.Bundle > 0 {
		fmt.Fprintf(&b, "bundle        %d of %d, sha256:%s\n", v.Bundle, v.Bundles, v.BundleDigest)
	}
	fmt.Fprintf(&b, "%s\n", Conclusion(v))
	_, err := io.WriteString(w, b.String())
	return err
}

// Columns of the text form.
const (
	statusWidth = len(verify.NotChecked)
	nameWidth   = len("completeness")
)

func line(b *strings.Builder, c verify.Check, o Options) {
	fmt.Fprintf(b, "%s%*s  %-*s  %s%s\n", paint(c.Status, o.Color), statusWidth-len(c.Status), "",
		nameWidth, Clean(c.Name), Clean(c.Detail), policyLine(c))
	for _, e := range c.Evidence {
		fmt.Fprintf(b, "%*s  %s\n", statusWidth, "", Clean(e))
	}
}

func policyLine(c verify.Check) string {
	if c.PolicyLine == 0 {
		return ""
	}
	return fmt.Sprintf("   (policy line %d)", c.PolicyLine)
}

func brief(b *strings.Builder, checks []verify.Check, o Options) {
	for _, c := range checks {
		if c.Status == verify.Fail {
			line(b, c, o)
		}
	}
	for _, status := range []verify.Status{verify.NotChecked, verify.Pass} {
		var names []string
		for _, c := range checks {
			if c.Status == status {
				names = append(names, Clean(c.Name))
			}
		}
		if names != nil {
			fmt.Fprintf(b, "%s%*s  %s\n", paint(status, o.Color), statusWidth-len(status), "", strings.Join(names, ", "))
		}
	}
}

func paint(s verify.Status, color bool) string {
	code := map[verify.Status]string{verify.Pass: "32", verify.Fail: "1;31", verify.NotChecked: "2"}[s]
	if !color || code == "" {
		return string(s)
	}
	return "\x1b[" + code + "m" + string(s) + "\x1b[0m"
}

// Conclusion is the verdict in one line.
func Conclusion(v verify.Verdict) string {
	var passed, failed, open int
	for _, c := range v.Checks {
		switch {
		case c.Status == verify.Pass:
			passed++
		case c.Status == verify.Fail:
			failed++
		case c.Required:
			open++
		}
	}
	switch {
	case v.Verified():
		return fmt.Sprintf("verified: %d of %d checks passed, the others are not asked for", passed, len(v.Checks))
	case v.Outcome() == verify.Undecided:
		return "not verified: could not decide: " + Clean(v.Reason)
	case open > 0:
		return fmt.Sprintf("not verified: %d of %d checks failed, %d could not be made", failed, len(v.Checks), open)
	}
	return fmt.Sprintf("not verified: %d of %d checks failed", failed, len(v.Checks))
}

// maxText bounds a piece of text that others chose.
const maxText = 500

// Clean makes text of others safe for a terminal: what is not printable, such
// as control characters, escapes, line ends and marks that turn the direction
// of writing, is shown as an escape.
func Clean(text string) string {
	var b strings.Builder
	for i, r := range text {
		if b.Len() >= maxText {
			b.WriteString("…")
			break
		}
		_, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

type verdictJSON struct {
	Schema      string       `json:"schema"`
	Verified    bool         `json:"verified"`
	Outcome     string       `json:"outcome"` // "verified", "refused" or "undecided"
	Artifact    artifactJSON `json:"artifact"`
	Policy      digestJSON   `json:"policy"`
	TrustedRoot digestJSON   `json:"trusted_root"`
	Bundles     int          `json:"bundles"`
	Bundle      *bundleJSON  `json:"bundle,omitempty"`
	Checks      []checkJSON  `json:"checks"`
	Claim       *claimJSON   `json:"claim,omitempty"`
	Reason      string       `json:"reason,omitempty"`
	Hint        string       `json:"hint,omitempty"`
	Verifier    verifierJSON `json:"verifier"`
}

type artifactJSON struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
}

type digestJSON struct {
	SHA256 string `json:"sha256"`
}

type bundleJSON struct {
	Index  int    `json:"index"` // from 1
	SHA256 string `json:"sha256"`
}

type checkJSON struct {
	Name       string   `json:"name"`
	Status     string   `json:"status"` // "PASS", "FAIL" or "NOT CHECKED"
	Required   bool     `json:"required"`
	Detail     string   `json:"detail"`
	Evidence   []string `json:"evidence,omitempty"`
	PolicyLine int      `json:"policy_line,omitempty"`
}

type claimJSON struct {
	BuilderID    string `json:"builder_id"`
	Issuer       string `json:"issuer"`
	Project      string `json:"project"`
	Source       string `json:"source"`
	Ref          string `json:"ref"`
	Commit       string `json:"commit"`
	JobID        string `json:"job_id"`
	JobName      string `json:"job_name"`
	InvocationID string `json:"invocation_id"`
	Result       string `json:"result"`
	SignedAt     string `json:"signed_at"`
	StartedOn    string `json:"started_on"`
	FinishedOn   string `json:"finished_on"`
	Subjects     int    `json:"subjects"`
	Inputs       int    `json:"inputs"`
}

type verifierJSON struct {
	Version string `json:"version"`
	Time    string `json:"time"`
}

// JSON writes the verdict for machines, with the version of the program that
// made it and the time at which it did.
func JSON(w io.Writer, v verify.Verdict, version string, at time.Time) error {
	out := verdictJSON{
		Schema: Schema, Verified: v.Verified(), Outcome: v.Outcome().String(),
		Artifact: artifactJSON{v.Name, v.Digest.String()},
		Policy:   digestJSON{v.PolicyDigest}, TrustedRoot: digestJSON{v.TrustedRootDigest},
		Bundles: v.Bundles, Checks: []checkJSON{}, Claim: claim(v.Claim), Reason: v.Reason, Hint: v.Hint,
		Verifier: verifierJSON{version, stamp(at)},
	}
	if v.Bundle > 0 {
		out.Bundle = &bundleJSON{v.Bundle, v.BundleDigest}
	}
	for _, c := range v.Checks {
		status := c.Status
		if status != verify.Pass && status != verify.Fail {
			status = verify.NotChecked
		}
		out.Checks = append(out.Checks, checkJSON{c.Name, string(status), c.Required, c.Detail, c.Evidence, c.PolicyLine})
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

func claim(c *verify.Claim) *claimJSON {
	if c == nil {
		return nil
	}
	return &claimJSON{
		BuilderID: c.BuilderID, Issuer: c.Issuer, Project: c.Project, Source: c.Source, Ref: c.Ref, Commit: c.Commit,
		JobID: c.JobID, JobName: c.JobName, InvocationID: c.InvocationID, Result: c.Result,
		SignedAt: stamp(c.SignedAt), StartedOn: stamp(c.StartedOn), FinishedOn: stamp(c.FinishedOn),
		Subjects: c.Subjects, Inputs: c.Inputs,
	}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
