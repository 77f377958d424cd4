package policy

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/mod/sumdb/note"

	"hallmark.build/config/tomlfile"
	"hallmark.build/integration/document"
)

const minimal = `builder_ids = "https://ci.example.com/hallmark/hermetic"
issuer = "https://ci.example.com/hallmark"
source = "https://gitlab.example.com/acme/app.git"
ref = "refs/heads/main"
`

// TestDocuments reads the policy that documents show, and what they add to it.
func TestDocuments(t *testing.T) {
	whole := marked(t, "policy")[0]
	for _, b := range slices.Concat(marked(t, "signers"), marked(t, "witnesses"), []document.Block{{}}) {
		if _, err := ParseFile(whole.Document, []byte(whole.Text+b.Text)); err != nil {
			t.Errorf("%v\n%s", err, whole.Text+b.Text)
		}
	}
}

func marked(t *testing.T, name string) []document.Block {
	t.Helper()
	blocks, err := document.Marked("../..", "config", name)
	if err != nil {
		t.Fatal(err)
	}
	return blocks
}

func TestExample(t *testing.T) {
	got, err := Parse([]byte(Example()))
	if err != nil {
		t.Fatal(err)
	}
	want := Policy{
		BuilderIDs:        []string{"https://ci.example.com/hallmark/hermetic"},
		Issuer:            "https://ci.example.com/hallmark",
		Signers:           []Pair{{"https://ci.example.com/hallmark/hermetic", "hallmark@ci.example.com", "https://login.example.com"}},
		MinLogs:           1,
		Witnesses:         []string{"witness.example.com+bc070de6+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"},
		MinWitnesses:      1,
		Source:            []string{"https://gitlab.example.com/acme/app.git"},
		Ref:               []string{"refs/heads/main", "refs/tags/v*"},
		RequireProtected:  true,
		Project:           []string{"acme/app"},
		Subject:           []string{"dist/**"},
		Result:            []string{"success"},
		AllowedInputHosts: []string{"proxy.example.com", "*.mirror.example.com"},
		AllowedImages:     []string{"registry.example.com/ci/**"},
		MaxAge:            8760 * time.Hour,
		Completeness: Completeness{
			Sources: "hermetic", Images: "hermetic", Packages: "hermetic", Files: "hermetic", Artifacts: "border", Caches: "border",
		},
		Digest: got.Digest,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Policy{})); diff != "" {
		t.Error(diff)
	}
	if !got.Valid() || len(got.Digest) != 64 || got.Line("ref") == 0 {
		t.Errorf("valid %v, digest %q, line of ref %d", got.Valid(), got.Digest, got.Line("ref"))
	}
	for _, key := range keys(reflect.TypeFor[Policy]()) {
		if !regexp.MustCompile(`(?m)^(\[+` + key + `\]+|` + key + ` = )`).MatchString(Example()) {
			t.Errorf("the example lacks %s", key)
		}
	}
}

func keys(typ reflect.Type) []string {
	var list []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("toml"), ",")
		if name != "" {
			list = append(list, name)
		}
		inner := typ.Field(i).Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			list = append(list, keys(inner)...)
		}
	}
	return list
}

func TestDefaults(t *testing.T) {
	p, err := Parse([]byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"success"}, p.Result); diff != "" {
		t.Error(diff)
	}
	for _, class := range p.Completeness.Classes() {
		if class.Word != "border" {
			t.Errorf("%s: %s by default", class.Name, class.Word)
		}
	}
	if !p.MatchProject("any/thing") || !p.MatchSubject("x") || !p.MatchImage("r/x") || !p.MatchInput(&url.URL{Host: "x"}) {
		t.Error("what the policy does not mention was refused")
	}
}

func TestPackageCommentExample(t *testing.T) {
	src, err := os.ReadFile("policy.go")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(src)) {
		if rest, ok := strings.CutPrefix(line, "//\t"); ok {
			text.WriteString(rest)
		}
		if strings.HasPrefix(line, "package ") {
			break
		}
	}
	if _, err := Parse([]byte(text.String())); err != nil {
		t.Errorf("%v\n%s", err, text.String())
	}
}

