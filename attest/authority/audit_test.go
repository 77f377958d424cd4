package authority_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
)

// TestEventsAreExplained holds that an admin who is woken by an event finds it in
// SECURITY.md, and that each is counted from the start.
func TestEventsAreExplained(t *testing.T) {
	text, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	for _, e := range authority.Refusals() {
		if !strings.Contains(string(text), "`"+string(e)+"`") {
			t.Errorf("SECURITY.md does not explain %s", e)
		}
		if n := w.counted(e); n != 0 {
			t.Errorf("%s: %d before anything happened", e, n)
		}
	}
}

// counted is how often an event was refused, as GET /metrics says.
func (w *world) counted(event authority.Event) int {
	w.t.Helper()
	name := fmt.Sprintf("hallmark_refusals_total{event=%q} ", event)
	for line := range strings.Lines(w.get("/metrics").Body.String()) {
		if value, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				w.t.Fatal(err)
			}
			return n
		}
	}
	w.t.Fatalf("no metric %s", name)
	return 0
}

// TestBadEvidence has each bad input of a host that is let in: its own message,
// one audit event, one count.
func TestBadEvidence(t *testing.T) {
	for name, c := range map[string]struct {
		event   authority.Event
		message string
		attack  func(w *world, res *authoritypb.OpenResponse, lines [][]byte) error
	}{
		"replayed": {authority.EventReplayed, "another session than the attempt",
			func(w *world, _ *authoritypb.OpenResponse, lines [][]byte) error {
				req := openRequest()
				req.Session, req.Job.Id = strings.Repeat("1", 32), 4243
				second, err := w.a.Open(w.t.Context(), req)
				if err != nil {
					w.t.Fatal(err)
				}
				_, err = w.append(second, lines[0])
				return err
			}},
		"reordered": {authority.EventReordered, "the entries are not in order",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				_, err := w.append(res, l[6], l[5])
				return err
			}},
		"rewritten": {authority.EventRewritten, "differs from the one that was acknowledged",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				_, err := w.append(res, replaceIn(l[3], "prepare_script", "prepare_Script"))
				return err
			}},
		"gap": {authority.EventGap, "gap: want entry 5, have 6",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				_, err := w.append(res, l[6])
				return err
			}},
		"fork": {authority.EventFork, "fork: entry 5 does not follow",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				_, err := w.append(res, replaceIn(l[5], `"prev":"`, `"prev":"0`))
				return err
			}},
		"second opening": {authority.EventSecondOpening, "may have run tenant code, so there is no other",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				w.mustAppend(res, l[5:]...)
				_, err := w.a.Open(w.t.Context(), openRequest())
				return err
			}},
		"too large": {authority.EventTooLarge, "record of more than 4096 bytes",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				w.a.SetMaxRecord(4096)
				_, err := w.append(res, l[5:]...)
				return err
			}},
		"unknown kind": {authority.EventUnknownKind, `unknown kind "stage_begun"`,
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				_, err := w.append(res, replaceIn(l[5], "stage_started", "stage_begun"))
				return err
			}},
		"clock ahead": {authority.EventClockSkew, "ahead of the authority's clock",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				w.now = attesttest.Start().Add(-authority.MaxSkew)
				_, err := w.append(res, l[5])
				return err
			}},
		"clock behind": {authority.EventClockSkew, "more than 5m0s ago",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				w.now = attesttest.Start().Add(authority.MaxSkew + time.Minute)
				_, err := w.append(res, l[5])
				return err
			}},
		"other head": {authority.EventHeadDiffers, "is not the one that was acknowledged",
			func(w *world, res *authoritypb.OpenResponse, l [][]byte) error {
				w.mustAppend(res, l[5:]...)
				_, err := w.close(res, strings.Repeat("0", 64))
				return err
			}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			res := w.open()
			lines := w.job(res)
			w.mustAppend(res, lines[:5]...)
			w.refused(c.event, c.message, func() error { return c.attack(w, res, lines) })
		})
	}
}

// refused runs an attack and checks the three marks that it must leave.
func (w *world) refused(event authority.Event, message string, attack func() error) {
	w.t.Helper()
	before := w.counted(event)
	err := attack()
	if err == nil || !strings.Contains(err.Error(), message) {
		w.t.Errorf("%v, want %q", err, message)
	}
	if n := w.counted(event) - before; n != 1 {
		w.t.Errorf("counted %d times", n)
	}
	if n := strings.Count(w.log.String(), "level=WARN msg=\"audit event\" audit=true event="+string(event)+" "); n != 1 {
		w.t.Errorf("%d audit events in\n%s", n, w.log)
	}
}
