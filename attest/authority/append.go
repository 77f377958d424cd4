package authority

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/attest/authority/authoritypb"
	"hallmark.build/attest/store"
	"hallmark.build/sandbox/record"
)

// Append adds lines to an attempt's record. All of a call's lines are taken, or
// none.
func (a *Authority) Append(ctx context.Context, req *authoritypb.AppendRequest) (*authoritypb.AppendResponse, error) {
	ctx, at, unlock, err := a.lockAttempt(ctx, req.GetAttempt())
	if err != nil {
		return nil, err
	}
	defer unlock()
	if at.State != store.StateOpen {
		return nil, ended(at)
	}
	head, err := a.add(ctx, &at, req.GetLines())
	if errors.Is(err, store.ErrConflict) {
		head, err = a.add(ctx, &at, req.GetLines()) // another replica was faster
	}
	if errors.Is(err, store.ErrConflict) {
		return nil, a.unavailable(ctx, "store record", err)
	}
	if err != nil {
		return nil, err
	}
	return &authoritypb.AppendResponse{Entries: head.Entries, Head: head.Hash}, nil
}

// add checks lines against the record as it is, and adds those that are new. It
// is a bare store.ErrConflict if the record grew in between.
func (a *Authority) add(ctx context.Context, at *store.Attempt, lines [][]byte) (record.Head, error) {
	held, err := a.load(ctx, at)
	if err != nil {
		return record.Head{}, a.unavailable(ctx, "read record", err)
	}
	grown, fresh, err := a.grow(ctx, at, held, lines)
	if err != nil {
		return record.Head{}, err
	}
	if len(fresh) > 0 {
		if err := a.cfg.Store.AppendRecord(ctx, at.ID, held.size, fresh); err != nil {
			a.forget(at.ID) // the store may hold some of them now
			if errors.Is(err, store.ErrConflict) {
				return record.Head{}, store.ErrConflict
			}
			return record.Head{}, a.unavailable(ctx, "store record", err)
		}
		a.keep(at, grown)
	}
	return grown.chain.Head(), nil
}

// grow checks lines against the record that is held. It returns the record as
// it would be, and those lines that are new.
func (a *Authority) grow(ctx context.Context, at *store.Attempt, held *live, lines [][]byte) (*live, [][]byte, error) {
	grown := held.copy()
	var fresh [][]byte
	for i, line := range lines {
		if same, known := grown.has(line); known {
			if !same {
				return nil, nil, a.condemn(ctx, EventRewritten, at, "a line differs from the one that was acknowledged in its place")
			}
			continue
		}
		e, err := grown.add(line)
		if err != nil {
			return nil, nil, a.refuseLine(ctx, at, lines[i:], err)
		}
		if grown.size > a.maxRecord {
			return nil, nil, a.tooLarge(ctx, at, fmt.Sprintf("record of more than %d bytes", a.maxRecord))
		}
		if err := a.checkEntry(ctx, at, e); err != nil {
			return nil, nil, err
		}
		fresh = append(fresh, line)
	}
	return grown, fresh, nil
}

