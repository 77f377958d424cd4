package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
)

// Tokens of the runner's two registrations: a project picks one by tag.
const (
	Hermetic   = "glrt-hermetic0123456789"
	Firewalled = "glrt-firewalled01234567"
	Stored     = "glrt-stored012345678901" // hermetic, with caches in object storage
	Azure      = "glrt-azure0123456789012" // the same, in Azure
	Assumed    = "glrt-assumed01234567890" // the same, in S3 by a role
	Shell      = "glrt-shellexecutor01234" // no sandbox: what to compare with
)

// readToken is the authority's own at GitLab.
const readToken = "glpat-authority0123456789"

// BuilderURI is the platform's name in provenance.
const BuilderURI = "https://ci.example.test/hallmark"

// A World is the machine and its internet.
type World struct {
	Root   string // the checkout
	GitLab *coordinator.Server
	Canary *Canary
	// Images are names by recipe, such as images.Shell.
	Images map[string]string
	// Pinned are the same by digest.
	Pinned map[string]string
	// Storage is where the runners registered as [Stored], [Azure] and [Assumed] keep caches.
	Storage *Storage
	// Private is a registry that wants logins. It is empty.
	Private *images.Registry

	Attestd  *Daemon
	Sandboxd *Daemon
	Runner   *Daemon
	Dockerd  *Daemon // nil unless asked for

	log          io.Writer
	scratch      string // on a disk
	logs         string
	repositories string
	internet     *internet
	registry     *images.Registry
	made         map[string]v1.Image
	closers      []func() error
	caPEM        []byte
	base         baseline
}

// build makes the world up to the point where programs can be started.
func build(opts Options) (*World, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	scratch := os.Getenv(scratchVariable)
	if scratch == "" {
		return nil, fmt.Errorf("%s is not set", scratchVariable)
	}
	w := &World{
		Root: root, log: opts.Log, scratch: scratch, logs: opts.Logs,
		Images: map[string]string{}, Pinned: map[string]string{},
	}
	if w.logs == "" {
		w.logs = filepath.Join(scratch, "logs")
	}
	if err := errors.Join(os.Chmod(scratch, 0o755), os.MkdirAll(w.logs, 0o755)); err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return machine(scratch, root) },
		names,
		w.connect,
		func() error { return w.pushImages(opts.recipes(root)) },
		w.configure,
		func() error { return w.addDocker(opts.Docker) },
	} {
		if err := step(); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	return w, nil
}

// connect makes the internet and its servers.
func (w *World) connect() (err error) {
	if w.internet, err = connect(); err != nil {
		return err
	}
	caPEM, tlsConfig, err := newTLS()
	if err != nil {
		return err
	}
	w.caPEM = caPEM
	w.repositories = filepath.Join(w.scratch, "repositories")
	w.GitLab, err = coordinator.New(coordinator.Options{
		URL: "https://" + GitLabName, Repositories: w.repositories, LongPoll: 5 * time.Second, ReadToken: readToken,
		ObjectStorage: "https://" + ObjectsName + "/lfs",
	})
	if err != nil {
		return err
	}
	w.Storage = &Storage{}
	packages := packageServer()
	git, err := coordinator.NewGit(filepath.Join(w.scratch, "elsewhere"))
	if err != nil {
		return err
	}
	for _, s := range []struct {
		addr    string
		handler http.Handler
		tls     bool
	}{
		{gitlabAddr + ":443", w.GitLab, true},
		{gitAddr + ":443", git, true},
		{objectsAddr + ":443", http.HandlerFunc(w.GitLab.ServeObjects), true},
		{storageAddr + ":443", w.Storage, true},
		{storageAddr + ":80", http.HandlerFunc(assumeRole), false},
		{packagesAddr + ":443", packages, true},
		{packagesAddr + ":80", packages, false},
	} {
		l, err := w.internet.listen(s.addr)
		if err != nil {
			return err
		}
		web := &http.Server{Handler: s.handler, TLSConfig: tlsConfig, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
		go func() {
			if s.tls {
				_ = web.ServeTLS(l, "", "")
				return
			}
			_ = web.Serve(l)
		}()
		w.closers = append(w.closers, web.Close)
	}
	l, err := w.internet.listen(registryAddr + ":5000")
	if err != nil {
		return err
	}
	w.registry, err = images.Serve(l, RegistryName+":5000", filepath.Join(w.Root, ".cache", "images", "blobs"))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.registry.Close)
	if l, err = w.internet.listen(registryAddr + ":5001"); err != nil {
		return err
	}
	w.Private, err = images.ServeGuarded(l, PrivateRegistry, filepath.Join(w.Root, ".cache", "images", "blobs"))
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.Private.Close)
	w.Canary, err = newCanary(w.internet)
	if err != nil {
		return err
	}
	w.closers = append(w.closers, w.Canary.Close)
	return nil
}