func TestRefused(t *testing.T) {
	replace := func(key, line string) string {
		return regexp.MustCompile(`(?m)^`+key+` = .*$`).ReplaceAllLiteralString(minimal, line)
	}
	for _, tt := range []struct{ name, text, want, hint string }{
		{"empty", "", "p.toml: the policy is empty: it expects nothing", "say at least builder_ids, issuer, source and ref"},
		{"comment alone", "# nothing\n", "p.toml: the policy is empty: it expects nothing", "say at least builder_ids, issuer, source and ref"},
		{"no builder", replace("builder_ids", ""), "p.toml: builder_ids: required, but missing", `as builder_ids = ["https://ci.example.com/hallmark/hermetic"]`},
		{"empty builders", replace("builder_ids", "builder_ids = []"), "p.toml:1:15: builder_ids: must not be empty", `as builder_ids = ["https://ci.example.com/hallmark/hermetic"]`},
		{"builder twice", replace("builder_ids", "builder_ids = ['https://a.example/b', 'https://a.example/b']"), `p.toml:1:39: builder_ids[1]: "https://a.example/b" is there twice`, ""},
		{"builder no url", replace("builder_ids", "builder_ids = 'hermetic'"), `p.toml:1:15: builder_ids: "hermetic" is not an absolute http or https URL`, ""},
		{"builder glob", replace("builder_ids", "builder_ids = 'https://a.example/*'"), `p.toml:1:15: builder_ids: "https://a.example/*" looks like a glob, but is compared as it stands`, "write out each one"},
		{"no issuer", replace("issuer", ""), "p.toml: issuer: required, but missing", `as issuer = "https://ci.example.com/hallmark"`},
		{"empty issuer", replace("issuer", "issuer = ''"), "p.toml:2:10: issuer: must not be empty", `as issuer = "https://ci.example.com/hallmark"`},
		{"issuer list", replace("issuer", "issuer = ['https://a.example']"), "p.toml:2:10: issuer: want a string, not a list", "put it in quotes"},
		{"no source", replace("source", ""), "p.toml: source: required, but missing", `as source = "https://gitlab.example.com/group/project.git"`},
		{"source password", replace("source", "source = 'https://u:p@a.example/x'"), `p.toml:3:10: source: "https://u:xxxxx@a.example/x" has a user or password in it`, "statements have no credentials in URLs"},
		{"source ssh", replace("source", "source = 'git@a.example:x.git'"), `p.toml:3:10: source: not a URL`, ""},
		{"source spelling", replace("source", "source = 'HTTPS://a.example/x'"), `p.toml:3:10: source: "HTTPS://a.example/x" is not in its plain form`, `write it as "https://a.example/x"`},
		{"no ref", replace("ref", ""), "p.toml: ref: required, but missing", `as ref = "refs/heads/main"; every ref is "refs/**"`},
		{"short ref", replace("ref", "ref = 'main'"), `p.toml:4:7: ref: "main" is not a full ref`, `a branch is "refs/heads/main", a tag "refs/tags/main"`},
		{"bad glob", replace("ref", "ref = ['refs/heads/main', 'refs/[x']"), `p.toml:4:27: ref[1]: "refs/[x" is not a glob`, globHint},
		{"unknown key", minimal + "requireprotected = true\n", `p.toml:5:1: unknown key "requireprotected"`, `did you mean "require_protected"?`},
		{"other case", minimal + "Require_Protected = true\n", `p.toml:5:1: unknown key "Require_Protected"`, `did you mean "require_protected"?`},
		{"wrong type", minimal + "require_protected = 'yes'\n", "p.toml:5:21: require_protected: want true or false, not a string", ""},
		{"empty project", minimal + "project = []\n", "p.toml:5:11: project: must not be empty", "leave the key away to accept any"},
		{"bad project", minimal + "project = '{a'\n", `p.toml:5:11: project: "{a" is not a glob`, globHint},
		{"empty subject", minimal + "subject = ''\n", `p.toml:5:11: subject: "" is not a glob`, globHint},
		{"result", minimal + "result = 'sucess'\n", `p.toml:5:10: result: "sucess" is not a result`, `did you mean "success"?`},
		{"no result", minimal + "result = []\n", "p.toml:5:10: result: must not be empty", `the default is "success"`},
		{"host url", minimal + "allowed_input_hosts = ['https://a.example']\n", `p.toml:5:24: allowed_input_hosts[0]: "https://a.example" is not a host`, `as "proxy.example.com", "proxy.example.com:8443" or "*.example.com"`},
		{"host glob", minimal + "allowed_input_hosts = 'a*.example'\n", `p.toml:5:23: allowed_input_hosts: "a*.example" is not a host`, `as "proxy.example.com", "proxy.example.com:8443" or "*.example.com"`},
		{"every host", minimal + "allowed_input_hosts = '*'\n", `p.toml:5:23: allowed_input_hosts: "*" is not a host`, `as "proxy.example.com", "proxy.example.com:8443" or "*.example.com"`},
		{"host case", minimal + "allowed_input_hosts = '*.Example.com'\n", `p.toml:5:23: allowed_input_hosts: "*.Example.com" is not in lower case`, `write it as "*.example.com"`},
		{"image tag", minimal + "allowed_images = 'r.example/a:latest'\n", `p.toml:5:18: allowed_images: "r.example/a:latest" can match no repository`, "leave tag and digest off: images are recorded by digest"},
		{"age number", minimal + "max_age = 10\n", "p.toml:5:11: max_age: want a duration, not a whole number", `write it with its unit, as "10s" or "5m"`},
		{"age zero", minimal + "max_age = '0s'\n", "p.toml:5:11: max_age: 0s: nothing is that young", "leave the key away to accept any age"},
		{"age negative", minimal + "min_age = '-1s'\n", "p.toml:5:11: min_age: -1s is negative", ""},
		{"ages", minimal + "min_age = '2h'\nmax_age = '1h'\n", "p.toml:5:11: min_age: 2h0m0s is more than max_age, 1h0m0s: nothing can meet both", ""},
		{"logs negative", minimal + "min_logs = -1\n", "p.toml:5:12: min_logs: -1: want 0 to 8", "0 asks for none; leave the key away for one where the trusted root names any"},
		{"logs", minimal + "min_logs = 9\n", "p.toml:5:12: min_logs: 9: want 0 to 8", "0 asks for none; leave the key away for one where the trusted root names any"},
		{"witness", witnessed(1, "witness.example.com"), `p.toml:5:14: witnesses[0]: "witness.example.com" is no key of a witness`, "the name, the key's hash and the key, as name+hash+key"},
		{"witness of another hash", witnessed(1, strings.Replace(witness, "+bc", "+bd", 1)), `p.toml:5:14: witnesses[0]: "` + strings.Replace(witness, "+bc", "+bd", 1) + `" is no key of a witness`, "the name, the key's hash and the key, as name+hash+key"},
		{"witness twice", witnessed(1, witness, witness), `p.toml:5:91: witnesses[1]: "` + witness + `" is there twice`, ""},
		{"witness under two names", witnessed(1, witness, renamed), `p.toml:5:91: witnesses[1]: witness.example.com and renamed.example.com have the same key`, ""},
		{"no witness", minimal + "witnesses = []\n", "p.toml:5:13: witnesses: must not be empty", "leave the key away to ask for none"},
		{"witnesses of nobody", minimal + "min_witnesses = 1\n", "p.toml: witnesses: required, but missing", `as witnesses = ["witness.example.com+bc070de6+BIqI…"]`},
		{"witnesses for nothing", minimal + "witnesses = '" + witness + "'\n", "p.toml: min_witnesses: 0: want 1 to 1, as many as there are", "how many of them must have seen what a log published"},
		{"more witnesses than there are", witnessed(2, witness), "p.toml:6:17: min_witnesses: 2: want 1 to 1, as many as there are", "how many of them must have seen what a log published"},
		{"more witnesses than names", witnessed(2, witness, "witness.example.com+8c42feec+BIE5dw6ofRdfVqNUZsNMfszLjYqRtO43ol32D1uPybOU"), "p.toml:6:17: min_witnesses: 2: want 1 to 1, as many as there are", "how many of them must have seen what a log published"},
		{"witnesses of no log", witnessed(1, witness) + "min_logs = 0\n", "p.toml:7:12: min_logs: 0 asks for no log, and there are no witnesses without one", "leave it away, or the witnesses"},
		{"signer of nothing", minimal + "[[signers]]\nidentity = 'a@b.example'\n", `p.toml: signers[0].builder_id: "" is not a builder that the policy accepts`, "one of builder_ids"},
		{"signer of another builder", minimal + pair("https://ci.example.com/hallmark/Hermetic", "a@b.example"), `p.toml:6:14: signers[0].builder_id: "https://ci.example.com/hallmark/Hermetic" is not a builder that the policy accepts`, "one of builder_ids"},
		{"signer without a name", minimal + "[[signers]]\nbuilder_id = 'https://ci.example.com/hallmark/hermetic'\n", `p.toml: signers[0].identity: "" is neither a URI nor a mail address`, `as "spiffe://example.com/hallmark" or "hallmark@example.com"`},
		{"signer's word", minimal + pair("https://ci.example.com/hallmark/hermetic", "hallmark"), `p.toml:7:12: signers[0].identity: "hallmark" is neither a URI nor a mail address`, `as "spiffe://example.com/hallmark" or "hallmark@example.com"`},
		{"signer's display name", minimal + pair("https://ci.example.com/hallmark/hermetic", "H <h@b.example>"), `p.toml:7:12: signers[0].identity: "H <h@b.example>" is neither a URI nor a mail address`, `as "spiffe://example.com/hallmark" or "hallmark@example.com"`},
		{"signer glob", minimal + pair("https://ci.example.com/hallmark/hermetic", "*@b.example"), `p.toml:7:12: signers[0].identity: "*@b.example" looks like a glob, but is compared as it stands`, "write out each one"},
		{"signer's issuer", minimal + pair("https://ci.example.com/hallmark/hermetic", "h@b.example") + "issuer = 'login'\n", `p.toml:8:10: signers[0].issuer: "login" is not an absolute http or https URL`, ""},
		{"signer twice", minimal + pair("https://ci.example.com/hallmark/hermetic", "h@b.example") + pair("https://ci.example.com/hallmark/hermetic", "h@b.example"), `p.toml:10:12: signers[1].identity: the pair is there twice`, ""},
		{"word", minimal + "[completeness]\npackages = 'hermetical'\n", `p.toml:6:12: completeness.packages: "hermetical": want "hermetic", "border" or "declared"`, `did you mean "hermetic"?`},
		{"empty word", minimal + "[completeness]\npackages = ''\n", `p.toml:6:12: completeness.packages: "": want "hermetic", "border" or "declared"`, "one of hermetic, border, declared"},
		{"class", minimal + "[completeness]\npackage = 'border'\n", `p.toml:6:1: unknown key "completeness.package"`, `did you mean "completeness.packages"?`},
		{"internal field", minimal + "valid = true\n", `p.toml:5:1: unknown key "valid"`, ""},
		{"syntax", "builder_ids = [", "p.toml:1:15: ", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParseFile("p.toml", []byte(tt.text))
			var e *tomlfile.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if p.Valid() {
				t.Error("a bad policy is valid")
			}
			if tt.name == "syntax" {
				if !strings.HasPrefix(e.Error(), tt.want) {
					t.Errorf("got %s", e)
				}
				return
			}
			if e.Error() != tt.want || tt.name != "internal field" && e.Hint != tt.hint {
				t.Errorf("got  %s\nhint %s\nwant %s\nhint %s", e, e.Hint, tt.want, tt.hint)
			}
		})
	}
}

