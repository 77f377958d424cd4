// Command hallmark-sandboxd runs GitLab jobs in recorded sandboxes on this host.
//
//	hallmark-sandboxd [-config FILE]                 run jobs
//	hallmark-sandboxd join [-config FILE] TOKEN | -  become known to an authority on another machine
//
// It holds containerd, the network namespaces and the evidence record. It has
// no signing key: what it records goes to hallmark-attestd as it happens.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "hallmark.build/attest/authority/authoritypb"
	"hallmark.build/config"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/cache"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/host"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/policy"
)

// version is set by the linker.
var version = "devel"

const defaultConfig = "/etc/hallmark/sandboxd.toml"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run returns 0 after an orderly stop, 1 after a failure, 2 for wrong usage.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "join" {
		return joinCommand(ctx, args[1:], stdin, stdout, stderr)
	}
	flags := flag.NewFlagSet("hallmark-sandboxd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", defaultConfig, "configuration `file`")
	show := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *show {
		_, _ = fmt.Fprintln(stdout, version)
		return 0
	}
	if flags.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "error: %q: hallmark-sandboxd takes no arguments\n", flags.Arg(0))
		return 2
	}
	if err := serve(ctx, *file, slog.New(slog.NewTextHandler(stderr, nil))); err != nil {
		report(stderr, err)
		return 1
	}
	return 0
}

