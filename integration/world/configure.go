package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hallmark.build/integration/images"
)

// Files of configuration, at the places where programs look.
const (
	caFile       = "/etc/hallmark/internet-ca.pem"
	sandboxdFile = "/etc/hallmark/sandboxd.toml"
	attestdFile  = "/etc/hallmark/attestd.toml"
	RunnerFile   = "/etc/gitlab-runner/config.toml"
	tokenFile    = "/etc/hallmark/gitlab-token"

	sandboxdSocket = "/run/hallmark/sandboxd.sock"
	attestdHTTP    = "127.0.0.1:8470"
)

// AttestdURL is where people read bundles.
const AttestdURL = "http://" + attestdHTTP

// configure writes every program's configuration and says how it is started.
// What can be left at its default is left at it.
func (w *World) configure() error {
	helper := w.Pinned[images.Helper]
	if helper == "" {
		return fmt.Errorf("a world needs the image %s", images.Helper)
	}
	for file, content := range map[string]string{
		caFile:       string(w.caPEM),
		sandboxdFile: sandboxdConfig(helper),
		attestdFile: fmt.Sprintf("gitlab_url = %q\ngitlab_ca = %q\nbuilder_uri = %q\npublic_url = %q\ngitlab_token_file = %q\n",
			"https://"+GitLabName, caFile, BuilderURI, AttestdURL, tokenFile),
	} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := errors.Join(os.WriteFile(tokenFile, []byte(readToken+"\n"), 0o600), os.Chown(tokenFile, AttestdUID, AttestdUID)); err != nil {
		return err
	}
	w.Attestd = &Daemon{
		Name: "hallmark-attestd", UID: AttestdUID, log: filepath.Join(w.logs, "attestd.log"),
		Args:  []string{"/usr/lib/hallmark/hallmark-attestd", "-config", attestdFile},
		ready: dialable("tcp", attestdHTTP),
	}
	w.Sandboxd = &Daemon{
		Name: "hallmark-sandboxd", log: filepath.Join(w.logs, "sandboxd.log"),
		Args:  []string{"/usr/lib/hallmark/hallmark-sandboxd", "-config", sandboxdFile},
		ready: dialable("unix", sandboxdSocket),
	}
	w.Runner = &Daemon{
		Name: "gitlab-runner", UID: RunnerUID, log: filepath.Join(w.logs, "gitlab-runner.log"),
		Args: []string{"/usr/lib/hallmark/gitlab-runner", "run", "--config", RunnerFile, "--working-directory", "/var/lib/gitlab-runner"},
		Env:  []string{"TMPDIR=/var/lib/gitlab-runner/tmp", "AWS_ENDPOINT_URL_STS=http://" + StorageName},
	}
	if err := makeDir("/var/lib/gitlab-runner/tmp", 0o700, RunnerUID); err != nil {
		return err
	}
	return w.configureRunner()
}

func sandboxdConfig(helper string) string {
	return fmt.Sprintf(`# The sandbox daemon of the tests. Fields that are not here have their defaults.
gitlab_url = "https://%s"
gitlab_ca = %q
gitlab_runner = "/usr/lib/hallmark/gitlab-runner"
helper_image = %q
upstream_ca = %q
stop_grace = "3s"

[images]
allowed = ["%[5]s:5000/ci/**", "%[5]s:5001/**"]
plain_http = ["%[5]s:5000", "%[5]s:5001"]
allowed_pull_policies = ["always", "if-not-present", "never"]

[limits]
memory = "2GiB"
pids = 1024

[services]
wait_timeout = "10s"

[cache]
servers = ["https://%[6]s/%[7]s"]

[[allow]]
name = "packages"
host = "%s"

[[git.allow]]
name = "open-source"
host = "%s"
paths = ["/open"]
`, GitLabName, caFile, helper, caFile, RegistryName, StorageName, StorageBucket, PackagesName, GitName)
}

// configureRunner writes the runner's config.toml: the block that `hallmark
// runner config` prints for each profile, with the token that registering gave.
func (w *World) configureRunner() error {
	runners := []struct{ profile, token, more string }{
		{"hermetic", Hermetic, ""}, {"firewalled", Firewalled, ""},
		{"hermetic", Stored, storageBlock("")}, {"hermetic", Assumed, storageBlock(storageRole)}, {"hermetic", Azure, azureBlock()},
	}
	// Each of them, and the shell's, holds one of the places while it waits for a
	// job: four are left for jobs.
	var b strings.Builder
	fmt.Fprintf(&b, "concurrent = %d\ncheck_interval = 1\nlog_level = \"info\"\nshutdown_timeout = 20\n", len(runners)+1+4)
	for _, r := range runners {
		block, err := w.runnerBlock(r.profile)
		if err != nil {
			return err
		}
		block += r.more
		b.WriteString("\n" + strings.Replace(block, "[[runners]]\n", fmt.Sprintf("[[runners]]\n  id = 7\n  token = %q\n  tls-ca-file = %q\n", r.token, caFile), 1))
	}
	fmt.Fprintf(&b, "\n[[runners]]\n  name = \"shell\"\n  id = 7\n  url = \"https://%s\"\n  token = %q\n  tls-ca-file = %q\n  executor = \"shell\"\n  shell = \"bash\"\n", GitLabName, Shell, caFile)
	if err := os.WriteFile(RunnerFile, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Chown(RunnerFile, RunnerUID, RunnerUID)
}

// runnerBlock asks for the block of one profile and takes out the lines that
// only registering can fill.
func (w *World) runnerBlock(profile string) (string, error) {
	out, errs, code, err := w.Program(context.Background(), "hallmark", "runner", "config",
		"--profile", profile, "--url", "https://"+GitLabName, "--name", profile)
	if err != nil || code != 0 {
		return "", fmt.Errorf("hallmark runner config: exit %d, %v\n%s", code, err, errs)
	}
	var b strings.Builder
	for line := range strings.Lines(out) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch strings.TrimSpace(key) {
		case "id", "token", "tls-ca-file":
		default:
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

// ConfigureSandboxd starts the sandbox daemon again with another configuration,
// until restore gives it back the one that it had.
func (w *World) ConfigureSandboxd(change func(config string) string) (restore func() error, err error) {
	before, err := os.ReadFile(sandboxdFile)
	if err != nil {
		return nil, err
	}
	restart := func(config []byte) error {
		return errors.Join(w.Sandboxd.Stop(), os.WriteFile(sandboxdFile, config, 0o644), w.Sandboxd.Start())
	}
	return func() error { return restart(before) }, restart([]byte(change(string(before))))
}
