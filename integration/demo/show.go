package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/trace"
	"hallmark.build/integration/world"
)

const (
	project = "filippo/age"
	builder = world.BuilderURI + "/hermetic"
)

// script is the job's.
var script = []string{
	"go version",
	"go build -trimpath -o out/ ./cmd/age ./cmd/age-keygen",
	"out/age --version",
	"GOFLAGS=-mod=mod GOPROXY=https://" + world.PackagesName + " go list -m example.com/some/module@v1.0.0 || echo no way out",
}

// A show is one performance.
type show struct {
	world *world.World
	page  *page

	commit  string
	result  coordinator.Result
	dir     string // the auditor's directory
	archive []byte
	files   map[string][]byte
	bundle  []byte
}

func (s *show) run(ctx context.Context) error {
	for _, part := range []func(context.Context) error{
		s.setUp, s.job, s.log, s.produced, s.audit, s.tamper, s.tearDown,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) setUp(context.Context) error {
	p := s.page
	p.title("A runner host, and the internet beyond it")
	s.world.Remember() // before the first program: what must be left in the end
	start := time.Now()
	if err := s.world.Start(); err != nil {
		return err
	}
	p.say("Everything here lives in namespaces of its own; the machine outside does not see it.")
	p.say("  gitlab-runner 19.4.0   stock, user gitlab-runner   polls %s", s.world.GitLab.URL())
	p.say("  hallmark-executor      its driver                  one process per stage, one socket")
	p.say("  hallmark-sandboxd      root                        private containerd, the border, the record")
	p.say("  hallmark-attestd       user hallmark-attestd       the key, %s", world.AttestdURL)
	p.say("The GitLab is a stand-in with a real Git server. Ready in %.1f s.", time.Since(start).Seconds())
	return nil
}

func (s *show) job(ctx context.Context) error {
	p := s.page
	p.title("The job")
	commit, err := s.world.PublishDir(project, "main", projectDir(s.world.Root))
	if err != nil {
		return err
	}
	s.commit = commit
	p.say("%s %s from its module zip, with its dependencies vendored, is commit %s of\n%s/%s.git. Its .gitlab-ci.yml:", module, moduleVersion, commit[:12], s.world.GitLab.URL(), project)
	p.say("  build:\n    tags: [hermetic]\n    image: %s\n    script:\n      - %s\n    artifacts: {paths: [out/]}", s.world.Images[images.Go], strings.Join(script, "\n      - "))
	s.result, err = s.world.Run(ctx, coordinator.Job{
		Name: "build", Project: project, ProjectID: 1042, Runner: world.Hermetic,
		Image: coordinator.Image{Name: s.world.Images[images.Go]}, Script: script,
		Artifacts: []coordinator.ArtifactRule{{Name: "age", Paths: []string{"out/"}, ExpireIn: "1 week"}},
	})
	return err
}

func (s *show) log(context.Context) error {
	s.page.title("Its log, as GitLab shows it")
	if err := trace.Render(s.page.w, s.result.Trace, "   ", s.page.colour); err != nil {
		return err
	}
	if s.result.State != coordinator.Success {
		return fmt.Errorf("the job ended in %s: %s", s.result.State, s.result.FailureReason)
	}
	return nil
}

// produced fetches what an auditor would: the artifact from GitLab, the bundle
// and the trusted root from the authority.
func (s *show) produced(context.Context) error {
	p := s.page
	p.title("What came out")
	art, ok := s.result.Artifact("archive")
	if !ok {
		return errors.New("GitLab has no artifact")
	}
	s.archive = art.Data
	var err error
	if s.files, err = unpack(art.Data); err != nil {
		return err
	}
	if s.dir, err = s.world.Temp("auditor"); err != nil {
		return err
	}
	if err := s.fetchBundle(); err != nil {
		return err
	}
	root, err := fetch("/trusted-root.json")
	if err != nil {
		return err
	}
	policy := fmt.Sprintf("builder_ids = [%q]\nissuer = %q\nsource = %q\nref = \"refs/heads/main\"\n", builder, world.BuilderURI, s.world.GitLab.URL()+"/"+project+".git")
	for name, data := range map[string][]byte{
		"age": s.files["out/age"], "age.zip": art.Data, "age.sigstore.json": s.bundle, "trusted-root.json": root, "age.toml": []byte(policy),
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o644); err != nil {
			return err
		}
	}
	if err := s.tellStatement(); err != nil {
		return err
	}
	return s.tellLog()
}

