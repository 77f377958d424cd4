// Package policy states what an auditor expects of an artifact's provenance.
//
// # Format
//
// A verification policy is one TOML file. It is strict: an unknown key, a
// wrong type or a value that makes no sense is an error with its place, and so
// is a policy that does not say who may have built the artifact, from which
// source and which ref. An empty policy expects nothing, and is an error too.
//
//	builder_ids = ["https://ci.example.com/hallmark/hermetic"]
//	issuer      = "https://ci.example.com/hallmark"
//	source      = "https://gitlab.example.com/acme/app.git"
//	ref         = ["refs/heads/main", "refs/tags/v*"]
//
// These four are required; [Example] has every key with its meaning. Where a
// list is wanted, a single string may stand for a list of one.
//
// # Signers
//
// A builder id is what a statement claims; who may claim it is another matter.
// By default the certificate must be in the builder's own name, from the
// policy's issuer. An authority that signs under an identity of its own, such
// as a service account at a Fulcio that others use too, is paired with the
// builder in [[signers]]. Pairs are compared byte for byte and replace the
// default for that builder: there is no pattern for signers, because whoever
// can choose a part of his identity could choose one that matches. A CI job is
// never a signer, whatever pairs say.
//
// # Defaults
//
// What the policy does not mention is either judged by a strict default (the
// job's result must be success; nothing may have entered unseen; if the trusted
// root names a transparency log, the signature must be in one) or reported as
// not checked.
//
// # Trust
//
// A writer of the policy decides what is accepted. Take it from a place that
// neither the project under test nor the artifact's own build can write to:
// the policy's digest is part of every verdict, so that readers can see which
// expectations were met.
package policy

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net/mail"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"

	"hallmark.build/attest"
	"hallmark.build/config/tomlfile"
)

//go:embed example.toml
var example string

// Example is a policy that has every key, with comments.
func Example() string { return example }

// A Policy is what is expected. Only [Parse] and [Load] make one that is [Policy.Valid].
type Policy struct {
	BuilderIDs        []string      `toml:"builder_ids,oneormore"`
	Issuer            string        `toml:"issuer"`
	Signers           []Pair        `toml:"signers"`
	MinLogs           int           `toml:"min_logs"`
	Witnesses         []string      `toml:"witnesses,oneormore"`
	MinWitnesses      int           `toml:"min_witnesses"` // of each log that counts
	Source            []string      `toml:"source,oneormore"`
	Ref               []string      `toml:"ref,oneormore"`
	RequireProtected  bool          `toml:"require_protected"`
	Project           []string      `toml:"project,oneormore"`
	Subject           []string      `toml:"subject,oneormore"`
	Result            []string      `toml:"result,oneormore"`
	AllowedInputHosts []string      `toml:"allowed_input_hosts,oneormore"` // nil: any
	AllowedImages     []string      `toml:"allowed_images,oneormore"`      // nil: any
	MaxAge            time.Duration `toml:"max_age"`                       // 0: any
	MinAge            time.Duration `toml:"min_age"`
	Completeness      Completeness  `toml:"completeness"`

	// Digest is the SHA-256 of the policy's bytes in lower-case hex.
	Digest string

	lines map[string]int
	valid bool
}

// A Signer is who a certificate says it is for, and who vouches for that.
type Signer struct {
	Identity string // the certificate's one name
	Issuer   string
}

// A Pair says that a builder is signed for by somebody of another name.
type Pair struct {
	BuilderID string `toml:"builder_id"`
	Identity  string `toml:"identity"`
	Issuer    string `toml:"issuer"`
}

// Completeness is the least that must be said of each class of inputs.
type Completeness struct {
	Sources   string `toml:"sources"`
	Images    string `toml:"images"`
	Packages  string `toml:"packages"`
	Files     string `toml:"files"`
	Artifacts string `toml:"artifacts"`
	Caches    string `toml:"caches"`
}

// A Class is one class of inputs with a word for why its list is complete.
type Class struct{ Name, Word string }

// Classes lists what the policy wants, in a fixed order.
func (c Completeness) Classes() []Class {
	return []Class{
		{"sources", c.Sources}, {"images", c.Images}, {"packages", c.Packages},
		{"files", c.Files}, {"artifacts", c.Artifacts}, {"caches", c.Caches},
	}
}