func pair(builderID, identity string) string {
	return "[[signers]]\nbuilder_id = '" + builderID + "'\nidentity = '" + identity + "'\n"
}

func TestSigners(t *testing.T) {
	const hermetic, firewalled = "https://ci.example.com/hallmark/hermetic", "https://ci.example.com/hallmark/firewalled"
	p, err := Parse([]byte(strings.Replace(minimal, `"`+hermetic+`"`, `["`+hermetic+`", "`+firewalled+`"]`, 1) +
		pair(hermetic, "h@b.example") + "issuer = 'https://login.example.com'\n" + pair(hermetic, "spiffe://b.example/h")))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Signer{{"h@b.example", "https://login.example.com"}, {"spiffe://b.example/h", p.Issuer}}, p.SignersOf(hermetic)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Signer{{firewalled, p.Issuer}}, p.SignersOf(firewalled)); diff != "" {
		t.Error(diff)
	}
}

// A witness's key, and the same under another name.
const (
	witness = "witness.example.com+bc070de6+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
	renamed = "renamed.example.com+7e612d1a+BIqI4910CfGV/VLbLTy6XXLKZwm/HZQSG/N0iAG0D29c"
)

// witnessed is a policy that asks for so many of these witnesses.
func witnessed(n int, keys ...string) string {
	return fmt.Sprintf("%switnesses = ['%s']\nmin_witnesses = %d\n", minimal, strings.Join(keys, "', '"), n)
}

