package host

import (
	"context"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image"
)

// An ahead is the helper's container on its way. Its image is nearly always here,
// so it is made while a registry is asked for the job's own.
type ahead struct {
	enclosed chan struct{} // closed once there is room for the container
	wish     chan *wish
	placed   chan struct{} // closed once the job has its place among those that are made

	// Read by others once done is closed.
	done  chan struct{}
	image image.Image
	env   []string
	err   error
}

// helperAhead begins. Whoever calls it calls forgo in the end: then nothing of it
// runs any more, and only what was made by then stays.
func (h *Host) helperAhead(ctx context.Context, j *job) (a *ahead, forgo func()) {
	ctx, cancel := context.WithCancel(ctx)
	a = &ahead{enclosed: make(chan struct{}), wish: make(chan *wish, 1), placed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.err = h.bringHelper(ctx, j, a)
	}()
	return a, func() { cancel(); <-a.done }
}

// made waits for the container.
func (a *ahead) made(ctx context.Context) error {
	_, err := next(ctx, a.done)
	if err != nil {
		return err
	}
	return a.err
}

// bringHelper gets the image and makes the container. It takes a place among the
// sandboxes that are made if the job finds one besides; else it waits for the
// job's.
func (h *Host) bringHelper(ctx context.Context, j *job, a *ahead) error {
	w, err := next(ctx, a.wish)
	if err != nil {
		return err
	}
	if a.image, err = w.come(ctx); err != nil {
		return adminsFault(err)
	}
	config, err := h.runtime.ImageConfig(ctx, a.image.Reference)
	if err != nil {
		return adminsFault(err)
	}
	a.env = environment(config.Env, "/tmp")
	if _, err := next(ctx, a.enclosed); err != nil {
		return err
	}
	if leave, ok := h.preparing.tryEnter(); ok {
		defer leave()
	} else if _, err := next(ctx, a.placed); err != nil {
		return err
	}
	mounts, err := j.mounts(sandbox.Helper, jobHostname(j.payload))
	if err != nil {
		return err
	}
	mounts = append(mounts, sandbox.Mount{Source: h.cfg.GitLabRunner, Target: "/usr/local/bin/gitlab-runner", ReadOnly: true})
	return h.start(ctx, j, h.spec(j, sandbox.Helper, a.image.Reference, mounts))
}

// next waits for what comes out of a channel, its end among it.
func next[T any](ctx context.Context, from <-chan T) (v T, err error) {
	select {
	case v = <-from:
		return v, nil
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}