// Valid reports whether the policy came from a file that was found sound. The
// zero Policy is not valid, and nothing is accepted under it.
func (p Policy) Valid() bool { return p.valid }

// Line is the line of the policy on which the key's value stands, 0 if it is
// not there.
func (p Policy) Line(key string) int { return p.lines[key] }

// Load reads a policy from a file.
func Load(file string) (Policy, error) {
	data, err := tomlfile.Read(file)
	if err != nil {
		return Policy{}, err
	}
	return ParseFile(file, data)
}

// Parse reads a policy's text.
func Parse(text []byte) (Policy, error) { return ParseFile("policy", text) }

// ParseFile is Parse with the name of the file, for errors.
func ParseFile(file string, text []byte) (Policy, error) {
	doc, err := tomlfile.Parse(file, text)
	if err != nil {
		return Policy{}, err
	}
	if doc.Empty() {
		return Policy{}, &tomlfile.Error{
			File: file, Msg: "the policy is empty: it expects nothing",
			Hint: "say at least builder_ids, issuer, source and ref",
		}
	}
	p := Policy{
		Result: []string{"success"},
		Completeness: Completeness{
			Sources: attest.Border, Images: attest.Border, Packages: attest.Border,
			Files: attest.Border, Artifacts: attest.Border, Caches: attest.Border,
		},
	}
	doc.Decode(&p)
	if doc.Err() == nil {
		p.check(doc)
	}
	if err := doc.Err(); err != nil {
		return Policy{}, err
	}
	sum := sha256.Sum256(text)
	p.Digest = hex.EncodeToString(sum[:])
	p.lines = doc.Lines()
	p.valid = true
	return p, nil
}

func (p *Policy) check(doc *tomlfile.Document) {
	required(doc, "builder_ids", p.BuilderIDs, `as builder_ids = ["https://ci.example.com/hallmark/hermetic"]`)
	for i, id := range p.BuilderIDs {
		checkURL(doc, at(doc, "builder_ids", i), id)
	}
	if p.Issuer == "" {
		missing(doc, "issuer", `as issuer = "https://ci.example.com/hallmark"`)
	} else {
		checkURL(doc, "issuer", p.Issuer)
	}
	p.checkSigners(doc)
	if doc.Has("min_logs") && (p.MinLogs < 0 || p.MinLogs > mostLogs) {
		doc.Report("min_logs", "0 asks for none; leave the key away for one where the trusted root names any", "%d: want 0 to %d", p.MinLogs, mostLogs)
	}
	p.checkWitnesses(doc)
	required(doc, "source", p.Source, `as source = "https://gitlab.example.com/group/project.git"`)
	for i, source := range p.Source {
		checkURL(doc, at(doc, "source", i), source)
	}
	required(doc, "ref", p.Ref, `as ref = "refs/heads/main"; every ref is "refs/**"`)
	for i, ref := range p.Ref {
		checkRef(doc, at(doc, "ref", i), ref)
	}
	checkGlobs(doc, "project", p.Project)
	checkGlobs(doc, "subject", p.Subject)
	checkResults(doc, p.Result)
	for i, host := range p.AllowedInputHosts {
		checkHost(doc, at(doc, "allowed_input_hosts", i), host)
	}
	checkImages(doc, p.AllowedImages)
	checkAges(doc, p.MinAge, p.MaxAge)
	for _, class := range p.Completeness.Classes() {
		if Rank(class.Word) == 0 {
			doc.Report("completeness."+class.Name, near(class.Word, words()),
				"%q: want %q, %q or %q", class.Word, attest.Hermetic, attest.Border, attest.Declared)
		}
	}
}

// mostLogs is how many logs a policy may ask for: verifiers read no more entries.
const mostLogs = 8

func (p *Policy) checkSigners(doc *tomlfile.Document) {
	for i, pair := range p.Signers {
		where := "signers[" + strconv.Itoa(i) + "]."
		if !slices.Contains(p.BuilderIDs, pair.BuilderID) {
			doc.Report(where+"builder_id", "one of builder_ids", "%q is not a builder that the policy accepts", pair.BuilderID)
		}
		checkIdentity(doc, where+"identity", pair.Identity)
		if doc.Has(where + "issuer") {
			checkURL(doc, where+"issuer", pair.Issuer)
		}
		if slices.Contains(p.Signers[:i], pair) {
			doc.Report(where+"identity", "", "the pair is there twice")
		}
	}
}

