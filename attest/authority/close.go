package authority

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// How much of an answer may be bundles, and how much subjects, before the rest
// is left to be fetched by URL.
const (
	maxAnswerBundles  = 1 << 20 // little: a host that does not read its answers has them lie here
	maxAnswerSubjects = 512 << 10
)

// Close ends an attempt and returns what it was decided to have.
func (a *Authority) Close(ctx context.Context, req *authoritypb.CloseRequest) (*authoritypb.CloseResponse, error) {
	ctx, at, unlock, err := a.lockAttempt(ctx, req.GetAttempt())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if at.State != store.StateOpen && at.State != store.StateClosed {
		return nil, ended(at)
	}
	held, err := a.load(ctx, &at)
	if err != nil {
		return nil, a.unavailable(ctx, "read record", err)
	}
	if !held.chain.Closed() {
		return nil, status.Error(codes.FailedPrecondition, "the record does not end in a closed entry")
	}
	if head := held.chain.Head().Hash; req.GetHead() != head {
		return nil, a.condemn(ctx, EventHeadDiffers, &at, "the host's head of the record is not the one that was acknowledged")
	}
	if at.State == store.StateOpen {
		if err := a.conclude(ctx, &at); err != nil {
			return nil, err
		}
	}
	a.forget(at.ID)
	return a.answer(ctx, at.ID)
}

// conclude decides about an open attempt whose record is complete.
func (a *Authority) conclude(ctx context.Context, at *store.Attempt) error {
	size, err := a.cfg.Store.RecordSize(ctx, at.ID)
	if err != nil {
		return a.unavailable(ctx, "read record", err)
	}
	memory, err := a.limits.records.enter(ctx, at.Host, size)
	if err != nil {
		return err
	}
	defer memory.leave()
	entries, err := a.entries(ctx, at.ID)
	if err != nil {
		return a.unavailable(ctx, "read record", err)
	}
	d, err := a.decision(ctx, at, entries)
	var refusal *attest.Refusal
	if errors.As(err, &refusal) {
		return a.condemn(ctx, EventRecordRefused, at, "%v", refusal)
	}
	if err != nil {
		return a.unavailable(ctx, "sign", err)
	}
	err = a.decide(ctx, at.ID, d)
	if err != nil && !errors.Is(err, store.ErrDecided) {
		return a.unavailable(ctx, "store decision", err)
	}
	a.audit(ctx, EventClosed, append(attemptFields(at), "project", d.Project, "bundles", len(d.Bundles), "reason", d.Reason)...)
	return nil
}

// decision builds and signs. The error is an *attest.Refusal where the record
// contradicts itself.
func (a *Authority) decision(ctx context.Context, at *store.Attempt, entries []record.Entry) (store.Decision, error) {
	d := store.Decision{State: store.StateClosed, Ended: a.now()}
	statements, err := attest.Statements(entries, attest.Facts{
		BuilderID:      at.BuilderID,
		BuilderVersion: map[string]string{"hallmark-attestd": a.cfg.Version},
		GitLabURL:      a.cfg.GitLabURL,
	})
	var refusal *attest.Refusal
	if errors.As(err, &refusal) && !refusal.Security() {
		d.Reason = string(refusal.Reason) + ": " + refusal.Detail
		return d, nil
	}
	if err != nil {
		return store.Decision{}, err
	}
	var o record.Opened
	if err := entries[0].Decode(&o); err != nil {
		return store.Decision{}, err
	}
	d.Project = o.Job.Project
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	for _, st := range statements {
		signed := a.metrics.timed("sign")
		bundle, err := a.cfg.Signer.Sign(ctx, st)
		signed()
		if err != nil {
			return store.Decision{}, err
		}
		d.Bundles = append(d.Bundles, store.Bundle{JSON: bundle, Subjects: st.Subjects})
	}
	return d, nil
}

// answer tells what is in the store, and nothing else.
func (a *Authority) answer(ctx context.Context, id string) (*authoritypb.CloseResponse, error) {
	at, err := a.attempt(ctx, id)
	if err != nil {
		return nil, err
	}
	if at.State != store.StateClosed {
		return nil, ended(at)
	}
	bundles, err := a.cfg.Store.Bundles(ctx, id)
	if err != nil {
		return nil, a.unavailable(ctx, "read bundles", err)
	}
	res := &authoritypb.CloseResponse{Reason: at.Reason}
	bundleRoom, subjectRoom := maxAnswerBundles, maxAnswerSubjects
	for _, b := range bundles {
		sum := sha256.Sum256(b.JSON)
		out := &authoritypb.Attestation{Sha256: hex.EncodeToString(sum[:]), SubjectCount: int64(len(b.Subjects))}
		out.Url = a.link("/v1/bundles/sha256:" + out.Sha256)
		if bundleRoom -= len(b.JSON); bundleRoom >= 0 {
			out.Bundle = b.JSON
		}
		for _, s := range b.Subjects {
			if subjectRoom -= len(s.Name) + len(s.SHA256) + 16; subjectRoom < 0 {
				break
			}
			out.Subjects = append(out.Subjects, &authoritypb.Subject{Name: s.Name, Sha256: s.SHA256})
		}
		res.Attestations = append(res.Attestations, out)
	}
	return res, nil
}

func (a *Authority) link(path string) string {
	if a.cfg.PublicURL == "" {
		return ""
	}
	return a.cfg.PublicURL + path
}
