// Package store says what a store of attempts, their evidence records and their bundles promises.
//
// There are two: package embedded, SQLite and a directory for one authority,
// and package fleet, PostgreSQL and a bucket for several at once. Package
// storetest proves the promises on each.
//
// # The life of an attempt
//
//	open --Sign--> signed --Decide--> closed
//	open --Decide--> closed, refused
//	open --Begin of another--> superseded
//
// Each arrow is taken once, whoever asks: the first holds, and others get
// [ErrDecided]. Sign keeps the signed statements before any of them is entered
// in a log or shown to anybody. From then on the attempt can end in one way
// alone, closed with those statements, so a crash, a second replica or a retry
// never leads to another statement about it.
//
// # Durability
//
// What a method acknowledges survives the end of the process and of the
// machine. After an error, the caller must read again to learn what holds: it
// may be that the act was done and only its acknowledgement was lost.
//
// # Restored stores
//
// A store that is restored is behind: an attempt that was signed since the
// backup is open in it. Were it signed again, there would be two statements
// about one invocation. So a store knows that it is a copy, and opening it is
// [ErrRestored] until the attempts that it has as open were refused; attempts
// that began later it does not know, and nobody can append to them. An attempt
// that it has as signed goes on with the statements that it has. What was
// signed and lost can be had from the log's entries and from whoever fetched
// the bundles; that the log has more than the store tells which ones those are.
//
// What a store cannot tell is a copy that was made behind its back: a disk's
// snapshot, or a standby that was promoted and lacks what its primary had
// acknowledged. Say so then, with hallmark-attestd restored. In any case no
// replica may serve before the jobs have ended that ran at the time of the
// loss: GitLab confirms them as long as they run, and another attempt of one
// would be another invocation.
//
// # Trust
//
// A store is the authority's own: who writes to it can show other bundles and
// records, or have an attempt attested that was refused. They cannot forge a
// signature with it, and bundles that were altered are found when read.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"hallmark.build/attest"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("store: not found")
	ErrDecided  = errors.New("store: the attempt was decided already")
	ErrConflict = errors.New("store: changed in between: read it again")
	ErrRestored = errors.New("store: restored from a backup, and not settled yet")
)

// A State says what became of an attempt. Only open and signed attempts change.
type State string

// The states.
const (
	StateOpen       State = "open"
	StateSigned     State = "signed"     // decided to be attested: the bundles lack their log entries
	StateClosed     State = "closed"     // decided: bundles, or a reason why there are none
	StateRefused    State = "refused"    // for security: nothing will ever be signed
	StateSuperseded State = "superseded" // a later attempt took its place before tenant code ran
)

// An Attempt is what the authority decided when it opened one, and what became
// of it.
type Attempt struct {
	ID           string
	Session      string
	Host         string // who opened it; empty for a host on the same machine
	Profile      string
	Nonce        string
	InvocationID string
	BuilderID    string
	Job          Job
	Opened       time.Time

	State   State
	Reason  string    // why there are no bundles; while open, what it waits for
	Project string    // full path, once signed
	Ended   time.Time // zero while open or signed

	// Protected says whether the ref was, by the record, once signed. It is nil
	// before, and for attempts that a program signed which did not keep it.
	Protected *bool
}

// Job holds the facts that GitLab confirmed.
type Job struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	Stage      string `json:"stage"`
	ProjectID  int64  `json:"project_id"`
	Project    string `json:"project,omitempty"` // full path
	Host       string `json:"host,omitempty"`    // by which people reach GitLab
	PipelineID int64  `json:"pipeline_id"`
	UserID     int64  `json:"user_id"`
	Ref        string `json:"ref"`
	Tag        bool   `json:"tag"`
	SHA        string `json:"sha"`
	RunnerID   int64  `json:"runner_id,omitempty"`
	Manager    string `json:"runner_manager,omitempty"` // the runner's machine

	IDToken *IDToken `json:"id_token,omitempty"`
}

// An IDToken is what a job's ID token said that GitLab had signed for the
// authority: evidence besides the other facts. The token itself is not kept.
type IDToken struct {
	Issuer      string    `json:"issuer"`
	Subject     string    `json:"subject"`
	ID          string    `json:"id"`
	Issued      time.Time `json:"issued"`
	ConfigURI   string    `json:"ci_config_ref_uri,omitempty"`
	ConfigSHA   string    `json:"ci_config_sha,omitempty"`
	RunnerID    int64     `json:"runner_id,omitempty"`
	Environment string    `json:"runner_environment,omitempty"`
}

