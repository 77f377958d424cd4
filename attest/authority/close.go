package authority

import (
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
)

// How much of an answer may be bundles, and how much subjects, before the rest
// is left to be fetched by URL.
const (
	maxAnswerBundles  = 256 << 10 // little: a host that does not read its answers has them lie here
	maxAnswerSubjects = 128 << 10
	leastSubject      = 64 + 16 // its digest, and what goes with it
)

// Limits of closing.
const (
	signTimeout = time.Minute
	keepTimeout = 30 * time.Second
	logTimeout  = 20 * time.Second // a host's call has little more
)

// Close ends an attempt and returns what it was decided to have, or that the
// authority goes on by itself.
func (a *Authority) Close(ctx context.Context, req *authoritypb.CloseRequest) (*authoritypb.CloseResponse, error) {
	if err := a.settle(ctx, req); err != nil {
		return nil, err
	}
	if err := a.complete(ctx, req.GetAttempt()); err != nil {
		return nil, err
	}
	a.forget(req.GetAttempt())
	return a.answer(ctx, req.GetAttempt())
}

// settle takes an attempt as far as its job's lock is needed: it is open no
// longer, or waits.
func (a *Authority) settle(ctx context.Context, req *authoritypb.CloseRequest) error {
	ctx, at, unlock, err := a.lockAttempt(ctx, req.GetAttempt())
	if err != nil {
		return err
	}
	defer unlock()
	switch at.State {
	case store.StateOpen:
	case store.StateSigned, store.StateClosed:
		return nil // there is nothing more to ask the record
	default:
		return ended(at)
	}
	held, err := a.load(ctx, &at)
	if err != nil {
		return a.unavailable(ctx, "read record", err)
	}
	if !held.chain.Closed() {
		return status.Error(codes.FailedPrecondition, "the record does not end in a closed entry")
	}
	if head := held.chain.Head().Hash; req.GetHead() != head {
		return a.condemn(ctx, EventHeadDiffers, &at, "the host's head of the record is not the one that was acknowledged")
	}
	return a.conclude(ctx, &at, req.GetJobToken(), held.closing)
}

// conclude brings an open attempt whose record is whole as far as it goes at
// once: ended without a bundle, waiting for GitLab, or signed.
func (a *Authority) conclude(ctx context.Context, at *store.Attempt, token string, c closing) error {
	statements, err := a.statements(ctx, at)
	if err != nil || len(statements) == 0 {
		return err
	}
	stepAside(ctx)
	if ok, err := a.confirm(ctx, at, token, c); err != nil || !ok {
		return err
	}
	return a.sign(ctx, at, statements)
}

// complete enters what was signed in the log, unless the profile lets that
// happen later. It holds no lock: whoever else does the same, the first holds.
// A log that does not answer is waited for by the authority, not by the host:
// what is signed will be attested, so its job must not fail.
func (a *Authority) complete(ctx context.Context, id string) error {
	at, err := a.attempt(ctx, id)
	if err != nil || at.State != store.StateSigned {
		return err
	}
	if a.cfg.Transparency != nil && slices.Contains(a.cfg.Background, at.Profile) {
		a.wakeUp()
		return nil
	}
	stepAside(ctx)
	if err := a.finish(ctx, &at); err != nil {
		a.cfg.Log.ErrorContext(ctx, "log entry follows later", "attempt", id, "error", err)
		a.wakeUp()
	}
	return nil
}

// statements builds what the record says. Where there is nothing to sign, the
// attempt is ended and there are none.
func (a *Authority) statements(ctx context.Context, at *store.Attempt) ([]attest.Statement, error) {
	size, err := a.cfg.Store.RecordSize(ctx, at.ID)
	if err != nil {
		return nil, a.unavailable(ctx, "read record", err)
	}
	memory, err := a.limits.records.enter(ctx, at.Host, size)
	if err != nil {
		return nil, err
	}
	defer memory.leave()
	entries, err := a.entries(ctx, at.ID)
	if err != nil {
		return nil, a.unavailable(ctx, "read record", err)
	}
	statements, err := attest.Statements(entries, attest.Facts{
		BuilderID:      at.BuilderID,
		BuilderVersion: map[string]string{"hallmark-attestd": a.cfg.Version},
		GitLabURL:      a.cfg.GitLabURL,
	})
	var refusal *attest.Refusal
	switch {
	case errors.As(err, &refusal) && !refusal.Security():
		return nil, a.end(ctx, at, string(refusal.Reason)+": "+refusal.Detail)
	case errors.As(err, &refusal):
		return nil, a.condemn(ctx, EventRecordRefused, at, "%v", refusal)
	case err != nil:
		return nil, a.unavailable(ctx, "build statement", err)
	}
	if err := a.checkOrigins(ctx, at, entries); err != nil {
		return nil, err
	}
	if err := a.checkDownloads(ctx, at, entries); err != nil {
		return nil, err
	}
	return statements, nil
}

