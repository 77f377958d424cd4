// Package turns makes those who work on one job wait for each other.
package turns

import (
	"context"
	"sync"
)

// Turns are the jobs that somebody works on or waits for. The zero value is
// ready.
type Turns struct {
	mu   sync.Mutex
	jobs map[int64]*turn
}

type turn struct {
	taken chan struct{} // holds a value while somebody has it
	users int           // guarded by Turns.mu
}

// Take waits for a job's turn. It fails only if ctx ends first.
func (t *Turns) Take(ctx context.Context, job int64) (leave func(), err error) {
	j := t.join(job)
	select {
	case j.taken <- struct{}{}:
		return func() { <-j.taken; t.leave(job, j) }, nil
	case <-ctx.Done():
		t.leave(job, j)
		return nil, ctx.Err()
	}
}

func (t *Turns) join(job int64) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.jobs == nil {
		t.jobs = map[int64]*turn{}
	}
	j := t.jobs[job]
	if j == nil {
		j = &turn{taken: make(chan struct{}, 1)}
		t.jobs[job] = j
	}
	j.users++
	return j
}

func (t *Turns) leave(job int64, j *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.users--; j.users == 0 {
		delete(t.jobs, job)
	}
}