// checkIdentity wants a name that a certificate can have: a URI of any scheme,
// or a mail address.
func checkIdentity(doc *tomlfile.Document, where, text string) {
	const hint = `as "spiffe://example.com/hallmark" or "hallmark@example.com"`
	if strings.Contains(text, "*") {
		doc.Report(where, "write out each one", "%q looks like a glob, but is compared as it stands", text)
		return
	}
	if u, err := url.Parse(text); err == nil && u.Scheme != "" && u.Host != "" {
		return
	}
	if a, err := mail.ParseAddress(text); err != nil || a.Address != text {
		doc.Report(where, hint, "%q is neither a URI nor a mail address", text)
	}
}

func words() []string { return []string{attest.Hermetic, attest.Border, attest.Declared} }

// Rank orders the words for completeness: the higher, the more is known. An
// unknown word has rank 0.
func Rank(word string) int {
	switch word {
	case attest.Hermetic:
		return 3
	case attest.Border:
		return 2
	case attest.Declared:
		return 1
	}
	return 0
}

// at is the path of a list's element; a string that stands for a list of one
// has the list's own.
func at(doc *tomlfile.Document, list string, i int) string {
	if element := list + "[" + strconv.Itoa(i) + "]"; doc.Has(element) {
		return element
	}
	return list
}

func missing(doc *tomlfile.Document, key, hint string) {
	if doc.Has(key) {
		doc.Report(key, hint, "must not be empty")
		return
	}
	doc.Report(key, hint, "required, but missing")
}

func required(doc *tomlfile.Document, key string, values []string, hint string) {
	if len(values) == 0 {
		missing(doc, key, hint)
	}
	unique(doc, key, values)
}

func unique(doc *tomlfile.Document, key string, values []string) {
	for i, value := range values {
		if slices.Contains(values[:i], value) {
			doc.Report(at(doc, key, i), "", "%q is there twice", value)
		}
	}
}

// checkURL wants an absolute http(s) URL, because that is what statements
// have. It is compared as text, so its spelling is left alone.
func checkURL(doc *tomlfile.Document, where, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		doc.Report(where, "", "not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		doc.Report(where, "", "%q is not an absolute http or https URL", u.Redacted())
	case u.User != nil:
		doc.Report(where, "statements have no credentials in URLs", "%q has a user or password in it", u.Redacted())
	case strings.ContainsAny(text, "*"):
		doc.Report(where, "write out each one", "%q looks like a glob, but is compared as it stands", text)
	case u.String() != text:
		doc.Report(where, fmt.Sprintf("write it as %q", u), "%q is not in its plain form", text)
	}
}

func checkRef(doc *tomlfile.Document, where, ref string) {
	switch {
	case !doublestar.ValidatePattern(ref) || ref == "":
		doc.Report(where, globHint, "%q is not a glob", ref)
	case !strings.HasPrefix(ref, "refs/"):
		doc.Report(where, fmt.Sprintf(`a branch is "refs/heads/%[1]s", a tag "refs/tags/%[1]s"`, ref), "%q is not a full ref", ref)
	}
}

const globHint = "* is anything within one part, ** any number of parts, {a,b} a choice"

func checkGlobs(doc *tomlfile.Document, key string, globs []string) {
	if globs != nil {
		required(doc, key, globs, "leave the key away to accept any")
	}
	for i, glob := range globs {
		if glob == "" || !doublestar.ValidatePattern(glob) {
			doc.Report(at(doc, key, i), globHint, "%q is not a glob", glob)
		}
	}
}

func checkResults(doc *tomlfile.Document, results []string) {
	required(doc, "result", results, `the default is "success"`)
	known := []string{"success", "failed", "canceled", "timeout"}
	for i, result := range results {
		if !slices.Contains(known, result) {
			doc.Report(at(doc, "result", i), near(result, known), "%q is not a result", result)
		}
	}
}

func near(word string, known []string) string {
	if guess := tomlfile.Nearest(word, known); guess != "" {
		return fmt.Sprintf("did you mean %q?", guess)
	}
	return "one of " + strings.Join(known, ", ")
}

