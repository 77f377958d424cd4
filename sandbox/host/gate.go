package host

import (
	"context"
	"slices"
	"sync"
)

// A gate lets a bounded number of jobs through at a time. Who waits is let in by
// project in turns, so that one with many jobs does not keep out the others; jobs
// of one project go in the order in which they came.
type gate struct {
	mu      sync.Mutex
	free    int
	order   []string // projects with someone waiting, the next one first
	waiting map[string][]*ticket
	count   int
}

type ticket struct{ open chan struct{} }

func newGate(places int) *gate { return &gate{free: places, waiting: map[string][]*ticket{}} }

// enter takes a place, and tells wait once how many others are before or beside
// it if there is none. The caller gives the place back by calling leave.
func (g *gate) enter(ctx context.Context, project string, wait func(others int)) (leave func(), err error) {
	g.mu.Lock()
	if g.free > 0 {
		g.free--
		g.mu.Unlock()
		return sync.OnceFunc(g.leave), nil
	}
	t := &ticket{make(chan struct{})}
	if len(g.waiting[project]) == 0 {
		g.order = append(g.order, project)
	}
	g.waiting[project] = append(g.waiting[project], t)
	others := g.count
	g.count++
	g.mu.Unlock()
	wait(others)
	select {
	case <-t.open:
		return sync.OnceFunc(g.leave), nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.drop(project, t) { // it was let in meanwhile
		g.next()
	}
	return nil, context.Cause(ctx)
}

// tryEnter takes a place if there is another one beside it.
func (g *gate) tryEnter() (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.free < 2 {
		return nil, false
	}
	g.free--
	return sync.OnceFunc(g.leave), true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next()
}

// next gives a free place to whoever is next.
func (g *gate) next() {
	if len(g.order) == 0 {
		g.free++
		return
	}
	project := g.order[0]
	t := g.waiting[project][0]
	g.drop(project, t)
	if len(g.waiting[project]) > 0 { // its next one waits for the others' turns
		g.order = append(g.order[1:], project)
	}
	close(t.open)
}

// drop takes a ticket out of the queue, and reports whether it was in it.
func (g *gate) drop(project string, t *ticket) bool {
	i := slices.Index(g.waiting[project], t)
	if i < 0 {
		return false
	}
	g.count--
	g.waiting[project] = slices.Delete(g.waiting[project], i, i+1)
	if len(g.waiting[project]) == 0 {
		delete(g.waiting, project)
		g.order = slices.DeleteFunc(g.order, func(p string) bool { return p == project })
	}
	return true
}
