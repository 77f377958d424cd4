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

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A Registry serves images over plain HTTP, with its blobs in a directory, so
// that pushing what is there already costs nothing.
type Registry struct {
	host string
	web  *http.Server
	done chan error
}

// Serve starts a registry on the listener. Host is what it is called in image
// names, with its port if that is not 80.
func Serve(l net.Listener, host, blobs string) (*Registry, error) {
	if err := os.MkdirAll(filepath.Join(blobs, "sha256"), 0o755); err != nil {
		return nil, err
	}
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	r := &Registry{
		host: host, done: make(chan error, 1),
		web: &http.Server{Handler: registry.New(quiet, registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs))), ReadHeaderTimeout: time.Minute},
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
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithJobs(2)); err != nil {
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