func (s *show) fetchBundle() error {
	body, err := fetch(fmt.Sprintf("/v1/jobs/%d", s.result.ID))
	if err != nil {
		return err
	}
	var found struct {
		Attestations []struct {
			Bundle json.RawMessage `json:"bundle"`
		} `json:"attestations"`
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return err
	}
	if len(found.Attestations) != 1 {
		return fmt.Errorf("the authority has %d bundles for the job, want one", len(found.Attestations))
	}
	s.bundle = found.Attestations[0].Bundle
	return nil
}

func fetch(path string) ([]byte, error) {
	resp, err := http.Get(world.AttestdURL + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, resp.Status)
	}
	return body, err
}

// envelope is where the statement is in a bundle.
type envelope struct {
	DSSE struct {
		Payload []byte `json:"payload"`
	} `json:"dsseEnvelope"`
}

func (s *show) statement() ([]byte, error) {
	var e envelope
	if err := json.Unmarshal(s.bundle, &e); err != nil {
		return nil, err
	}
	return e.DSSE.Payload, nil
}

func (s *show) tellStatement() error {
	text, err := s.statement()
	if err != nil {
		return err
	}
	var st struct {
		Subject []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		Predicate struct {
			BuildDefinition struct {
				Dependencies []struct {
					URI    string            `json:"uri"`
					Digest map[string]string `json:"digest"`
				} `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return err
	}
	p := s.page
	p.say("The statement, signed by %s, names what went in:", builder)
	for _, d := range st.Predicate.BuildDefinition.Dependencies {
		for alg, value := range d.Digest {
			p.say("  %s", clip(fmt.Sprintf("%-10s %.12s…  %s", alg, value, d.URI), 120))
			break
		}
	}
	p.say("and what came out:")
	for _, sub := range st.Subject {
		p.say("  %-10s %.12s…  %s", "sha256", sub.Digest["sha256"], sub.Name)
	}
	return nil
}

// tellLog shows the proof that the signature is in the authority's log, where
// everybody can find out what was ever signed.
func (s *show) tellLog() error {
	var b struct {
		Material struct {
			Entries []struct {
				Index string `json:"logIndex"`
				Proof struct {
					Size       string   `json:"treeSize"`
					Root       []byte   `json:"rootHash"`
					Hashes     [][]byte `json:"hashes"`
					Checkpoint struct {
						Envelope string `json:"envelope"`
					} `json:"checkpoint"`
				} `json:"inclusionProof"`
			} `json:"tlogEntries"`
		} `json:"verificationMaterial"`
	}
	if err := json.Unmarshal(s.bundle, &b); err != nil {
		return err
	}
	if len(b.Material.Entries) != 1 {
		return fmt.Errorf("the bundle has %d log entries, want one", len(b.Material.Entries))
	}
	e := b.Material.Entries[0]
	log, _, _ := strings.Cut(e.Proof.Checkpoint.Envelope, "\n")
	s.page.say("The bundle carries the proof that its signature is in the transparency log of %s:", log)
	s.page.say("  entry %s of a tree of %s, %d hashes up to the root %.6x…, which the log has signed",
		cmp.Or(e.Index, "0"), e.Proof.Size, len(e.Proof.Hashes), e.Proof.Root)
	return nil
}

// verify runs both verifiers on a file of the auditor's.
func (s *show) verify(ctx context.Context, file, bundle string, want bool) error {
	at := func(name string) string { return filepath.Join(s.dir, name) }
	line := fmt.Sprintf("hallmark verify %s --bundle %s --policy age.toml --trusted-root trusted-root.json", file, bundle)
	args := []string{"verify", at(file), "--bundle", at(bundle), "--policy", at("age.toml"), "--trusted-root", at("trusted-root.json")}
	if !want {
		line, args = line+" --brief", append(args, "--brief")
	}
	out, errs, code, err := s.world.Program(ctx, "hallmark", args...)
	if err != nil {
		return err
	}
	text := strings.ReplaceAll(out+errs, s.dir+"/", "")
	if !want {
		text = firstLines(text, 4)
	}
	s.page.command(line, text, code)
	if (code == 0) != want || !want && code != 3 && code != 1 {
		return fmt.Errorf("hallmark verify: exit status %d", code)
	}

	out, errs, code, err = s.world.Program(ctx, "cosign", "verify-blob-attestation", "--bundle", at(bundle), "--trusted-root", at("trusted-root.json"),
		"--certificate-identity", builder, "--certificate-oidc-issuer", world.BuilderURI, "--type", "slsaprovenance1",
		"--use-signed-timestamps", "--insecure-ignore-sct", at(file))
	if err != nil {
		return err
	}
	s.page.command(fmt.Sprintf("cosign verify-blob-attestation %s --bundle %s --certificate-identity %s …", file, bundle, builder),
		firstLines(strings.ReplaceAll(withoutWarnings(out+errs), s.dir+"/", ""), 1), code)
	if (code == 0) != want {
		return fmt.Errorf("cosign: exit status %d", code)
	}
	return nil
}

func (s *show) audit(ctx context.Context) error {
	s.page.title("An auditor verifies, without a network")
	return s.verify(ctx, "age", "age.sigstore.json", true)
}

func (s *show) tamper(ctx context.Context) error {
	p := s.page
	p.title("Somebody flips one bit of the program")
	program := bytes.Clone(s.files["out/age"])
	program[len(program)/2] ^= 1
	if err := os.WriteFile(filepath.Join(s.dir, "age-flipped"), program, 0o644); err != nil {
		return err
	}
	if err := s.verify(ctx, "age-flipped", "age.sigstore.json", false); err != nil {
		return err
	}
	p.title("Somebody changes one field of the statement: the branch it was built from")
	forged, err := s.forge()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "forged.sigstore.json"), forged, 0o644); err != nil {
		return err
	}
	return s.verify(ctx, "age", "forged.sigstore.json", false)
}

// forge changes the ref in the signed statement and leaves the rest as it is.
func (s *show) forge() ([]byte, error) {
	text, err := s.statement()
	if err != nil {
		return nil, err
	}
	other := bytes.ReplaceAll(text, []byte("refs/heads/main"), []byte("refs/heads/evil"))
	if bytes.Equal(other, text) {
		return nil, errors.New("the statement does not name the ref")
	}
	before, after := base64.StdEncoding.EncodeToString(text), base64.StdEncoding.EncodeToString(other)
	forged := bytes.Replace(s.bundle, []byte(before), []byte(after), 1)
	if bytes.Equal(forged, s.bundle) {
		return nil, errors.New("the statement was not found in the bundle")
	}
	return forged, nil
}

func (s *show) tearDown(context.Context) error {
	p := s.page
	p.title("The end")
	if err := s.world.Stop(); err != nil {
		return err
	}
	if leaks := s.world.Leaks(); len(leaks) > 0 {
		return fmt.Errorf("left behind:\n  %s", strings.Join(leaks, "\n  "))
	}
	p.say("All programs have ended. Looked for and not found: processes, mounts, network namespaces,\ncontainers, cgroups. What is kept is the record and the bundle, at the authority.")
	return nil
}

func firstLines(s string, n int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(all) > n {
		all = all[:n]
	}
	return strings.Join(all, "\n")
}

// withoutWarnings leaves out what cosign says of flags.
func withoutWarnings(s string) string {
	var out strings.Builder
	for line := range strings.Lines(s) {
		if !strings.HasPrefix(line, "WARNING") && strings.TrimSpace(line) != "" {
			out.WriteString(line)
		}
	}
	return out.String()
}
