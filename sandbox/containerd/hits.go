package containerd

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"hallmark.build/sandbox"
)

// Hits are the limits that processes of the container have run into since it was
// made, as counted by the kernel; of a tmpfs, whether it is full now. What the
// processes themselves make of it does not matter.
func (c *Container) Hits() []sandbox.Hit {
	g, at := c.runtime.cgroups, c.box.cgroup
	var hits []sandbox.Hit
	if n := g.oomKills(at); n > 0 {
		hits = append(hits, sandbox.Hit{Limit: "memory", Max: c.limits.MemoryBytes, Used: g.peak(at), Count: n})
	}
	if n := g.refusedForks(at); n > 0 {
		pids := c.limits.Pids
		if pids == 0 {
			pids = defaultPids
		}
		hits = append(hits, sandbox.Hit{Limit: "pids", Max: pids, Used: pids, Count: n})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.gauges {
		if used, size, full := f.full(); full {
			hits = append(hits, sandbox.Hit{Limit: "tmpfs", Path: f.path, Max: size, Used: used})
		}
	}
	return hits
}

// peak is the most memory that a cgroup had in use, 0 where the kernel does not
// tell.
func (c cgroups) peak(path string) int64 {
	file := "memory.max_usage_in_bytes"
	if c.v2 {
		file = "memory.peak"
	}
	b, err := os.ReadFile(filepath.Join(c.memory, path, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// refusedForks is how often a process of the cgroup was refused another one.
func (c cgroups) refusedForks(path string) int64 {
	for _, root := range c.roots {
		b, err := os.ReadFile(filepath.Join(root, path, "pids.events"))
		if err == nil {
			return counter(string(b), "max")
		}
	}
	return 0
}

// counter reads one number of a file of "name number" lines.
func counter(text, name string) int64 {
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, _ := strconv.ParseInt(n, 10, 64)
			return v
		}
	}
	return 0
}
