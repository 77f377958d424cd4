package authority

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest"
	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// maxOrigins are in one answer. A host needs one.
const maxOrigins = 16

// Provenance tells a host which attested attempts have a digest among their
// subjects, or which of a job there are at all. What it may learn is what the job
// may be given: outputs of jobs that its record names as dependencies, and of its
// own project. Where no job is asked for, these must be of its own protection and
// profile too.
func (a *Authority) Provenance(ctx context.Context, req *authoritypb.ProvenanceRequest) (*authoritypb.ProvenanceResponse, error) {
	switch {
	case !isHex(req.GetAttempt(), 32):
		return nil, status.Error(codes.InvalidArgument, "attempt: want 32 hex digits")
	case !isHex(req.GetSha256(), 64) && (req.GetSha256() != "" || req.GetJobId() == 0):
		return nil, status.Error(codes.InvalidArgument, "sha256: want 64 hex digits, or a job id without it")
	case req.GetJobId() < 0 || req.GetJobId() > maxNumber:
		return nil, status.Errorf(codes.InvalidArgument, "job id: %d is no identifier", req.GetJobId())
	}
	at, err := a.attempt(ctx, req.GetAttempt())
	if err != nil {
		return nil, err
	}
	if err := a.ownAttempt(ctx, &at); err != nil {
		return nil, err
	}
	if at.State != store.StateOpen {
		return nil, ended(at)
	}
	res, err := a.origins(ctx, &at, req.GetSha256(), req.GetJobId())
	if err != nil {
		return nil, a.unavailable(ctx, "find origins", err)
	}
	return res, nil
}

func (a *Authority) origins(ctx context.Context, at *store.Attempt, sha256 string, job int64) (*authoritypb.ProvenanceResponse, error) {
	opened, err := a.openedOf(ctx, at.ID)
	if err != nil {
		return nil, err
	}
	found, err := a.bundles(ctx, at, &opened, sha256, job)
	if err != nil {
		return nil, err
	}
	res := &authoritypb.ProvenanceResponse{}
	for _, f := range found {
		from, err := a.cfg.Store.Attempt(ctx, f.Attempt)
		if err != nil {
			return nil, err
		}
		if !mayUse(at, &opened, &from) {
			continue
		}
		origin, err := a.origin(ctx, f, &from)
		if err != nil {
			return nil, err
		}
		res.Origins = append(res.Origins, origin)
	}
	return res, nil
}

// bundles are those of a digest, or those of a job. It is the store that leaves
// out what a job without a protected ref made, or one under another profile: so
// none of those can take the places in the answer, however often they make the
// same.
func (a *Authority) bundles(ctx context.Context, at *store.Attempt, opened *record.Opened, sha256 string, job int64) ([]store.Found, error) {
	switch {
	case sha256 == "":
		return a.cfg.Store.ByJob(ctx, job, maxOrigins)
	case job == 0:
		protected := isProtected(opened)
		alike := store.Filter{Project: at.Job.Project, Profile: at.Profile, Protected: &protected}
		return a.cfg.Store.BySubject(ctx, sha256, alike, maxOrigins)
	}
	return a.cfg.Store.BySubject(ctx, sha256, store.Filter{Job: job}, maxOrigins)
}

// mayUse reports whether a job, whose record begins with opened, may be given
// what another made.
func mayUse(at *store.Attempt, opened *record.Opened, from *store.Attempt) bool {
	return at.Job.ProjectID == from.Job.ProjectID ||
		slices.ContainsFunc(opened.External.Dependencies, func(d record.DependencyChoice) bool { return d.ID == from.Job.ID })
}

// isProtected is a record's word on whether its job's ref is protected.
func isProtected(o *record.Opened) bool { return o.Job.Protected != nil && *o.Job.Protected }

// origin is what the statements of an attested attempt say of it, read where they
// had it from: its record.
func (a *Authority) origin(ctx context.Context, f store.Found, from *store.Attempt) (*authoritypb.Origin, error) {
	opened, err := a.openedOf(ctx, from.ID)
	if err != nil {
		return nil, err
	}
	result, err := a.resultOf(ctx, from.ID)
	if err != nil {
		return nil, err
	}
	return &authoritypb.Origin{
		BundleSha256: f.SHA256, InvocationId: from.InvocationID, BuilderId: from.BuilderID,
		Project: f.Project, Ref: from.Job.Ref, JobId: from.Job.ID, Result: result,
		Protected: isProtected(&opened),
	}, nil
}

// openedOf reads the first entry of an attempt's record. It is empty where
// nothing was appended yet.
func (a *Authority) openedOf(ctx context.Context, attempt string) (o record.Opened, err error) {
	f, err := a.cfg.Store.OpenRecord(ctx, attempt)
	if errors.Is(err, store.ErrNotFound) {
		return o, nil
	}
	if err != nil {
		return o, err
	}
	defer f.Close()
	line, err := bufio.NewReader(io.LimitReader(f, record.MaxLine+1)).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return o, nil // nothing, or torn
	}
	if err != nil {
		return o, err
	}
	return o, readData(line, record.JobOpened, &o)
}

