package authority

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/gitlab"
	"hallmark.build/attest/store"
)

// Bounds of what a host may say about a job.
const (
	maxName   = 1024 // bytes of a name or ref; GitLab's own bounds are lower
	maxNumber = 1<<53 - 1
)

// Open starts an attempt.
func (a *Authority) Open(ctx context.Context, req *authoritypb.OpenRequest) (*authoritypb.OpenResponse, error) {
	facts, err := checkOpen(req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := a.mayAttest(ctx, req.GetProfile(), ""); err != nil {
		return nil, err
	}
	turn, err := a.admitOpen(ctx)
	if err != nil {
		return nil, err
	}
	defer turn.leave()
	confirmed, err := a.cfg.GitLab.Check(ctx, req.GetJobToken(), facts)
	var differ *gitlab.Disagreement
	if errors.As(err, &differ) {
		return nil, a.security(ctx, EventGitLabDisagrees, nil, "job %d: %v", facts.ID, differ)
	}
	if err != nil {
		a.cfg.Log.ErrorContext(ctx, "gitlab not asked", "job_id", facts.ID, "error", err)
		return nil, status.Errorf(codes.Unavailable, "job %d: %v", facts.ID, err)
	}
	if err := a.mayAttest(ctx, req.GetProfile(), confirmed.Project); err != nil {
		return nil, err
	}
	facts.Runner, facts.Manager = confirmed.Runner, confirmed.Manager
	evidence, err := a.idToken(ctx, req.GetIdToken(), facts)
	if err != nil {
		return nil, err
	}
	ctx, unlock, err := a.lockJob(ctx, callerOf(ctx).Host, facts.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	replaced, err := a.mayOpen(ctx, facts.ID)
	if err != nil {
		return nil, err
	}
	at := a.newAttempt(req, facts, confirmed)
	at.Host = callerOf(ctx).Host
	at.Job.IDToken = evidence
	if err := a.cfg.Store.Begin(ctx, at, replaced...); err != nil {
		return nil, a.unavailable(ctx, "store attempt", err)
	}
	a.limits.addOpen(at.Host, at.ID)
	for _, id := range replaced {
		a.limits.removeOpen(id)
		a.forget(id)
	}
	a.audit(ctx, EventOpened, append(attemptFields(&at), "commit", at.Job.SHA, "profile", at.Profile, "superseded", len(replaced), "id_token", evidence != nil)...)
	return &authoritypb.OpenResponse{
		Attempt: at.ID, Nonce: at.Nonce, CommitmentKey: a.commitmentKey(at.ID),
		BuilderId: at.BuilderID, InvocationId: at.InvocationID, GitlabUrl: a.cfg.GitLabURL,
	}, nil
}

// checkOpen refuses what no job has.
func checkOpen(req *authoritypb.OpenRequest) (gitlab.Facts, error) {
	j := req.GetJob()
	switch {
	case !isHex(req.GetSession(), 32):
		return gitlab.Facts{}, errors.New("session: want 32 hex digits")
	case !attest.KnownProfile(req.GetProfile()):
		return gitlab.Facts{}, fmt.Errorf("profile %q: unknown", req.GetProfile())
	case req.GetJobToken() == "":
		return gitlab.Facts{}, errors.New("job token: missing")
	case !isHex(j.GetSha(), 40) && !isHex(j.GetSha(), 64):
		return gitlab.Facts{}, errors.New("job: commit: want 40 or 64 hex digits")
	}
	for name, n := range map[string]int64{
		"id": j.GetId(), "project id": j.GetProjectId(), "pipeline id": j.GetPipelineId(), "user id": j.GetUserId(),
	} {
		if n <= 0 || n > maxNumber {
			return gitlab.Facts{}, fmt.Errorf("job: %s: %d is no identifier", name, n)
		}
	}
	if r := j.GetRunnerId(); r < 0 || r > maxNumber {
		return gitlab.Facts{}, fmt.Errorf("job: runner id: %d is no identifier", r)
	}
	for name, text := range map[string]string{"name": j.GetName(), "stage": j.GetStage(), "ref": j.GetRef()} {
		if text == "" || len(text) > maxName || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			return gitlab.Facts{}, fmt.Errorf("job: %s: empty, too long or not text", name)
		}
	}
	return gitlab.Facts{
		ID: j.GetId(), Name: j.GetName(), Stage: j.GetStage(), ProjectID: j.GetProjectId(), PipelineID: j.GetPipelineId(),
		UserID: j.GetUserId(), Ref: j.GetRef(), Tag: j.GetTag(), SHA: j.GetSha(),
		Runner: j.GetRunnerId(),
	}, nil
}

// idToken verifies a job's ID token and returns what is kept of it.
func (a *Authority) idToken(ctx context.Context, token string, facts gitlab.Facts) (*store.IDToken, error) {
	if token == "" || a.cfg.IDTokens == nil {
		return nil, nil
	}
	id, err := a.cfg.IDTokens.Verify(ctx, token, facts)
	var differ *gitlab.Disagreement
	if errors.As(err, &differ) {
		return nil, a.security(ctx, EventIDTokenRefused, nil, "job %d: %v", facts.ID, differ)
	}
	if err != nil {
		a.cfg.Log.ErrorContext(ctx, "id token not verified", "job_id", facts.ID, "error", err)
		return nil, status.Errorf(codes.Unavailable, "job %d: id token: %v", facts.ID, err)
	}
	return &store.IDToken{
		Issuer: id.Issuer, Subject: id.Subject, ID: id.ID, Issued: id.Issued,
		ConfigURI: id.ConfigURI, ConfigSHA: id.ConfigSHA, RunnerID: id.Runner, Environment: id.Environment,
	}, nil
}

// mayOpen decides whether a job may have another attempt, and which open ones
// it replaces. The caller holds the job's lock.
func (a *Authority) mayOpen(ctx context.Context, job int64) ([]string, error) {
	var replaced []string
	before, err := a.cfg.Store.AttemptsOfJob(ctx, job)
	if err != nil {
		return nil, a.unavailable(ctx, "read attempts", err)
	}
	if len(before) >= MaxAttempts {
		return nil, exhausted(limitAttempts, 0, "job %d: more than %d attempts", job, MaxAttempts)
	}
	for i := range before {
		at := &before[i]
		if at.State == store.StateSuperseded {
			continue // it was replaced because it had run nothing
		}
		if at.State == store.StateRefused {
			return nil, a.security(ctx, EventSecondOpening, at, "job %d: attempt %s was refused (%s), so there is no other", job, at.ID, at.Reason)
		}
		if at.State == store.StateOpen && at.Host != callerOf(ctx).Host {
			return nil, a.security(ctx, EventSecondOpening, at, "job %d: another host has it open", job)
		}
		l, err := a.load(ctx, at)
		if err != nil {
			return nil, a.unavailable(ctx, "read record", err)
		}
		if l.ran {
			// That attempt did nothing wrong, and may go on.
			return nil, a.security(ctx, EventSecondOpening, at, "job %d: attempt %s may have run tenant code, so there is no other", job, at.ID)
		}
		if at.State == store.StateOpen {
			replaced = append(replaced, at.ID)
		} else {
			a.forget(at.ID)
		}
	}
	return replaced, nil
}

func (a *Authority) newAttempt(req *authoritypb.OpenRequest, f gitlab.Facts, c gitlab.Confirmed) store.Attempt {
	id := randomHex(16)
	return store.Attempt{
		ID: id, Session: req.GetSession(), Profile: req.GetProfile(), Nonce: randomHex(32),
		InvocationID: a.cfg.BuilderURI + "/attempts/" + id,
		BuilderID:    a.cfg.BuilderURI + "/" + req.GetProfile(),
		Job: store.Job{
			ID: f.ID, Name: f.Name, Stage: f.Stage, ProjectID: f.ProjectID, Project: c.Project, Host: c.Host,
			PipelineID: f.PipelineID, UserID: f.UserID, Ref: f.Ref, Tag: f.Tag, SHA: f.SHA,
			RunnerID: f.Runner, Manager: f.Manager,
		},
		Opened: a.now(), State: store.StateOpen,
	}
}
