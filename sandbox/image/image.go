// Package image resolves an image name to a digest that policy allows.
//
// A name is the tenant's; so, as a rule, is the registry that it points to.
// Whatever a registry answers is therefore hostile input: sizes are bounded,
// only digests that were computed here from the received bytes leave the
// package, nothing of a response body reaches an error text, and the host's
// own services cannot be reached by naming them as a registry (see Transport).
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image/auth"
)

// Limits on what a registry may answer.
const (
	maxBody      = 4 << 20 // bytes of one manifest, index or configuration
	maxLayers    = 512
	maxManifests = 1024    // entries of an index
	maxBytes     = 1 << 42 // of all layers
)

// A Policy says which images may be asked for, and how registries are reached.
type Policy struct {
	// Allowed holds doublestar patterns over the canonical name, e.g.
	// "docker.io/library/*:*". Empty allows every name.
	Allowed []string
	// PlainHTTP lists registries, host or host:port, that are spoken to
	// without TLS. Whoever is between them and this host can replace images
	// asked for by tag, and reads the credentials for them.
	PlainHTTP []string
	// CAFile is a PEM file of authorities trusted besides the system's.
	CAFile string
}

// An Image is what a name meant at the moment of asking.
type Image struct {
	Name      string // canonical: registry/repository:tag or registry/repository@digest
	Reference string // registry/repository@sha256:<manifest>
	Manifest  string // digest of the platform's manifest
	Index     string // digest of the index that led to it, or ""
	Config    string // digest of the image's configuration
	Platform  string // os/arch or os/arch/variant
	Layers    int
	Bytes     int64 // of the layers, compressed
}

// A Resolver asks registries what a name means. It is safe for concurrent use.
type Resolver struct {
	policy    Policy
	transport func() (http.RoundTripper, error)
}

// New makes a Resolver. Faults of the policy appear when it is used.
func New(p Policy) *Resolver {
	return &Resolver{policy: p, transport: sync.OnceValues(func() (http.RoundTripper, error) {
		t, err := p.Transport()
		if err != nil {
			return nil, err
		}
		return boundedBodies{t}, nil
	})}
}

// Resolve asks the registry for name and picks the manifest for platform; an
// empty platform is this host's. The login goes to the registry that the name
// names, and to whom that registry sends for a token. A *sandbox.UserError says that the name, its
// credentials or the policy is to blame; any other error is trouble between
// here and the registry, and may pass.
func (r *Resolver) Resolve(ctx context.Context, image, platform string, login auth.Login) (Image, error) {
	n, want, err := r.check(image, platform)
	if err != nil {
		return Image{}, err
	}
	ask, err := r.client(n, login)
	if err != nil {
		return Image{}, err
	}
	desc, err := ask.get(ctx, ask.ref)
	if err != nil {
		return Image{}, err
	}
	got := Image{Name: n.String()}
	if desc.MediaType.IsIndex() {
		got.Index = desc.Digest.String()
		if desc, err = ask.choose(ctx, desc, want); err != nil {
			return Image{}, err
		}
	}
	return ask.manifest(got, desc, want)
}

// check reads what was asked for, and holds it against the allow-list.
func (r *Resolver) check(image, platform string) (Name, ocispec.Platform, error) {
	n, err := Parse(image)
	if err != nil {
		return Name{}, ocispec.Platform{}, err
	}
	want, err := parsePlatform(platform)
	if err != nil {
		return Name{}, ocispec.Platform{}, err
	}
	return n, want, r.policy.allows(n)
}

// Canonical is the name, and the platform, under which an image is known that
// may be asked for here. It asks no registry.
func (r *Resolver) Canonical(image, platform string) (n Name, on string, err error) {
	n, want, err := r.check(image, platform)
	return n, platforms.Format(want), err
}

// Within is the Resolver under another allow-list.
func (r *Resolver) Within(allowed []string) *Resolver {
	other := *r
	other.policy.Allowed = allowed
	return &other
}

