package host

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
)

// downloadLog keeps what is to be said of earlier jobs' outputs until the stage
// has ended.
type downloadLog struct {
	mu    sync.Mutex
	lines []string
}

func (d *downloadLog) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *downloadLog) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	lines := d.lines
	d.lines = nil
	return lines
}

// reportDownloads says in the job's log where its artifacts and caches come from.
func (j *job) reportDownloads(out *joblog.Log) {
	lines := j.downloads.take()
	if len(lines) > 0 {
		out.Break()
	}
	for _, line := range lines {
		out.Printf("%s", line)
	}
}

// vouched looks up an artifact of an earlier job. What its job was attested to
// have made is what the authority says; only where that job has no attestation at
// all is it the admin who decides.
func (h *Host) vouched(ctx context.Context, j *job, id int64, sha256 string) (invocation, attestation string, err error) {
	what := fmt.Sprintf("artifacts of %s (job %d)", joblog.Clean(j.dependency(id)), id)
	made, err := h.provenance(ctx, j, sha256, id, j.pump.patience)
	var others []Origin
	if err == nil && len(made) == 0 {
		others, err = h.provenance(ctx, j, "", id, j.pump.patience)
	}
	switch {
	case err != nil:
		return "", "", fmt.Errorf("ask the authority for the %s: %w", what, err)
	case len(made) > 0:
		j.downloads.note("%s: attested by %s", what, joblog.Clean(made[0].Invocation))
		return made[0].Invocation, made[0].Bundle, nil
	case len(others) > 0:
		return "", "", &sandbox.SecurityError{Err: fmt.Errorf("%s: GitLab hands out sha256:%s, which is not among the attested outputs of that job (%s)",
			what, sha256, joblog.Clean(others[0].Invocation))}
	case h.cfg.RefuseUnattested:
		return "", "", &sandbox.UserError{Err: fmt.Errorf("%s: not attested", what),
			Hint: "the runner's admin lets jobs take attested artifacts alone: run that job on an attesting runner too"}
	default:
		j.downloads.note("%s: not attested", what)
	}
	return "", "", nil
}

// dependency is what an earlier job is called.
func (j *job) dependency(id int64) string {
	for _, d := range j.payload.Dependencies {
		if d.ID == id {
			return d.Name
		}
	}
	return "an unknown job"
}

// provenance asks the authority who made something, and again while there is no
// answer and patience is left.
func (h *Host) provenance(ctx context.Context, j *job, sha256 string, id int64, patience time.Duration) ([]Origin, error) {
	deadline := time.Now().Add(patience)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		origins, err := h.askProvenance(ctx, j, sha256, id)
		if !unavailable(err) || time.Now().After(deadline) {
			return origins, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(wait):
		}
	}
}

func (h *Host) askProvenance(ctx context.Context, j *job, sha256 string, id int64) ([]Origin, error) {
	ctx, cancel := context.WithTimeout(ctx, oneCall)
	defer cancel()
	return h.authority.Provenance(ctx, j.opened.Attempt, sha256, id)
}
