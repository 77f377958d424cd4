// Package host leads one job through its life on this host.
//
// The driver asks for one thing a connection: prepare, run a stage, clean up.
// The order of events inside each is the product's promise, so it stands in
// one file each: prepare.go (open with the authority, resolve, build the
// sandbox), stage.go (what must be true before a stage starts and after it
// ended), services.go (what runs beside the build), finish.go (close the record,
// attest, say so in the job log), teardown.go (nothing outlives the job) and
// reaper.go (jobs that the runner abandoned).
//
// # Rules that hold throughout
//
//   - What happens is recorded before it is acted upon. No tenant code starts
//     before the authority has acknowledged everything up to that moment.
//   - A job is found by its session, a random handle that the driver brings in
//     a variable which no tenant can set. Facts come from the job's payload.
//   - Every failure is the user's, the system's or a security failure. What
//     nobody classified is the system's.
//
// # When the authority does not answer
//
// Up to the sealing of the work tree an authority that stays silent fails the
// job, always: what the authority does not hold, the tenant's next script could
// have had rewritten. From then on nothing of the tenant's runs, and an admin
// can choose to let the job end (Config.Spool). The closed record is kept, and
// is closed with the authority later, also by a later daemon; see late.go.
//
// This weakens one thing: between the sealing and the authority's return, a host
// that is taken over can still change what it says of the uploads and of the
// job's end. How long that can be is not the host's choice: the authority
// acknowledges no entry that is older than its bound on clocks, five minutes,
// and attests nothing that it did not acknowledge. So an outage that outlasts
// the bound costs the attestation, unless the whole record was acknowledged
// before and only the closing is missing, as when a signing service, the log or
// GitLab is away. A job that was let go that way is compared with how GitLab saw
// it end. A record that nobody decided about is given up after a day.
package host

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"hallmark.build/executor"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/cache"
	"hallmark.build/sandbox/containerd"
	"hallmark.build/sandbox/disk"
	"hallmark.build/sandbox/image"
	"hallmark.build/sandbox/image/shelf"
	"hallmark.build/sandbox/policy"
	"hallmark.build/sandbox/record"
)

// Config is what the host needs to know. Nothing in it comes from a tenant.
type Config struct {
	Users        map[uint32]bool // uids that may speak to the socket
	StateDir     string          // workspaces, spools and records: on a disk
	GitLab       *url.URL        // the one GitLab whose jobs are run
	GitLabRoots  *x509.CertPool  // nil: the system's
	Upstream     *x509.CertPool  // nil: the system's
	GitLabRunner string          // the runner's binary, shown to the helper
	// RunnerVersion is what that binary says of itself.
	RunnerVersion string
	HelperImage   string
	DefaultImage  string // for jobs that name none; may be empty
	// DeclareSource accepts a work tree that differs from the job's commit and
	// says so in the statement. False refuses such a job.
	DeclareSource bool
	// RefuseUnattested keeps artifacts of earlier jobs from a job that nobody
	// vouches for. False lets them in, and the statement says so.
	RefuseUnattested bool
	// Spool lets a job end although the authority does not answer, and closes
	// its record later. False fails such a job.
	Spool        bool
	Images       ImageRules
	StopGrace    time.Duration // from SIGTERM to SIGKILL for a canceled stage
	ReadOnlyRoot bool          // of the build container too
	Limits       sandbox.Limits
	Projects     []ProjectLimits
	Devices      []Device
	Preparing    int // sandboxes that are made at once; 0: two for each processor
	Caches       Caches
	Services     ServiceRules
	FirstID      uint32
	IDRanges     int
	Allow        []policy.Rule
	Git          policy.Git // repositories that submodules may come from
	ConfigDigest string
	Version      string
}

// Opening is what the authority is told when an attempt starts.
type Opening struct {
	Session, Profile, Token string
	Job                     record.Job
	Runner                  int64  // its id, 0 if the payload does not say
	IDToken                 string // the job's for the authority; may be empty
}

// Opened is the authority's answer.
type Opened struct {
	Attempt, Nonce, InvocationID string
	CommitmentKey                []byte
}

// Attestation is a bundle that the authority made.
type Attestation struct {
	URL string // where people find it; may be empty
}

