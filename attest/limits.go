package attest

import (
	"strings"

	"hallmark.build/sandbox/record"
)

// limits are the statement's words for [record.Limits].
type limits struct {
	SwapBytes        int64        `json:"swapBytes"`
	ReservationBytes int64        `json:"reservationBytes"`
	CPUShares        int64        `json:"cpuShares"`
	CPUSet           string       `json:"cpuSet"`
	DiskBytes        int64        `json:"diskBytes"`
	ShmBytes         int64        `json:"shmBytes"`
	OpenFiles        int64        `json:"openFiles"`
	Ulimits          []ulimit     `json:"ulimits,omitempty"`
	Tmpfs            []tmpfsMount `json:"tmpfs,omitempty"`
	Devices          []string     `json:"devices,omitempty"`
}

type ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

type tmpfsMount struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	Exec  bool   `json:"exec,omitempty"`
}

func limitsOf(l *record.Limits) *limits {
	if l == nil {
		return nil
	}
	out := &limits{
		SwapBytes: l.SwapBytes, ReservationBytes: l.ReservationBytes, CPUShares: l.CPUShares, CPUSet: l.CPUSet,
		DiskBytes: l.DiskBytes, ShmBytes: l.ShmBytes, OpenFiles: l.OpenFiles, Devices: l.Devices,
	}
	for _, u := range l.Ulimits {
		out.Ulimits = append(out.Ulimits, ulimit(u))
	}
	for _, t := range l.Tmpfs {
		out.Tmpfs = append(out.Tmpfs, tmpfsMount(t))
	}
	return out
}

// limitNumbers are the numbers that every JSON reader must keep; the -1 of an
// unlimited one stands for itself.
func limitNumbers(l *record.Limits) []int64 {
	if l == nil {
		return nil
	}
	numbers := []int64{l.SwapBytes, l.ReservationBytes, l.CPUShares, l.DiskBytes, l.ShmBytes, l.OpenFiles}
	for _, u := range l.Ulimits {
		numbers = append(numbers, max(u.Soft, 0), max(u.Hard, 0))
		if u.Soft < -1 || u.Hard < -1 {
			numbers = append(numbers, -1)
		}
	}
	for _, t := range l.Tmpfs {
		numbers = append(numbers, t.Bytes)
	}
	return numbers
}

// limitsHit stands for the entries of limits that were reached.
func limitsHit(hits []hit) resource {
	entries := make([]record.Entry, len(hits))
	listed := []string{}
	for i, h := range hits {
		entries[i] = h.entry
		if i < maxListedBlocks {
			words := []string{h.Stage, h.Role, h.Limit, h.Path, number(h.Max)}
			listed = append(listed, cut(strings.Join(strings.Fields(strings.Join(words, " ")), " ")))
		}
	}
	return resource{
		Name:        "limits-hit",
		Digest:      map[string]string{"sha256": linesDigest(entries)},
		Annotations: map[string]any{"entries": len(hits), "first": listed},
	}
}
