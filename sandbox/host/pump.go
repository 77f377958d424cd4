package host

import (
	"context"
	"fmt"
	"sync"
	"time"

	"hallmark.build/sandbox/record"
)

// Limits of the stream to the authority.
const (
	batchBytes = 1 << 20          // of one Append
	patience   = 30 * time.Second // with an authority that does not answer
	oneCall    = 10 * time.Second // of that, for one Append
)

// A pump streams a record to the authority while it grows.
type pump struct {
	log       *record.Log
	authority Authority
	attempt   string
	patience  time.Duration
	persists  bool // goes on trying after its patience is at its end

	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	acked   record.Head
	err     error         // the authority refused, or stayed silent too long
	changed chan struct{} // closed when acked or err changes
}

func newPump(log *record.Log, authority Authority, attempt string, patience time.Duration, persists bool) *pump {
	return &pump{log: log, authority: authority, attempt: attempt, patience: patience, persists: persists,
		done: make(chan struct{}), changed: make(chan struct{})}
}

func (p *pump) start() *pump {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	go p.run(ctx)
	return p
}

func (p *pump) run(ctx context.Context) {
	defer close(p.done)
	for {
		changed := p.log.Changed()
		for p.behind() {
			if err := p.send(ctx); err != nil {
				p.set(p.head(), err)
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (p *pump) head() record.Head {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acked
}

func (p *pump) behind() bool { return p.head().Entries < p.log.Head().Entries }

// send gives the authority the next batch and believes its answer only if it
// names the hash of the batch's last line.
func (p *pump) send(ctx context.Context) error {
	from := p.head().Entries
	lines, err := p.log.Lines(from, batchBytes)
	if err != nil {
		return err
	}
	head, err := p.try(ctx, lines)
	if err != nil {
		return err
	}
	want := record.Head{Entries: from + int64(len(lines)), Hash: record.HashLine(lines[len(lines)-1])}
	if head != want {
		return fmt.Errorf("authority: acknowledged entry %d as %s, sent entry %d as %s", head.Entries, head.Hash, want.Entries, want.Hash)
	}
	p.set(head, nil)
	return nil
}

// try repeats an Append, which is idempotent, until the authority's patience
// or ours is at its end. A refusal is final. A pump that persists tells those
// who wait that it was in vain, and goes on.
func (p *pump) try(ctx context.Context, lines [][]byte) (record.Head, error) {
	deadline := time.Now().Add(p.patience)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		head, err := p.append(ctx, lines)
		if err == nil || !unavailable(err) {
			return head, err
		}
		if time.Now().After(deadline) {
			if !p.persists {
				return head, err
			}
			p.set(p.head(), err)
		}
		select {
		case <-ctx.Done():
			return record.Head{}, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func (p *pump) append(ctx context.Context, lines [][]byte) (record.Head, error) {
	ctx, cancel := context.WithTimeout(ctx, oneCall)
	defer cancel()
	return p.authority.Append(ctx, p.attempt, lines)
}

func (p *pump) set(head record.Head, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acked, p.err = head, err
	close(p.changed)
	p.changed = make(chan struct{})
}

// acknowledged waits until the authority holds everything written so far.
func (p *pump) acknowledged(ctx context.Context) error {
	want := p.log.Head().Entries
	for {
		p.mu.Lock()
		acked, err, changed := p.acked.Entries, p.err, p.changed
		p.mu.Unlock()
		switch {
		case err != nil:
			return fmt.Errorf("the authority does not hold the record: %w", err)
		case acked >= want:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// close stops streaming. It reports whether the authority holds everything.
func (p *pump) close() bool {
	p.stop()
	<-p.done
	return !p.behind()
}
