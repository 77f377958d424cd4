// Package authority is the signing service: hosts open, append to and close attempts, and each attempt is attested at most once.
//
// # Why a host cannot have just anything signed
//
// A host never hands over a statement or a digest. It opens an attempt, which
// the authority checks with GitLab under the job's own token; it appends the
// lines of the evidence record while the job runs; it closes the attempt. The
// statement is built here, from the lines that were acknowledged, and refused
// if they do not fit: see package attest.
//
// # What is refused for security
//
//   - facts that GitLab does not confirm, when the attempt is opened or when it
//     is closed, and an ID token that is not the job's;
//   - opening a job again once any stage but prepare_script has started in an
//     earlier attempt: from get_sources on, scripts run with the tenant's
//     variables and hooks, so another outcome of the same job could be picked;
//   - a first entry that does not carry this attempt's session, nonce and
//     invocation id, or other facts than those that GitLab confirmed;
//   - a gap, a fork, a line that differs from the one acknowledged in its place,
//     a line from the future;
//   - a head that is not the record's, when closing;
//   - a record that package attest refuses;
//   - a record that names another attestation as an input's than one which is
//     here, speaks of that digest, and is of the project or of a job that the
//     payload names.
//
// Each of them ends the attempt for good, and is logged as an audit event. An
// attempt so ended bars the job from being opened again.
//
// # One attestation per attempt
//
//	record whole -> statements -> GitLab confirms -> signed, durably -> logged -> closed
//
// Statements follow from the record alone. Their signatures are kept, durably,
// before the log or anybody hears of them, and of several replicas' the first
// are: from there on the attempt has these and no others. What a crash
// interrupts, or a service that is away, any replica goes on with. A bundle is
// shown once the log's proof is in it. The decision is durable before anybody
// hears of it; asked again, the authority answers from the store. Calls for one
// job run one after another, whatever attempt they are about, until it is
// signed: the log is not waited for under a lock.
//
// # When something is away
//
// Without its keys, timestamps or store the authority signs nothing and answers
// "try again", and so it does to a host that left before all was signed. Without
// the log an attempt stays signed until the log answers; hosts wait for that a
// while, unless the profile lets them not, and are then told that the proof
// follows: what is signed will be shown, so its job must not fail. Without
// GitLab nothing is opened. As an attempt is closed, an admin can choose that it
// waits: it is signed once GitLab confirms the job, under its token while that
// lives, which is kept in memory alone, or under the authority's own. After a
// day without an answer the attempt ends unattested.
//
// # Trust
//
// The socket tells which user a host's daemon runs as; a certificate tells which
// machine it is (see [HostCA]), and each call asks the store whether that machine
// may still speak, as is asked before an attempt is signed that waited. A host
// could lie about a job from its start, if the job is one that it may attest at
// all. What it cannot do is change its mind: acknowledged lines stay. An attempt
// is its host's who opened it: for others it is not there.
//
// # Fairness
//
// A host may be hostile, or only slow. Whatever it takes is bounded for each host
// apart: connections, calls, bytes that arrive or wait, attempts, questions to
// GitLab. What is shared is handed out in turns, host by host, so too among
// attempts that wait: one of which GitLab says nothing delays no other. See [Limits].
package authority

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
)

// Limits.
const (
	MaxRecord    = 128 << 20           // bytes of one record
	MaxSkew      = 5 * time.Minute     // between the host's clock and ours
	MaxAttempts  = 16                  // of one job
	MaxAge       = 32 * 24 * time.Hour // of an open attempt; GitLab's jobs end before
	idleAfter    = time.Hour           // after which a record leaves memory
	sweepAfter   = time.Hour           // after which what no decision holds leaves the store
	secretLength = 32                  // bytes
)

// A Signer makes the bundle of a statement, and says what verifiers must be
// given to believe it.
type Signer interface {
	Sign(ctx context.Context, st attest.Statement) ([]byte, error)
	Trusted() (*trustpb.TrustedRoot, error)
}

// A GitLab confirms facts, or answers with a *gitlab.Disagreement: at the
// opening, at the closing, and of jobs that have ended. See package gitlab.
type GitLab interface {
	Check(ctx context.Context, token string, want gitlab.Facts) (gitlab.Confirmed, error)
	Closing(ctx context.Context, token string, want gitlab.Facts, result string) error
	Ended(ctx context.Context, want gitlab.Facts, result string) error
}

// IDTokens verifies the ID token of a job, or answers with a
// *gitlab.Disagreement.
type IDTokens interface {
	Verify(ctx context.Context, token string, want gitlab.Facts) (gitlab.Identity, error)
}

// A Transparency log puts the proof into a bundle that its signature was
// entered. The same draft is entered once, however often it is asked for.
type Transparency interface {
	Enter(ctx context.Context, draft []byte) ([]byte, error)
	Trusted() []*trustpb.TransparencyLogInstance
}

