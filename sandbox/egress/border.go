package egress

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
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
// change. A difference is a *sandbox.SecurityError.
type UploadCheck func(ctx context.Context, file *os.File, size int64, format, fileName string) ([]record.UploadEntry, error)

// Config is what a border needs. Policy, Record and SpoolDir must be set.
type Config struct {
	Policy policy.Policy
	Record Recorder
	// GitLabRoots are the roots that the GitLab origin's certificate is checked
	// against, UpstreamRoots those of every other host. Nil means the system's.
	GitLabRoots, UpstreamRoots *x509.CertPool
	// SpoolDir is where uploads wait, unlinked, until they are matched. Whoever
	// can read this directory's disk can read artifacts.
	SpoolDir string
	// CheckUpload decides over artifacts. Nil refuses every upload.
	CheckUpload UploadCheck
	// Lifetime is that of the job's certificate authority: the job's timeout.
	// Zero means 24 hours.
	Lifetime time.Duration
	// OnBlock is told of refusals, once for each that is recorded: the first of
	// its kind as it happens, the number of further ones when the stage ends. It
	// is called from several goroutines.
	OnBlock func(record.Block)
	Log     *slog.Logger
	// Resolver is asked for the addresses of allowed hosts. Nil means the host's
	// configuration, read by Go's own resolver.
	Resolver *net.Resolver
}

// A Border stands around one attempt of a job.
type Border struct{ cfg Config }

// Open makes a border with a certificate authority of its own. Nothing passes
// until Begin.
func Open(ctx context.Context, cfg Config) (*Border, error) { return &Border{cfg: cfg}, nil }

// CA is the certificate, in PEM, that the containers must trust.
func (b *Border) CA() []byte { return nil }

// Namespace makes the role's network namespace on the first call, and returns a
// path to it that stays good until Close.
func (b *Border) Namespace(role sandbox.Role) (path string, err error) { return "", nil }

// Begin opens the permission of a stage.
func (b *Border) Begin(role sandbox.Role, stage sandbox.Stage) {}

// End closes the stage's permission and every connection of the role, and waits
// for their handlers. It returns a *sandbox.SecurityError if an upload differed
// from the sealed workspace, or why evidence could not be recorded.
func (b *Border) End(role sandbox.Role) error { return nil }

// Close ends everything. It is idempotent.
func (b *Border) Close() error { return nil }
