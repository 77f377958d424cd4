package authority

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hallmark.build/attest/store"
)

// How attempts are gone on with that nobody waits for.
const (
	resumeEvery  = 5 * time.Second
	resumeMost   = 1 << 14 // are looked at in a round
	resumeAtOnce = 64      // entered in the log: they share checkpoints
	askAtOnce    = 4       // of GitLab
)

// Resume goes on with attempts that were signed and lack their log entry, or
// that wait for GitLab, until ctx ends: those that a crash left, those whose
// profile does not wait, and those that got no answer. Any replica takes them.
// The log and GitLab do not wait for each other.
func (a *Authority) Resume(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { a.again(ctx, a.wake, a.resumeSigned) })
	wg.Go(func() { a.again(ctx, nil, a.resumeWaiting) })
	wg.Wait()
}

// again goes one round after the other.
func (a *Authority) again(ctx context.Context, wake <-chan struct{}, round func(context.Context) error) {
	tick := time.NewTicker(resumeEvery)
	defer tick.Stop()
	for {
		if err := sheltered(func() error { return round(ctx) }); err != nil && ctx.Err() == nil {
			a.cfg.Log.ErrorContext(ctx, "resuming failed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// wakeUp has signed attempts looked at soon.
func (a *Authority) wakeUp() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// ResumeOnce goes on with all attempts that are due, once.
func (a *Authority) ResumeOnce(ctx context.Context) error {
	return errors.Join(a.resumeSigned(ctx), a.resumeWaiting(ctx))
}

func (a *Authority) resumeSigned(ctx context.Context) error {
	all, err := a.cfg.Store.Signed(ctx, resumeMost)
	if err != nil {
		return err
	}
	return a.signed.round(all, func(at *store.Attempt) error { return a.finish(ctx, at) })
}

func (a *Authority) resumeWaiting(ctx context.Context) error {
	all, err := a.cfg.Store.Waiting(ctx, resumeMost)
	if err != nil {
		return err
	}
	return a.waiting.round(all, func(at *store.Attempt) error { return a.resume(ctx, at) })
}

// resume takes the next step with an attempt that waits, under its job's lock,
// if it still waits.
func (a *Authority) resume(ctx context.Context, found *store.Attempt) error {
	ctx, unlock, err := a.lockJob(ctx, found.Host, found.Job.ID)
	if err != nil {
		return err
	}
	defer unlock()
	at, err := a.attempt(ctx, found.ID)
	if err != nil || at.State != store.StateOpen {
		return err
	}
	return a.confirmed(ctx, &at)
}

// finish enters the signatures of an attempt in the log and closes it with the
// proofs. It can be repeated, and needs no lock: the drafts are what they are, a
// signature has one place in the log, and the first decision holds.
func (a *Authority) finish(ctx context.Context, at *store.Attempt) error {
	drafts, err := a.cfg.Store.Drafts(ctx, at.ID)
	if err != nil || len(drafts) == 0 { // closed meanwhile
		return err
	}
	if err := a.enter(ctx, drafts); err != nil {
		return err
	}
	return a.close(ctx, at, store.Decision{State: store.StateClosed, Project: at.Project, Ended: a.now(), Bundles: drafts})
}

// enter puts the log's proof into each bundle.
func (a *Authority) enter(ctx context.Context, drafts []store.Bundle) error {
	if a.cfg.Transparency == nil {
		return nil
	}
	defer a.metrics.timed("log")()
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(resumeAtOnce)
	for i := range drafts {
		g.Go(func() (err error) {
			drafts[i].JSON, err = a.cfg.Transparency.Enter(ctx, drafts[i].JSON)
			return err
		})
	}
	return g.Wait()
}

// confirmed signs an attempt that waited for GitLab, once it has confirmed the
// job, if its host may still have it attested.
func (a *Authority) confirmed(ctx context.Context, at *store.Attempt) error {
	if ok, err := a.stillMay(ctx, at); err != nil || !ok {
		return err
	}
	held, err := a.load(ctx, at)
	if err != nil {
		return err
	}
	if ok, err := a.confirmLate(ctx, at, held.closing); err != nil || !ok {
		return err
	}
	statements, err := a.statements(ctx, at)
	if err != nil || len(statements) == 0 {
		return err
	}
	if err := a.sign(ctx, at, statements); err != nil {
		return err
	}
	a.forget(at.ID)
	a.wakeUp()
	return nil
}