// refuseLine refuses the first of lines. It tells one that is no line, which
// proves nothing, from one that does not follow what was acknowledged.
func (a *Authority) refuseLine(ctx context.Context, at *store.Attempt, lines [][]byte, err error) error {
	if _, ok := seqOf(lines[0]); !ok {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	switch {
	case errors.Is(err, record.ErrTooMany):
		return a.tooLarge(ctx, at, err.Error())
	case errors.Is(err, record.ErrGap) && reordered(lines):
		return a.condemn(ctx, EventReordered, at, "%v, and it follows later: the entries are not in order", err)
	case errors.Is(err, record.ErrGap):
		return a.condemn(ctx, EventGap, at, "%v", err)
	case errors.Is(err, record.ErrFork):
		return a.condemn(ctx, EventFork, at, "%v", err)
	case errors.Is(err, record.ErrKind):
		return a.condemn(ctx, EventUnknownKind, at, "%v", err)
	}
	return a.condemn(ctx, EventMalformed, at, "%v", err)
}

// reordered reports whether a line that is too early in lines is followed by
// one that should stand before it.
func reordered(lines [][]byte) bool {
	first, _ := seqOf(lines[0])
	return slices.ContainsFunc(lines[1:], func(line []byte) bool {
		seq, ok := seqOf(line)
		return ok && seq < first
	})
}

// tooLarge refuses a record that can never end well: to ask again does not help.
func (a *Authority) tooLarge(ctx context.Context, at *store.Attempt, why string) error {
	a.auditSparingly(ctx, at.Host, EventTooLarge, append([]any{"why", why}, attemptFields(at)...)...)
	return exhausted(limitRecord, 0, "%s", why)
}

func (a *Authority) checkEntry(ctx context.Context, at *store.Attempt, e record.Entry) error {
	now := a.now()
	switch {
	case e.Time.After(now.Add(MaxSkew)):
		return a.condemn(ctx, EventClockSkew, at, "entry %d is from %s, more than %s ahead of the authority's clock", e.Seq, e.Time, MaxSkew)
	case e.Time.Before(now.Add(-MaxSkew)):
		// A network that was down looks the same: the attempt cannot go on, but
		// nothing contradicts anything.
		why := fmt.Sprintf("entry %d is from %s, more than %s ago", e.Seq, e.Time, MaxSkew)
		a.auditSparingly(ctx, at.Host, EventClockSkew, append([]any{"why", why}, attemptFields(at)...)...)
		return status.Error(codes.FailedPrecondition, why)
	}
	if e.Kind != record.JobOpened {
		return nil
	}
	var o record.Opened
	if err := e.Decode(&o); err != nil {
		return a.condemn(ctx, EventMalformed, at, "%v", err)
	}
	if field := a.differs(at, &o); field != "" {
		event := EventFactsDiffer
		if slices.Contains([]string{"session", "attempt", "nonce", "invocation id"}, field) {
			event = EventReplayed
		}
		return a.condemn(ctx, event, at, "the record opens with another %s than the attempt", field)
	}
	return nil
}

// differs names the first field in which the record's first entry is not about
// this attempt and the job that GitLab confirmed.
func (a *Authority) differs(at *store.Attempt, o *record.Opened) string {
	j := &at.Job
	refType := "branch"
	if j.Tag {
		refType = "tag"
	}
	for _, f := range []struct{ name, want, have string }{
		{"session", at.Session, o.Session},
		{"attempt", at.ID, o.Attempt},
		{"nonce", at.Nonce, o.Nonce},
		{"invocation id", at.InvocationID, o.InvocationID},
		{"profile", at.Profile, o.Profile},
		{"job id", fmt.Sprint(j.ID), fmt.Sprint(o.Job.ID)},
		{"job name", j.Name, o.Job.Name},
		{"job stage", j.Stage, o.Job.Stage},
		{"project id", fmt.Sprint(j.ProjectID), fmt.Sprint(o.Job.ProjectID)},
		{"pipeline id", fmt.Sprint(j.PipelineID), fmt.Sprint(o.Job.PipelineID)},
		{"user id", fmt.Sprint(j.UserID), fmt.Sprint(o.Job.UserID)},
		{"ref", j.Ref, o.Job.Ref},
		{"ref type", refType, o.Job.RefType},
		{"commit", j.SHA, o.Job.SHA},
		{"project", j.Project, o.Job.Project},
	} {
		if f.want != f.have {
			return f.name
		}
	}
	if !a.sourceOf(at, o.Job.SourceURI) {
		return "source"
	}
	return ""
}

// sourceOf reports whether uri is where GitLab serves the project's repository:
// nothing that GitLab answers holds that address whole, but its host is
// GitLab's, by the name that we or that people use, and its path is the project's.
func (a *Authority) sourceOf(at *store.Attempt, uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return false
	}
	if u.Scheme != "https" && u.Scheme != "http" {
		return false
	}
	host := u.Hostname()
	if host == "" || !strings.EqualFold(host, a.gitlab.Hostname()) && !strings.EqualFold(host, at.Job.Host) {
		return false
	}
	return at.Job.Project != "" && strings.TrimSuffix(u.EscapedPath(), ".git") == strings.TrimSuffix(a.gitlab.Path, "/")+"/"+at.Job.Project
}