// Closed is what the authority made of a record.
type Closed struct {
	Attestations []Attestation
	Reason       string // why there are none, or what they wait for
	Pending      bool   // there are none yet; the authority goes on by itself
	URL          string // where people see what became of it; may be empty
}

// Authority is the signing service as the host sees it. All methods are safe
// for concurrent use; Append and Close may be repeated.
type Authority interface {
	Open(ctx context.Context, o Opening) (Opened, error)
	// Append returns the record as the authority holds it, durably.
	Append(ctx context.Context, attempt string, lines [][]byte) (record.Head, error)
	// Close ends the attempt. token is the job's, empty once the job has ended.
	Close(ctx context.Context, attempt string, head record.Head, token string) (Closed, error)
	// Provenance lists the attested attempts that have a digest among their
	// outputs, newest first: of the attempt's project, protection and profile, or
	// of job where it is not 0 and the record names it as a dependency. Of such a
	// job it lists all where sha256 is empty.
	Provenance(ctx context.Context, attempt, sha256 string, job int64) ([]Origin, error)
}

// An Origin is an attested attempt that made an output.
type Origin struct {
	Bundle     string // sha256
	Invocation string
	Project    string
	Ref        string
	Protected  bool
	Job        int64
	Result     string // how the job ended
	Builder    string // its id
}

// UnavailableError says that the authority did not answer: to ask again may help.
type UnavailableError struct{ Err error }

func (e *UnavailableError) Error() string { return "authority: " + e.Err.Error() }
func (e *UnavailableError) Unwrap() error { return e.Err }

// An UndecidedError says that the authority answered without a decision about
// the record: it knows no such host, say, or the call failed there. A job fails for
// it; a record that is kept may be closed later.
type UndecidedError struct{ Err error }

func (e *UndecidedError) Error() string { return "authority: " + e.Err.Error() }
func (e *UndecidedError) Unwrap() error { return e.Err }

func unavailable(err error) bool {
	_, ok := errors.AsType[*UnavailableError](err)
	return ok || errors.Is(err, context.DeadlineExceeded)
}

// Host runs jobs. It is safe for concurrent use.
type Host struct {
	cfg       Config
	runtime   *containerd.Runtime
	images    *image.Resolver
	shelf     *shelf.Shelf
	authority Authority
	log       *slog.Logger
	ids       *idPool
	disks     *disk.Maker
	preparing *gate
	caches    *cache.Store
	leftover  []os.DirEntry // records of an earlier daemon
	postponed chan struct{} // has one element when a record was left to be closed late
	lastLate  string        // the late record that was tried last; closeLate's own

	mu   sync.Mutex
	jobs map[string]*job // by session
}

// New returns a host that has removed what an earlier daemon left behind.
func New(ctx context.Context, cfg Config, rt *containerd.Runtime, images *image.Resolver, authority Authority, log *slog.Logger) (*Host, error) {
	h := &Host{
		cfg: cfg, runtime: rt, images: images, authority: authority, log: log,
		ids:       newIDPool(cfg.FirstID, cfg.IDRanges),
		postponed: make(chan struct{}, 1),
		jobs:      map[string]*job{},
	}
	for _, dir := range []string{h.workspaces(), h.records(), h.late(), h.spools()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("host: %w", err)
		}
	}
	var err error
	if h.shelf, err = shelf.Open(h.shelfFile(), time.Now); err != nil {
		log.Warn("what is known of images is lost: each is asked for once more", "error", err)
	}
	if err := h.sweep(ctx); err != nil {
		return nil, err
	}
	h.disks = disk.New(cfg.StateDir)
	if err := h.prepareDisks(ctx); err != nil {
		return nil, err
	}
	if cfg.Preparing == 0 {
		cfg.Preparing = 2 * runtime.NumCPU()
	}
	h.preparing = newGate(cfg.Preparing)
	return h, h.openCaches()
}

func (h *Host) workspaces() string { return filepath.Join(h.cfg.StateDir, "jobs") }
func (h *Host) spools() string     { return filepath.Join(h.cfg.StateDir, "spool") }
func (h *Host) records() string    { return filepath.Join(h.cfg.StateDir, "records") }
func (h *Host) cacheDir() string   { return filepath.Join(h.cfg.StateDir, "cache") }
func (h *Host) late() string       { return filepath.Join(h.cfg.StateDir, "late") }