// WasOpen is why attempts are refused that a backup has as open.
const WasOpen = "the store was restored from a backup that has the attempt as open"

// A Decision ends an attempt.
type Decision struct {
	State   State
	Reason  string
	Project string
	Ended   time.Time
	Bundles []Bundle
}

// A Bundle is one signed statement.
type Bundle struct {
	JSON     []byte
	Subjects []attest.Subject
}

// A Part is one of the bundles of an attempt.
type Part struct {
	Number   int
	SHA256   string           // of the bundle, for Content
	Subjects []attest.Subject // the first by name
	Count    int64            // of all subjects
}

// Found is a bundle by what leads to it.
type Found struct {
	Attempt string
	Part    int
	SHA256  string // of the bundle, for Content
	JobID   int64
	Project string
	Closed  time.Time
}

// A Filter leaves out bundles that are not asked for, before they are counted. An
// empty field leaves out none.
type Filter struct {
	Project   string // full path, as it was when the bundle was signed
	Job       int64
	Bundle    string // its sha256
	Profile   string
	Protected *bool // leaves in those of which it is not known
}

// A Host is a runner host that was enrolled.
type Host struct {
	Name      string
	KeySHA256 string   // of its public key
	Projects  []string // globs of those that it may attest
	Profiles  []string
	Enrolled  time.Time
	Expires   time.Time
	Revoked   time.Time // zero while it is not
}

// An Invitation lets one host enrol, once.
type Invitation struct {
	TokenSHA256 string
	Host        string
	Projects    []string
	Profiles    []string
	Created     time.Time
	Expires     time.Time
}

// A Store is what every store does. It is safe for concurrent use.
type Store interface {
	Attempts
	Records
	Bundles
	Hosts
	Upkeep
}

// Attempts are opened, signed and decided, each once.
type Attempts interface {
	// Begin adds an open attempt. The open attempts named in supersede are
	// ended in the same instant; if one of them is not open any more it is
	// ErrDecided, and nothing happened. A job has one open or signed attempt.
	Begin(ctx context.Context, a Attempt, supersede ...string) error
	// Sign keeps an open attempt's signed statements: it is signed, for a project
	// and a ref that was protected or not.
	Sign(ctx context.Context, id string, drafts []Bundle, project string, protected bool) error
	// Drafts returns what Sign kept, until the attempt is closed.
	Drafts(ctx context.Context, id string) ([]Bundle, error)
	// Decide ends an open or signed attempt. See Decision.Valid and
	// Decision.Completes for what it may be.
	Decide(ctx context.Context, id string, d Decision) error
	Attempt(ctx context.Context, id string) (Attempt, error)
	// AttemptsOfJob lists all attempts of a job in the order of their opening.
	AttemptsOfJob(ctx context.Context, job int64) ([]Attempt, error)
	// OpenBefore lists open attempts that were opened before a moment.
	OpenBefore(ctx context.Context, t time.Time) ([]Attempt, error)
	// Signed lists signed attempts, oldest first.
	Signed(ctx context.Context, limit int) ([]Attempt, error)
	// Wait notes that the host of an open attempt has closed it, and what it
	// waits for. Waiting lists such attempts, oldest first.
	Wait(ctx context.Context, id, reason string) error
	Waiting(ctx context.Context, limit int) ([]Attempt, error)
	// Lock makes those who work on a job take turns, on all replicas. What
	// follows from what was read under the lock must be written under the
	// context that Lock returns: such a write fails if the lock was lost.
	Lock(ctx context.Context, job int64) (locked context.Context, unlock func(), err error)
}

// Records grow line by line, while their attempt is open.
type Records interface {
	// Record returns an attempt's record: whole lines alone. It is empty where
	// nothing was appended yet.
	Record(ctx context.Context, attempt string) ([]byte, error)
	// RecordSize is the length of what Record returns.
	RecordSize(ctx context.Context, attempt string) (int64, error)
	// OpenRecord opens an attempt's record for reading.
	OpenRecord(ctx context.Context, attempt string) (io.ReadSeekCloser, error)
	// AppendRecord adds lines to a record that has at bytes. If it has more or
	// fewer it is ErrConflict; if the attempt is not open, ErrDecided.
	AppendRecord(ctx context.Context, attempt string, at int64, lines [][]byte) error
}