// serve wires the parts and answers drivers until ctx ends.
func serve(ctx context.Context, file string, log *slog.Logger) error {
	if os.Geteuid() != 0 {
		return &hintedError{errors.New("hallmark-sandboxd has to be root: it makes namespaces, mounts and cgroups"), "systemctl start hallmark-sandboxd"}
	}
	tellUse(ctx, log)
	conf, err := config.LoadSandboxd(file)
	if err != nil {
		return err
	}
	hostConfig, err := hostConfig(ctx, conf)
	if err != nil {
		return err
	}
	conn, hangUp, err := dial(conf, log)
	if err != nil {
		return err
	}
	defer hangUp()
	if _, err := os.Stat(filepath.Join(conf.Containerd.BinDir, "hallmark-init")); err != nil {
		return &hintedError{fmt.Errorf("containerd.bin_dir: %w", err), "`make install` puts containerd, runc and hallmark-init into /usr/lib/hallmark"}
	}
	rt, err := containerd.Start(ctx, containerd.Config{
		Address: conf.Containerd.Address, BinDir: conf.Containerd.BinDir,
		Root: filepath.Join(conf.StateDir, "containerd"), State: filepath.Join(conf.RunDir, "containerd"),
		Namespace: "hallmark", Init: filepath.Join(conf.Containerd.BinDir, "hallmark-init"),
		PlainHTTP: conf.Images.PlainHTTP, CAFile: conf.Images.CA, PullsAtOnce: conf.Images.PullsAtOnce,
		Keep: containerd.Keep{Bytes: conf.Images.KeepBytes, For: conf.Images.KeepFor, MinFree: conf.Images.MinFree},
	}, log)
	if err != nil {
		return err
	}
	defer func() { _ = rt.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	var tidy sync.WaitGroup
	defer tidy.Wait()
	defer cancel()
	tidy.Go(func() { rt.TidyImages(ctx) })
	tidy.Go(func() { warnOfAuthority(ctx, conn, log) })
	tidy.Go(func() { warnOfGitLab(ctx, conf.GitLabURL, hostConfig.GitLabRoots, log) })
	images := image.New(image.Policy{Allowed: conf.Images.Allowed, PlainHTTP: conf.Images.PlainHTTP, CAFile: conf.Images.CA})
	h, err := host.New(ctx, hostConfig, rt, images, authority{pb.NewAuthorityClient(conn)}, log)
	if err != nil {
		return err
	}
	l, err := listen(conf.Socket, conf.SocketUser)
	if err != nil {
		return err
	}
	log.Info("ready", "socket", conf.Socket, "runtime", rt.Version(), "version", version)
	notifyReady()
	return h.Serve(ctx, l)
}

func hostConfig(ctx context.Context, c config.Sandboxd) (host.Config, error) {
	gitlabRoots, err := pool(c.GitLabCA)
	if err != nil {
		return host.Config{}, fmt.Errorf("gitlab_ca: %w", err)
	}
	upstream, err := pool(c.UpstreamCA)
	if err != nil {
		return host.Config{}, fmt.Errorf("upstream_ca: %w", err)
	}
	runner, err := filepath.EvalSymlinks(c.GitLabRunner)
	if err != nil {
		return host.Config{}, &hintedError{fmt.Errorf("gitlab_runner: %w", err), "install GitLab Runner first, or name its program with gitlab_runner"}
	}
	runnerVersion, err := versionOf(ctx, runner)
	if err != nil {
		return host.Config{}, err
	}
	uid, _, err := ids(c.SocketUser)
	if err != nil {
		return host.Config{}, err
	}
	images, err := imageRules(c.Images)
	if err != nil {
		return host.Config{}, err
	}
	limits, err := limitsOf(c.Limits)
	if err != nil {
		return host.Config{}, err
	}
	allow := make([]policy.Rule, 0, len(c.Allow))
	for _, r := range c.Allow {
		allow = append(allow, policy.Rule{Name: r.Name, Host: r.Host, Ports: r.Ports, Methods: r.Methods, Paths: r.Paths})
	}
	git := policy.Git{SameGitLab: c.Git.Submodules == "same-gitlab"}
	for _, r := range c.Git.Allow {
		git.Allow = append(git.Allow, policy.Rule{Name: r.Name, Host: r.Host, Ports: r.Ports, Paths: r.Paths})
	}
	return host.Config{
		Users:    map[uint32]bool{0: true, uint32(uid): true},
		StateDir: c.StateDir,
		GitLab:   c.GitLabURL, GitLabRoots: gitlabRoots, Upstream: upstream, GitLabRunner: runner, RunnerVersion: runnerVersion,
		HelperImage: c.HelperImage, DefaultImage: c.DefaultImage, Images: images,
		DeclareSource: c.SourceMismatch == "declare", Spool: c.Authority.Unavailable == "spool", RefuseUnattested: c.UnattestedArtifacts == "refuse", StopGrace: c.StopGrace, ReadOnlyRoot: c.ReadOnlyRoot,
		Limits: limits.all, Projects: limits.projects, Devices: limits.devices, Preparing: c.Limits.Preparing,
		Services: host.ServiceRules{Limit: c.Services.Limit, Wait: c.Services.WaitTimeout, DebugLogs: c.Services.DebugLogs,
			Limits: sandbox.Limits{MemoryBytes: c.Services.Memory, CPUs: c.Services.CPUs, Pids: c.Services.Pids}},
		FirstID: c.IDs.First, IDRanges: c.IDs.Ranges, Allow: allow, Git: git, ConfigDigest: c.Digest, Version: version,
		Caches: host.Caches{
			Modes:  map[sandbox.Profile]string{sandbox.Hermetic: c.Cache.Hermetic, sandbox.Firewalled: c.Cache.Firewalled},
			Limits: cache.Limits{Archive: c.Cache.Archive, Total: c.Cache.Total, Age: c.Cache.Age}, Servers: c.Cache.Servers,
		},
	}, nil
}

func imageRules(c config.Images) (host.ImageRules, error) {
	rules := host.ImageRules{
		Services: c.AllowedServices, AuthFile: c.AuthFile,
		User: c.User, AllowedUsers: c.AllowedUsers, KeepEntrypoint: c.DisableEntrypointOverwrite,
	}
	var err error
	if rules.Policies.Default, err = image.ParsePullPolicies(c.PullPolicy); err != nil {
		return rules, err
	}
	rules.Policies.Allowed, err = image.ParsePullPolicies(c.AllowedPullPolicies)
	return rules, err
}

// versionOf asks a gitlab-runner binary for its version.
func versionOf(ctx context.Context, binary string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("gitlab_runner: %s --version: %w", binary, err)
	}
	for line := range strings.Lines(string(out)) {
		if v, ok := strings.CutPrefix(line, "Version:"); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("gitlab_runner: %s --version names no version", binary)
}

// pool is the system's roots and those in file. No file means nil: the
// system's alone.
func pool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's certificates: %w", err)
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return roots, nil
}

// listen opens the socket that drivers connect to: for root and one user. The
// peer's identity is checked again on each connection.
func listen(path, owner string) (*net.UnixListener, error) {
	uid, gid, err := ids(owner)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(path, 0o660), os.Chown(path, uid, gid)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func ids(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return 0, 0, &hintedError{fmt.Errorf("socket_user: there is no user %q", name),
			"GitLab Runner's package makes the user gitlab-runner; set socket_user to the one that it runs as here"}
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, fmt.Errorf("socket_user: %w", err)
	}
	gid, err = strconv.Atoi(u.Gid)
	if err != nil {
		return 0, 0, fmt.Errorf("socket_user: %w", err)
	}
	return uid, gid, nil
}

// notifyReady tells systemd, if it started us with Type=notify. See sd_notify(3).
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	_, _ = c.Write([]byte("READY=1"))
	_ = c.Close()
}