// Confirm asks the registry whether the login may have an image that Resolve
// has found earlier. It is cheap: no content is fetched, and registries that
// count pulls do not count it.
func (r *Resolver) Confirm(ctx context.Context, img Image, login auth.Login) error {
	n, err := Parse(img.Reference)
	if err != nil {
		return err
	}
	ask, err := r.client(n, login)
	if err != nil {
		return err
	}
	if _, err := ask.puller.Head(ctx, ask.ref); err != nil {
		return ask.explain("manifest", err)
	}
	return nil
}

// allows applies the allow-list to a name.
func (p Policy) allows(n Name) error {
	if len(p.Allowed) == 0 {
		return nil
	}
	for _, pattern := range p.Allowed {
		ok, err := doublestar.Match(pattern, n.String())
		if err != nil {
			return fmt.Errorf("image policy: pattern %q: %w", pattern, err)
		}
		if ok {
			return nil
		}
	}
	return &sandbox.UserError{
		Err:  fmt.Errorf("image %s: not on this runner's allow-list", n),
		Hint: "use an image that matches one of: " + strings.Join(p.Allowed, ", "),
	}
}

// Plain reports whether the registry is spoken to without TLS.
func (p Policy) Plain(registry string) bool {
	host := registry
	if i := strings.LastIndexByte(registry, ':'); i >= 0 && !strings.HasSuffix(registry, "]") {
		host = registry[:i]
	}
	for _, h := range p.PlainHTTP {
		if h == registry || h == host {
			return true
		}
	}
	return false
}

func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}), nil
	}
	p, err := platforms.Parse(s)
	if err != nil || p.OS != "linux" {
		return ocispec.Platform{}, &sandbox.UserError{
			Err:  fmt.Errorf("image platform %q: not a linux platform", s),
			Hint: "write it as linux/amd64 or linux/arm64",
		}
	}
	return platforms.Normalize(p), nil
}

// An asker puts questions about one name.
type asker struct {
	name   Name
	ref    name.Reference
	puller *remote.Puller
}

func (r *Resolver) client(n Name, login auth.Login) (*asker, error) {
	t, err := r.transport()
	if err != nil {
		return nil, err
	}
	as := authn.Anonymous
	if !login.Anonymous() {
		as = authn.FromConfig(authn.AuthConfig{Username: login.User, Password: login.Password, IdentityToken: login.IdentityToken})
	}
	p, err := remote.NewPuller(remote.WithTransport(t), remote.WithAuth(as), remote.WithUserAgent("hallmark"))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", n, err)
	}
	return &asker{name: n, ref: n.ref(r.policy.Plain(n.Registry)), puller: p}, nil
}

func (a *asker) get(ctx context.Context, ref name.Reference) (*remote.Descriptor, error) {
	desc, err := a.puller.Get(ctx, ref)
	if err != nil {
		return nil, a.explain("manifest", err)
	}
	if desc.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("image %s: manifest: digest is not sha256", a.name)
	}
	return desc, nil
}

// choose picks the index's best entry for the platform.
func (a *asker) choose(ctx context.Context, index *remote.Descriptor, want ocispec.Platform) (*remote.Descriptor, error) {
	list, err := v1.ParseIndexManifest(strings.NewReader(string(index.Manifest)))
	if err != nil {
		return nil, fmt.Errorf("image %s: index: not valid JSON", a.name)
	}
	if len(list.Manifests) > maxManifests {
		return nil, fmt.Errorf("image %s: index: more than %d entries", a.name, maxManifests)
	}
	matcher := platforms.Only(want)
	var best *v1.Descriptor
	for i, m := range list.Manifests {
		if m.Platform == nil || !m.MediaType.IsImage() || !matcher.Match(ociPlatform(m.Platform)) {
			continue
		}
		if best == nil || matcher.Less(ociPlatform(m.Platform), ociPlatform(best.Platform)) {
			best = &list.Manifests[i]
		}
	}
	if best == nil {
		return nil, a.noPlatform(want)
	}
	if best.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("image %s: index: digest is not sha256", a.name)
	}
	return a.get(ctx, a.ref.Context().Digest(best.Digest.String()))
}

func ociPlatform(p *v1.Platform) ocispec.Platform {
	return ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}
}