// Bundles are found by what they are about, newest first.
type Bundles interface {
	// Parts lists what an attempt was closed with, in order, each bundle with some of
	// its subjects.
	Parts(ctx context.Context, attempt string, subjects int) ([]Part, error)
	BySubject(ctx context.Context, sha256 string, only Filter, limit int) ([]Found, error)
	ByJob(ctx context.Context, job int64, limit int) ([]Found, error)
	ByProject(ctx context.Context, project string, limit int) ([]Found, error)
	// Content reads a bundle and checks that it is the one that was stored.
	Content(ctx context.Context, digest string) ([]byte, error)
	// HasBundle reports whether a decision holds the bundle.
	HasBundle(ctx context.Context, digest string) (bool, error)
}

// Hosts are invited, enrolled and revoked.
type Hosts interface {
	Invite(ctx context.Context, i Invitation) error
	// Enrol turns an invitation into a host, or gives a known one a new key and
	// new rights. All invitations of the host are used up: one that was lost on
	// its way cannot be used later. It is ErrNotFound if there is none,
	// or none any more, and ErrConflict if another host has the key.
	Enrol(ctx context.Context, tokenSHA256, keySHA256 string, now, expires time.Time) (Host, error)
	// RenewHost replaces a host's key. It is ErrConflict if the old key is not
	// the host's or if the host was revoked.
	RenewHost(ctx context.Context, name, oldKey, newKey string, expires time.Time) error
	// RevokeHost ends a host's rights, and voids its invitations. It is
	// ErrNotFound if there is neither.
	RevokeHost(ctx context.Context, name string, at time.Time) error
	Host(ctx context.Context, name string) (Host, error)
	Hosts(ctx context.Context) ([]Host, error)
}

// Upkeep is what a store needs besides.
type Upkeep interface {
	// Ready reports whether the store answers.
	Ready(ctx context.Context) error
	// Sweep removes what writes before a moment left behind that nobody
	// decided.
	Sweep(ctx context.Context, before time.Time) error
	// Check looks for states that must not be, whatever happened. It is for
	// tests and for admins, and wants a store that nobody is writing to.
	Check(ctx context.Context) error
	Close() error
}

// Valid reports why d cannot end any attempt.
func (d *Decision) Valid() error {
	switch {
	case d.State != StateClosed && d.State != StateRefused:
		return fmt.Errorf("store: an attempt is not decided to be %q", d.State)
	case d.State != StateClosed && len(d.Bundles) > 0:
		return fmt.Errorf("store: %s attempts have no bundles", d.State)
	case len(d.Bundles) == 0 && d.Reason == "":
		return errors.New("store: no bundles, and no reason why")
	case (len(d.Bundles) == 0) != (d.Project == ""):
		return errors.New("store: bundles are of a project, and nothing else is")
	}
	return nil
}

// Completes reports whether d can end a signed attempt: it must bring, for each
// draft in its place, a bundle that speaks of the same. Any other decision
// comes too late.
func (d *Decision) Completes(a *Attempt, drafts []Bundle) error {
	if d.State != StateClosed || len(d.Bundles) == 0 {
		return ErrDecided
	}
	if d.Project != a.Project || len(d.Bundles) != len(drafts) {
		return fmt.Errorf("store: attempt %s: %d bundles of %s, but signed were %d of %s", a.ID, len(d.Bundles), d.Project, len(drafts), a.Project)
	}
	for i := range drafts {
		if !slices.Equal(sorted(drafts[i].Subjects), sorted(d.Bundles[i].Subjects)) {
			return fmt.Errorf("store: attempt %s: bundle %d is not about what was signed", a.ID, i+1)
		}
	}
	return nil
}

func sorted(subjects []attest.Subject) []attest.Subject {
	return slices.SortedFunc(slices.Values(subjects), func(a, b attest.Subject) int {
		return strings.Compare(a.Name+"\x00"+a.SHA256, b.Name+"\x00"+b.SHA256)
	})
}

// Text returns s as every store can keep it: UTF-8, without zeros. Reasons
// quote what hosts sent.
func Text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}
