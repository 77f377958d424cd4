package coordinator

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"
)

// A State is what GitLab says of a job. Runners read it from Job-Status.
type State string

// The states of a job.
const (
	Pending   State = "pending"
	Running   State = "running"
	Canceling State = "canceling"
	Canceled  State = "canceled"
	Success   State = "success"
	Failed    State = "failed"
)

// open reports whether a job in that state may still upload and be updated.
func (s State) open() bool { return s == Running || s == Canceling }

// An Attempt is one job that was added, and what became of it.
type Attempt struct {
	Job Job

	server  *Server
	token   string
	payload []byte
	done    chan struct{} // closed at the final update

	// Guarded by server.mu.
	state     State
	status    State // answered in place of state, once canceled
	erased    bool
	runner    int64
	manager   string
	trace     []byte
	cancelOn  []byte
	cancelTo  State
	artifacts []Artifact
	updates   []Update
	result    *Result
}

// An Update is one PUT of a runner.
type Update struct {
	State         string `json:"state"`
	FailureReason string `json:"failure_reason"`
	ExitCode      *int   `json:"exit_code"`
	Checksum      string `json:"checksum"`
	Output        struct {
		Checksum string `json:"checksum"`
		Bytes    int64  `json:"bytesize"`
	} `json:"output"`
}

// An Artifact is a file that a job uploaded.
type Artifact struct {
	Type, Format string // GitLab's artifact_type and artifact_format
	FileName     string
	ExpireIn     string
	Data         []byte
}

// A Result is the end of a job as GitLab saw it.
type Result struct {
	ID            int64
	State         State // success or failed, as the runner said
	FailureReason string
	ExitCode      *int
	Trace         string
	Artifacts     []Artifact
	Updates       []Update
}

// Artifact finds an upload by its type, "archive" for what artifacts:paths names.
func (r Result) Artifact(kind string) (Artifact, bool) {
	i := slices.IndexFunc(r.Artifacts, func(a Artifact) bool { return a.Type == kind })
	if i < 0 {
		return Artifact{}, false
	}
	return r.Artifacts[i], true
}

// Wait returns the job's result once the runner has sent its final update.
func (a *Attempt) Wait(ctx context.Context) (Result, error) {
	select {
	case <-a.done:
		a.server.mu.Lock()
		defer a.server.mu.Unlock()
		return *a.result, nil
	case <-ctx.Done():
		return Result{}, fmt.Errorf("job %d: still %s: %w", a.Job.ID, a.State(), ctx.Err())
	}
}

// Ended reports whether the runner has sent its final update.
func (a *Attempt) Ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// WaitTrace returns once the trace holds text.
func (a *Attempt) WaitTrace(ctx context.Context, text string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if bytes.Contains(a.TraceBytes(), []byte(text)) {
			return nil
		}
		select {
		case <-tick.C:
		case <-a.done:
			if bytes.Contains(a.TraceBytes(), []byte(text)) {
				return nil
			}
			return fmt.Errorf("job %d: ended without %q in its trace:\n%s", a.Job.ID, text, a.TraceBytes())
		case <-ctx.Done():
			return fmt.Errorf("job %d: waiting for %q: %w; trace:\n%s", a.Job.ID, text, ctx.Err(), a.TraceBytes())
		}
	}
}

// State is what GitLab would show now.
func (a *Attempt) State() State {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	return a.shown()
}

func (a *Attempt) shown() State {
	if a.status != "" {
		return a.status
	}
	return a.state
}

// TraceBytes is the trace so far.
func (a *Attempt) TraceBytes() []byte {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	return bytes.Clone(a.trace)
}

// Token is the job's token.
func (a *Attempt) Token() string { return a.token }

// Payload is the answer that the runner gets for this job.
func (a *Attempt) Payload() []byte { return bytes.Clone(a.payload) }

// Release queues a job that was added with Held.
func (a *Attempt) Release() {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.server.enqueue(a)
}

// Start marks a job as running without any runner: for tests that call the
// driver themselves.
func (a *Attempt) Start() {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.state = Running
}

// Cancel cancels as a person does with the button: the runner learns of it as
// "canceling", ends the script and still runs after_script and uploads.
func (a *Attempt) Cancel() { a.setStatus(Canceling) }

// ForceCancel cancels at once: the runner learns of it as "canceled".
func (a *Attempt) ForceCancel() { a.setStatus(Canceled) }

// Erase removes the job's trace and artifacts, as a person does with the button.
func (a *Attempt) Erase() {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.erased, a.trace, a.artifacts = true, nil, nil
}

// Replace puts other bytes in the place of an artifact, as somebody does who can
// write to GitLab's storage.
func (a *Attempt) Replace(kind string, data []byte) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	for i := range a.artifacts {
		if a.artifacts[i].Type == kind {
			a.artifacts[i].Data = data
		}
	}
}

// Put adds an artifact, as a runner of another make would have.
func (a *Attempt) Put(art Artifact) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.artifacts = append(a.artifacts, art)
}

// MoveTo has GitLab say that another runner and machine have the job.
func (a *Attempt) MoveTo(runner int64, manager string) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.runner, a.manager = runner, manager
}

// End ends a job that no runner drives, as GitLab would show it.
func (a *Attempt) End(state State) { a.setStatus(state) }

// CancelOn cancels, to Canceling or Canceled, as soon as the trace holds text.
func (a *Attempt) CancelOn(text string, to State) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.cancelOn, a.cancelTo = []byte(text), to
	a.checkCancel()
}

func (a *Attempt) setStatus(s State) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.status = s
}

func (a *Attempt) checkCancel() {
	if a.cancelOn != nil && a.status == "" && bytes.Contains(a.trace, a.cancelOn) {
		a.status = a.cancelTo
	}
}

// TruncateTrace forgets all of the trace behind n bytes, so that the runner's
// next piece does not fit and is asked for again (416).
func (a *Attempt) TruncateTrace(n int) {
	a.server.mu.Lock()
	defer a.server.mu.Unlock()
	a.trace = a.trace[:min(n, len(a.trace))]
}

// finish takes the final update. A job that a person canceled is shown as
// canceled, whatever the runner made of it. The caller holds server.mu.
func (a *Attempt) finish(u Update) {
	a.state = State(u.State)
	if a.status == Canceling {
		a.status = Canceled
	}
	a.result = &Result{
		ID: a.Job.ID, State: a.state, FailureReason: u.FailureReason, ExitCode: u.ExitCode,
		Trace: string(a.trace), Artifacts: slices.Clone(a.artifacts), Updates: slices.Clone(a.updates),
	}
	close(a.done)
}