// checkHost wants host, host:port or *.domain.
func checkHost(doc *tomlfile.Document, where, pattern string) {
	const hint = `as "proxy.example.com", "proxy.example.com:8443" or "*.example.com"`
	host := strings.TrimPrefix(pattern, "*.")
	u, err := url.Parse("https://" + host)
	switch {
	case err != nil || host == "" || u.Host != host || u.Hostname() == "" || strings.ContainsAny(host, "*?{}"):
		doc.Report(where, hint, "%q is not a host", pattern)
	case strings.ToLower(host) != host:
		doc.Report(where, fmt.Sprintf("write it as %q", strings.ToLower(pattern)), "%q is not in lower case", pattern)
	}
}

func checkImages(doc *tomlfile.Document, globs []string) {
	for i, glob := range globs {
		switch {
		case glob == "" || !doublestar.ValidatePattern(glob):
			doc.Report(at(doc, "allowed_images", i), globHint, "%q is not a glob", glob)
		case strings.Contains(glob, "@") || strings.Contains(path.Base(glob), ":"):
			doc.Report(at(doc, "allowed_images", i), "leave tag and digest off: images are recorded by digest", "%q can match no repository", glob)
		}
	}
	unique(doc, "allowed_images", globs)
}

func checkAges(doc *tomlfile.Document, least, most time.Duration) {
	switch {
	case least < 0:
		doc.Report("min_age", "", "%s is negative", least)
	case doc.Has("max_age") && most <= 0:
		doc.Report("max_age", "leave the key away to accept any age", "%s: nothing is that young", most)
	case most > 0 && least > most:
		doc.Report("min_age", "", "%s is more than max_age, %s: nothing can meet both", least, most)
	}
}

// SignersOf are those who may sign for a builder: the policy's pairs, or
// without any the builder itself, from the policy's issuer.
func (p Policy) SignersOf(builderID string) []Signer {
	var list []Signer
	for _, pair := range p.Signers {
		if pair.BuilderID == builderID {
			list = append(list, Signer{pair.Identity, cmp.Or(pair.Issuer, p.Issuer)})
		}
	}
	if list == nil {
		list = []Signer{{builderID, p.Issuer}}
	}
	return list
}

// LogsAsked is how many transparency logs must have a signature, under a
// trusted root that names so many of them. Witnesses are of a log: who asks for
// them asks for one.
func (p Policy) LogsAsked(trusted int) int {
	switch {
	case p.Line("min_logs") > 0:
		return p.MinLogs
	case p.MinWitnesses > 0:
		return 1
	}
	return min(trusted, 1)
}

// MatchRef reports whether the policy accepts a full ref.
func (p Policy) MatchRef(ref string) bool { return matchAny(p.Ref, ref) }

// MatchProject reports whether the policy accepts a project.
func (p Policy) MatchProject(project string) bool {
	return p.Project == nil || matchAny(p.Project, project)
}

// MatchSubject reports whether the policy accepts a subject's name.
func (p Policy) MatchSubject(name string) bool { return p.Subject == nil || matchAny(p.Subject, name) }

// MatchImage reports whether the policy accepts an image's repository.
func (p Policy) MatchImage(repository string) bool {
	return p.AllowedImages == nil || matchAny(p.AllowedImages, repository)
}

func matchAny(globs []string, name string) bool {
	for _, glob := range globs {
		if ok, err := doublestar.Match(glob, name); err == nil && ok {
			return true
		}
	}
	return false
}

// MatchInput reports whether the policy accepts an input from the URL. A host
// without a port means the scheme's own port.
func (p Policy) MatchInput(u *url.URL) bool {
	if p.AllowedInputHosts == nil {
		return true
	}
	standard := u.Port() == "" || u.Port() == map[string]string{"http": "80", "https": "443"}[u.Scheme]
	for _, pattern := range p.AllowedInputHosts {
		domain, wild := strings.CutPrefix(pattern, "*.")
		want, err := url.Parse("https://" + domain)
		if err != nil {
			continue
		}
		if want.Port() == "" && !standard || want.Port() != "" && want.Port() != u.Port() {
			continue
		}
		if host := want.Hostname(); u.Hostname() == host && !wild || wild && strings.HasSuffix(u.Hostname(), "."+host) {
			return true
		}
	}
	return false
}
