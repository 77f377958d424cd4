package integration

import (
	"encoding/base64"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

// private pushes an image that nobody else has to the registry that wants
// logins, and keeps it for one user if one is given.
func private(t *testing.T, repository, user string, change func(*v1.Config)) (name string) {
	t.Helper()
	img := theWorld.Image(images.Shell)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := *config.Config.DeepCopy()
	c.Env = append(c.Env, "WHAT="+repository)
	if change != nil {
		change(&c)
	}
	// A layer that no image had before, so that there is something to pull.
	own, err := random.Layer(1<<10, types.OCILayer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, own); err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, c); err != nil {
		t.Fatal(err)
	}
	if user != "" {
		theWorld.Private.Guard(repository, user, user+"-sesame")
	}
	name, _, err = theWorld.Private.Push(within(t, time.Minute), repository, "1", img)
	if err != nil {
		t.Fatal(err)
	}
	theWorld.Private.Asked()
	return name
}

// login is a DOCKER_AUTH_CONFIG with the right password of a user.
func login(user string) string { return loginWith(user, user+"-sesame") }

func loginWith(user, password string) string {
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, world.PrivateRegistry, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// inImage is a job that says which image it is in.
func inImage(name string, policy ...string) coordinator.Job {
	job := hermetic(`echo "inside of $WHAT"`)
	job.Image = coordinator.Image{Name: name, PullPolicy: policy}
	return job
}

func withLogin(job coordinator.Job, config string) coordinator.Job {
	job.Variables = append(job.Variables, coordinator.Variable{Key: "DOCKER_AUTH_CONFIG", Value: config, Public: true})
	return job
}

// Docker hands an image that is here to everyone who knows its name. Here a job
// gets only what its own login can pull, whichever way it asks, and is not told
// that there is something.
func TestPrivateImageIsNotForOtherTenants(t *testing.T) {
	name := private(t, "alice/secret", "alice", nil)
	job := withLogin(inImage(name), login("alice"))
	job.Artifacts = coordinator.Archive("README")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "inside of alice/secret", "login from DOCKER_AUTH_CONFIG", "layer 1 of ")
	statement := attested(t, r).Statement.Raw
	if strings.Contains(statement, "sesame") || strings.Contains(statement, login("alice")[20:40]) {
		t.Error("the statement has the login in it")
	}
	for _, e := range evidence(t, r) {
		if strings.Contains(string(e.Line), base64.StdEncoding.EncodeToString([]byte("alice:alice-sesame"))) {
			t.Errorf("the record has the login in it: %s", e.Line)
		}
	}
	never(t, r, "sesame")

	private(t, "mallory/own", "mallory", nil)
	byDigest := strings.TrimSuffix(name, ":1") + "@" + pulledDigest(t, r)
	for what, j := range map[string]coordinator.Job{
		"nobody, if-not-present": inImage(name, "if-not-present"),
		"nobody, never":          inImage(name, "never"),
		"by digest, never":       inImage(byDigest, "never"),
		"another login, both":    withLogin(inImage(name, "never", "if-not-present"), login("mallory")),
		"a wrong password":       withLogin(inImage(name, "if-not-present"), loginWith("alice", "wrong-sesame")),
	} {
		t.Run(what, func(t *testing.T) {
			r := run(t, j)
			expect(t, r, coordinator.Failed, "script_failure")
			mention(t, r, "hint:")
			never(t, r, "inside of", "the one that is here")
			unattested(t, r)
		})
	}
	// The same words whether it is here or not.
	r = run(t, inImage(world.PrivateRegistry+"/alice/nothing:1", "never"))
	expect(t, r, coordinator.Failed, "script_failure")
	mention(t, r, "it is not here, or its registry does not give it to this job")

	// Whoever has shown that it is his gets it without another question.
	theWorld.Private.Asked()
	r = run(t, withLogin(inImage(name, "never"), login("alice")))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "inside of alice/secret", "the one that is here")
	if asked := theWorld.Private.Asked(); len(asked) > 0 {
		t.Errorf("the registry was asked for %v", asked)
	}
}