// Config is all that an Authority needs.
type Config struct {
	Store      store.Store
	Signer     Signer
	GitLab     GitLab
	IDTokens   IDTokens // nil: jobs' ID tokens are ignored
	GitLabURL  string   // goes into statements; sources lie below it, or below jobs' own host
	BuilderURI string   // builder ids are this, a slash, and the profile
	PublicURL  string   // for links; may be empty
	Version    string   // of the authority
	Secret     []byte   // commitment keys are derived from it
	HostCA     *HostCA  // nil: no hosts on other machines
	Address    string   // host:port at which those find the authority
	Limits     Limits
	// Spool has attempts wait, durably, for a GitLab that does not answer as
	// they are closed. False refuses to close them.
	Spool bool
	// Transparency is the log of signatures; nil: there is none. LogHandler
	// serves its tiles to readers, and may be nil.
	Transparency Transparency
	LogHandler   http.Handler
	Background   []string // profiles whose hosts do not wait for the log's proof
	Now          func() time.Time
	Log          *slog.Logger
}

// An Authority is the service. It is safe for concurrent use.
type Authority struct {
	authoritypb.UnimplementedAuthorityServer
	cfg       Config
	gitlab    *url.URL
	maxRecord int64
	metrics   *meters
	limits    *limits
	tokens    jobTokens
	wake      chan struct{} // has one element when there is something to go on with
	signed    *backlog
	waiting   *backlog

	mu   sync.Mutex
	live map[string]*live // by attempt; each guarded by its job's lock
	held map[string]int64 // bytes of memory that they take, by host
}

