package host

import (
	"slices"
	"sync"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox/record"
)

// maxReported bounds the refusals that one stage prints into the job's log.
const maxReported = 10

// blockLog keeps the refusals of the running stage until they are printed.
type blockLog struct {
	mu      sync.Mutex
	pending []record.Block
	unsaid  int
	all     int
}

func (b *blockLog) note(block record.Block) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int(max(block.Count, 1))
	b.all += n
	if block.Count > 0 { // a summary of earlier ones, which were said already
		return
	}
	if len(b.pending) == maxReported {
		b.unsaid++
		return
	}
	b.pending = append(b.pending, block)
}

func (b *blockLog) total() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.all
}

func (b *blockLog) take() ([]record.Block, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pending, unsaid := b.pending, b.unsaid
	b.pending, b.unsaid = nil, 0
	return pending, unsaid
}

// reportBlocks prints what the border refused during the stage.
func (j *job) reportBlocks(out *joblog.Log) {
	blocks, unsaid := j.blocks.take()
	if len(blocks) > 0 {
		out.Break() // the script may have left a line or a colour open
	}
	for _, b := range blocks {
		target := b.Target
		if b.Method != "" {
			target = b.Method + " " + target
		}
		out.Printf("blocked  %s  rule %s: %s", joblog.Clean(target), b.Rule, joblog.Clean(b.Reason))
	}
	if unsaid > 0 {
		out.Printf("blocked  %d more; the record has them all", unsaid)
	}
	for _, remedy := range remedies(blocks) {
		out.Hint(remedy)
	}
}

// remedies are those of several refusals, each once.
func remedies(blocks []record.Block) []string {
	var out []string
	for _, b := range blocks {
		if b.Remedy != "" && !slices.Contains(out, b.Remedy) {
			out = append(out, b.Remedy)
		}
	}
	return out
}