// pulledDigest is the digest of the image in a job's log.
func pulledDigest(t *testing.T, r coordinator.Result) string {
	t.Helper()
	_, rest, ok := strings.Cut(plain(r.Trace), "@sha256:")
	if !ok || len(rest) < 64 {
		t.Fatalf("job %d: no digest in the trace", r.ID)
	}
	return "sha256:" + rest[:64]
}

func TestPullPoliciesAreTriedInOrder(t *testing.T) {
	name := private(t, "open/fallback", "", nil)
	r := run(t, inImage(name, "never", "if-not-present"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "inside of open/fallback", "pull policy never: ", "trying pull policy if-not-present")

	// A public image that is here is everyone's, and its registry may be gone.
	theWorld.Private.Guard("open/fallback", "nobody", "nobody")
	theWorld.Private.Asked()
	r = run(t, inImage(name, "if-not-present"))
	expect(t, r, coordinator.Success, "")
	mention(t, r, "inside of open/fallback")
	if asked := theWorld.Private.Asked(); len(asked) > 0 {
		t.Errorf("the registry was asked for %v", asked)
	}
	r = run(t, inImage(name, "always"))
	expect(t, r, coordinator.Failed, "script_failure")

	r = run(t, inImage(name, "sometimes"))
	expect(t, r, coordinator.Failed, "script_failure")
	mention(t, r, `pull policy "sometimes"`, "always, if-not-present or never")
}

func TestLoginsInGitLabsOrder(t *testing.T) {
	hosts := private(t, "hosts/image", "host", nil)
	gitlabs := private(t, "gitlab/image", "gitlab", nil)
	file := keep(t, "registries.json", []byte(strings.ReplaceAll(login("host"), world.PrivateRegistry, world.PrivateRegistry+"/hosts")))
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", func(old string) string {
		return strings.Replace(old, "[images]\n", fmt.Sprintf("[images]\nauth_file = %q\nuser = \"builder\"\nallowed_users = [\"builder\", \"0\"]\ndisable_entrypoint_overwrite = true\n", file), 1)
	})
	credentials := func(j coordinator.Job) coordinator.Job {
		j.Change = func(payload map[string]any) {
			payload["credentials"] = []map[string]string{{"type": "registry", "url": world.PrivateRegistry, "username": "gitlab", "password": "gitlab-sesame"}}
		}
		return j
	}
	for what, c := range map[string]struct {
		job  coordinator.Job
		from string
		ok   bool
	}{
		"the longer path before":      {withLogin(inImage(hosts), login("gitlab")), "the runner's configuration", true},
		"the job's, though wrong":     {withLogin(credentials(inImage(gitlabs)), login("host")), "DOCKER_AUTH_CONFIG", false},
		"a broken one is passed over": {withLogin(credentials(inImage(gitlabs)), `{"auths": "sesame"`), "the job (GitLab's own registries)", true},
		"helpers are not run": {withLogin(credentials(inImage(gitlabs)), `{"credsStore": "evil", "credHelpers": {"`+world.PrivateRegistry+`": "evil"}}`),
			"the job (GitLab's own registries)", true},
	} {
		t.Run(what, func(t *testing.T) {
			r := run(t, c.job)
			mention(t, r, "login from "+c.from)
			never(t, r, "sesame")
			if !c.ok {
				expect(t, r, coordinator.Failed, "script_failure")
				return
			}
			expect(t, r, coordinator.Success, "")
			switch what {
			case "a broken one is passed over":
				mention(t, r, "DOCKER_AUTH_CONFIG is not used: ")
			case "helpers are not run":
				mention(t, r, "DOCKER_AUTH_CONFIG names credential helpers (evil): no program of this host is run for a job")
			}
		})
	}

	// The admin's word on user and entrypoint stands before the job's.
	job := hermetic("echo i am $(id -un)")
	job.Image = coordinator.Image{Name: theWorld.Images[images.User], Entrypoint: []string{""}, User: "0"}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "i am builder", "entrypoint was here", "the job's entrypoint is not used")
}

func TestUsersThatAreNotAllowed(t *testing.T) {
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", func(old string) string {
		return strings.Replace(old, "[images]\n", "[images]\nallowed_users = [\"builder\"]\n", 1)
	})
	job := hermetic("echo i am $(id -un)")
	job.Image.User = "$WHO"
	for who, ok := range map[string]bool{"builder": true, "root": false, "0": false} {
		job.Variables = []coordinator.Variable{{Key: "WHO", Value: who}}
		r := run(t, job)
		if ok {
			expect(t, r, coordinator.Success, "")
			mention(t, r, "i am "+who)
			continue
		}
		expect(t, r, coordinator.Failed, "script_failure")
		mention(t, r, fmt.Sprintf("user %q is not one that this runner allows", who), "hint: use one of: builder")
	}
}

