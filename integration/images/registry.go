package images

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A Registry serves images over plain HTTP, with its blobs in a directory, so
// that pushing what is there already costs nothing.
type Registry struct {
	host  string
	web   *http.Server
	done  chan error
	guard *guard // nil: everyone may have everything
}

// Serve starts a registry on the listener. Host is what it is called in image
// names, with its port if that is not 80.
func Serve(l net.Listener, host, blobs string) (*Registry, error) {
	return serve(l, host, blobs, nil)
}

// ServeGuarded is Serve for a registry that wants to know who asks. Until Guard
// says otherwise, it gives everything to everyone.
func ServeGuarded(l net.Listener, host, blobs string) (*Registry, error) {
	return serve(l, host, blobs, &guard{host: host, tokens: map[string]string{}})
}

func serve(l net.Listener, host, blobs string, g *guard) (*Registry, error) {
	if err := os.MkdirAll(filepath.Join(blobs, "sha256"), 0o755); err != nil {
		return nil, err
	}
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	handler := registry.New(quiet, registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))
	if g != nil {
		handler = g.wrap(handler)
	}
	r := &Registry{
		host: host, done: make(chan error, 1), guard: g,
		web: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute},
	}
	go func() { r.done <- r.web.Serve(l) }()
	return r, nil
}

// Push uploads an image and returns its name and the name by digest.
func (r *Registry) Push(ctx context.Context, repository, tag string, img v1.Image) (tagged, pinned string, err error) {
	ref, err := name.NewTag(r.host+"/"+repository+":"+tag, name.Insecure)
	if err != nil {
		return "", "", err
	}
	as := authn.Anonymous
	if r.guard != nil {
		if user, password, kept := r.guard.login(repository); kept {
			as = &authn.Basic{Username: user, Password: password}
		}
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithJobs(2), remote.WithAuth(as)); err != nil {
		return "", "", fmt.Errorf("push %s: %w", ref, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return "", "", err
	}
	return ref.Name(), r.host + "/" + repository + "@" + digest.String(), nil
}

// Close stops the registry.
func (r *Registry) Close() error {
	err := r.web.Close()
	<-r.done
	return err
}