// manifest reads the facts of one platform's manifest. What the configuration
// says of the platform decides: an index may claim anything.
func (a *asker) manifest(got Image, desc *remote.Descriptor, want ocispec.Platform) (Image, error) {
	if desc.MediaType != types.OCIManifestSchema1 && desc.MediaType != types.DockerManifestSchema2 {
		return Image{}, &sandbox.UserError{
			Err:  fmt.Errorf("image %s: not a container image that can be run", a.name),
			Hint: "rebuild it in the OCI or Docker v2 schema 2 format",
		}
	}
	m, err := v1.ParseManifest(strings.NewReader(string(desc.Manifest)))
	if err != nil {
		return Image{}, fmt.Errorf("image %s: manifest: not valid JSON", a.name)
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return Image{}, fmt.Errorf("image %s: manifest: %d layers, want 1 to %d", a.name, len(m.Layers), maxLayers)
	}
	for _, l := range m.Layers {
		if l.Size < 0 || l.Size > maxBytes || got.Bytes+l.Size > maxBytes {
			return Image{}, fmt.Errorf("image %s: manifest: layer sizes out of range", a.name)
		}
		got.Bytes += l.Size
	}
	if m.Config.Digest.Algorithm != "sha256" || m.Config.Size < 0 || m.Config.Size > maxBody {
		return Image{}, fmt.Errorf("image %s: manifest: configuration out of range", a.name)
	}
	has, err := a.platform(desc)
	if err != nil {
		return Image{}, err
	}
	if !platforms.Only(want).Match(has) {
		return Image{}, a.noPlatform(want)
	}
	got.Layers = len(m.Layers)
	got.Manifest = desc.Digest.String()
	got.Config = m.Config.Digest.String()
	got.Reference = a.name.Registry + "/" + a.name.Repository + "@" + got.Manifest
	got.Platform = platforms.Format(platforms.Normalize(has))
	return got, nil
}

func (a *asker) platform(desc *remote.Descriptor) (ocispec.Platform, error) {
	img, err := desc.Image()
	if err != nil {
		return ocispec.Platform{}, a.explain("configuration", err)
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return ocispec.Platform{}, a.explain("configuration", err)
	}
	var p ocispec.Platform
	if err := json.Unmarshal(raw, &p); err != nil {
		return ocispec.Platform{}, fmt.Errorf("image %s: configuration: not valid JSON", a.name)
	}
	return p, nil
}

func (a *asker) noPlatform(want ocispec.Platform) error {
	return &sandbox.UserError{
		Err:  fmt.Errorf("image %s: nothing for platform %s", a.name, platforms.Format(want)),
		Hint: "choose an image that is built for it, or set image:docker:platform",
	}
}

// explain says whose fault a registry's refusal is, in words of our own: the
// response's text is whatever answered on that address.
func (a *asker) explain(what string, err error) error {
	var refusal *transport.Error
	if !errors.As(err, &refusal) {
		return fmt.Errorf("image %s: %s: %w", a.name, what, redacted(err))
	}
	said := fmt.Errorf("image %s: %s: %d %s", a.name, what, refusal.StatusCode, http.StatusText(refusal.StatusCode))
	switch refusal.StatusCode {
	case http.StatusNotFound:
		return &sandbox.UserError{Err: said, Hint: "check the image's name and tag; the registry does not know it"}
	case http.StatusUnauthorized, http.StatusForbidden:
		return &sandbox.UserError{Err: said, Hint: "the image does not exist or is not public: give credentials for " + a.name.Registry + " in DOCKER_AUTH_CONFIG"}
	}
	return said
}

// Lasting reports whether an error is one that asking again does not change.
func Lasting(err error) bool {
	for _, known := range []error{errTooLarge, errPlain, errLocal, errSenseless} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

var errSenseless = errors.New("the registry's answer makes no sense")

// redacted keeps what our own transport and the network say, and drops what a
// parser may have quoted from the response.
func redacted(err error) error {
	for _, known := range []error{context.Canceled, context.DeadlineExceeded, errTooLarge, errPlain, errLocal} {
		if errors.Is(err, known) {
			return known
		}
	}
	var n interface {
		error
		Timeout() bool
	}
	if errors.As(err, &n) {
		return n
	}
	return errSenseless
}