// Serve answers drivers until the context ends; then it takes down every job
// that is left and returns.
func (h *Host) Serve(ctx context.Context, l *net.UnixListener) error {
	var wg sync.WaitGroup
	wg.Go(func() { h.reap(ctx) })
	wg.Go(func() { h.settleRecords(ctx) })
	wg.Go(func() { h.closeLate(ctx) })
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			h.log.Warn("accept", "error", err)
			time.Sleep(50 * time.Millisecond) // out of descriptors: let some go
			continue
		}
		wg.Go(func() { h.answer(ctx, c) })
	}
	wg.Wait()
	h.teardownAll()
	return nil
}

// answer serves one connection.
func (h *Host) answer(ctx context.Context, c *net.UnixConn) {
	peer, err := executor.PeerOf(c)
	if err != nil || !h.cfg.Users[peer.UID] {
		h.log.Warn("connection refused", "uid", peer.UID, "error", err)
		_ = executor.Refuse(c, executor.Reply{Outcome: executor.SystemFailure, Message: "this user may not speak to the sandbox daemon",
			Hint: "set socket_user in the daemon's configuration to the user that gitlab-runner runs as"})
		return
	}
	conn, err := executor.Accept(c)
	if err != nil {
		h.log.Warn("request refused", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	reply := h.call(ctx, conn)
	if err := conn.Reply(reply); err != nil {
		h.log.Debug("driver went away", "error", err)
	}
}

// Why a call's context may end early.
var (
	errCanceled  = errors.New("canceled by the runner")
	errTakenDown = errors.New("the job was taken down: the sandbox daemon stops, or the runner is gone")
)

// call carries out one request. A panic is a system failure of this job alone.
func (h *Host) call(ctx context.Context, conn *executor.Conn) (reply executor.Reply) {
	req := conn.Request()
	log := h.log.With("session", req.Session, "call", string(req.Call))
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "value", p, "stack", string(debug.Stack()))
			reply = failure(errors.New("internal error in the sandbox daemon"))
		}
	}()
	ctx, cancel := endedBy(ctx, errTakenDown)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-conn.Canceled():
			cancel(errCanceled)
		case <-done:
		}
	}()
	out := joblog.New(&jobLog{file: conn.Files().Log, patience: logPatience})
	switch req.Call {
	case executor.CallPrepare:
		return reportTo(log, h.prepare(ctx, conn, out))
	case executor.CallRun:
		return h.run(ctx, conn, out, log)
	case executor.CallCleanup:
		return reportTo(log, h.cleanup(req.Session))
	}
	return failure(fmt.Errorf("unknown call %q", req.Call))
}

// endedBy is a context that ends with its parent, and then says why.
func endedBy(parent context.Context, why error) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() { cancel(why) })
	return ctx, func(cause error) { stop(); cancel(cause) }
}

// reportTo logs what the admin should see of an error and turns it into a reply.
func reportTo(log *slog.Logger, err error) executor.Reply {
	if err != nil {
		log.Error("call ended", "error", err)
		return failure(err)
	}
	return executor.Reply{Outcome: executor.OK}
}

// failure classifies an error: the user's is a build failure; all else,
// security failures included, is the system's.
func failure(err error) executor.Reply {
	if user, ok := errors.AsType[*sandbox.UserError](err); ok {
		return executor.Reply{Outcome: executor.BuildFailure, ExitCode: 1, Message: user.Error(), Hint: user.Hint}
	}
	r := executor.Reply{Outcome: executor.SystemFailure, Message: err.Error()}
	if hinted, ok := errors.AsType[*hintedError](err); ok {
		r.Hint = hinted.hint
	}
	return r
}

// A hintedError is a system failure with advice.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

func (h *Host) find(session string) (*job, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	j, ok := h.jobs[session]
	if !ok {
		return nil, &hintedError{fmt.Errorf("no sandbox for session %s", session),
			"the sandbox daemon was restarted, or it reaped the job; retry the job"}
	}
	return j, nil
}
