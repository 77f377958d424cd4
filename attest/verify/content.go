package verify

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/policy"
)

// maxEvidence bounds the lines of one check.
const maxEvidence = 10

// clockSkew is how far the clocks of runner host, authority and verifier may
// lie apart.
const clockSkew = 10 * time.Minute

// content judges what a statement says.
type content struct {
	s      *parsedStatement
	form   error // what is wrong with the statement as such
	pol    policy.Policy
	digest Digest
	who    policy.Signer
	signed []time.Time
	now    time.Time
}

func (j *content) checks(payloadType string) []Check {
	return []Check{
		j.statement(payloadType), j.builder(), j.subject(), j.parameters(), j.source(), j.ref(), j.project(),
		j.result(), j.completeness(), j.images(), j.inputs(), j.time(),
	}
}

// finding collects what is wrong for one check.
type finding struct {
	c     Check
	lines []string
	total int
}

func asks(name string) *finding { return &finding{c: Check{Name: name, Required: true}} }

func (f *finding) add(format string, args ...any) {
	f.total++
	if len(f.lines) < maxEvidence {
		f.lines = append(f.lines, fmt.Sprintf(format, args...))
	}
}

// fail ends the check with a reason.
func (f *finding) fail(line int, format string, args ...any) Check {
	f.c.Status, f.c.Detail, f.c.PolicyLine = Fail, fmt.Sprintf(format, args...), line
	f.c.Evidence = f.lines
	if more := f.total - len(f.lines); more > 0 {
		f.c.Evidence = append(f.c.Evidence, fmt.Sprintf("and %d more", more))
	}
	return f.c
}

func (f *finding) pass(format string, args ...any) Check {
	f.c.Status, f.c.Detail = Pass, fmt.Sprintf(format, args...)
	return f.c
}

// unasked ends a check that the policy does not ask for.
func (f *finding) unasked(format string, args ...any) Check {
	f.c.Status, f.c.Required = NotChecked, false
	f.c.Detail = fmt.Sprintf(format, args...)
	return f.c
}

func (j *content) statement(payloadType string) Check {
	f := asks("statement")
	if payloadType != attest.PayloadType {
		return f.fail(0, "payload type %q: want %q", payloadType, attest.PayloadType)
	}
	if j.form != nil {
		return f.fail(0, "%s", oneLine(j.form))
	}
	return f.pass("in-toto v1, SLSA provenance v1, %s", attest.BuildType)
}

// builder pairs the signer with the builder that the statement names: whoever
// can sign something must not sign as somebody else. The last part of a builder
// id is the profile, which the parameters must repeat.
func (j *content) builder() Check {
	f := asks("builder")
	id := j.s.Predicate.RunDetails.Builder.ID
	signers := j.pol.SignersOf(id)
	named := func(s policy.Signer) bool { return s.Identity == j.who.Identity }
	switch {
	case !slices.ContainsFunc(signers, named):
		f.add("signed by  %s", j.who.Identity)
		f.add("claimed    %s", id)
		return f.fail(j.pol.Line("signers"), "the statement names another builder than the one that signed it")
	case !slices.Contains(j.pol.BuilderIDs, id):
		f.add("%s", id)
		return f.fail(j.pol.Line("builder_ids"), "is not one that the policy accepts")
	case !slices.Contains(signers, j.who):
		f.add("%s", j.who.Issuer)
		return f.fail(cmp.Or(j.pol.Line("signers"), j.pol.Line("issuer")), "the certificate's issuer is not the policy's")
	case path.Base(id) != j.s.external.Profile:
		f.add("%s", id)
		return f.fail(0, "is not the builder of profile %q", j.s.external.Profile)
	case id != j.who.Identity:
		return f.pass("%s, signed for by %s", id, j.who.Identity)
	}
	return f.pass("%s", id)
}

