package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"hallmark.build/config/tomlfile"
	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// watchEvery is how often a running stage is looked at. What the kernel counts
// is never missed; a disk or tmpfs that was full for less than this, and was not
// when the stage ended, may be. No kernel counts how often a file system had no
// room: ext4 counts errors of its own, which is what fanotify tells of as well,
// and only quotas give notice, which a loop device is there to do without. What
// was refused the program knows all the same.
const watchEvery = 200 * time.Millisecond

// A watch sees which limits a stage runs into, from outside: what runs inside
// may hide it.
type watch struct {
	j      *job
	before map[string]int64 // counts as the stage began
	seen   map[string]record.Hit
	stop   context.CancelFunc
	ended  chan struct{}
}

// watch looks at the sandbox until the watch is ended. The context that it
// returns ends when the host has no room left for what jobs write.
func (h *Host) watch(ctx context.Context, j *job) (context.Context, *watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{j: j, before: map[string]int64{}, seen: map[string]record.Hit{}, ended: make(chan struct{})}
	w.stop = func() { cancel(nil) }
	for role, c := range j.containers.all() {
		for _, hit := range c.Hits() {
			w.before[key(role, hit)] = hit.Count
		}
	}
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				w.look()
				if err := h.room(); err != nil {
					cancel(err)
				}
			}
		}
	}()
	return ctx, w
}

func key(role sandbox.Role, h sandbox.Hit) string { return string(role) + " " + h.Limit + " " + h.Path }

// end looks for the last time and returns what was seen, in a fixed order.
func (w *watch) end(stage sandbox.Stage) []record.Hit {
	w.stop()
	<-w.ended
	w.look()
	var hits []record.Hit
	for _, k := range slices.Sorted(maps.Keys(w.seen)) {
		hit := w.seen[k]
		hit.Stage = string(stage)
		hits = append(hits, hit)
	}
	return hits
}

func (w *watch) look() {
	for role, c := range w.j.containers.all() {
		for _, hit := range c.Hits() {
			k := key(role, hit)
			more := hit.Count - w.before[k]
			if hit.Count > 0 && more == 0 {
				continue // an earlier stage's
			}
			w.note(k, record.Hit{Role: string(role), Limit: hit.Limit, Path: hit.Path, Max: hit.Max, Used: hit.Used, Count: more})
		}
	}
	if w.j.disk == nil {
		return
	}
	use, err := w.j.disk.Usage()
	if err != nil {
		return
	}
	if use.Full {
		w.note("disk", record.Hit{Limit: "disk", Max: w.j.limits.DiskBytes, Used: use.Bytes})
	}
	if use.Crowded {
		w.note("files", record.Hit{Limit: "files", Max: use.MaxFiles, Used: use.Files})
	}
}

func (w *watch) note(key string, hit record.Hit) {
	hit.Used = max(hit.Used, w.seen[key].Used)
	w.seen[key] = hit
}

// recordHits says in the record which limits the stage ran into.
func (j *job) recordHits(hits []record.Hit) error {
	for _, hit := range hits {
		if _, err := j.record.Append(record.LimitHit, hit); err != nil {
			return err
		}
	}
	j.hits = append(j.hits, hits...)
	return nil
}

// reportHits says in the job's log which limits the stage ran into, and who set
// them.
func (j *job) reportHits(out *joblog.Log) {
	if len(j.hits) > 0 {
		out.Break()
	}
	for _, hit := range j.hits {
		out.Printf("limit    %s; %s", hitInWords(hit), j.limits.of(hit.Limit))
	}
	j.hits = nil
}

func hitInWords(h record.Hit) string {
	size := tomlfile.FormatSize(h.Max)
	switch h.Limit {
	case "memory":
		return fmt.Sprintf("memory: the %s container reached %s, and %s ended for it", h.Role, size, times(h.Count, "process was", "processes were"))
	case "pids":
		return fmt.Sprintf("processes: the %s container had all of its %d, and %s refused", h.Role, h.Max, times(h.Count, "further one was", "further ones were"))
	case "disk":
		return fmt.Sprintf("disk: the job's %s were full, with %s of files in it", size, approximately(h.Used))
	case "files":
		return fmt.Sprintf("disk: the job had all of its %d files", h.Max)
	}
	return fmt.Sprintf("%s: %s of the %s container was full, with %s", h.Limit, joblog.Clean(h.Path), h.Role, approximately(h.Used))
}

func times(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strings.TrimSpace(fmt.Sprintf("%d %s", n, many))
}
