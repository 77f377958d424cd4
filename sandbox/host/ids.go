package host

import (
	"errors"
	"sync"

	"hallmark.build/sandbox"
)

// idRange is how many ids each sandbox gets: what POSIX software expects.
const idRange = 1 << 16

// idPool hands out disjoint ranges of host ids, so that two jobs never own
// each other's files or signal each other's processes.
type idPool struct {
	first uint32

	mu   sync.Mutex
	used []bool
}

func newIDPool(first uint32, ranges int) *idPool {
	return &idPool{first: first, used: make([]bool, ranges)}
}

func (p *idPool) take() (sandbox.IDs, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, used := range p.used {
		if !used {
			p.used[i] = true
			return sandbox.IDs{First: p.first + uint32(i)*idRange, Count: idRange}, nil
		}
	}
	return sandbox.IDs{}, &hintedError{errors.New("every id range is in use"),
		"raise ids.ranges in the sandbox daemon's configuration, or lower the runner's concurrent"}
}

func (p *idPool) give(ids sandbox.IDs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used[(ids.First-p.first)/idRange] = false
}