// New checks the configuration.
func New(cfg Config) (*Authority, error) {
	switch {
	case cfg.Store == nil || cfg.Signer == nil || cfg.GitLab == nil || cfg.Log == nil:
		return nil, errors.New("authority: store, signer, gitlab and log are required")
	case cfg.BuilderURI == "" || strings.HasSuffix(cfg.BuilderURI, "/"):
		return nil, errors.New("authority: builder uri must not be empty or end in a slash")
	case len(cfg.Secret) != secretLength:
		return nil, fmt.Errorf("authority: secret must have %d bytes", secretLength)
	}
	base, err := url.Parse(cfg.GitLabURL)
	if err != nil || base.Host == "" {
		return nil, errors.New("authority: gitlab url must be absolute")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.PublicURL = strings.TrimSuffix(cfg.PublicURL, "/")
	a := &Authority{
		cfg: cfg, gitlab: base, maxRecord: MaxRecord, metrics: newMeters(),
		limits: newLimits(cfg.Limits, cfg.Now), wake: make(chan struct{}, 1), live: map[string]*live{}, held: map[string]int64{},
		signed: &backlog{atOnce: resumeAtOnce, now: cfg.Now}, waiting: &backlog{atOnce: askAtOnce, now: cfg.Now},
	}
	a.metrics.watch(a.limits)
	a.metrics.gauge("hallmark_record_memory_bytes", a.memory)
	return a, nil
}

func (a *Authority) now() time.Time { return a.cfg.Now().UTC() }

// commitmentKey is the key under which a host commits to hidden values of one
// attempt. It can be made again as long as the secret is there.
func (a *Authority) commitmentKey(attempt string) []byte {
	mac := hmac.New(sha256.New, a.cfg.Secret)
	mac.Write([]byte("hallmark commitment key v1\x00" + attempt))
	return mac.Sum(nil)
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// lockJob makes calls about one job take turns, on all replicas. What is
// decided under the lock must be stored under the context that it returns. A
// store has so many locks, and GitLab is asked under one: no host has them all.
func (a *Authority) lockJob(ctx context.Context, host string, id int64) (context.Context, func(), error) {
	turn, err := a.limits.locked.enter(ctx, host, 1)
	if err != nil {
		return nil, nil, err
	}
	locked, unlock, err := a.cfg.Store.Lock(ctx, id)
	if err != nil {
		turn.leave()
		return nil, nil, a.unavailable(ctx, "lock job", err)
	}
	return locked, func() { unlock(); turn.leave() }, nil
}

// lockAttempt finds an attempt and takes its job's lock. The attempt's state is
// read under the lock.
func (a *Authority) lockAttempt(ctx context.Context, id string) (context.Context, store.Attempt, func(), error) {
	if !isHex(id, 32) {
		return nil, store.Attempt{}, nil, status.Error(codes.InvalidArgument, "attempt: want 32 hex digits")
	}
	first, err := a.attempt(ctx, id)
	if err != nil {
		return nil, store.Attempt{}, nil, err
	}
	if err := a.ownAttempt(ctx, &first); err != nil {
		return nil, store.Attempt{}, nil, err
	}
	ctx, unlock, err := a.lockJob(ctx, first.Host, first.Job.ID)
	if err != nil {
		return nil, store.Attempt{}, nil, err
	}
	at, err := a.attempt(ctx, id)
	if err != nil {
		unlock()
		return nil, store.Attempt{}, nil, err
	}
	return ctx, at, unlock, nil
}

func (a *Authority) attempt(ctx context.Context, id string) (store.Attempt, error) {
	at, err := a.cfg.Store.Attempt(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return store.Attempt{}, noAttempt(id)
	}
	if err != nil {
		return store.Attempt{}, a.unavailable(ctx, "read attempt", err)
	}
	return at, nil
}

// unavailable logs what went wrong here and tells the host only that it did.
func (a *Authority) unavailable(ctx context.Context, what string, err error) error {
	a.cfg.Log.ErrorContext(ctx, "call failed", "what", what, "error", err)
	return status.Errorf(codes.Unavailable, "authority: %s: try again later", what)
}

// security refuses a call. about is the attempt that it concerns, if there is
// one: it stays as it is.
func (a *Authority) security(ctx context.Context, event Event, about *store.Attempt, format string, args ...any) error {
	why := brief(fmt.Sprintf(format, args...))
	a.audit(ctx, event, append([]any{"why", why}, attemptFields(about)...)...)
	return status.Error(codes.PermissionDenied, why)
}

// condemn refuses a call and ends its attempt for good.
func (a *Authority) condemn(ctx context.Context, event Event, at *store.Attempt, format string, args ...any) error {
	err := a.security(ctx, event, at, format, args...)
	d := store.Decision{State: store.StateRefused, Reason: "security: " + status.Convert(err).Message(), Ended: a.now()}
	if stored := a.decide(ctx, at.ID, d); stored != nil && !errors.Is(stored, store.ErrDecided) {
		a.cfg.Log.ErrorContext(ctx, "refusal not stored", "attempt", at.ID, "error", stored)
	}
	a.forget(at.ID)
	return err
}

// decide stores a decision even if the caller has gone: half of one is worse
// than one that nobody waits for.
func (a *Authority) decide(ctx context.Context, id string, d store.Decision) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	err := a.cfg.Store.Decide(ctx, id, d)
	if err == nil || errors.Is(err, store.ErrDecided) {
		a.limits.removeOpen(id)
		a.tokens.forget(id)
	}
	return err
}

// ended says why nothing more can be done with an attempt.
func ended(at store.Attempt) error {
	switch at.State {
	case store.StateRefused:
		return status.Errorf(codes.PermissionDenied, "attempt %s was refused: %s", at.ID, at.Reason)
	case store.StateSuperseded:
		return status.Errorf(codes.FailedPrecondition, "attempt %s was superseded by a later one", at.ID)
	}
	return status.Errorf(codes.FailedPrecondition, "attempt %s is %s", at.ID, at.State)
}

// Tidy counts the open attempts, ends those that were never closed and lets idle
// records go from memory, and tokens of attempts that another replica decided. It
// is called at the start, and now and then.
func (a *Authority) Tidy(ctx context.Context) error {
	tokens := a.tokens.kept() // while their attempts are open
	open, err := a.cfg.Store.OpenBefore(ctx, a.now().Add(MaxSkew))
	if err != nil {
		return err
	}
	a.limits.setOpen(open)
	for _, id := range tokens {
		if !slices.ContainsFunc(open, func(at store.Attempt) bool { return at.ID == id }) {
			a.tokens.forget(id)
		}
	}
	old, err := a.cfg.Store.OpenBefore(ctx, a.now().Add(-MaxAge))
	if err != nil {
		return err
	}
	var failed []error
	for i := range old {
		if err := sheltered(func() error { return a.giveUp(ctx, &old[i]) }); err != nil {
			failed = append(failed, fmt.Errorf("attempt %s: %w", old[i].ID, err))
		}
	}
	a.forgetIdle()
	return errors.Join(append(failed, a.cfg.Store.Sweep(ctx, a.now().Add(-sweepAfter)))...)
}

// giveUp ends an attempt that was never closed.
func (a *Authority) giveUp(ctx context.Context, at *store.Attempt) error {
	ctx, unlock, err := a.lockJob(ctx, at.Host, at.Job.ID)
	if err != nil {
		return err
	}
	defer unlock()
	err = a.decide(ctx, at.ID, store.Decision{State: store.StateRefused, Reason: "never closed", Ended: a.now()})
	a.forget(at.ID)
	if err != nil {
		if errors.Is(err, store.ErrDecided) {
			return nil // closed in between
		}
		return err
	}
	a.audit(ctx, EventGivenUp, attemptFields(at)...)
	return nil
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}