// TestWitnessKeys: a key of plain Ed25519, as logs name their witnesses by, is one
// too.
func TestWitnessKeys(t *testing.T) {
	_, plain, err := note.GenerateKey(nil, "plain.example.com")
	if err != nil {
		t.Fatal(err)
	}
	p, err := Parse([]byte(witnessed(2, witness, plain)))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := p.WitnessKeys()
	if err != nil || len(keys) != 2 || keys[0].Name() != "witness.example.com" || keys[1].Name() != "plain.example.com" {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestLogsAsked(t *testing.T) {
	asks := strings.TrimPrefix(witnessed(1, witness), minimal)
	for text, want := range map[string][3]int{
		"": {0, 1, 1}, "min_logs = 0\n": {0, 0, 0}, "min_logs = 2\n": {2, 2, 2}, asks: {1, 1, 1}, asks + "min_logs = 2\n": {2, 2, 2},
	} {
		p, err := Parse([]byte(minimal + text))
		if err != nil {
			t.Fatal(err)
		}
		if got := [3]int{p.LogsAsked(0), p.LogsAsked(1), p.LogsAsked(3)}; got != want {
			t.Errorf("%q: %v with 0, 1 and 3 trusted logs, want %v", text, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a policy that is not there was read")
	}
	file := filepath.Join(t.TempDir(), "p.toml")
	if err := os.WriteFile(file, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Load(file); err != nil || !p.Valid() {
		t.Errorf("got %v, %v", p, err)
	}
}

func TestMatch(t *testing.T) {
	p, err := Parse([]byte(strings.Replace(Example(), `ref = ["refs/heads/main", "refs/tags/v*"]`, `ref = ["refs/heads/main", "refs/tags/v*", "refs/heads/release/**"]`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]bool{
		"refs/heads/main": true, "refs/tags/v1": true, "refs/heads/release/a/b": true,
		"refs/heads/Main": false, "refs/heads/main2": false, "refs/heads/main/x": false, "refs/tags/v1/x": false,
		"refs/heads/v1": false, "main": false, "": false, "refs/heads/main\n": false, "refs/tags/v\x00": true,
	} {
		if p.MatchRef(ref) != want {
			t.Errorf("ref %q: %v", ref, !want)
		}
	}
	for host, want := range map[string]bool{
		"https://proxy.example.com/x": true, "http://proxy.example.com/x": true, "https://proxy.example.com:443/": true,
		"https://a.mirror.example.com/": true, "https://a.b.mirror.example.com/": true,
		"https://mirror.example.com/": false, "https://proxy.example.com:8443/": false, "https://xproxy.example.com/": false,
		"https://proxy.example.com.evil.example/": false, "https://amirror.example.com/": false, "https://PROXY.example.com/": false,
		"https://proxy.example.com@evil.example/": false, "http://proxy.example.com:443/": false, "https:///x": false,
	} {
		u, err := url.Parse(host)
		if err != nil {
			t.Fatal(err)
		}
		if p.MatchInput(u) != want {
			t.Errorf("input %s: %v", host, !want)
		}
	}
	none, err := Parse([]byte(minimal + "allowed_input_hosts = []\nallowed_images = []\n"))
	if err != nil {
		t.Fatal(err)
	}
	if none.MatchInput(&url.URL{Scheme: "https", Host: "proxy.example.com"}) || none.MatchImage("r/x") {
		t.Error("an empty list accepts something")
	}
	if !p.MatchImage("registry.example.com/ci/go/1") || p.MatchImage("registry.example.com/other") {
		t.Error("images")
	}
	var zero Policy
	if zero.Valid() || zero.MatchRef("refs/heads/main") {
		t.Error("the zero policy accepts something")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add(minimal)
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse([]byte(text))
		if (err == nil) != p.Valid() {
			t.Errorf("error %v, yet valid is %v", err, p.Valid())
		}
		if err == nil && (len(p.BuilderIDs) == 0 || p.Issuer == "" || len(p.Source) == 0 || len(p.Ref) == 0 || len(p.Result) == 0) {
			t.Errorf("accepted a policy that expects too little: %+v", p)
		}
	})
}