// subject looks for the artifact. A subject counts only if every digest that
// it has can be compared, and agrees.
func (j *content) subject() Check {
	f := asks("subject")
	want := j.digest.Hex()
	var names []string
	for _, subject := range j.s.Subject {
		if subject.Digest["sha256"] != want {
			continue
		}
		for _, algorithm := range slices.Sorted(maps.Keys(subject.Digest)) {
			if algorithm != "sha256" {
				f.add("%s: %s", subject.Name, algorithm)
			}
		}
		names = append(names, subject.Name)
	}
	switch {
	case len(names) == 0:
		for _, subject := range j.s.Subject {
			f.add("%s  sha256:%s", subject.Name, subject.Digest["sha256"])
		}
		return f.fail(0, "the artifact is not among its %s", count(len(j.s.Subject), "output"))
	case f.total > 0:
		return f.fail(0, "has digests that cannot be compared")
	}
	i := slices.IndexFunc(names, j.pol.MatchSubject)
	if i < 0 {
		for _, name := range names {
			f.add("%s", name)
		}
		return f.fail(j.pol.Line("subject"), "is attested under a name that the policy does not accept")
	}
	return f.pass("%s, of %s of job %s", names[i], count(len(j.s.Subject), "output"), j.s.Predicate.BuildDefinition.InternalParameters.GitLab.JobID)
}

func (j *content) parameters() Check {
	f := asks("parameters")
	if j.s.externalErr != nil {
		f.add("%s", oneLine(j.s.externalErr))
		return f.fail(0, "external parameters that this verifier does not know")
	}
	x := j.s.external
	return f.pass("job %s: %s, %s, all of a known kind", x.JobName, count(len(x.Variables), "variable"), count(len(x.Steps)+len(x.Hooks), "script"))
}

// source wants the policy's repository, and the commit that GitLab named to be
// what the sandbox found in the workspace. Only a policy that is content with
// declared sources does without the latter.
func (j *content) source() Check {
	f := asks("source")
	x, def := j.s.external, j.s.Predicate.BuildDefinition
	if !slices.Contains(j.pol.Source, x.Source) {
		f.add("%s", x.Source)
		return f.fail(j.pol.Line("source"), "is not a repository that the policy accepts")
	}
	commit := def.InternalParameters.GitLab.SHA
	if err := j.sourceFound(commit); err != nil {
		if j.pol.Completeness.Sources == attest.Declared {
			return f.pass("%s at %s, declared: %s", x.Source, short(commit), oneLine(err))
		}
		return f.fail(0, "%s", oneLine(err))
	}
	return f.pass("%s at %s", x.Source, short(commit))
}

func (j *content) sourceFound(commit string) error {
	outcome := j.s.Predicate.Source
	if outcome.Outcome != "match" {
		return fmt.Errorf("the workspace was not the commit's: %q", outcome.Outcome)
	}
	if outcome.Commit != commit {
		return fmt.Errorf("the workspace was compared with %s, GitLab named %s", short(outcome.Commit), short(commit))
	}
	var found int
	for _, dep := range j.s.Predicate.BuildDefinition.ResolvedDependencies {
		if dep.URI != j.sourceURI() {
			continue
		}
		if dep.Digest["gitCommit"] != commit {
			return fmt.Errorf("the commit built is %s, GitLab named %s", short(dep.Digest["gitCommit"]), short(commit))
		}
		found++
	}
	if found != 1 {
		return fmt.Errorf("is listed %d times among the inputs", found)
	}
	return nil
}

func (j *content) sourceURI() string {
	return "git+" + j.s.external.Source + "@" + j.s.external.Ref
}

func short(commit string) string {
	const most = 12
	if isHex(commit, 20) || isHex(commit, 32) {
		return commit[:most]
	}
	if commit == "" {
		return "no commit"
	}
	return commit
}

func (j *content) ref() Check {
	f := asks("ref")
	ref := j.s.external.Ref
	if !j.pol.MatchRef(ref) {
		f.add("%s", ref)
		return f.fail(j.pol.Line("ref"), "is not a branch or tag that the policy accepts")
	}
	protected := j.s.Predicate.BuildDefinition.InternalParameters.GitLab.Protected
	switch {
	case protected != nil && *protected:
		return f.pass("%s, protected", ref)
	case j.pol.RequireProtected:
		f.add("%s", ref)
		return f.fail(j.pol.Line("require_protected"), "GitLab did not say that it is protected")
	case protected == nil:
		return f.pass("%s", ref)
	}
	return f.pass("%s, not protected", ref)
}