// resultOf reads how a job ended from the last entry of its closed record.
func (a *Authority) resultOf(ctx context.Context, attempt string) (string, error) {
	size, err := a.cfg.Store.RecordSize(ctx, attempt)
	if err != nil {
		return "", err
	}
	f, err := a.cfg.Store.OpenRecord(ctx, attempt)
	if err != nil {
		return "", err
	}
	defer f.Close()
	last, err := lastLine(f, size)
	if err != nil {
		return "", err
	}
	var c record.Closing
	if err := readData(last, record.Closed, &c); err != nil {
		return "", err
	}
	return c.Result, nil
}

// lastLine reads the last line of a record. Most are short, so it looks at a
// little first.
func lastLine(f io.ReadSeeker, size int64) ([]byte, error) {
	for _, most := range []int64{4 << 10, record.MaxLine + 2} {
		tail := min(size, most)
		if _, err := f.Seek(size-tail, io.SeekStart); err != nil {
			return nil, err
		}
		last, err := io.ReadAll(io.LimitReader(f, tail))
		if err != nil {
			return nil, err
		}
		last = bytes.TrimSuffix(last, []byte("\n"))
		if i := bytes.LastIndexByte(last, '\n'); i >= 0 || tail == size {
			return last[i+1:], nil
		}
	}
	return nil, errors.New("stored record: its last line is too long")
}

// readData reads a line that was checked when it was appended.
func readData(line []byte, kind record.Kind, data any) error {
	e := struct {
		Kind record.Kind     `json:"kind"`
		Data json.RawMessage `json:"data"`
	}{}
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("stored record: %w", err)
	}
	if e.Kind != kind {
		return fmt.Errorf("stored record: %q where %q stands", e.Kind, kind)
	}
	return json.Unmarshal(e.Data, data)
}

// checkOrigins looks up every attestation that a record names as that of an
// input. The statement will name it too: so it must be ours, speak of that very
// digest, and be of a job whose outputs this one may be given.
func (a *Authority) checkOrigins(ctx context.Context, at *store.Attempt, entries []record.Entry) error {
	origins, err := attest.Origins(entries)
	if err != nil {
		return a.unavailable(ctx, "read origins", err)
	}
	if len(origins) == 0 {
		return nil
	}
	opened, err := a.openedOf(ctx, at.ID)
	if err != nil {
		return a.unavailable(ctx, "read record", err)
	}
	for _, o := range origins {
		found, err := a.cfg.Store.BySubject(ctx, o.SHA256, store.Filter{Bundle: o.Attestation, Job: o.Job}, 1)
		if err != nil {
			return a.unavailable(ctx, "find origin", err)
		}
		if len(found) == 0 {
			return a.condemn(ctx, EventOriginDiffers, at, "entry %d: attestation %s is not known here to speak of sha256:%s", o.Entry, o.Attestation, o.SHA256)
		}
		from, err := a.cfg.Store.Attempt(ctx, found[0].Attempt)
		if err != nil {
			return a.unavailable(ctx, "find origin", err)
		}
		if from.InvocationID != o.Invocation {
			return a.condemn(ctx, EventOriginDiffers, at, "entry %d: attestation %s is of another invocation than %s", o.Entry, o.Attestation, o.Invocation)
		}
		if !mayUse(at, &opened, &from) {
			return a.condemn(ctx, EventOriginDiffers, at, "entry %d: attestation %s is of project %s, whose outputs this job was not given", o.Entry, o.Attestation, found[0].Project)
		}
	}
	return nil
}

// checkDownloads looks up the artifacts of earlier jobs that nobody is said to
// vouch for. A host may not have known better: it asked before there was an
// attestation. But what its job did not make goes into no statement.
func (a *Authority) checkDownloads(ctx context.Context, at *store.Attempt, entries []record.Entry) error {
	downloads, err := attest.Unattested(entries)
	if err != nil {
		return a.unavailable(ctx, "read downloads", err)
	}
	for _, d := range downloads {
		made, err := a.cfg.Store.ByJob(ctx, d.Job, 1)
		if err != nil {
			return a.unavailable(ctx, "find origin", err)
		}
		if len(made) == 0 {
			continue
		}
		same, err := a.cfg.Store.BySubject(ctx, d.SHA256, store.Filter{Job: d.Job}, 1)
		if err != nil {
			return a.unavailable(ctx, "find origin", err)
		}
		if len(same) == 0 {
			return a.condemn(ctx, EventOriginDiffers, at, "entry %d: job %d was attested, and sha256:%s is not among its outputs", d.Entry, d.Job, d.SHA256)
		}
	}
	return nil
}
