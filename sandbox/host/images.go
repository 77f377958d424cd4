package host

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/image/auth"
	"hallmark.build/sandbox/record"
)

// platform is the only one whose images are run.
const platform = "linux/" + runtime.GOARCH

// ImageRules are the admin's on images.
type ImageRules struct {
	// Services are globs of the names that services may have; empty: those
	// that the resolver admits.
	Services []string
	Policies image.PullPolicies
	// AuthFile has the logins of this host, in the form of Docker's
	// config.json; or empty.
	AuthFile string
	// User runs the job's scripts, whatever the job says; empty: the job's.
	User string
	// AllowedUsers are those that a job may name; empty: User, or every user
	// if that is empty too.
	AllowedUsers []string
	// KeepEntrypoint has the image's entrypoint run, whatever the job says.
	KeepEntrypoint bool
}

// pullPauses are the times between attempts to reach a registry.
var pullPauses = []time.Duration{2 * time.Second, 5 * time.Second}

func (h *Host) imageName(j *job) string {
	if name := j.payload.Image.Name; name != "" {
		return name
	}
	return h.cfg.DefaultImage
}

// wishes are for the images of the two containers that every job has.
func (h *Host) wishes(ctx context.Context, j *job, out *joblog.Log) (map[sandbox.Role]*wish, error) {
	wanted := j.payload.Image
	wanted.Name = h.imageName(j)
	if h.cfg.Images.KeepEntrypoint && len(wanted.Entrypoint) > 0 {
		out.Printf("the job's entrypoint is not used: the runner's admin keeps the image's own")
	}
	build, err := h.wish(ctx, j, sandbox.Build, wanted, out)
	if err != nil {
		return nil, err
	}
	helper, err := h.wish(ctx, j, sandbox.Helper, executor.Image{Name: h.cfg.HelperImage}, out)
	if err != nil {
		return nil, adminsFault(err)
	}
	return map[sandbox.Role]*wish{sandbox.Build: build, sandbox.Helper: helper}, nil
}

// adminsFault words an error of the helper's image, which the admin has chosen.
func adminsFault(err error) error { return fmt.Errorf("helper image: %s", err) }

// noteImage records an image that is there.
func (j *job) noteImage(entry record.Image, img image.Image) error {
	if entry.Name == "" {
		entry.Name = img.Name
	}
	entry.Reference, entry.Manifest = img.Reference, img.Manifest
	entry.Index, entry.Config, entry.Platform = img.Index, img.Config, img.Platform
	_, err := j.record.Append(record.ImageResolved, entry)
	return err
}

// A wish is an image that a job wants, with all that decides whether it gets it:
// what the name means and whether the job may have it, under the job's own login.
// When it has come, the image is unpacked, and stays until the job is torn down.
type wish struct {
	host     *Host
	job      *job
	out      *joblog.Log
	resolver *image.Resolver
	name     string // canonical
	platform string
	login    auth.Login
	policies []image.PullPolicy
	quiet    bool // the admin's image: the job's log is not concerned
}

func (h *Host) wish(ctx context.Context, j *job, role sandbox.Role, wanted executor.Image, out *joblog.Log) (*wish, error) {
	w := &wish{host: h, job: j, out: out, quiet: role == sandbox.Helper, resolver: h.resolverFor(role, wanted.Name)}
	on := j.payload.Expand(wanted.ExecutorOpts.Docker.Platform)
	if on == "" {
		on = platform
	}
	name, on, err := w.resolver.Canonical(wanted.Name, on)
	if err != nil {
		return nil, err
	}
	w.name, w.platform = name.String(), on
	if w.policies, err = h.policiesFor(role, wanted.PullPolicy); err != nil {
		return nil, fmt.Errorf("image %s: %w", wanted.Name, err)
	}
	from := ""
	w.login, from = h.loginFor(ctx, j, role, name, out)
	if !w.quiet {
		out.Printf("image %s: pull policy %s%s", w.name, w.policies[0], map[bool]string{true: ", login from " + from}[from != ""])
	}
	return w, nil
}

// resolverFor is the resolver under the allow-list for a role. What the admin
// names is allowed.
func (h *Host) resolverFor(role sandbox.Role, name string) *image.Resolver {
	switch {
	case role == sandbox.Helper, name == h.cfg.DefaultImage:
		return h.images.Within(nil)
	case role == sandbox.Build, len(h.cfg.Images.Services) == 0:
		return h.images
	}
	return h.images.Within(h.cfg.Images.Services)
}

// policiesFor are the pull policies for an image. The helper's is asked for again
// when its registry's consent has run out.
func (h *Host) policiesFor(role sandbox.Role, asked []string) ([]image.PullPolicy, error) {
	if role == sandbox.Helper {
		return []image.PullPolicy{image.IfNotPresent}, nil
	}
	return h.cfg.Images.Policies.For(asked)
}

