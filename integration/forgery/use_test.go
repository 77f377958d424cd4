package forgery

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/sign"
	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/sigstore"
	"hallmark.build/integration/world"
)

// built is an output of a job that ended well, with its bundle, in files.
type built struct {
	attempt      *coordinator.Attempt
	result       coordinator.Result
	attestation  harness.Attestation
	file, bundle string
	root, policy string
	predicate    []byte
}

func build(t *testing.T, job coordinator.Job) built {
	t.Helper()
	attempt := harness.Begin(t, keeps(job, "out.txt"))
	r := harness.Wait(t, attempt)
	succeeded(t, r)
	b := built{attempt: attempt, result: r, attestation: harness.Attested(t, r), root: harness.TrustedRoot(t), policy: harness.AuditPolicy(t, "hermetic")}
	b.file = harness.Keep(t, "out.txt", []byte(harness.Archive(t, r)["out.txt"]))
	b.bundle = harness.Keep(t, "out.sigstore.json", b.attestation.Bundle)
	var s struct {
		Predicate json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal([]byte(b.attestation.Statement.Raw), &s); err != nil {
		t.Fatal(err)
	}
	b.predicate = s.Predicate
	return b
}

// verify is what an auditor does.
func (b built) verify(t *testing.T, bundle, root, policy string) (out string, code int) {
	t.Helper()
	return harness.Program(t, "hallmark", "verify", b.file, "--bundle", bundle, "--policy", policy, "--trusted-root", root)
}

// refused requires that an auditor refuses, and says why.
func (b built) refused(t *testing.T, bundle, root, policy string, why ...string) {
	t.Helper()
	out, code := b.verify(t, bundle, root, policy)
	if code == 0 {
		t.Errorf("hallmark verify accepted\n%s", out)
	}
	for _, text := range why {
		if !strings.Contains(out, text) {
			t.Errorf("hallmark verify does not say %q\n%s", text, out)
		}
	}
}

// Cases 5 and 7. GitLab signs ID tokens for jobs, and a Fulcio gives certificates
// for them. With the job's token the attacker has true provenance of ours signed
// as the job, logged and time-stamped, and with a token whose claims come out as
// our builder id, as that. Verifiers who trust that very Fulcio refuse both.
func TestSignWithTheJobsOwnIDToken(t *testing.T) {
	t.Parallel()
	tools := filepath.Join(theWorld.Root, ".cache", "bin")
	stack, err := sigstore.Start(t.Context(), t.TempDir(), tools)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stack.Close() })
	job := harness.Firewalled("printf %s $SIGSTORE_ID_TOKEN | wc -c", "probe http GET "+stack.FulcioURL+"/api/v2/configuration", "echo stolen > out.txt")
	job.IDTokens = map[string]string{"SIGSTORE_ID_TOKEN": sigstore.Audience}
	b := build(t, job)
	if strings.Contains(string(b.attempt.TraceBytes()), "status 200") {
		t.Error("the job reached a Fulcio")
	}

	home := t.TempDir()
	cosign := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(harness.Within(t, time.Minute), filepath.Join(tools, "cosign"), args...)
		cmd.Env = append(os.Environ(), "HOME="+home)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("cosign %s: %v\n%s", args[0], err, out)
		}
	}
	cosign("initialize", "--mirror", stack.TUFURL, "--root", stack.TUFRoot)
	predicateFile := harness.Keep(t, "predicate.json", b.predicate)
	policy := harness.AuditPolicy(t, "firewalled")
	builder := world.BuilderURI + "/firewalled"
	asBuilder := sigstore.Job("1", "x", "y", "z", "00")
	asBuilder["ci_config_ref_uri"], asBuilder["url"] = strings.TrimPrefix(builder, "https://"), world.BuilderURI
	for name, c := range map[string]struct {
		claims map[string]any
		policy string
	}{
		"as the job":     {sigstore.Job("1", world.GitLabName, "group/project", "refs/heads/main", b.attempt.Job.SHA), policy},
		"as the builder": {asBuilder, policy},
	} {
		token, err := stack.GitLab.Token(c.claims)
		if err != nil {
			t.Fatal(err)
		}
		bundle := filepath.Join(home, strings.ReplaceAll(name, " ", "-")+".json")
		cosign("attest-blob", "--identity-token", token, "--predicate", predicateFile, "--type", "slsaprovenance1", "--bundle", bundle, "--yes", b.file)
		data, err := os.ReadFile(bundle)
		if err != nil {
			t.Fatal(err)
		}
		b.refused(t, harness.Keep(t, "b.json", data), stack.TrustedRoot, c.policy, "builder")
		b.refused(t, harness.Keep(t, "b.json", data), b.root, c.policy, "not verified")
	}
}

