package attest_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/sandbox/record"
)

func limited() record.Limits {
	return record.Limits{
		SwapBytes: 1 << 30, DiskBytes: 32 << 30, ShmBytes: 512 << 20, OpenFiles: 1 << 20,
		Ulimits: []record.Ulimit{{Name: "core"}, {Name: "memlock", Soft: -1, Hard: -1}},
		Tmpfs:   []record.TmpfsMount{{Path: "/scratch", Bytes: 1 << 30, Exec: true}},
		Devices: []string{"/dev/kvm"},
	}
}

// hit is a limit that build_script ran into, in its place in the sample job.
func hit(change func(*record.Hit)) []attesttest.Event {
	h := record.Hit{Stage: "build_script", Role: "build", Limit: "memory", Max: 64 << 20, Used: 64 << 20, Count: 2}
	change(&h)
	return insert(attesttest.Job(), event(record.LimitHit, h), ends("build_script"))
}

func withLimits(change func(*record.Limits)) []attesttest.Event {
	l := limited()
	change(&l)
	o := attesttest.Opened()
	o.Platform.Limits = &l
	return attesttest.JobOf(o)
}

func TestStatementStatesLimits(t *testing.T) {
	events := withLimits(func(*record.Limits) {})
	events = insert(events, event(record.LimitHit, record.Hit{Stage: "build_script", Limit: "disk", Max: 1 << 30, Used: 1 << 30}), ends("build_script"))
	st := statements(t, events)[0]
	root := schema(t)
	for _, problem := range validate(root, root, decoded(t, st.JSON)["predicate"], "predicate") {
		t.Error(problem)
	}
	want := map[string]any{
		"swapBytes": float64(1 << 30), "reservationBytes": float64(0), "cpuShares": float64(0), "cpuSet": "", "diskBytes": float64(32 << 30),
		"shmBytes": float64(512 << 20), "openFiles": float64(1 << 20),
		"ulimits": []any{map[string]any{"name": "core", "soft": float64(0), "hard": float64(0)}, map[string]any{"name": "memlock", "soft": float64(-1), "hard": float64(-1)}},
		"tmpfs":   []any{map[string]any{"path": "/scratch", "bytes": float64(1 << 30), "exec": true}},
		"devices": []any{"/dev/kvm"},
	}
	got := at(t, decoded(t, st.JSON), "predicate.buildDefinition.internalParameters.limits")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, b := range at(t, decoded(t, st.JSON), "predicate.runDetails.byproducts").([]any) {
		if b := b.(map[string]any); b["name"] == "limits-hit" {
			if diff := cmp.Diff(map[string]any{"entries": float64(1), "first": []any{"build_script disk 1073741824"}}, b["annotations"]); diff != "" {
				t.Error(diff)
			}
			return
		}
	}
	t.Error("the limit that was reached is no byproduct")
}

func TestLimitsRefused(t *testing.T) {
	early := event(record.LimitHit, record.Hit{Stage: "build_script", Limit: "memory"})
	for name, tt := range map[string]struct {
		events []attesttest.Event
		want   attest.Reason
	}{
		"limit unknown":      {hit(func(h *record.Hit) { h.Limit = "time" }), attest.Malformed},
		"limit of no stage":  {hit(func(h *record.Hit) { h.Stage = "get_sources" }), attest.StageNeverStarted},
		"limit before stage": {insert(attesttest.Job(), early, kind(record.SourceVerified)), attest.StageNeverStarted},
		"negative maximum":   {hit(func(h *record.Hit) { h.Max = -1 }), attest.NumberTooLarge},
		"use too large":      {hit(func(h *record.Hit) { h.Used = 1 << 53 }), attest.NumberTooLarge},
		"count too large":    {hit(func(h *record.Hit) { h.Count = 1 << 53 }), attest.NumberTooLarge},
		"disk too large":     {withLimits(func(l *record.Limits) { l.DiskBytes = 1 << 53 }), attest.NumberTooLarge},
		"tmpfs negative":     {withLimits(func(l *record.Limits) { l.Tmpfs[0].Bytes = -1 }), attest.NumberTooLarge},
		"ulimit negative":    {withLimits(func(l *record.Limits) { l.Ulimits[0].Soft = -2 }), attest.NumberTooLarge},
		"ulimit too large":   {withLimits(func(l *record.Limits) { l.Ulimits[0].Hard = 1 << 53 }), attest.NumberTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := attest.Statements(entries(t, tt.events), factsOf(tt.events))
			if have := reason(err); have != tt.want || all != nil {
				t.Errorf("reason %q, want %q (%v)", have, tt.want, err)
			}
		})
	}
	for _, events := range [][]attesttest.Event{hit(func(*record.Hit) {}), withLimits(func(*record.Limits) {})} {
		if _, err := attest.Statements(entries(t, events), factsOf(events)); err != nil {
			t.Error(err)
		}
	}
}
