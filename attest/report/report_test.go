package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest/policy"
	"hallmark.build/attest/verify"
	"hallmark.build/attest/verify/verifytest"
)

var update = flag.Bool("update", false, "write golden files")

// verdicts of each kind, from real bundles.
func verdicts(t *testing.T) map[string]verify.Verdict {
	t.Helper()
	a := verifytest.New(t)
	// Signed just now, because verify reads the clock.
	sign := func(edits ...func(map[string]any)) []byte {
		at := time.Now().UTC().Truncate(time.Second)
		edits = append(edits, func(s map[string]any) {
			meta := verifytest.At(s, "predicate", "runDetails", "metadata")
			meta["startedOn"], meta["finishedOn"] = at.Add(-time.Minute).Format(time.RFC3339), at.Format(time.RFC3339)
		})
		return a.Bundle(verifytest.Statement(edits...), func(f *verifytest.Forgery) {
			f.SignedAt, f.Leaf = at, verifytest.LeafTemplate(f.Identity, verifytest.Issuer, at)
		})
	}
	digest, err := verify.Hash(bytes.NewReader(verifytest.Artifact()))
	if err != nil {
		t.Fatal(err)
	}
	judge := func(more string, bundles ...[]byte) verify.Verdict {
		pol, err := policy.Parse([]byte(verifytest.Policy + more))
		if err != nil {
			t.Fatal(err)
		}
		return verify.Artifact(t.Context(), digest, "dist/app", bundles, pol, a.TrustedRoot())
	}
	sound := sign()
	return map[string]verify.Verdict{
		"verified": judge("", sound),
		"refused":  judge("allowed_input_hosts = ['other.example.com']\nproject = 'evil/*'", []byte("junk"), sound),
		"hostile": judge("", sign(func(s map[string]any) {
			verifytest.At(s, "predicate", "buildDefinition", "externalParameters")["ref"] = "refs/heads/\x1b[2J\r\n\u202epass"
		})),
		"unsigned":  judge("", bytes.Replace(sound, []byte(`"sig":"M`), []byte(`"sig":"N`), 1)),
		"undecided": judge(""),
		"zero":      {},
	}
}

var changing = regexp.MustCompile(`[0-9a-f]{64}|20\d\d-\d\d-\d\dT[0-9:]+Z`)

// steady replaces what differs from run to run.
func steady(text string) string {
	return changing.ReplaceAllStringFunc(text, func(s string) string {
		if strings.HasPrefix(s, "20") && strings.HasSuffix(s, "Z") {
			return "2026-01-01T00:00:00Z"
		}
		return "<hex>"
	})
}

func TestGolden(t *testing.T) {
	for name, v := range verdicts(t) {
		o := Options{Policy: "acme.toml", TrustedRoot: "root.json"}
		var text, brief, object bytes.Buffer
		if err := Text(&text, v, o); err != nil {
			t.Fatal(err)
		}
		o.Brief = true
		if err := Text(&brief, v, o); err != nil {
			t.Fatal(err)
		}
		if err := JSON(&object, v, "v1", time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", text.String())
		golden(t, name+".brief.txt", brief.String())
		golden(t, name+".json", object.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	got = steady(got)
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

// TestFormsAgree: text, JSON and verdict say the same, and every check is in
// each form.
func TestFormsAgree(t *testing.T) {
	for name, v := range verdicts(t) {
		var text, brief, object bytes.Buffer
		if err := errors.Join(Text(&text, v, Options{}), Text(&brief, v, Options{Brief: true}), JSON(&object, v, "", time.Now())); err != nil {
			t.Fatal(err)
		}
		var out verdictJSON
		if err := json.Unmarshal(object.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		if out.Schema != Schema || out.Verified != v.Verified() || out.Verified != (out.Outcome == "verified") || len(out.Checks) != len(v.Checks) {
			t.Errorf("%s: %s", name, object.String())
		}
		for _, form := range []string{text.String(), brief.String()} {
			if strings.Contains(form, "\nverified: ") != v.Verified() {
				t.Errorf("%s: %s", name, form)
			}
			for _, c := range v.Checks {
				if !strings.Contains(form, c.Name) {
					t.Errorf("%s: %s is not told:\n%s", name, c.Name, form)
				}
			}
		}
	}
}

func TestColorRepeatsTheWords(t *testing.T) {
	for name, v := range verdicts(t) {
		var plain, color bytes.Buffer
		if err := errors.Join(Text(&plain, v, Options{}), Text(&color, v, Options{Color: true})); err != nil {
			t.Fatal(err)
		}
		if got := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(color.String(), ""); got != plain.String() {
			t.Errorf("%s: colour changes the text:\n%s", name, cmp.Diff(plain.String(), got))
		}
		if len(v.Checks) > 0 && plain.Len() == color.Len() {
			t.Errorf("%s: no colour", name)
		}
		if strings.ContainsFunc(strings.ReplaceAll(plain.String(), "\n", ""), func(r rune) bool { return r < ' ' || r == '\u202e' }) {
			t.Errorf("%s: control characters: %q", name, plain.String())
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"plain äöü 日本 ✓":         "plain äöü 日本 ✓",
		"a\tb\nc\r":              `a\tb\nc\r`,
		"\x1b[31mred":            `\x1b[31mred`,
		"\x9b31m":                `\x9b31m`,
		"\u009b31m":              `\u009b31m`,
		"right\u202eto left":     `right\u202eto left`,
		"zero\u200bwidth":        `zero\u200bwidth`,
		"no\u00a0break":          `no\u00a0break`,
		"\ufeffbom":              `\ufeffbom`,
		"\x00":                   `\x00`,
		"replacement \ufffd":     "replacement \ufffd",
		"line\u2028separator":    `line\u2028separator`,
		strings.Repeat("x", 600): strings.Repeat("x", maxText) + "…",
	} {
		if got := Clean(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space") }

func TestWriteErrorsAreTold(t *testing.T) {
	if Text(full{}, verify.Verdict{}, Options{}) == nil || JSON(full{}, verify.Verdict{}, "", time.Now()) == nil {
		t.Error("a report that nobody got is no report")
	}
}
