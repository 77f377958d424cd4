package main

import (
	"context"

	"google.golang.org/grpc/status"

	pb "hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/authority/client"
	"hallmark.build/sandbox/host"
	"hallmark.build/sandbox/record"
)

// authority speaks to hallmark-attestd on the host's behalf.
type authority struct{ stub pb.AuthorityClient }

func (a authority) Open(ctx context.Context, o host.Opening) (host.Opened, error) {
	r, err := a.stub.Open(ctx, &pb.OpenRequest{
		Session: o.Session, Profile: o.Profile, JobToken: o.Token, IdToken: o.IDToken,
		Job: &pb.JobFacts{
			Id: o.Job.ID, Name: o.Job.Name, Stage: o.Job.Stage, ProjectId: o.Job.ProjectID,
			PipelineId: o.Job.PipelineID, UserId: o.Job.UserID,
			Ref: o.Job.Ref, Tag: o.Job.RefType == "tag", Sha: o.Job.SHA, RunnerId: o.Runner,
		},
	})
	if err != nil {
		return host.Opened{}, inWords(err)
	}
	return host.Opened{
		Attempt: r.GetAttempt(), Nonce: r.GetNonce(), InvocationID: r.GetInvocationId(),
		CommitmentKey: r.GetCommitmentKey(),
	}, nil
}

func (a authority) Append(ctx context.Context, attempt string, lines [][]byte) (record.Head, error) {
	r, err := a.stub.Append(ctx, &pb.AppendRequest{Attempt: attempt, Lines: lines})
	if err != nil {
		return record.Head{}, inWords(err)
	}
	return record.Head{Entries: r.GetEntries(), Hash: r.GetHead()}, nil
}

func (a authority) Close(ctx context.Context, attempt string, head record.Head, token string) (host.Closed, error) {
	r, err := a.stub.Close(ctx, &pb.CloseRequest{Attempt: attempt, Head: head.Hash, JobToken: token})
	if err != nil {
		return host.Closed{}, inWords(err)
	}
	out := host.Closed{Reason: r.GetReason(), Pending: r.GetPending(), URL: r.GetUrl()}
	for _, at := range r.GetAttestations() {
		out.Attestations = append(out.Attestations, host.Attestation{URL: at.GetUrl()})
	}
	return out, nil
}

func (a authority) Provenance(ctx context.Context, attempt, sha256 string, job int64) ([]host.Origin, error) {
	r, err := a.stub.Provenance(ctx, &pb.ProvenanceRequest{Attempt: attempt, Sha256: sha256, JobId: job})
	if err != nil {
		return nil, inWords(err)
	}
	out := make([]host.Origin, 0, len(r.GetOrigins()))
	for _, o := range r.GetOrigins() {
		out = append(out, host.Origin{
			Bundle: o.GetBundleSha256(), Invocation: o.GetInvocationId(), Project: o.GetProject(), Ref: o.GetRef(),
			Protected: o.GetProtected(), Job: o.GetJobId(), Result: o.GetResult(), Builder: o.GetBuilderId(),
		})
	}
	return out, nil
}

// inWords drops gRPC's frame around the authority's own words, and tells
// silence, after which one may ask again, from a refusal, and both from an
// answer that decides nothing.
func inWords(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	text := &statusError{s.Message()}
	switch {
	case client.IsTemporary(err):
		return &host.UnavailableError{Err: text}
	case client.IsUndecided(err):
		return &host.UndecidedError{Err: text}
	}
	return text
}

type statusError struct{ text string }

func (e *statusError) Error() string { return e.text }
