package egress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// A Recorder takes evidence. An entry is durable when Append returns; after an
// error nothing more is taken. It is safe for concurrent use.
type Recorder interface {
	Append(kind record.Kind, data any) (record.Entry, error)
}

// An UploadCheck compares an artifact with the sealed workspace and returns its
// entries. The file stands at its beginning, belongs to the border and cannot
// change. A difference is a *sandbox.SecurityError; an artifact that cannot be
// matched at all, but contradicts nothing, is a *sandbox.UserError.
type UploadCheck func(ctx context.Context, file *os.File, size int64, format, fileName string) ([]record.UploadEntry, error)

// Config is what a border needs. Policy, Record and SpoolDir must be set.
type Config struct {
	Policy policy.Policy
	Record Recorder
	// GitLabRoots are the roots that the GitLab origin's certificate is checked
	// against, UpstreamRoots those of every other host. Nil means the system's.
	GitLabRoots, UpstreamRoots *x509.CertPool
	// SpoolDir is where artifacts and caches wait, unlinked, until they are matched or looked up. Whoever
	// can read this directory's disk can read them.
	SpoolDir string
	// ArtifactBytes is how large an artifact may be, in or out; 0 is 64 GiB. It
	// takes that much of the spool's disk.
	ArtifactBytes int64
	// CheckUpload decides over artifacts. Nil refuses every upload.
	CheckUpload UploadCheck
	// CheckDownload decides over artifacts of earlier jobs. Nil refuses every one.
	CheckDownload DownloadCheck
	// Caches decides over caches in object storage. Nil refuses every one.
	Caches Caches
	// CacheBytes is how large one may be.
	CacheBytes int64
	// Lifetime is that of the job's certificate authority: the job's timeout.
	// Zero means 24 hours.
	Lifetime time.Duration
	// Secrets are values of the job that no record may show in a URL.
	Secrets []string
	// LocalNames are those of services in the build's namespace: its DNS answers
	// them with 127.0.0.1. Each is a [Name].
	LocalNames []string
	// OnBlock is told of refusals, once for each that is recorded: the first of
	// its kind as it happens, the number of further ones when the stage ends. It
	// is called from several goroutines.
	OnBlock func(record.Block)
	Log     *slog.Logger
	// Resolver is asked for the addresses of allowed hosts. Nil means the host's
	// configuration, read by Go's own resolver.
	Resolver *net.Resolver
}

// A Border stands around one attempt of a job. It is safe for concurrent use.
type Border struct {
	cfg     Config
	ca      *authority
	up      *upstream
	secrets secrets
	// patience is set before anything is served.
	patience patience
	// fetches counts the exchanges that were recorded.
	fetches atomic.Int64
	// spooling is held by the one artifact or cache that may be under way, in or
	// out. What follows is its holder's.
	spooling chan struct{}
	held     *heldCache
	stored   map[string]string // digests of caches that the object storage took, by address
	missed   map[string]bool   // addresses of caches that this stage is not given

	mu       sync.Mutex
	sides    map[sandbox.Role]*side
	closed   bool
	failure  error // evidence could not be recorded: nothing passes any more
	violated error // an upload differed: no further upload passes
	staging  *stagedCache
}

// Open makes a border with a certificate authority of its own. Nothing passes
// until Begin. The context ends nothing but Open itself.
func Open(ctx context.Context, cfg Config) (*Border, error) {
	switch {
	case cfg.Record == nil:
		return nil, errors.New("border: no record")
	case cfg.SpoolDir == "":
		return nil, errors.New("border: no spool directory")
	case ctx.Err() != nil:
		return nil, fmt.Errorf("border: %w", ctx.Err())
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ca, err := newAuthority(cfg.Lifetime)
	if err != nil {
		return nil, fmt.Errorf("border: %w", err)
	}
	up, err := newUpstream(cfg, dialable)
	if err != nil {
		return nil, fmt.Errorf("border: %w", err)
	}
	return &Border{cfg: cfg, ca: ca, up: up, secrets: newSecrets(cfg.Secrets), patience: usualPatience(), spooling: make(chan struct{}, 1), stored: map[string]string{}, missed: map[string]bool{}, sides: map[sandbox.Role]*side{}}, nil
}

// Listening returns the TCP ports on which something of the tenant's listens in
// the role's namespace.
func (b *Border) Listening(role sandbox.Role) (map[int]bool, error) {
	s := b.side(role)
	if s == nil {
		return nil, fmt.Errorf("border: no namespace of role %s", role)
	}
	ports, err := s.ns.listening()
	if err != nil {
		return nil, fmt.Errorf("border: %s: %w", role, err)
	}
	return ports, nil
}

// CA is the certificate, in PEM, that the containers must trust.
func (b *Border) CA() []byte { return append([]byte{}, b.ca.pem...) }

// Namespace makes the role's network namespace on the first call, and returns a
// path to it that stays good until Close.
func (b *Border) Namespace(role sandbox.Role) (path string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return "", errors.New("border: closed")
	}
	if s, ok := b.sides[role]; ok {
		return s.ns.path(), nil
	}
	ns, err := newNamespace(context.Background())
	if err != nil {
		return "", fmt.Errorf("border: %s: %w", role, err)
	}
	s := newSide(b, role, ns)
	b.sides[role] = s
	s.start()
	return ns.path(), nil
}

func (b *Border) side(role sandbox.Role) *side {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sides[role]
}

// Begin opens the permission of a stage. Connections from before it are closed.
func (b *Border) Begin(role sandbox.Role, stage sandbox.Stage) {
	if s := b.side(role); s != nil {
		// What failed between stages is kept in b.failure, and End tells it.
		_ = s.turn(stage)
	}
}

// End closes the stage's permission and every connection of the role, and waits
// for their handlers. It returns a *sandbox.SecurityError if an upload differed
// from the sealed workspace or a download from what its job was attested to have
// made, or why evidence could not be recorded.
func (b *Border) End(role sandbox.Role) error { return b.EndTo(role, "") }

// EndTo is End, and opens another stage's permission in the same moment.
func (b *Border) EndTo(role sandbox.Role, next sandbox.Stage) error {
	s := b.side(role)
	if s == nil {
		return nil
	}
	err := s.turn(next)
	b.up.closeIdle()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.violated != nil {
		return b.violated
	}
	if b.failure != nil {
		return b.failure
	}
	return err
}

// Close ends everything. It is idempotent.
func (b *Border) Close() error {
	b.mu.Lock()
	b.closed = true
	sides := b.sides
	b.sides = map[sandbox.Role]*side{}
	b.mu.Unlock()
	var errs []error
	for _, s := range sides {
		errs = append(errs, s.close())
	}
	b.up.closeIdle()
	return errors.Join(errs...)
}

// append records evidence, or turns the border to refusing everything.
func (b *Border) append(kind record.Kind, data any) error {
	if err := b.broken(); err != nil {
		return err
	}
	_, err := b.cfg.Record.Append(kind, data)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("border: record %s: %w", kind, err)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failure == nil {
		b.failure = err
		b.cfg.Log.Error("border refuses everything", "kind", string(kind), "error", err)
	}
	return err
}

func (b *Border) broken() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failure
}

// violate keeps the first violation.
func (b *Border) violate(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.violated == nil {
		b.violated = err
	}
}

func (b *Border) violation() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.violated
}

// dialable says why an address may not be dialled, or "". The host's own
// addresses are asked for each time: they change.
func dialable(addr netip.Addr) string {
	if ok, what := policy.PublicAddr(addr); !ok {
		return what
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return "the host's own addresses are not known"
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Unmap() {
			return "the runner host's own"
		}
	}
	return ""
}