// end closes an attempt without a bundle.
func (a *Authority) end(ctx context.Context, at *store.Attempt, reason string) error {
	return a.close(ctx, at, store.Decision{State: store.StateClosed, Reason: brief(reason), Ended: a.now()})
}

// close stores the last decision about an attempt. Of several the first holds.
func (a *Authority) close(ctx context.Context, at *store.Attempt, d store.Decision) error {
	done := a.metrics.timed("store")
	err := a.decide(ctx, at.ID, d)
	done()
	if errors.Is(err, store.ErrDecided) {
		return nil
	}
	if err != nil {
		return a.unavailable(ctx, "store decision", err)
	}
	a.audit(ctx, EventClosed, append(attemptFields(at), "project", d.Project, "bundles", len(d.Bundles), "reason", d.Reason)...)
	return nil
}

// sign signs the statements of an attempt and keeps them, before anybody sees a
// signature. If another replica kept its own first, these are forgotten. For a
// caller who has gone nothing is kept: a host that got no answer fails its job.
func (a *Authority) sign(ctx context.Context, at *store.Attempt, statements []attest.Statement) error {
	opened, err := a.openedOf(ctx, at.ID)
	if err != nil {
		return a.unavailable(ctx, "read record", err)
	}
	drafts, err := a.drafts(ctx, at, statements)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return status.FromContextError(err).Err()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
	defer cancel()
	done := a.metrics.timed("store")
	err = a.cfg.Store.Sign(ctx, at.ID, drafts, at.Job.Project, isProtected(&opened))
	done()
	a.tokens.forget(at.ID)
	if err != nil && !errors.Is(err, store.ErrDecided) {
		return a.unavailable(ctx, "store signatures", err)
	}
	a.limits.removeOpen(at.ID)
	return nil
}

// drafts signs statements.
func (a *Authority) drafts(ctx context.Context, at *store.Attempt, statements []attest.Statement) ([]store.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	turn, err := a.limits.signing.enter(ctx, at.Host, 1)
	if err != nil {
		return nil, err
	}
	defer turn.leave()
	drafts := make([]store.Bundle, 0, len(statements))
	for _, st := range statements {
		done := a.metrics.timed("sign")
		bundle, err := a.cfg.Signer.Sign(ctx, st)
		done()
		if err != nil {
			return nil, a.unavailable(ctx, "sign", err)
		}
		drafts = append(drafts, store.Bundle{JSON: bundle, Subjects: st.Subjects})
	}
	return drafts, nil
}

// answer tells what is in the store, and nothing else.
func (a *Authority) answer(ctx context.Context, id string) (*authoritypb.CloseResponse, error) {
	at, err := a.attempt(ctx, id)
	if err != nil {
		return nil, err
	}
	switch {
	case at.State == store.StateSigned:
		return a.pending(&at, signedReason), nil
	case at.State == store.StateOpen && at.Reason != "":
		return a.pending(&at, at.Reason), nil
	case at.State != store.StateClosed:
		return nil, ended(at)
	}
	parts, err := a.cfg.Store.Parts(ctx, id, maxAnswerSubjects/leastSubject+1)
	if err != nil {
		return nil, a.unavailable(ctx, "read bundles", err)
	}
	res := &authoritypb.CloseResponse{Reason: at.Reason, Url: a.link("/v1/attempts/" + at.ID)}
	bundleRoom, subjectRoom := maxAnswerBundles, maxAnswerSubjects
	for _, p := range parts {
		out := &authoritypb.Attestation{Sha256: p.SHA256, SubjectCount: p.Count, Url: a.link("/v1/bundles/sha256:" + p.SHA256)}
		if bundleRoom >= 0 { // else there is no need to read it
			bundle, err := a.cfg.Store.Content(ctx, p.SHA256)
			if err != nil {
				return nil, a.unavailable(ctx, "read bundles", err)
			}
			if bundleRoom -= len(bundle); bundleRoom >= 0 {
				out.Bundle = bundle
			}
		}
		for _, s := range p.Subjects {
			if subjectRoom -= len(s.Name) + leastSubject; subjectRoom < 0 {
				break
			}
			out.Subjects = append(out.Subjects, &authoritypb.Subject{Name: s.Name, Sha256: s.SHA256})
		}
		res.Attestations = append(res.Attestations, out)
	}
	return res, nil
}

// What a pending attempt waits for.
const (
	signedReason  = "signed; its log proof follows"
	waitingReason = "closed; GitLab does not answer, and has yet to confirm the job"
)

func (a *Authority) pending(at *store.Attempt, reason string) *authoritypb.CloseResponse {
	return &authoritypb.CloseResponse{Pending: true, Reason: reason, Url: a.link("/v1/attempts/" + at.ID)}
}

func (a *Authority) link(path string) string {
	if a.cfg.PublicURL == "" {
		return ""
	}
	return a.cfg.PublicURL + path
}
