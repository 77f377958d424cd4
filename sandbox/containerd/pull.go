package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	client "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image/auth"
)

const (
	// progressEvery is how often a pull that finishes no layer says something.
	progressEvery = 10 * time.Second
	layersAtOnce  = 4 // of one pull, fetched and unpacked
	// turnTime is how long a pull counts as one of those that are let on at a
	// time. Then it goes on beside them: pulls that a registry draws out, be it
	// a tenant's own, must not keep everyone waiting.
	turnTime      = 3 * time.Minute
	maxConfig     = 4 << 20 // bytes of an image's configuration
	maxConfigEnv  = 64 << 10
	maxConfigList = 1024
)

// An Order is an image that is wanted.
type Order struct {
	Reference string // by digest
	Platform  string // "" is this host's
	Login     auth.Login
	// Customer is whom it is for: pulls are shared out fairly between customers.
	Customer string
	Progress func(line string) // may be nil
}

// Pull makes the image present and unpacked. It goes to the registry only for
// what is not here yet: whether the caller may have the image is decided by
// image.Resolver, whose answer the reference is. Concurrent pulls of one
// reference are one, and so are those of one layer from one registry. What is
// pulled stays until Collect takes it.
func (r *Runtime) Pull(ctx context.Context, o Order) error {
	p, err := r.newPull(o)
	if err != nil {
		return fmt.Errorf("pull %q: %w", o.Reference, err)
	}
	key := o.Reference + " " + o.Platform
	joined, err := r.pulls.do(ctx, key, p.say, p.run)
	if err != nil && joined && ctx.Err() == nil {
		// The other's credentials may be at fault; ours may be better.
		_, err = r.pulls.do(ctx, key, p.say, p.run)
	}
	if err == nil {
		err = r.touch(ctx, o.Reference)
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", o.Reference, err)
	}
	return nil
}

// Present reports whether an image is here and unpacked.
func (r *Runtime) Present(ctx context.Context, reference string) (bool, error) {
	return (&pull{runtime: r, reference: reference}).present(ctx)
}

// A pull is one image on its way.
type pull struct {
	runtime   *Runtime
	reference string
	registry  string
	matcher   platforms.MatchComparer
	login     auth.Login
	customer  string
	say       func(line string)
}

func (r *Runtime) newPull(o Order) (*pull, error) {
	if !byDigest.MatchString(o.Reference) {
		return nil, errors.New("want a reference by sha256 digest")
	}
	if o.Platform == "" {
		o.Platform = platforms.DefaultString()
	}
	want, err := platforms.Parse(o.Platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w", o.Platform, err)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	registry, _, _ := strings.Cut(o.Reference, "/")
	return &pull{
		runtime: r, reference: o.Reference, registry: registry, matcher: platforms.Only(want),
		login: o.Login, customer: o.Customer, say: o.Progress,
	}, nil
}

func (p *pull) run(ctx context.Context, say func(string)) error {
	there, err := p.present(ctx)
	if there || err != nil {
		return err
	}
	leave, err := p.runtime.queue.enter(ctx, p.customer, say)
	if err != nil {
		return err
	}
	leave = sync.OnceFunc(leave)
	defer leave()
	defer time.AfterFunc(turnTime, leave).Stop()
	p.runtime.makeRoom(ctx)
	defer p.runtime.grown()
	return p.arrive(ctx, say)
}

// arrive gets the image while the disk has room for it.
func (p *pull) arrive(ctx context.Context, say func(string)) error {
	ctx, leave := p.runtime.arrive(ctx, p.reference)
	defer leave()
	err := p.fetch(ctx, say)
	there := false
	if err == nil {
		there, err = p.present(ctx)
	}
	if err == nil && !there {
		// A layer that was here when the pull passed it has been collected with
		// another image since.
		err = p.fetch(ctx, say)
	}
	if why := context.Cause(ctx); err != nil && errors.Is(why, errFull) {
		return why
	}
	return err
}

// fetch gets what is missing, and unpacks it.
func (p *pull) fetch(ctx context.Context, say func(string)) error {
	resolver, err := p.resolver()
	if err != nil {
		return err
	}
	t := &tally{say: say, quiet: time.Now()}
	ticks, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		t.tick(ticks, p.runtime.client.ContentStore())
	}()
	_, err = p.runtime.client.Pull(p.apart(hush(ctx)), p.reference,
		client.WithResolver(resolver),
		client.WithPlatformMatcher(p.matcher),
		client.WithPullUnpack,
		client.WithPullSnapshotter(snapshotter),
		client.WithMaxConcurrentDownloads(layersAtOnce),
		client.WithImageHandlerWrapper(t.watch),
		client.WithUnpackOpts([]client.UnpackOpt{
			client.WithUnpackDuplicationSuppressor(registryLocks{&p.runtime.unpacking, p.registry}),
			// For each pull its own: who waits for a layer's bytes waits inside.
			client.WithUnpackLimiter(semaphore.NewWeighted(layersAtOnce)),
		}),
	)
	stop()
	<-ended
	return err
}