// come tries the pull policies in their order.
func (w *wish) come(ctx context.Context) (image.Image, error) {
	var failed error
	for i, p := range w.policies {
		if i > 0 {
			w.out.Printf("image %s: pull policy %s: %s", w.name, w.policies[i-1], failed)
			w.out.Printf("image %s: trying pull policy %s", w.name, p)
		}
		img, err := w.under(ctx, p)
		if err == nil {
			return img, nil
		}
		if ctx.Err() != nil {
			return image.Image{}, context.Cause(ctx)
		}
		failed = err
	}
	return image.Image{}, failed
}

// under gets the image as one pull policy says.
func (w *wish) under(ctx context.Context, p image.PullPolicy) (image.Image, error) {
	switch p {
	case image.Never:
		return w.here(ctx)
	case image.IfNotPresent:
		if img, ok := w.shelved(ctx); ok {
			return img, nil
		}
	}
	return w.pulled(ctx)
}

// shelved is the image that is here, if the job's login has shown that it may
// have it.
func (w *wish) shelved(ctx context.Context) (image.Image, bool) {
	img, ok := w.host.shelf.Find(w.name, w.platform)
	if !ok || !w.host.shelf.Shown(img, w.login) {
		return image.Image{}, false
	}
	return img, w.take(ctx, img)
}

// take holds an image that is here.
func (w *wish) take(ctx context.Context, img image.Image) bool {
	release := w.host.runtime.Hold(img.Reference)
	there, err := w.host.runtime.Present(ctx, img.Reference)
	if err == nil && there {
		// Nothing is left to pull: this notes that the image is in use.
		err = w.pull(ctx, img)
	}
	if err != nil || !there {
		release()
		return false
	}
	w.job.hold(release)
	w.say("image %s: the one that is here, %s", w.name, img.Manifest)
	return true
}

// here is the image that is here, or an error that does not tell whether there
// is one: that another tenant has it is no business of this job's. The registry
// is asked in either case, so that the time does not tell either.
func (w *wish) here(ctx context.Context) (image.Image, error) {
	if img, ok := w.shelved(ctx); ok {
		return img, nil
	}
	img, found := w.host.shelf.Find(w.name, w.platform)
	if !found {
		img.Reference = w.name
	}
	if err := w.resolver.Confirm(ctx, img, w.login); err == nil && found && w.take(ctx, img) {
		w.remember(img)
		return img, nil
	}
	return image.Image{}, &sandbox.UserError{
		Err:  fmt.Errorf("image %s: pull policy never: it is not here, or its registry does not give it to this job", w.name),
		Hint: "allow another pull policy after never, as in pull_policy: [never, if-not-present], or check the job's login for the registry",
	}
}

// pulled asks the registry, and pulls what is missing.
func (w *wish) pulled(ctx context.Context) (image.Image, error) {
	var img image.Image
	err := w.patiently(ctx, func() (err error) {
		img, err = w.resolver.Resolve(ctx, w.name, w.platform, w.login)
		return err
	})
	if err != nil {
		return image.Image{}, err
	}
	release := w.host.runtime.Hold(img.Reference)
	if err := w.patiently(ctx, func() error { return w.pull(ctx, img) }); err != nil {
		release()
		return image.Image{}, err
	}
	w.job.hold(release)
	w.remember(img)
	return img, nil
}

func (w *wish) pull(ctx context.Context, img image.Image) error {
	return w.host.runtime.Pull(ctx, w.order(img))
}

// order asks in the name of the project: one that has many jobs gets no more turns
// than others.
func (w *wish) order(img image.Image) containerd.Order {
	return containerd.Order{
		Reference: img.Reference, Platform: img.Platform, Login: w.login, Customer: w.job.payload.Info.ProjectFullPath,
		Progress: func(line string) { w.say("image %s: %s", w.name, line) },
	}
}

func (w *wish) say(format string, args ...any) {
	if !w.quiet {
		w.out.Printf(format, args...)
	}
}

// remember notes that the registry gave the image to this job's login.
func (w *wish) remember(img image.Image) {
	if err := w.host.shelf.Put(img, w.login); err != nil {
		w.job.logger(w.host.log).Warn("the images that are here are not remembered", "error", err)
	}
}

