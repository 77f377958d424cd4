package host

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox/record"
)

// closeTimeout bounds closing an attempt with the authority.
const closeTimeout = time.Minute

// attest closes the record after the uploads. It is the last moment at which
// the job can still be failed, so a job whose outputs cannot be attested fails
// here.
func (h *Host) attest(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := h.close(ctx, j, j.results.sum()); err != nil {
		return err
	}
	if _, outputs, _ := j.inputs.numbers(); outputs > 0 && len(j.attested) == 0 {
		return &hintedError{fmt.Errorf("the outputs were not attested: %s", j.reason),
			"the authority's log says more; see SECURITY.md, \"When a job is not attested\""}
	}
	return nil
}

// finish closes the record where no upload did. Its errors can no longer fail
// the job; they are logged, and the attempt stays unattested.
func (h *Host) finish(j *job, log *slog.Logger) {
	if j.finished || j.record == nil || j.pump == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := h.close(ctx, j, j.results.sum()); err != nil {
		j.reason = err.Error()
		log.Error("attempt not closed", "error", err)
	}
}

// close writes the last entry and lets the authority judge the record.
func (h *Host) close(ctx context.Context, j *job, res result) error {
	j.finished = true
	e, err := j.record.Append(record.Closed, record.Closing{Result: res.outcome, ExitCode: res.code})
	if err != nil {
		return err
	}
	if err := j.pump.acknowledged(ctx); err != nil {
		return err
	}
	j.attested, j.reason, err = h.authority.Close(ctx, j.opened.Attempt, record.Head{Entries: e.Seq + 1, Hash: e.Hash})
	if err != nil {
		return fmt.Errorf("close the attempt with the authority: %w", err)
	}
	return nil
}

// summarize tells the developer, in the job's log, what was recorded.
func (j *job) summarize(out *joblog.Log) {
	fetched, outputs, names := j.inputs.numbers()
	blocked := j.blocks.total()
	section := out.Section("hallmark_evidence",
		fmt.Sprintf("Evidence: %s, %d blocked, %s", count(fetched, "input"), blocked, count(outputs, "output")), false)
	defer section.End()
	for _, name := range names {
		if len(j.attested) > 0 {
			out.Printf("attested     %s", name)
		} else {
			out.Printf("not attested %s", name)
		}
	}
	for _, a := range j.attested {
		if a.URL != "" {
			out.Printf("bundle       %s", a.URL)
		}
	}
	if len(j.attested) == 0 {
		out.Printf("no attestation: %s", j.whyNot())
	}
}

func (j *job) whyNot() string {
	switch {
	case j.security != nil:
		return j.security.Error()
	case j.reason != "":
		return j.reason
	}
	return "the job sent no artifacts"
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