// Cases 8, 35 and 41. A second runner with the first one's tags and number, a
// staging installation under the production's name: an authority with other
// keys signs the very statement, byte for byte, as anyone can rebuild it from
// the record. Its name counts for nothing.
func TestSignAsTheSameBuilderWithOtherKeys(t *testing.T) {
	t.Parallel()
	b := build(t, harness.Hermetic("echo out > out.txt"))
	p := predicate(t, b.attestation)
	again, err := attest.Statements(harness.Evidence(t, b.result), attest.Facts{
		BuilderID: p.RunDetails.Builder.ID, BuilderVersion: p.RunDetails.Builder.Version, GitLabURL: "https://" + world.GitLabName,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(again) != 1 || string(again[0].JSON) != b.attestation.Statement.Raw {
		t.Fatal("the statement is not the one that the record gives")
	}
	s, err := sign.Open(t.Context(), sign.Options{Dir: filepath.Join(t.TempDir(), "keys"), Issuer: world.BuilderURI})
	if err != nil {
		t.Fatal(err)
	}
	forged, err := s.Sign(t.Context(), again[0])
	if err != nil {
		t.Fatal(err)
	}
	b.refused(t, harness.Keep(t, "forged.json", forged), b.root, b.policy, "not verified")
	if out, code := b.verify(t, b.bundle, b.root, b.policy); code != 0 {
		t.Errorf("the true one: exit %d\n%s", code, out)
	}
}

// Case 34. True provenance of something else: another branch, a fork, another
// file, another mode.
func TestPassOffTrueProvenanceOfSomethingElse(t *testing.T) {
	t.Parallel()
	if _, err := theWorld.Publish("group/project", "feature", map[string]string{"README": "unreviewed\n"}); err != nil {
		t.Fatal(err)
	}
	if _, err := coordinator.Git(theWorld.Repository("group/project"), "update-ref", "refs/tags/main", "refs/heads/feature"); err != nil {
		t.Fatal(err)
	}
	if _, err := theWorld.Publish("evil/project", "main", map[string]string{"README": "forked\n"}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*coordinator.Job)
		why    string
	}{
		"another branch":               {func(j *coordinator.Job) { j.Ref = "feature" }, "FAIL         ref"},
		"a fork":                       {func(j *coordinator.Job) { j.Project, j.ProjectID = "evil/project", 666 }, "FAIL         source"},
		"a tag called like the branch": {func(j *coordinator.Job) { j.Tag = true }, "FAIL         ref"},
		"another mode":                 {func(j *coordinator.Job) { j.Runner = world.Firewalled }, "FAIL         builder"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := harness.Hermetic("echo out > out.txt")
			c.change(&job)
			b := build(t, job)
			b.refused(t, b.bundle, b.root, b.policy, c.why)
			b.file = harness.Keep(t, "out.txt", []byte("another file\n"))
			b.refused(t, b.bundle, b.root, b.policy, "FAIL         subject")
		})
	}
}

// Cases 4 and 40. Whoever has become the runner's user knows a job's payload,
// token and all, and calls the driver with it: beside the job, and once it has
// ended. Neither is opened, and the job keeps its one statement.
func TestReplayAJobsPayload(t *testing.T) {
	t.Parallel()
	attempt := harness.Begin(t, keeps(harness.Hermetic("echo begun", "while [ ! -e /tmp/go ]; do sleep 0.1; n=$((n+1)); [ $n -gt 60 ] && break; done", "echo out > out.txt"), "out.txt"))
	harness.WaitTrace(t, attempt, "O begun")
	replay := func() {
		t.Helper()
		out, code := harness.Drive(t, attempt.Payload(), "-profile", "hermetic", "prepare")
		if code == 0 {
			t.Errorf("prepared again\n%s", out)
		}
		if out, code := harness.Drive(t, attempt.Payload(), "cleanup"); code != 0 {
			t.Errorf("cleanup: exit %d\n%s", code, out)
		}
	}
	replay()
	r := harness.Wait(t, attempt)
	succeeded(t, r)
	one := harness.Attested(t, r)
	replay()
	if again := harness.Attested(t, r); !bytes.Equal(again.Bundle, one.Bundle) {
		t.Error("the job has another bundle now")
	}
}

