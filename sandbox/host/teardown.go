package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"hallmark.build/sandbox/disk"
	"hallmark.build/sandbox/record"
	"hallmark.build/sandbox/workspace"
)

// teardownTimeout bounds what the runtime may take to remove one sandbox.
const teardownTimeout = time.Minute

// cleanup ends the job for good. It is idempotent and knows nothing of jobs
// that were never prepared, as the contract demands.
func (h *Host) cleanup(session string) error {
	j, err := h.find(session)
	if err != nil {
		return nil //nolint:nilerr // nothing is left of it, which is what was asked for
	}
	j.stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	h.finish(j, j.logger(h.log))
	return h.teardown(j)
}

// teardown removes everything of a job, built or half-built. The caller holds
// j.mu. What cannot be removed is tried again by the reaper.
func (h *Host) teardown(j *job) error {
	if j.gone {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), teardownTimeout)
	defer cancel()
	j.stop()
	for _, s := range j.services {
		if s.stop != nil {
			s.stop(errServiceOver)
		}
	}
	// A container that does not go keeps its network, files and ids: nothing is
	// taken from under processes that may live.
	if err := h.deleteContainers(ctx, j); err != nil {
		return fmt.Errorf("teardown: %w", err)
	}
	j.serving = false
	for _, s := range j.services {
		if s.done != nil {
			<-s.done // its container is gone, so it is about to
		}
	}
	if err := errors.Join(j.closeBorder(), j.removeFiles(), j.release()); err != nil {
		return fmt.Errorf("teardown: %w", err)
	}
	j.gone = true
	j.letGo()
	h.releaseCaches(j)
	if j.ids.Count > 0 {
		h.ids.give(j.ids)
	}
	j.runner.close()
	h.mu.Lock()
	delete(h.jobs, j.session)
	h.mu.Unlock()
	if j.late != nil {
		h.wakeLate()
	}
	j.logger(h.log).Info("sandbox removed")
	return nil
}

func (h *Host) deleteContainers(ctx context.Context, j *job) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, c := range j.containers.all() {
		wg.Go(func() {
			err := removeContainer(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *job) closeBorder() error {
	if j.border == nil {
		return nil
	}
	return j.border.Close()
}

// removeFiles leaves the directory alone while the workspace is in it: only
// package workspace is safe against what a tenant can nest.
func (j *job) removeFiles() error {
	if j.disk != nil {
		return j.clearDisk()
	}
	if j.space != nil {
		if err := j.space.Close(); err != nil {
			return err
		}
	}
	return os.RemoveAll(j.dir)
}

func removeContainer(ctx context.Context, c container) error {
	return errors.Join(c.Kill(ctx), c.Delete(ctx))
}

// release gives up the record. The file goes once the authority holds all of
// it; otherwise it is the only evidence there is, and stays, as does one that is
// to be closed late.
func (j *job) release() error {
	if j.record == nil {
		return nil
	}
	held := j.pump != nil && j.pump.close()
	err := j.record.Close()
	j.record, j.pump = nil, nil
	if !held || j.late != nil {
		return err
	}
	return errors.Join(err, os.Remove(j.recordPath))
}

func (h *Host) teardownAll() {
	var wg sync.WaitGroup
	for _, j := range h.all() {
		wg.Go(func() { h.abandon(j, errors.New("the sandbox daemon stops")) })
	}
	wg.Wait()
}

// abandon takes down a job that the runner did not clean up.
func (h *Host) abandon(j *job, why error) {
	j.stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.gone {
		return
	}
	log := j.logger(h.log)
	log.Warn("job abandoned", "reason", why.Error())
	j.results.note("", "system_failure", 0)
	h.finish(j, log)
	if err := h.teardown(j); err != nil {
		log.Error("sandbox not removed, will be tried again", "error", err)
	}
}

// sweep removes what an earlier daemon left: its jobs cannot go on.
func (h *Host) sweep(ctx context.Context) error {
	none := func(string) bool { return false }
	n, err := h.runtime.Sweep(ctx, none)
	if err != nil {
		return fmt.Errorf("remove leftover sandboxes: %w", err)
	}
	if err := disk.Sweep(h.workspaces()); err != nil {
		return err
	}
	if err := workspace.Sweep(h.workspaces(), none); err != nil {
		return fmt.Errorf("remove leftover workspaces: %w", err)
	}
	if err := removeChildren(h.workspaces()); err != nil {
		return err
	}
	if h.leftover, err = os.ReadDir(h.records()); err != nil {
		return err
	}
	if n > 0 || len(h.leftover) > 0 {
		h.log.Warn("an earlier daemon ended early", "sandboxes_removed", n, "records_left", len(h.leftover))
	}
	return nil
}

// removeChildren removes the few files of our own that lie beside workspaces.
func removeChildren(dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// settleRecords gives the authority the rest of records that an earlier daemon
// left, each ended as a failure of the host, so that their attempts are never
// attested. A record that the authority does not take stays: it is evidence.
func (h *Host) settleRecords(ctx context.Context) {
	for _, e := range h.leftover {
		if err := h.settle(ctx, filepath.Join(h.records(), e.Name())); err != nil {
			h.log.Error("leftover record kept", "record", e.Name(), "error", err)
		}
	}
}

func (h *Host) settle(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	l, err := record.Resume(path, time.Now)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	lines, err := l.Lines(0, 1)
	if err != nil {
		return err
	}
	if len(lines) == 0 { // not even opened
		return os.Remove(path)
	}
	attempt, err := attemptOf(lines[0])
	if err != nil {
		return err
	}
	wasClosed := l.Closed()
	if !wasClosed {
		closing := record.Closing{Result: "system_failure", Detail: "the sandbox daemon ended"}
		if _, err := l.Append(record.Closed, closing); err != nil {
			return err
		}
	}
	if err := deliver(ctx, l, h.authority, attempt, patience); err != nil {
		return err
	}
	if !wasClosed {
		if _, err := h.authority.Close(ctx, attempt, l.Head(), ""); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// deliver gives the authority the rest of a record that nobody adds to.
func deliver(ctx context.Context, l *record.Log, authority Authority, attempt string, patience time.Duration) error {
	p := newPump(l, authority, attempt, patience, false).start()
	err := p.acknowledged(ctx)
	p.close()
	return err
}

// attemptOf reads the authority's name for the attempt from a record's first line.
func attemptOf(line []byte) (string, error) {
	var c record.Chain
	e, err := c.Add(line)
	if err != nil {
		return "", err
	}
	var o record.Opened
	if err := e.Decode(&o); err != nil {
		return "", err
	}
	return o.Attempt, nil
}