// The image's word counts where nobody else has one.
func TestImagesOwnConfiguration(t *testing.T) {
	name := private(t, "open/config", "", func(c *v1.Config) {
		c.User = "builder"
		c.WorkingDir = "/made/for/work"
		c.Volumes = map[string]struct{}{"/made/for/data": {}}
		c.Entrypoint = []string{"/bin/sh", "-c", `echo "entered in $(pwd) as $(id -un)"; exec "$@"`, "entrypoint"}
	})
	job := inImage(name)
	job.Script = append(job.Script, "ls /made/for")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "entered in /made/for/work as builder", "data\n", "inside of open/config")
}

// What an entrypoint does with the job's variables happens before the script,
// which exports them by itself.
func TestEntrypointSeesTheJobsVariables(t *testing.T) {
	const says = `echo "entered with $GREETING $WHAT $HOME $(cat $PEM) in $CI_PROJECT_DIR, ${#SECRET} $LEAST"; export MADE="of $GREETING"; exec "$@"`
	name := private(t, "open/entry", "", func(c *v1.Config) {
		c.Env = append(c.Env, "GREETING=image", "HOME=/image")
		c.Entrypoint = []string{"/bin/sh", "-c", says, "entrypoint"}
	})
	job := inImage(name)
	job.Variables = append(job.Variables,
		coordinator.Variable{Key: "WORD", Value: "hello", Public: true},
		coordinator.Variable{Key: "GREETING", Value: "$WORD-you", Public: true},
		coordinator.Variable{Key: "LEAST", Value: "$WORD", Public: true, Raw: true},
		coordinator.Variable{Key: "PEM", Value: "content of a file", File: true},
		coordinator.Variable{Key: "SECRET", Value: "open-sesame-11", Masked: true},
	)
	job.Script = append(job.Script, `echo "made $MADE"`)
	job.Artifacts = coordinator.Archive("README")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "entered with hello-you open/entry /image content of a file in /builds/", ", 14 $WORD", "made of hello-you")
	if strings.Contains(attested(t, r).Statement.Raw, "sesame") {
		t.Error("the statement has a secret of the job's in it")
	}
	for _, e := range evidence(t, r) {
		if strings.Contains(string(e.Line), "sesame") {
			t.Errorf("the record has a secret of the job's in it: %s", e.Line)
		}
	}

	// A variable comes before the image's, HOME among them, and the job's own
	// entrypoint sees it as well.
	job.Image.Entrypoint = []string{"/bin/sh", "-c", `echo "own entrypoint: $GREETING $HOME"; exec "$@"`, "entrypoint"}
	job.Variables = append(job.Variables, coordinator.Variable{Key: "HOME", Value: "/job", Public: true})
	r = run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "own entrypoint: hello-you /job")
}

// More than fits into one message to the container's first process.
func TestEntrypointSeesManyVariables(t *testing.T) {
	job := in(images.User, hermetic(`echo "${#V000} ${#V011}"`))
	job.Image.Entrypoint = []string{"/bin/sh", "-c", `echo "entered: ${#V000} ${#V011}"; exec "$@"`, "entrypoint"}
	for i := range 12 {
		job.Variables = append(job.Variables, coordinator.Variable{Key: fmt.Sprintf("V%03d", i), Value: strings.Repeat("v", 30_000), Public: true})
	}
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	mention(t, r, "entered: 30000 30000", "\n30000 30000")
}

func TestPlatformOfAnImage(t *testing.T) {
	job := inImage(private(t, "open/platform", "", nil))
	job.Change = func(payload map[string]any) {
		payload["image"].(map[string]any)["executor_opts"] = map[string]any{"docker": map[string]string{"platform": "linux/s390x"}}
	}
	r := run(t, job)
	expect(t, r, coordinator.Failed, "script_failure")
	mention(t, r, "nothing for platform linux/s390x", "hint:")
}