// apart has downloads from different registries go on side by side even where
// they are of one blob: a registry that stalls must hold up its own customers
// alone. Of one registry a blob is fetched once.
func (p *pull) apart(ctx context.Context) context.Context {
	sum := sha256.Sum256([]byte(p.registry))
	registry := hex.EncodeToString(sum[:8])
	for kind, types := range map[string][]string{
		"manifest": {images.MediaTypeDockerSchema2Manifest, ocispec.MediaTypeImageManifest},
		"config":   {images.MediaTypeDockerSchema2Config, ocispec.MediaTypeImageConfig},
		"layer": {
			images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
			ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		},
	} {
		for _, t := range types {
			ctx = remotes.WithMediaTypeKeyPrefix(ctx, t, registry+"-"+kind)
		}
	}
	return ctx
}

// hush keeps the client library from writing to standard error on its own: what
// it has to say is in its errors.
func hush(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// present reports whether the image is here and unpacked.
func (p *pull) present(ctx context.Context) (bool, error) {
	img, err := p.runtime.client.GetImage(ctx, p.reference)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	there, err := img.IsUnpacked(ctx, snapshotter)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return there, err
}

// resolver reaches registries as package image does, with the same limits on
// addresses.
func (p *pull) resolver() (remotes.Resolver, error) {
	transport, err := p.runtime.policy().Transport()
	if err != nil {
		return nil, err
	}
	hc := &http.Client{Transport: transport}
	auth := docker.NewDockerAuthorizer(docker.WithAuthClient(hc), docker.WithAuthCreds(func(host string) (string, string, error) {
		if host == "registry-1.docker.io" {
			host = auth.DockerHub
		}
		if host != p.registry {
			return "", "", nil // a mirror, or where the registry has sent us
		}
		if p.login.IdentityToken != "" {
			return "", p.login.IdentityToken, nil
		}
		return p.login.User, p.login.Password, nil
	}))
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(hc),
			docker.WithAuthorizer(auth),
			docker.WithPlainHTTP(func(host string) (bool, error) { return p.runtime.policy().Plain(host), nil }),
		),
	}), nil
}

// A tally counts layers for the job's log.
type tally struct {
	mu    sync.Mutex
	say   func(string)
	quiet time.Time // when something was last said
	total int
	done  int
	bytes int64
	open  map[string]bool // digests of layers that are being fetched
}

// watch learns the layers from the manifest's children, and when each is there.
func (t *tally) watch(next images.Handler) images.Handler {
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(desc.MediaType) {
			t.begin(desc)
		}
		children, err := next.Handle(ctx, desc)
		if err == nil && images.IsLayerType(desc.MediaType) {
			t.end(desc)
		}
		if err == nil && images.IsManifestType(desc.MediaType) {
			t.expect(children)
		}
		return children, err
	})
}

func (t *tally) expect(children []ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range children {
		if images.IsLayerType(c.MediaType) {
			t.total++
			t.bytes += c.Size
		}
	}
}

func (t *tally) begin(desc ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = map[string]bool{}
	}
	t.open[desc.Digest.String()] = true
}

func (t *tally) end(desc ocispec.Descriptor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, desc.Digest.String())
	t.done++
	t.quiet = time.Now()
	t.say(fmt.Sprintf("layer %d of %d: %s", t.done, max(t.total, t.done), megabytes(desc.Size)))
}

// tick says how far the layers are if nothing else was said for a while.
func (t *tally) tick(ctx context.Context, store content.Store) {
	ticker := time.NewTicker(progressEvery / 10)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		t.mu.Lock()
		due := time.Since(t.quiet) >= progressEvery
		t.mu.Unlock()
		if due {
			t.report(ctx, store)
		}
	}
}