// patiently tries again what may pass: trouble on the way to a registry. What
// the job is to blame for does not.
func (w *wish) patiently(ctx context.Context, try func() error) error {
	for i := 0; ; i++ {
		err := try()
		if _, user := errors.AsType[*sandbox.UserError](err); err == nil || user || image.Lasting(err) || i == len(pullPauses) || ctx.Err() != nil {
			return err
		}
		w.say("image %s: %s: trying again in %s", w.name, err, pullPauses[i])
		select {
		case <-time.After(pullPauses[i]):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// The sources of logins, as the job's log calls them.
const (
	fromVariable = "DOCKER_AUTH_CONFIG"
	fromHost     = "the runner's configuration"
	fromGitLab   = "the job (GitLab's own registries)"
)

// loginFor finds the login for an image in GitLab's order of precedence: the
// job's variable, the admin's file, what GitLab made for the job. A source that
// cannot be read is passed over, and the job told so, as GitLab Runner does.
func (h *Host) loginFor(ctx context.Context, j *job, role sandbox.Role, name image.Name, out *joblog.Log) (l auth.Login, from string) {
	if j.ring == nil {
		j.ring = map[bool]*auth.Ring{true: h.ringOf(nil, out), false: h.ringOf(j, out)}
	}
	l, from, err := j.ring[role == sandbox.Helper].Find(ctx, name.Registry, name.Repository)
	if err != nil {
		h.log.Warn("login for an image", "registry", name.Registry, "error", err)
		out.Printf("a login of the runner's own for %s could not be had; the runner's admin finds the reason in the daemon's log", name.Registry)
	}
	return l, from
}

// ringOf holds the logins of a job, or, for no job, those of this host alone.
func (h *Host) ringOf(j *job, out *joblog.Log) *auth.Ring {
	ring := &auth.Ring{}
	if j != nil {
		addVariable(ring, j.payload.Setting(fromVariable), out)
	}
	if h.cfg.Images.AuthFile != "" {
		f, err := auth.Read(h.cfg.Images.AuthFile)
		if err != nil {
			h.log.Warn("logins for images are not used", "error", err)
			if j != nil {
				out.Printf("the runner's own logins for registries are not used; the runner's admin finds the reason in the daemon's log")
			}
		}
		ring.AddHost(fromHost, f)
	}
	if j != nil {
		for _, c := range j.payload.Credentials {
			if c.Type == "registry" || c.Type == "dependency_proxy" {
				ring.AddLogin(fromGitLab, c.URL, auth.Login{User: c.Username, Password: c.Password})
			}
		}
	}
	return ring
}

func addVariable(ring *auth.Ring, value string, out *joblog.Log) {
	if value == "" {
		return
	}
	f, err := auth.Parse([]byte(value))
	if err != nil {
		out.Printf("%s is not used: %s", fromVariable, err)
		return
	}
	if programs := f.Programs(); len(programs) > 0 {
		out.Printf("%s names credential helpers (%s): no program of this host is run for a job; put the logins into auths", fromVariable, strings.Join(programs, ", "))
	}
	ring.AddJob(fromVariable, f)
}

// identity is what the build container's processes run as and through, as the
// Docker executor has it: the admin's word before the job's, and the job's before
// the image's.
func (h *Host) identity(j *job, config containerd.ImageConfig) (user string, entrypoint []string, err error) {
	rules := h.cfg.Images
	entrypoint = config.Entrypoint
	if e := j.payload.Image.Entrypoint; len(e) > 0 && !rules.KeepEntrypoint {
		entrypoint = e
	}
	if len(entrypoint) == 1 && entrypoint[0] == "" {
		entrypoint = nil // `entrypoint: [""]` is how a job says none
	}
	user = rules.User
	if user == "" {
		user = j.payload.Expand(j.payload.Image.ExecutorOpts.Docker.User)
	}
	allowed := rules.AllowedUsers
	if len(allowed) == 0 && rules.User != "" {
		allowed = []string{rules.User}
	}
	if user != "" && len(allowed) > 0 && !slices.Contains(allowed, user) {
		return "", nil, &sandbox.UserError{
			Err:  fmt.Errorf("user %q is not one that this runner allows", user),
			Hint: "use one of: " + strings.Join(allowed, ", "),
		}
	}
	if user == "" {
		user = config.User
	}
	return user, entrypoint, nil
}

// hold keeps an image for the job. Several may come at once.
func (j *job) hold(release func()) {
	j.holding.Lock()
	defer j.holding.Unlock()
	j.holds = append(j.holds, release)
}

// dirsOf are the directories that a container has even where its image has not:
// Docker makes a volume for each that the image names, gone with the container.
// Here all that the container writes is gone with it, so a directory will do.
func dirsOf(c containerd.ImageConfig) []string {
	if c.WorkingDir == "" {
		return c.Volumes
	}
	return append(slices.Clone(c.Volumes), c.WorkingDir)
}

// letGo gives up the images that the job has held.
func (j *job) letGo() {
	for _, release := range j.holds {
		release()
	}
	j.holds = nil
}

func (h *Host) shelfFile() string { return filepath.Join(h.cfg.StateDir, "images.json") }
