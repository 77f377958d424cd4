package forgery

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// forgedStatement is what a job would like to be believed of it.
const forgedStatement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"out.txt","digest":{"sha256":"0000000000000000000000000000000000000000000000000000000000000000"}}],` +
	`"predicateType":"https://slsa.dev/provenance/v1","predicate":{"runDetails":{"builder":{"id":"` + world.BuilderURI + `/hermetic"}}}}`

// Case 10. The job writes provenance of its own beside its output, under every
// name that tools look for. It is output like any other; the statement takes
// nothing from it, and verifiers no such file. GitLab Runner is not asked for its own.
func TestPassOffAProvenanceFileOfTheJobs(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic(
		"echo honest > out.txt", "printf '%s' '"+forgedStatement+"' > out.txt.intoto.jsonl",
		"cp out.txt.intoto.jsonl out-metadata.json", "cp out.txt.intoto.jsonl out.txt.sigstore.json", "cp out.txt.intoto.jsonl hallmark-attestation.json",
	), "out.txt", "*.jsonl", "*.json")
	asking := job
	asking.Variables = []coordinator.Variable{{Key: "RUNNER_GENERATE_ARTIFACTS_METADATA", Value: "true", Public: true}}
	asked := harness.Begin(t, asking)
	r := begin(t, job)
	succeeded(t, r)
	refused := harness.Wait(t, asked)
	harness.Expect(t, refused, coordinator.Failed, "script_failure")
	harness.Unattested(t, refused)

	files := harness.Archive(t, r)
	a := harness.Attested(t, r)
	for _, s := range a.Statement.Subject {
		if strings.Trim(s.Digest["sha256"], "0") == "" {
			t.Errorf("subject %s has the digest that the job wished for", s.Name)
		}
		if content, ok := files[s.Name]; ok && s.Digest["sha256"] != digestOf(content) {
			t.Errorf("subject %s has digest %s, GitLab's file %s", s.Name, s.Digest["sha256"], digestOf(content))
		}
	}
	root, policy := harness.TrustedRoot(t), harness.AuditPolicy(t, "hermetic")
	file := harness.Keep(t, "out.txt", []byte(files["out.txt"]))
	for _, name := range []string{"out.txt.intoto.jsonl", "out.txt.sigstore.json", "out-metadata.json"} {
		bundle := harness.Keep(t, name, []byte(files[name]))
		if out, code := harness.Program(t, "hallmark", "verify", file, "--bundle", bundle, "--policy", policy, "--trusted-root", root); code == 0 {
			t.Errorf("hallmark verify took %s\n%s", name, out)
		}
	}
}

// Case 11. What the job says of itself in its variables, in a dotenv report, by
// export and in the file that GitLab's scripts read back, changes no fact. What
// it sets in the CI configuration is listed as what it is: a variable.
func TestTakeTheFactsFromVariables(t *testing.T) {
	t.Parallel()
	const forged = "ffffffffffffffffffffffffffffffffffffffff"
	job := harness.Hermetic(
		"export CI_COMMIT_SHA="+forged+" CI_PROJECT_URL=https://forged.example.test CI_JOB_ID=1 CI_SERVER_URL=https://forged.example.test",
		`env | grep '^CI_' >> "$GITLAB_ENV"`,
		"printf 'CI_COMMIT_SHA="+forged+"\\nCI_PROJECT_PATH=forged/project\\n' > build.env", "echo out > out.txt")
	job.Artifacts = append(coordinator.Archive("out.txt"), coordinator.ArtifactRule{Name: ".env", Paths: []string{"build.env"}, Type: "dotenv", Format: "gzip"})
	for key, value := range map[string]string{
		"CI_COMMIT_SHA": forged, "CUSTOM_ENV_CI_COMMIT_SHA": forged, "CI_PROJECT_URL": "https://forged.example.test", "CI_SERVER_URL": "https://forged.example.test",
		"CI_PROJECT_PATH": "forged/project", "CI_COMMIT_REF_NAME": "forged", "CI_PIPELINE_ID": "1", "JOB_RESPONSE_FILE": "/builds/group/project/README",
	} {
		job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: value, Public: true})
	}
	attempt := harness.Begin(t, job)
	r := harness.Wait(t, attempt)
	succeeded(t, r)
	s := predicate(t, harness.Attested(t, r))
	ext, gitlab := s.BuildDefinition.External, s.BuildDefinition.Internal.GitLab
	for name, got := range map[string]any{"source": ext["source"], "ref": ext["ref"], "project": ext["project"], "gitlab": gitlab, "dependencies": s.BuildDefinition.Dependencies} {
		if text := fmt.Sprint(got); strings.Contains(text, "forged") || strings.Contains(text, forged) {
			t.Errorf("%s says %v", name, got)
		}
	}
	if gitlab["sha"] != attempt.Job.SHA || gitlab["jobId"] != fmt.Sprint(r.ID) {
		t.Errorf("GitLab's facts are %v, want commit %s and job %d", gitlab, attempt.Job.SHA, r.ID)
	}
}

// Case 12. Hooks and scripts rewrite .git as they like. As long as the work tree
// is the commit's, the statement says that commit and its tree, computed from
// the objects; .git has no say.
func TestRewriteGitHead(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic(
		"cat README", "echo 0000000000000000000000000000000000000000 > .git/HEAD", "echo ref: refs/heads/forged > .git/HEAD",
		"rm -rf .git/objects/pack", "echo x > .git/packed-refs", "echo out > out.txt"), "out.txt")
	job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: []string{
		"git -c user.name=x -c user.email=x@x commit -q --allow-empty -m forged",
		"git update-ref refs/heads/main HEAD", "git tag -f v1 HEAD",
		"mkdir -p .git/info", "echo $(git rev-parse HEAD) >> .git/info/grafts",
		"git update-index --assume-unchanged README", "git update-index --skip-worktree src/main.sh",
		"git config core.worktree /tmp", "git config core.bare true", "git config core.fileMode false", "git config core.excludesFile /builds/group/project/README",
		"echo '* filter=forged' > .git/info/attributes", "git config filter.forged.clean 'echo forged'",
		"mkdir -p /tmp/alternate && echo /tmp/alternate > .git/objects/info/alternates",
		"git config --local include.path /tmp/forged.conf",
	}}}
	attempt := harness.Begin(t, job)
	r := harness.Wait(t, attempt)
	succeeded(t, r, "\nhello")
	tree, err := coordinator.Git(theWorld.Repository("group/project"), "rev-parse", attempt.Job.SHA+"^{tree}")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range harness.Attested(t, r).Statement.Predicate.BuildDefinition.ResolvedDependencies {
		if d.URI != "git+https://"+world.GitLabName+"/group/project.git@refs/heads/main" {
			continue
		}
		if d.Digest["gitCommit"] != attempt.Job.SHA || d.Digest["gitTree"] != tree {
			t.Errorf("the source is %v, want commit %s and tree %s", d.Digest, attempt.Job.SHA, tree)
		}
		return
	}
	t.Error("the source is no dependency")
}

// Case 12, too: a replace ref and objects of the attacker's make git check out
// something else under the commit's own name.
func TestReplaceTheCommit(t *testing.T) {
	t.Parallel()
	for name, script := range map[string][]string{
		"by a replace ref": {
			"echo forged > README", "git add README", "tree=$(git write-tree)", "git checkout -q -f HEAD -- README",
			"other=$(git -c user.name=x -c user.email=x@x commit-tree -m forged $tree)", "git replace -f $(git rev-parse HEAD) $other", "git checkout -q -f HEAD", "git reset -q --hard", "cat README",
		},
		"by a filter": {"git config filter.forged.smudge 'echo forged'", "mkdir -p .git/info", "echo '* filter=forged' > .git/info/attributes", "rm README", "git checkout -q -f -- README", "cat README"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := keeps(harness.Hermetic("echo not reached", "echo out > out.txt"), "out.txt")
			job.Artifacts[0].When = "always"
			job.Hooks = []coordinator.Hook{{Name: "post_get_sources_script", Script: script}}
			r := begin(t, job)
			harness.Expect(t, r, coordinator.Failed, "script_failure")
			harness.Mention(t, r, "\nforged")
			harness.Never(t, r, "\nnot reached")
			harness.Unattested(t, r)
		})
	}
}

// Case 15. Whatever a tenant can set is a parameter, and listed.
func TestSmuggleAParameter(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo out > out.txt"), "out.txt")
	job.Name, job.Stage = "build: [smuggled-matrix]", "smuggled-stage"
	job.Image = coordinator.Image{Name: theWorld.Images[images.Shell], Entrypoint: []string{"/bin/env", "SMUGGLED_ENTRY=1"}, User: "0", PullPolicy: []string{"always"}}
	job.AfterScript = []string{"echo smuggled after"}
	job.MoreSteps = []coordinator.Step{{Name: "release", Script: []string{"echo smuggled step"}, Timeout: 61, When: "on_success"}}
	job.Hooks = []coordinator.Hook{{Name: "pre_get_sources_script", Script: []string{"echo smuggled hook"}}}
	job.Caches = []coordinator.CacheRule{{Key: "smuggled-key", Paths: []string{"smuggled-path/"}, FallbackKeys: []string{"smuggled-fallback"}}}
	job.Artifacts[0].Exclude = []string{"smuggled-exclude"}
	for _, key := range []string{"TRIGGER_PAYLOAD", "CI_DEBUG_TRACE", "FF_TIMESTAMPS", "FF_SCRIPT_SECTIONS", "GIT_DEPTH", "GIT_STRATEGY", "SMUGGLED_VARIABLE", "RUNNER_SCRIPT_TIMEOUT", "ARTIFACT_COMPRESSION_LEVEL"} {
		value := map[string]string{"GIT_STRATEGY": "fetch", "GIT_DEPTH": "3", "RUNNER_SCRIPT_TIMEOUT": "2m", "ARTIFACT_COMPRESSION_LEVEL": "fast"}[key]
		if value == "" {
			value = "false"
		}
		job.Variables = append(job.Variables, coordinator.Variable{Key: key, Value: value, Public: true})
	}
	r := begin(t, job)
	succeeded(t, r)
	ext := predicate(t, harness.Attested(t, r)).BuildDefinition.External
	text, err := json.Marshal(ext)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"smuggled-matrix", "smuggled-stage", "SMUGGLED_ENTRY=1", `"user":"0"`, `"always"`, scriptDigest("echo smuggled after"), scriptDigest("echo smuggled step"),
		scriptDigest("echo smuggled hook"), scriptDigest("echo out > out.txt"), "smuggled-key", "smuggled-path/", "smuggled-fallback", "smuggled-exclude"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the external parameters do not have %s", want)
		}
	}
	for _, v := range job.Variables {
		if !strings.Contains(string(text), `"name":"`+v.Key+`"`) {
			t.Errorf("the external parameters do not have the variable %s", v.Key)
		}
	}
}

// Case 16. A secret of few possibilities stands in a masked variable, a hidden
// one and a file, and the job sends it to a server in every part of a request.
// Nobody learns it from what the authority shows, nor can try guesses on it.
func TestReadASecretOutOfTheProvenance(t *testing.T) {
	t.Parallel()
	const pin, hidden, inFile = "pin-471147", "hidden-0815", "file-4242424242"
	job := keeps(harness.Firewalled(
		"wget -q -O - http://user:$PIN@"+world.PackagesName+"/login",
		"wget -q -O - \"http://"+world.PackagesName+"/query?token=$PIN&password=$HIDDEN\"",
		"wget -q -O - --header \"Authorization: Bearer $PIN\" http://"+world.PackagesName+"/header",
		"wget -q -O - http://"+world.CanaryName+"/blocked/$HIDDEN || true",
		"wget -q -O - http://"+world.PackagesName+"/in-path/$PIN || true",
		"echo $PIN $HIDDEN $(cat $FILE) > /dev/null", "echo out > out.txt"), "out.txt")
	job.Variables = []coordinator.Variable{
		{Key: "PIN", Value: pin, Public: true, Masked: true}, {Key: "HIDDEN", Value: hidden, Masked: true}, {Key: "FILE", Value: inFile, File: true},
	}
	r := begin(t, job)
	succeeded(t, r)
	shown := map[string]string{"statement": harness.Attested(t, r).Statement.Raw, "log": r.Trace}
	for _, e := range harness.Evidence(t, r) {
		shown["record"] += string(e.Line) + "\n"
	}
	for where, text := range shown {
		for _, secret := range []string{pin, hidden, inFile} {
			for form, value := range guessable(secret) {
				if strings.Contains(text, value) {
					i := strings.Index(text, value)
					t.Errorf("the %s has %q as %s: …%s…", where, secret, form, text[max(0, i-120):min(len(text), i+60)])
				}
			}
		}
	}
}

// Case 16, turned round: what GitLab masks is kept out of recorded URLs, so a job
// masks the very words by which sources and artifacts are known. They stay.
func TestHideTheSourcesByMaskingTheirNames(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Firewalled("wget -q -O - http://"+world.PackagesName+"/plain-package", "echo out > out.txt"), "out.txt")
	for i, word := range []string{"git-upload-pack", "group/project", "project.git", world.GitLabName, world.PackagesName} {
		job.Variables = append(job.Variables, coordinator.Variable{Key: fmt.Sprint("HIDE_", i), Value: word, Masked: true})
	}
	r := begin(t, job)
	succeeded(t, r)
	p := predicate(t, harness.Attested(t, r))
	uris := fmt.Sprint(p.BuildDefinition.Dependencies)
	for _, want := range []string{"git+https://" + world.GitLabName + "/group/project.git@refs/heads/main", "http://" + world.PackagesName + "/plain-package"} {
		if !strings.Contains(uris, want) {
			t.Errorf("%s is no dependency", want)
		}
	}
	git := false
	for _, b := range p.RunDetails.Byproducts {
		git = git || b.Name == "git-exchanges"
	}
	if !git || strings.Contains(uris, "REDACTED") {
		t.Errorf("the exchanges with the sources are not known as such: %s", uris)
	}
}

// guessable are the forms of a secret that give it away, or that a guess can be
// held against.
func guessable(secret string) map[string]string {
	m, s1, s256, s512 := md5.Sum([]byte(secret)), sha1.Sum([]byte(secret)), sha256.Sum256([]byte(secret)), sha512.Sum512([]byte(secret))
	line := sha256.Sum256([]byte(secret + "\n"))
	return map[string]string{
		"itself": secret, "base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="), "hex": hex.EncodeToString([]byte(secret)),
		"MD5": hex.EncodeToString(m[:]), "SHA-1": hex.EncodeToString(s1[:]), "SHA-256": hex.EncodeToString(s256[:]), "SHA-512": hex.EncodeToString(s512[:]), "SHA-256 of the line": hex.EncodeToString(line[:]),
	}
}

// Case 17. Names that end a string, a line or a JSON document, that read the
// other way round, that are the same to a file system and not to a verifier.
func TestInjectByAName(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic(
		`mkdir out`,
		`printf x > 'out/quote","digest":{"sha256":"00"}},{"name":"forged'`,
		`printf x > "$(printf 'out/line\nforged')"`,
		`printf x > "$(printf 'out/\342\200\256txt.exe')"`,
		`printf x > "$(printf 'out/\033[2Jclear')"`,
		`printf x > 'out/<script>'`,
		`printf x > "out/$(head -c 240 /dev/zero | tr '\0' n)"`,
	), "out/")
	job.Name = "job\"}],\"builder\":{\"id\":\"forged\"}\u202egpj.\u0007"
	r := begin(t, job)
	succeeded(t, r)
	a := harness.Attested(t, r)
	p := predicate(t, a)
	if p.BuildDefinition.External["jobName"] != job.Name || p.RunDetails.Builder.ID != world.BuilderURI+"/hermetic" {
		t.Errorf("job %q of builder %q", p.BuildDefinition.External["jobName"], p.RunDetails.Builder.ID)
	}
	files := harness.Archive(t, r)
	for _, s := range a.Statement.Subject {
		if content, inArchive := files[s.Name]; s.Name != "out.zip" && (!inArchive || s.Digest["sha256"] != digestOf(content)) {
			t.Errorf("subject %q is no file of the archive", s.Name)
		}
	}
	if len(a.Statement.Subject) != len(files)+1 {
		t.Errorf("%d subjects for %d files and their archive", len(a.Statement.Subject), len(files))
	}
	art, _ := r.Artifact("archive")
	file, bundle := harness.Keep(t, "out.zip", art.Data), harness.Keep(t, "b.json", a.Bundle)
	out, code := harness.Program(t, "hallmark", "verify", file, "--bundle", bundle, "--policy", harness.AuditPolicy(t, "hermetic"), "--trusted-root", harness.TrustedRoot(t))
	if code != 0 {
		t.Errorf("hallmark verify: exit %d\n%s", code, out)
	}
	for _, c := range out {
		if c != '\n' && c != '\t' && !unicode.IsPrint(c) {
			t.Errorf("hallmark verify prints %q", c)
		}
	}
}

// Case 17, too: bytes that are not text, and two names that are one to many a
// file system. No archive that readers could take apart differently is signed.
func TestUploadNamesThatReadersSeeDifferently(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"not UTF-8":          `printf x > "$(printf 'out/\377\376')"`,
		"composed and apart": `printf x > "$(printf 'out/\303\251')"; printf y > "$(printf 'out/e\314\201')"`,
		"backslash":          `printf x > 'out/back\slash'`,
		"case":               `printf x > out/name; printf y > out/NAME`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := begin(t, keeps(harness.Hermetic("mkdir out", script), "out/"))
			if r.State == coordinator.Success {
				t.Errorf("job %d succeeded", r.ID)
			}
			harness.Unattested(t, r)
			if len(r.Artifacts) != 0 {
				t.Error("GitLab has the archive")
			}
		})
	}
}

// Case 18. The clock that counts is not the job's, and numbers that a reader of
// JSON might round are refused.
func TestTurnBackTheClock(t *testing.T) {
	t.Parallel()
	before := time.Now().Add(-time.Second)
	rounded := keeps(harness.Hermetic("echo not reached", "echo out > out.txt"), "out.txt")
	rounded.PipelineID = 1<<53 + 1
	beyond := harness.Begin(t, rounded)
	job := keeps(harness.Hermetic("probe clock", "date -s '2001-01-01 00:00:00' || true", "touch -d '1970-01-01 00:00:00' README", "echo out > out.txt"), "out.txt")
	job.PipelineID, job.UserID, job.ProjectID = 1<<53-1, 1<<53-2, 1<<53-3
	r := begin(t, job)
	succeeded(t, r)
	noEscape(t, r)
	p := predicate(t, harness.Attested(t, r))
	for name, want := range map[string]string{"pipelineId": "9007199254740991", "userId": "9007199254740990", "projectId": "9007199254740989"} {
		if p.BuildDefinition.Internal.GitLab[name] != want {
			t.Errorf("%s is %v, want %q", name, p.BuildDefinition.Internal.GitLab[name], want)
		}
	}
	m := p.RunDetails.Metadata
	if m.StartedOn.Before(before) || m.FinishedOn.Before(m.StartedOn) || m.FinishedOn.After(time.Now().Add(time.Second)) {
		t.Errorf("from %v to %v, want within the test's time", m.StartedOn, m.FinishedOn)
	}
	r = harness.Wait(t, beyond)
	if r.State != coordinator.Failed {
		t.Errorf("a pipeline of number 2^53+1: %s", r.State)
	}
	harness.Never(t, r, "\nnot reached")
	harness.Unattested(t, r)
}

// Case 42. GitLab, or who administers it, hands the runner another script than
// the commit's configuration has. Both are in the statement by digest: what the
// payload said, and what the shell read.
func TestRunAnotherScriptThanTheCommits(t *testing.T) {
	t.Parallel()
	job := keeps(harness.Hermetic("echo honest > out.txt"), "out.txt")
	job.Change = func(p map[string]any) {
		p["steps"].([]any)[0].(map[string]any)["script"] = []any{"echo altered > out.txt"}
	}
	r := begin(t, job)
	succeeded(t, r)
	s := predicate(t, harness.Attested(t, r))
	text := fmt.Sprint(s.BuildDefinition.External["steps"])
	if strings.Contains(text, scriptDigest("echo honest > out.txt")) || !strings.Contains(text, scriptDigest("echo altered > out.txt")) {
		t.Errorf("steps %s do not show the script that ran", text)
	}
	for _, b := range s.RunDetails.Byproducts {
		if b.Name == "script/build_script" || b.Name == "script/step_script" {
			return
		}
	}
	t.Error("the script that the shell read is no byproduct")
}