func (t *tally) report(ctx context.Context, store content.Store) {
	running, err := store.ListStatuses(ctx)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var have int64
	for _, s := range running {
		if _, digest, ok := strings.Cut(s.Ref, "layer-"); ok && t.open[digest] {
			have += s.Offset
		}
	}
	t.quiet = time.Now()
	t.say(fmt.Sprintf("%d of %d layers, %s more on the way", t.done, t.total, megabytes(have)))
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// flights makes one of several calls for the same thing.
type flights struct {
	mu   sync.Mutex
	open map[string]*flight
}

type flight struct {
	done    chan struct{}
	err     error // once done is closed
	cancel  context.CancelFunc
	waiting int

	mu   sync.Mutex
	says map[int]func(string)
	next int
}

// do runs f, or waits for the one that runs under the same key. f ends early
// only when everyone that waits for it has gone.
func (fs *flights) do(ctx context.Context, key string, say func(string), f func(context.Context, func(string)) error) (joined bool, err error) {
	fs.mu.Lock()
	if fs.open == nil {
		fs.open = map[string]*flight{}
	}
	fl, joined := fs.open[key]
	if !joined {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{done: make(chan struct{}), cancel: cancel, says: map[int]func(string){}}
		fs.open[key] = fl
		go fs.fly(own, key, fl, f)
	}
	fl.waiting++
	seat := fl.listen(say)
	fs.mu.Unlock()

	select {
	case <-fl.done:
		err = fl.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	fl.unlisten(seat)
	fs.mu.Lock()
	fl.waiting--
	last := fl.waiting == 0
	if last {
		fl.cancel()
		if fs.open[key] == fl {
			delete(fs.open, key)
		}
	}
	fs.mu.Unlock()
	if last {
		<-fl.done
	}
	return joined, err
}

func (fs *flights) fly(ctx context.Context, key string, fl *flight, f func(context.Context, func(string)) error) {
	fl.err = f(ctx, fl.say)
	fs.mu.Lock()
	if fs.open[key] == fl {
		delete(fs.open, key)
	}
	fs.mu.Unlock()
	close(fl.done)
}

func (fl *flight) listen(say func(string)) int {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.next++
	fl.says[fl.next] = say
	return fl.next
}

func (fl *flight) unlisten(seat int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	delete(fl.says, seat)
}

func (fl *flight) say(line string) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, s := range fl.says {
		s(line)
	}
}

// ImageConfig is what of an image's configuration a caller may take over. It
// is the image's word: nothing of it has been checked but its form.
type ImageConfig struct {
	Env        []string // KEY=value
	Entrypoint []string
	Cmd        []string
	User       string
	WorkingDir string   // clean and absolute, or empty
	Volumes    []string // the same, in order
	// ExposedPorts are words such as "5432/tcp".
	ExposedPorts map[string]struct{}
}

// ImageConfig reads the configuration of an image that was pulled. One that is
// malformed is a *sandbox.UserError.
func (r *Runtime) ImageConfig(ctx context.Context, reference string) (ImageConfig, error) {
	img, err := r.client.GetImage(ctx, reference)
	if err != nil {
		return ImageConfig{}, fmt.Errorf("image %s: %w", reference, err)
	}
	desc, err := img.Config(ctx)
	if err != nil {
		return ImageConfig{}, fmt.Errorf("image %s: configuration: %w", reference, err)
	}
	if desc.Size > maxConfig {
		return ImageConfig{}, fmt.Errorf("image %s: configuration: larger than %d bytes", reference, maxConfig)
	}
	raw, err := content.ReadBlob(ctx, r.client.ContentStore(), desc)
	if err != nil {
		return ImageConfig{}, fmt.Errorf("image %s: configuration: %w", reference, err)
	}
	c, err := parseConfig(raw)
	if err != nil {
		return ImageConfig{}, &sandbox.UserError{Err: fmt.Errorf("image %s: configuration: %w", reference, err), Hint: "rebuild the image"}
	}
	return c, nil
}

func parseConfig(raw []byte) (ImageConfig, error) {
	var doc struct {
		Config struct {
			Env        []string
			Entrypoint []string
			Cmd        []string
			User       string
			WorkingDir string
			Volumes    map[string]struct{}

			ExposedPorts map[string]struct{}
		} `json:"config"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return ImageConfig{}, errors.New("not valid JSON")
	}
	d := doc.Config
	c := ImageConfig{Env: d.Env, Entrypoint: d.Entrypoint, Cmd: d.Cmd, User: d.User, WorkingDir: d.WorkingDir, Volumes: slices.Sorted(maps.Keys(d.Volumes)), ExposedPorts: d.ExposedPorts}
	size := len(c.User) + len(c.WorkingDir)
	for _, list := range [][]string{c.Env, c.Entrypoint, c.Cmd, c.Volumes, {c.User, c.WorkingDir}} {
		if len(list) > maxConfigList {
			return ImageConfig{}, fmt.Errorf("a list has more than %d entries", maxConfigList)
		}
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return ImageConfig{}, errors.New("a string has a NUL")
			}
			size += len(s)
		}
	}
	if len(c.ExposedPorts) > maxConfigList {
		return ImageConfig{}, fmt.Errorf("more than %d ports are exposed", maxConfigList)
	}
	if size > maxConfigEnv {
		return ImageConfig{}, fmt.Errorf("strings are longer than %d bytes", maxConfigEnv)
	}
	for _, e := range c.Env {
		if strings.IndexByte(e, '=') < 1 {
			return ImageConfig{}, fmt.Errorf("environment entry without a name")
		}
	}
	if c.WorkingDir != "" {
		c.WorkingDir = path.Clean("/" + c.WorkingDir)
	}
	for i, v := range c.Volumes {
		c.Volumes[i] = path.Clean("/" + v)
	}
	return c, nil
}