func (j *content) project() Check {
	f := asks("project")
	project := j.s.external.Project
	if j.pol.Project == nil {
		return f.unasked("%s; the policy accepts any", project)
	}
	if !j.pol.MatchProject(project) {
		f.add("%s", project)
		return f.fail(j.pol.Line("project"), "is not one that the policy accepts")
	}
	return f.pass("%s", project)
}

func (j *content) result() Check {
	f := asks("result")
	result := j.s.Predicate.Result.Result
	if !slices.Contains(j.pol.Result, result) {
		return f.fail(j.pol.Line("result"), "the job ended as %q", result)
	}
	return f.pass("%s", result)
}

func (j *content) completeness() Check {
	f := asks("completeness")
	c := j.s.Predicate.Completeness
	claimed := policy.Completeness{
		Sources: c.Sources, Images: c.Images, Packages: c.Packages,
		Files: c.Files, Artifacts: c.Artifacts, Caches: c.Caches,
	}.Classes()
	words := map[string][]string{}
	line := 0
	for i, want := range j.pol.Completeness.Classes() {
		if policy.Rank(claimed[i].Word) < policy.Rank(want.Word) || policy.Rank(want.Word) == 0 {
			f.add("%s: %q, the policy wants %q", want.Name, claimed[i].Word, want.Word)
			if line == 0 {
				line = j.pol.Line("completeness." + want.Name)
			}
		}
		words[claimed[i].Word] = append(words[claimed[i].Word], want.Name)
	}
	if f.total > 0 {
		return f.fail(line, "the platform does not say enough of %d of %d classes of inputs", f.total, len(claimed))
	}
	var parts []string
	for _, word := range []string{attest.Hermetic, attest.Border, attest.Declared} {
		if len(words[word]) > 0 {
			parts = append(parts, word+": "+strings.Join(words[word], ", "))
		}
	}
	return f.pass("%s", strings.Join(parts, "; "))
}

const imagePrefix = "pkg:oci/"

func (j *content) images() Check {
	f := asks("images")
	count, services, refused := 0, 0, 0
	for _, dep := range j.s.Predicate.BuildDefinition.ResolvedDependencies {
		if !strings.HasPrefix(dep.URI, imagePrefix) {
			continue
		}
		count++
		if isService(dep) {
			services++
		}
		repository, err := imageRepository(dep)
		switch {
		case err != nil:
			f.add("%s: %s", dep.URI, oneLine(err))
		case !j.pol.MatchImage(repository):
			refused++
			f.add("%s  sha256:%s", repository, dep.Digest["sha256"])
		}
	}
	switch {
	case f.total > refused:
		return f.fail(0, "%d of %d are not named by digest", f.total-refused, count)
	case refused > 0:
		return f.fail(j.pol.Line("allowed_images"), "%d of %d are not from where the policy allows", refused, count)
	case services == 0 && len(j.s.external.Services) > 0:
		return f.fail(0, "the job asked for %d services, and no image of one is named", len(j.s.external.Services))
	case j.pol.AllowedImages == nil:
		return f.unasked("%d by digest; the policy accepts any", count)
	}
	return f.pass("%d by digest", count)
}

// isService reports whether an image is a service's own, not the index that
// named it.
func isService(dep resourceText) bool {
	return string(dep.Annotations["role"]) == `"service"` && string(dep.Annotations["kind"]) == `"image"`
}

// imageRepository reads a package URL of type oci whose version is its digest.
func imageRepository(dep resourceText) (string, error) {
	u, err := url.Parse(dep.URI)
	if err != nil {
		return "", errors.New("does not parse")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["repository_url"]) != 1 || u.Fragment != "" {
		return "", errors.New("has no repository")
	}
	_, version, ok := strings.Cut(u.Opaque, "@")
	version, err = url.PathUnescape(version)
	if !ok || err != nil || !isHex(dep.Digest["sha256"], 32) || version != "sha256:"+dep.Digest["sha256"] {
		return "", errors.New("its digest is not its version")
	}
	return query["repository_url"][0], nil
}

