package authority

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
)

// maxWait is how long an attempt waits for GitLab to confirm its job.
const maxWait = 24 * time.Hour

// closing is what a record's last entry says.
type closing struct {
	result string
	at     time.Time
}

// factsOf are what GitLab confirmed when the attempt was opened.
func factsOf(at *store.Attempt) gitlab.Facts {
	j := &at.Job
	return gitlab.Facts{
		ID: j.ID, Name: j.Name, Stage: j.Stage, ProjectID: j.ProjectID, PipelineID: j.PipelineID, UserID: j.UserID,
		Ref: j.Ref, Tag: j.Tag, SHA: j.SHA, Runner: j.RunnerID, Manager: j.Manager,
	}
}

// ask has GitLab say again what the job is: under the job's token while it
// lives, the one that was kept if the host brings none, and under the authority's
// own after that.
func (a *Authority) ask(ctx context.Context, at *store.Attempt, token string, c closing) error {
	if token != "" {
		return a.cfg.GitLab.Closing(ctx, token, factsOf(at), c.result)
	}
	if kept := a.tokens.of(at.ID); kept != "" {
		if err := a.cfg.GitLab.Closing(ctx, kept, factsOf(at), c.result); !tokenEnded(err) {
			return err
		}
	}
	return a.cfg.GitLab.Ended(ctx, factsOf(at), c.result)
}

func tokenEnded(err error) bool {
	var differ *gitlab.Disagreement
	return errors.As(err, &differ) && differ.TokenEnded()
}

// overdue reports whether GitLab had a day to confirm a job that has ended.
func (a *Authority) overdue(c closing) bool { return a.now().Sub(c.at) > maxWait }

// confirm asks GitLab while the host waits. It is false without an error where
// the attempt was put to wait, or has ended.
func (a *Authority) confirm(ctx context.Context, at *store.Attempt, token string, c closing) (bool, error) {
	err := a.ask(ctx, at, token, c)
	var differ *gitlab.Disagreement
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &differ):
		return false, a.condemn(ctx, EventGitLabDisagrees, at, "job %d: %v", at.Job.ID, differ)
	case errors.Is(err, gitlab.ErrNoToken), token == "" && a.overdue(c):
		return false, a.end(ctx, at, unconfirmed(err))
	}
	a.cfg.Log.ErrorContext(ctx, "gitlab not asked", "job_id", at.Job.ID, "error", err)
	if !a.cfg.Spool {
		return false, status.Errorf(codes.Unavailable, "job %d: %v", at.Job.ID, err)
	}
	if err := a.cfg.Store.Wait(ctx, at.ID, waitingReason); err != nil && !errors.Is(err, store.ErrDecided) {
		return false, a.unavailable(ctx, "store attempt", err)
	}
	a.tokens.keep(at.ID, token)
	a.audit(ctx, EventWaiting, append(attemptFields(at), "why", err.Error())...)
	return false, nil
}

// confirmLate asks GitLab about an attempt that waits.
func (a *Authority) confirmLate(ctx context.Context, at *store.Attempt, c closing) (bool, error) {
	had := a.tokens.of(at.ID) != ""
	err := a.ask(ctx, at, "", c)
	var differ *gitlab.Disagreement
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &differ):
		// The attempt has ended, which is all that there was to do.
		_ = a.condemn(ctx, EventGitLabDisagrees, at, "job %d: %v", at.Job.ID, differ)
		return false, nil
	case a.overdue(c), had && errors.Is(err, gitlab.ErrNoToken): // else another replica may have the job's token
		return false, a.end(ctx, at, unconfirmed(err))
	}
	return false, fmt.Errorf("job %d: %w", at.Job.ID, err)
}

// unconfirmed is why an attempt that GitLab did not confirm has no bundle.
func unconfirmed(err error) string { return "unconfirmed: " + err.Error() }

// jobTokens are those of jobs that wait for GitLab. They are in memory alone,
// and useless once the job has ended.
type jobTokens struct {
	mu sync.Mutex
	by map[string]string // by attempt
}

// keep keeps a token, if it is one.
func (t *jobTokens) keep(attempt, token string) {
	if token == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by == nil {
		t.by = map[string]string{}
	}
	t.by[attempt] = token
}

func (t *jobTokens) of(attempt string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[attempt]
}

func (t *jobTokens) forget(attempt string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, attempt)
}

// kept lists the attempts that a token is kept of.
func (t *jobTokens) kept() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.by))
}