// pushImages fills the registry from the cache.
func (w *World) pushImages(recipes []images.Recipe) error {
	unlock, err := lock(w.Root)
	if err != nil {
		return err
	}
	defer unlock()
	ctx := context.Background()
	made, err := images.MakeAll(ctx, filepath.Join(w.Root, ".cache", "images"), recipes, io.Discard)
	if err != nil {
		return err
	}
	w.made = made
	for name, img := range made {
		w.Images[name], w.Pinned[name], err = w.registry.Push(ctx, "ci/"+name, "1", img)
		if err != nil {
			return err
		}
	}
	return nil
}

// Image is what was made of a recipe, for tests that change it.
func (w *World) Image(recipe string) v1.Image { return w.made[recipe] }

// Publish commits files to a project's branch on GitLab and returns the commit.
func (w *World) Publish(project, branch string, files map[string]string) (string, error) {
	return coordinator.Publish(w.repositories, project, branch, files)
}

// PublishTree is Publish for what are not only files.
func (w *World) PublishTree(project, branch string, t coordinator.Tree) (string, error) {
	return coordinator.PublishTree(w.repositories, project, branch, t)
}

// PublishElsewhere is PublishTree for a repository of another server, which
// everybody can read.
func (w *World) PublishElsewhere(project, branch string, t coordinator.Tree) (string, error) {
	return coordinator.PublishTree(filepath.Join(w.scratch, "elsewhere"), project, branch, t)
}

// PublishDir is Publish for the files of a directory.
func (w *World) PublishDir(project, branch, dir string) (string, error) {
	return coordinator.PublishDir(w.repositories, project, branch, dir)
}

// Repository is the bare repository of a project.
func (w *World) Repository(project string) string {
	return filepath.Join(w.repositories, project+".git")
}

// Start runs all programs.
func (w *World) Start() error {
	for _, d := range []*Daemon{w.Attestd, w.Sandboxd, w.Dockerd, w.Runner} {
		if d == nil {
			continue
		}
		if err := d.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends them in good order, the runner first.
func (w *World) Stop() error {
	var errs []error
	for _, d := range []*Daemon{w.Runner, w.Dockerd, w.Sandboxd, w.Attestd} {
		if d != nil {
			errs = append(errs, d.Stop())
		}
	}
	return errors.Join(errs...)
}

// Run hands a job to the runner and waits for its end.
func (w *World) Run(ctx context.Context, job coordinator.Job) (coordinator.Result, error) {
	a, err := w.GitLab.AddJob(job)
	if err != nil {
		return coordinator.Result{}, err
	}
	return a.Wait(ctx)
}

// Program runs one of the world's programs to its end.
func (w *World) Program(ctx context.Context, name string, args ...string) (stdout, stderr string, code int, err error) {
	cmd := exec.CommandContext(ctx, program(w.Root, name), args...)
	cmd.Env = append(os.Environ(), "HOME="+w.scratch, "NO_COLOR=1")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode(), nil
	}
	return out.String(), errs.String(), 0, err
}

// Logs is the end of what every program has said, for a failing test.
func (w *World) Logs() string {
	var b strings.Builder
	for _, d := range []*Daemon{w.Attestd, w.Sandboxd, w.Dockerd, w.Runner} {
		if d != nil {
			b.WriteString(tail(d.log) + "\n")
		}
	}
	return b.String()
}

// Temp makes a directory on the scratch disk.
func (w *World) Temp(name string) (string, error) {
	return os.MkdirTemp(w.scratch, name+"-")
}

// CA is the certificate authority of the world's servers, in PEM.
func (w *World) CA() []byte { return bytes.Clone(w.caPEM) }

// Close ends the programs and servers, and removes the scratch files. Mounts
// and namespaces go with process 1.
func (w *World) Close() error {
	errs := []error{w.Stop()}
	for _, c := range w.closers {
		errs = append(errs, c())
	}
	w.closers = nil
	for _, dir := range []string{"/var/lib/hallmark", "/var/lib/hallmark-attestd", "/var/lib/gitlab-runner", "/usr/lib/hallmark", dockerRoot} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(w.scratch))...)
}

func dialable(network, addr string) func() bool {
	return func() bool {
		conn, err := net.DialTimeout(network, addr, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
}

// PushFresh pushes an image once more, under another name and with layers that
// no one has seen: each has one file more.
func (w *World) PushFresh(recipe, name string) (string, error) {
	img, err := images.Fresh(w.made[recipe], name)
	if err != nil {
		return "", err
	}
	tagged, _, err := w.registry.Push(context.Background(), "ci/"+name, "1", img)
	return tagged, err
}