// inputs wants a digest of everything, and an allowed host for whatever has
// crossed the border.
func (j *content) inputs() Check {
	f := asks("inputs")
	deps := j.s.Predicate.BuildDefinition.ResolvedDependencies
	refused, fetched, hosts := 0, 0, map[string]bool{}
	for _, dep := range deps {
		if err := checkDigests(dep.Digest); err != nil {
			f.add("%s%s: %s", dep.Name, dep.URI, oneLine(err))
			continue
		}
		host, allowed := j.input(dep)
		if host != "" {
			fetched++
			hosts[host] = true
		}
		if !allowed {
			refused++
			f.add("%s  %s", cmp.Or(dep.DownloadLocation, dep.URI), anyDigest(dep.Digest))
		}
	}
	switch {
	case f.total > refused:
		return f.fail(0, "%d of %d have no usable digest", f.total-refused, len(deps))
	case refused > 0:
		return f.fail(j.pol.Line("allowed_input_hosts"), "%d of %d came from a host that the policy does not allow", refused, len(deps))
	}
	told := fmt.Sprintf("%d with digests, %d of them fetched from %s", len(deps), fetched, count(len(hosts), "host"))
	if j.pol.AllowedInputHosts == nil {
		return f.unasked("%s; the policy accepts any", told)
	}
	return f.pass("%s", told)
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// input says which host an input came from and whether that is allowed, and so
// the host that redirects led to.
func (j *content) input(dep resourceText) (host string, allowed bool) {
	switch {
	case strings.HasPrefix(dep.URI, imagePrefix):
		return "", true // images has judged it
	case dep.URI == "" && dep.Digest["gitTree"] != "" && dep.Digest["gitCommit"] == "":
		return "", true // the workspace itself; source has judged it
	case dep.URI == j.sourceURI():
		return "", true // likewise
	}
	host, allowed = j.origin(dep.URI)
	if dep.DownloadLocation != "" {
		_, led := j.origin(dep.DownloadLocation)
		allowed = allowed && led
	}
	return host, allowed
}

// origin judges one address. What has no host that we can tell is allowed only
// where every host is.
func (j *content) origin(address string) (host string, allowed bool) {
	u, err := url.Parse(strings.TrimPrefix(address, "git+"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return "", j.pol.AllowedInputHosts == nil
	}
	return u.Host, j.pol.MatchInput(u)
}

func anyDigest(digests map[string]string) string {
	for _, algorithm := range slices.Sorted(maps.Keys(digests)) {
		return algorithm + ":" + digests[algorithm]
	}
	return ""
}

// time judges the order of events and the signature's age. Several timestamps
// agree on an age only if each does.
func (j *content) time() Check {
	f := asks("time")
	if j.s.finished.Before(j.s.started) {
		return f.fail(0, "the job ended at %s, before it started", stamp(j.s.finished))
	}
	for _, at := range j.signed {
		age := j.now.Sub(at)
		switch {
		case j.s.finished.After(at.Add(clockSkew)):
			return f.fail(0, "signed at %s, before the job ended at %s", stamp(at), stamp(j.s.finished))
		case age < -clockSkew:
			return f.fail(0, "signed at %s, which is yet to come", stamp(at))
		case j.pol.MaxAge > 0 && age > j.pol.MaxAge:
			return f.fail(j.pol.Line("max_age"), "signed at %s: older than %s", stamp(at), j.pol.MaxAge)
		case j.pol.MinAge > 0 && age < j.pol.MinAge:
			return f.fail(j.pol.Line("min_age"), "signed at %s: younger than %s", stamp(at), j.pol.MinAge)
		}
	}
	return f.pass("ran from %s to %s, signed %s", stamp(j.s.started), stamp(j.s.finished), stamp(j.signed[0]))
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
