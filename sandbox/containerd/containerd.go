// Package containerd runs a sandbox spec on containerd.
package containerd

import (
	"context"
	"errors"
	"log/slog"

	"hallmark.build/sandbox"
)

// Config says where the runtime lives.
type Config struct {
	// Address is the socket of a containerd that the admin runs. Empty starts
	// a private one below Root and State.
	Address   string
	BinDir    string // containerd, containerd-shim-runc-v2, runc
	Root      string // what outlives a reboot: images, snapshots
	State     string // what does not: sockets, run state
	Namespace string // containerd namespace; "" is "hallmark"
	Init      string // path of hallmark-init
	PlainHTTP []string
	CAFile    string
}

var errUnbuilt = errors.New("containerd: not built yet")

// Runtime is one containerd with this program as its only client.
type Runtime struct{}

// Start starts or connects to containerd.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Runtime, error) {
	return nil, errUnbuilt
}

// Version names containerd and runc with their versions.
func (r *Runtime) Version() string { return "" }

// Pull makes the image present and unpacked.
func (r *Runtime) Pull(ctx context.Context, reference, platform string, creds func(host string) (user, password string, ok bool), progress func(line string)) error {
	return errUnbuilt
}

// ImageConfig is what of an image's configuration a container may take over.
type ImageConfig struct {
	Env        []string
	Entrypoint []string
	Cmd        []string
	User       string
	WorkingDir string
}

// ImageConfig reads the configuration of an image that was pulled.
func (r *Runtime) ImageConfig(ctx context.Context, reference string) (ImageConfig, error) {
	return ImageConfig{}, errUnbuilt
}

// Create makes a container. Its init has connected and the CA is installed on return.
func (r *Runtime) Create(ctx context.Context, spec sandbox.Spec) (*Container, error) {
	return nil, errUnbuilt
}

// Sweep removes what sessions that keep does not name left behind.
func (r *Runtime) Sweep(ctx context.Context, keep func(session string) bool) (removed int, err error) {
	return 0, errUnbuilt
}

// Close stops the private instance.
func (r *Runtime) Close() error { return errUnbuilt }

// A Container is one running container.
type Container struct{}

// Run runs one process to its end.
func (c *Container) Run(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	return sandbox.Exit{}, errUnbuilt
}

// Kill ends every process of the container.
func (c *Container) Kill(ctx context.Context) error { return errUnbuilt }

// Delete removes the container and all that belongs to it.
func (c *Container) Delete(ctx context.Context) error { return errUnbuilt }

// TrustEnv lists the variables that point programs at the container's roots.
func TrustEnv() []string { return nil }
