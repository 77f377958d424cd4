// Package image resolves an image name to a digest that policy allows.
package image

import (
	"context"
	"errors"
)

// A Policy says which images may be asked for, and how registries are reached.
type Policy struct {
	// Allowed holds doublestar patterns over the canonical name, e.g.
	// "docker.io/library/*:*". Empty allows every name.
	Allowed []string
	// PlainHTTP lists registries, host or host:port, that are spoken to
	// without TLS. Whoever is between them and this host can replace images
	// asked for by tag.
	PlainHTTP []string
	// CAFile is a PEM file of authorities trusted besides the system's.
	CAFile string
}

// An Image is a name at the moment of asking, made unchangeable.
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

// Credentials finds the user and password for a registry's host.
type Credentials func(registry string) (user, password string, ok bool)

// A Resolver asks registries what a name means.
type Resolver struct{ policy Policy }

// New makes a Resolver. Faults in the policy appear when it is used.
func New(p Policy) *Resolver { return &Resolver{policy: p} }

// Resolve asks the registry for name and picks the manifest for platform.
func (r *Resolver) Resolve(ctx context.Context, name, platform string, creds Credentials) (Image, error) {
	return Image{}, errors.New("image: not built yet")
}
