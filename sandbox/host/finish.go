package host

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox/record"
)

// Bounds of closing an attempt with the authority.
const (
	closeTimeout = time.Minute
	oneClose     = 25 * time.Second // of that, for one Close
)

// attest closes the record after the uploads. It is the last moment at which
// the job can still be failed, so a job whose outputs cannot be attested fails
// here.
func (h *Host) attest(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := h.close(ctx, j, j.results.sum()); err != nil {
		return err
	}
	if _, outputs, _ := j.inputs.numbers(); outputs > 0 && j.fate() == notAttested {
		return &hintedError{fmt.Errorf("the outputs were not attested: %s", j.closed.Reason),
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
	if err := j.stopServices(ctx); err != nil {
		log.Error("services not ended", "error", err)
	}
	if err := h.close(ctx, j, j.results.sum()); err != nil {
		j.closed.Reason = err.Error()
		log.Error("attempt not closed", "error", err)
	}
}

// close writes the last entry and lets the authority judge the record. Where
// the authority does not answer and the job may end all the same, the record is
// kept to be closed late.
func (h *Host) close(ctx context.Context, j *job, res result) error {
	j.finished = true
	e, err := j.record.Append(record.Closed, record.Closing{Result: res.outcome, ExitCode: res.code})
	if err != nil {
		return err
	}
	err = h.judge(ctx, j, record.Head{Entries: e.Seq + 1, Hash: e.Hash})
	if unavailable(err) && j.mayEndAlone() && j.security == nil && res.outcome != "system_failure" {
		return h.postpone(j, err)
	}
	return err
}

func (h *Host) judge(ctx context.Context, j *job, head record.Head) error {
	if err := j.delivered(ctx); err != nil {
		return err
	}
	closed, err := h.persist(ctx, j, head)
	if err != nil {
		return fmt.Errorf("close the attempt with the authority: %w", err)
	}
	j.closed = closed
	h.publishCaches(j)
	return nil
}

// persist repeats Close, as the pump repeats Append, while there is no answer: the
// decision may have been made and only the answer lost, and then the job must
// not fail.
func (h *Host) persist(ctx context.Context, j *job, head record.Head) (Closed, error) {
	deadline := time.Now().Add(j.patience())
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		closed, err := h.closeOnce(ctx, j, head)
		if !unavailable(err) || time.Now().After(deadline) {
			return closed, err
		}
		select {
		case <-ctx.Done():
			return closed, err
		case <-time.After(wait):
		}
	}
}

// patience is how long a job waits for the authority, once all is written.
func (j *job) patience() time.Duration {
	if j.mayEndAlone() {
		return min(j.pump.patience, latePatience)
	}
	return j.pump.patience
}

func (h *Host) closeOnce(ctx context.Context, j *job, head record.Head) (Closed, error) {
	ctx, cancel := context.WithTimeout(ctx, oneClose)
	defer cancel()
	return h.authority.Close(ctx, j.opened.Attempt, head, j.payload.Token)
}

// A fate is what became of a job's outputs, in one word for the job's log.
type fate string

const (
	notAttested fate = "not attested"
	attested    fate = "attested"
	signed      fate = "pending" // the authority has it in hand
	kept        fate = "kept"    // it is to be closed late
)

func (j *job) fate() fate {
	switch {
	case j.late != nil:
		return kept
	case j.closed.Pending:
		return signed
	case len(j.closed.Attestations) > 0:
		return attested
	}
	return notAttested
}

// summarize tells the developer, in the job's log, what was recorded.
func (j *job) summarize(out *joblog.Log) {
	fetched, outputs, names := j.inputs.numbers()
	blocked := j.blocks.total()
	section := out.Section("hallmark_evidence",
		fmt.Sprintf("Evidence: %s, %d blocked, %s", count(fetched, "input"), blocked, count(outputs, "output")), false)
	defer section.End()
	for _, name := range names {
		out.Printf("%-12s %s", j.fate(), name)
	}
	switch j.fate() {
	case attested:
		for _, a := range j.closed.Attestations {
			if a.URL != "" {
				out.Printf("bundle       %s", a.URL)
			}
		}
	case signed:
		out.Printf("not attested yet: %s", j.closed.Reason)
		if j.closed.URL != "" {
			out.Printf("it will be at %s", j.closed.URL)
		}
	case kept:
		out.Printf("not attested yet: %v", j.late)
		out.Printf("the record is kept on this host and closed when the authority answers; %s", j.unacknowledged())
	case notAttested:
		out.Printf("not attested: %s", j.whyNot())
	}
}

// unacknowledged says what a late closing depends on.
func (j *job) unacknowledged() string {
	held, all := j.pump.head().Entries, j.record.Head().Entries
	if held == all {
		return "it holds all entries already"
	}
	return fmt.Sprintf("if that is not within minutes, the last %d of %d entries come too late and nothing is attested", all-held, all)
}

func (j *job) whyNot() string {
	switch {
	case j.security != nil:
		return j.security.Error()
	case j.closed.Reason != "":
		return withoutCode(j.closed.Reason)
	}
	return "the job sent no artifacts"
}

// withoutCode is a reason of the authority's without the word for machines
// before it, as in "no_outputs: the job uploaded nothing".
func withoutCode(reason string) string {
	code, words, ok := strings.Cut(reason, ": ")
	if ok && words != "" && strings.Trim(code, "abcdefghijklmnopqrstuvwxyz_") == "" {
		return words
	}
	return reason
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