// Cases 8, 36, 37 and 38. Parts of true bundles, put together otherwise: proof,
// time and certificate of another signature, things left out, hints, things
// twice. Whoever reads more leniently than the standard has it is fooled.
func TestMixTheBundles(t *testing.T) {
	t.Parallel()
	b, other := build(t, harness.Hermetic("echo one > out.txt")), build(t, harness.Hermetic("echo other > out.txt"))
	type object = map[string]any
	var foreign object
	if err := json.Unmarshal(other.attestation.Bundle, &foreign); err != nil {
		t.Fatal(err)
	}
	in := func(bundle object, path ...string) object {
		for _, key := range path {
			bundle = bundle[key].(object)
		}
		return bundle
	}
	const material, envelope = "verificationMaterial", "dsseEnvelope"
	signature := func(bundle object) object { return in(bundle, envelope)["signatures"].([]any)[0].(object) }
	for name, change := range map[string]func(object){
		"proof of another statement": func(o object) { in(o, material)["tlogEntries"] = in(foreign, material)["tlogEntries"] },
		"no proof":                   func(o object) { delete(in(o, material), "tlogEntries") },
		"the proof twice": func(o object) {
			m := in(o, material)
			e := m["tlogEntries"].([]any)
			m["tlogEntries"] = append(e, e...)
		},
		"a proof and another's": func(o object) {
			m := in(o, material)
			m["tlogEntries"] = append(m["tlogEntries"].([]any), in(foreign, material)["tlogEntries"].([]any)...)
		},
		"a proof without its checkpoint": func(o object) { delete(in(o, material)["tlogEntries"].([]any)[0].(object), "inclusionProof") },
		"time of another signature": func(o object) {
			in(o, material)["timestampVerificationData"] = in(foreign, material)["timestampVerificationData"]
		},
		"no time":                func(o object) { delete(in(o, material), "timestampVerificationData") },
		"certificate of another": func(o object) { in(o, material)["certificate"] = in(foreign, material)["certificate"] },
		"signature of another":   func(o object) { signature(o)["sig"] = signature(foreign)["sig"] },
		"statement of another":   func(o object) { in(o, envelope)["payload"] = in(foreign, envelope)["payload"] },
		"a hint at another key":  func(o object) { signature(o)["keyid"] = "another" },
		"two signatures": func(o object) {
			e := in(o, envelope)
			e["signatures"] = append(e["signatures"].([]any), signature(foreign))
		},
		"a key beside the certificate": func(o object) { in(o, material)["publicKey"] = object{"hint": "another"} },
	} {
		var bundle object
		if err := json.Unmarshal(b.attestation.Bundle, &bundle); err != nil {
			t.Fatal(err)
		}
		change(bundle)
		data, err := json.Marshal(bundle)
		if err != nil {
			t.Fatal(err)
		}
		if out, code := b.verify(t, harness.Keep(t, "mixed.json", data), b.root, b.policy); code == 0 {
			t.Errorf("%s: accepted\n%s", name, out)
		}
	}
	for name, data := range map[string]string{
		"another's key first":    strings.Replace(string(b.attestation.Bundle), "{", `{"mediaType":"x",`, 1),
		"two documents":          string(b.attestation.Bundle) + string(other.attestation.Bundle),
		"a hundred thousand [":   strings.Repeat("[", 100_000),
		"compressed":             "\x1f\x8b\x08\x00" + string(b.attestation.Bundle),
		"nothing":                "",
		"half":                   string(b.attestation.Bundle[:len(b.attestation.Bundle)/2]),
		"the statement unsigned": b.attestation.Statement.Raw,
	} {
		if out, code := b.verify(t, harness.Keep(t, "odd.json", []byte(data)), b.root, b.policy); code == 0 {
			t.Errorf("%s: accepted\n%s", name, out)
		}
	}
	if out, code := b.verify(t, b.bundle, b.root, b.policy); code != 0 {
		t.Errorf("the bundle itself: exit %d\n%s", code, out)
	}
}
