package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/store"
)

func signed(t *testing.T, s store.Store) {
	ctx := t.Context()
	id := Attempt(1, 10).ID
	must(t, s.Begin(ctx, Attempt(1, 10)))
	if drafts, err := s.Drafts(ctx, id); err != nil || len(drafts) != 0 {
		t.Errorf("%d drafts before signing, %v", len(drafts), err)
	}
	if err := s.Sign(ctx, id, nil, "group/project", true); err == nil || errors.Is(err, store.ErrDecided) {
		t.Errorf("signed nothing: %v", err)
	}
	if err := s.Sign(ctx, id, Drafts(1, 2), "", true); err == nil || errors.Is(err, store.ErrDecided) {
		t.Errorf("signed for no project: %v", err)
	}
	must(t, s.Sign(ctx, id, Drafts(1, 2), "group/project", true))
	a, err := s.Attempt(ctx, id)
	must(t, err)
	want := Attempt(1, 10)
	protected := true
	want.State, want.Project, want.Protected = store.StateSigned, "group/project", &protected
	if diff := cmp.Diff(want, a); diff != "" {
		t.Error(diff)
	}
	drafts, err := s.Drafts(ctx, id)
	must(t, err)
	if diff := cmp.Diff(Drafts(1, 2), drafts); diff != "" {
		t.Error(diff)
	}
	// What is signed is not to be seen yet.
	if bs, err := Bundles(ctx, s, id); err != nil || len(bs) != 0 {
		t.Errorf("%d bundles, %v", len(bs), err)
	}
	if found, err := s.ByJob(ctx, 10, 10); err != nil || len(found) != 0 {
		t.Errorf("found %v, %v", found, err)
	}
	must(t, s.Check(ctx))
	must(t, s.Decide(ctx, id, Decision(1, 2)))
	bs, err := Bundles(ctx, s, id)
	must(t, err)
	if diff := cmp.Diff(Decision(1, 2).Bundles, bs); diff != "" {
		t.Error(diff)
	}
	if drafts, err := s.Drafts(ctx, id); err != nil || len(drafts) != 0 {
		t.Errorf("%d drafts of a closed attempt, %v", len(drafts), err)
	}
	if err := s.Sign(ctx, id, Drafts(2, 2), "group/project", true); !errors.Is(err, store.ErrDecided) {
		t.Errorf("a closed attempt was signed: %v", err)
	}
}

// waiting closes attempts that GitLab is yet to confirm.
func waiting(t *testing.T, s store.Store) {
	ctx := t.Context()
	for n := range int64(3) {
		must(t, s.Begin(ctx, Attempt(int(n)+1, 10+n)))
	}
	first, second := Attempt(1, 10).ID, Attempt(2, 11).ID
	list := func() (ids []string) {
		all, err := s.Waiting(ctx, 10)
		must(t, err)
		for _, a := range all {
			if a.State != store.StateOpen || a.Reason == "" {
				t.Errorf("waiting: %+v", a)
			}
			ids = append(ids, a.ID)
		}
		return ids
	}
	if err := s.Wait(ctx, first, ""); err == nil {
		t.Error("waits for nothing")
	}
	must(t, s.Wait(ctx, first, "for GitLab"))
	must(t, s.Wait(ctx, first, "for GitLab, still"))
	must(t, s.Wait(ctx, second, "for GitLab"))
	if diff := cmp.Diff([]string{first, second}, list()); diff != "" {
		t.Error(diff)
	}
	must(t, s.Check(ctx))
	must(t, s.Sign(ctx, first, Drafts(1, 1), "group/project", true))
	must(t, s.Decide(ctx, second, Decision(2, 0)))
	if ids := list(); len(ids) != 0 {
		t.Errorf("%v wait after all", ids)
	}
	if a, err := s.Attempt(ctx, first); err != nil || a.Reason != "" {
		t.Errorf("signed, and waits for %q, %v", a.Reason, err)
	}
	for _, id := range []string{first, second, Attempt(9, 9).ID} {
		if err := s.Wait(ctx, id, "for GitLab"); !errors.Is(err, store.ErrDecided) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// notSigned tries all that must not become of a signed attempt.
func notSigned(t *testing.T, s store.Store) {
	ctx := t.Context()
	id := Attempt(1, 10).ID
	must(t, s.Begin(ctx, Attempt(1, 10)))
	must(t, s.AppendRecord(ctx, id, 0, [][]byte{[]byte("line")}))
	must(t, s.Sign(ctx, id, Drafts(1, 2), "group/project", true))
	late := map[string]error{
		"signed again":  s.Sign(ctx, id, Drafts(2, 1), "group/project", true),
		"refused":       s.Decide(ctx, id, store.Decision{State: store.StateRefused, Reason: "security: x", Ended: attesttest.Start()}),
		"given up":      s.Decide(ctx, id, Decision(1, 0)),
		"superseded":    s.Begin(ctx, Attempt(2, 10), id),
		"appended":      s.AppendRecord(ctx, id, 5, [][]byte{[]byte("more")}),
		"unknown":       s.Sign(ctx, Attempt(9, 9).ID, Drafts(1, 1), "group/project", true),
		"unknown ended": s.Decide(ctx, Attempt(9, 9).ID, Decision(1, 1)),
	}
	for name, err := range late {
		if !errors.Is(err, store.ErrDecided) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Begin(ctx, Attempt(2, 10)); err == nil {
		t.Error("a job with a signed attempt has another open one")
	}
	other := map[string]func(*store.Decision){
		"fewer bundles":   func(d *store.Decision) { d.Bundles = d.Bundles[:1] },
		"more bundles":    func(d *store.Decision) { d.Bundles = Decision(1, 3).Bundles },
		"another order":   func(d *store.Decision) { d.Bundles[0], d.Bundles[1] = d.Bundles[1], d.Bundles[0] },
		"another project": func(d *store.Decision) { d.Project = "group/other" },
		"another digest":  func(d *store.Decision) { d.Bundles[1].Subjects[0].SHA256 = attesttest.SHA256("x") },
		"another name":    func(d *store.Decision) { d.Bundles[1].Subjects[0].Name = "x" },
		"fewer subjects":  func(d *store.Decision) { d.Bundles[1].Subjects = d.Bundles[1].Subjects[:1] },
		"no subjects":     func(d *store.Decision) { d.Bundles[1].Subjects = nil },
	}
	for name, change := range other {
		d := Decision(1, 2)
		change(&d)
		if err := s.Decide(ctx, id, d); err == nil || errors.Is(err, store.ErrDecided) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.Sweep(ctx, time.Now().Add(time.Hour)))
	a, err := s.Attempt(ctx, id)
	must(t, err)
	if a.State != store.StateSigned {
		t.Errorf("state %s", a.State)
	}
	if drafts, err := s.Drafts(ctx, id); err != nil || len(drafts) != 2 {
		t.Errorf("%d drafts, %v", len(drafts), err)
	}
	if all, err := s.AttemptsOfJob(ctx, 10); err != nil || len(all) != 1 {
		t.Errorf("%d attempts, %v", len(all), err)
	}
}

// oneSigns lets many sign and close one attempt.
func oneSigns(t *testing.T, s store.Store) {
	ctx := t.Context()
	id := Attempt(1, 10).ID
	must(t, s.Begin(ctx, Attempt(1, 10)))
	won := race(t, 8, func(i int) error { return s.Sign(ctx, id, Drafts(i, 2), "group/project", true) })
	drafts, err := s.Drafts(ctx, id)
	must(t, err)
	if diff := cmp.Diff(Drafts(won, 2), drafts); diff != "" {
		t.Error(diff)
	}
	// Those who close it bring the same bytes, as those do who read the same
	// entry of a log.
	race(t, 8, func(int) error { return s.Decide(ctx, id, Decision(won, 2)) })
	bs, err := Bundles(ctx, s, id)
	must(t, err)
	if diff := cmp.Diff(Decision(won, 2).Bundles, bs); diff != "" {
		t.Error(diff)
	}
}

// race wants one of many to succeed, and the others to come too late.
func race(t *testing.T, n int, f func(i int) error) int {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range errs {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	won := -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, store.ErrDecided):
			t.Errorf("%d: %v", i, err)
		}
	}
	if won < 0 {
		t.Fatal("nobody succeeded")
	}
	return won
}

func listed(t *testing.T, s store.Store) {
	ctx := t.Context()
	for n := 1; n <= 6; n++ {
		must(t, s.Begin(ctx, Attempt(n, int64(n))))
	}
	must(t, s.Sign(ctx, Attempt(4, 4).ID, Drafts(4, 1), "group/project", true))
	must(t, s.Sign(ctx, Attempt(2, 2).ID, Drafts(2, 1), "group/project", true))
	must(t, s.Decide(ctx, Attempt(1, 1).ID, Decision(1, 1)))
	ids := func(list []store.Attempt, err error) string {
		must(t, err)
		out := ""
		for _, a := range list {
			out += fmt.Sprint(a.Job.ID, " ")
		}
		return out
	}
	for _, c := range []struct{ have, want string }{
		{ids(s.Signed(ctx, 10)), "2 4 "},
		{ids(s.Signed(ctx, 1)), "2 "},
		{ids(s.OpenBefore(ctx, Attempt(6, 6).Opened)), "3 5 "},
		{ids(s.OpenBefore(ctx, Attempt(1, 1).Opened)), ""},
	} {
		if c.have != c.want {
			t.Errorf("listed %q, want %q", c.have, c.want)
		}
	}
	must(t, s.Ready(ctx))
}

// oneAppends lets many append at one place.
func oneAppends(t *testing.T, s store.Store) {
	ctx := t.Context()
	id := Attempt(1, 10).ID
	must(t, s.Begin(ctx, Attempt(1, 10)))
	size := int64(0)
	for n := range 5 {
		lines := [][]byte{fmt.Appendf(nil, "line %d", n), []byte("and another")}
		must(t, s.AppendRecord(ctx, id, size, lines))
		if err := s.AppendRecord(ctx, id, size, lines); !errors.Is(err, store.ErrConflict) {
			t.Errorf("appended twice: %v", err)
		}
		data, err := s.Record(ctx, id)
		must(t, err)
		size, err = s.RecordSize(ctx, id)
		must(t, err)
		if size != int64(len(data)) || size != int64(n+1)*19 {
			t.Errorf("size %d of %d bytes", size, len(data))
		}
	}
	must(t, s.Decide(ctx, id, Decision(1, 1)))
	if err := s.AppendRecord(ctx, id, size, [][]byte{[]byte("x")}); !errors.Is(err, store.ErrDecided) {
		t.Errorf("appended to a closed attempt: %v", err)
	}
	if err := s.AppendRecord(ctx, Attempt(9, 9).ID, 0, [][]byte{[]byte("x")}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("appended to no attempt: %v", err)
	}
}

func locks(t *testing.T, s store.Store) {
	ctx := t.Context()
	var (
		wg     sync.WaitGroup
		inside int // guarded by the lock
	)
	for range 8 {
		wg.Go(func() {
			for range 5 {
				locked, unlock, err := s.Lock(ctx, 10)
				if err != nil {
					t.Error(err)
					return
				}
				if inside++; inside != 1 {
					t.Errorf("%d have the lock", inside)
				}
				if _, err := s.AttemptsOfJob(locked, 10); err != nil {
					t.Error(err)
				}
				inside--
				unlock()
			}
		})
	}
	wg.Wait()
	// Jobs do not wait for each other, and who goes away waits no longer.
	locked, unlock, err := s.Lock(ctx, 10)
	must(t, err)
	defer unlock()
	_, other, err := s.Lock(ctx, 11)
	must(t, err)
	other()
	gone, cancel := contextThatEnds(ctx)
	defer cancel()
	if _, _, err := s.Lock(gone, 10); err == nil {
		t.Error("two have the lock")
	}
	must(t, s.Begin(locked, Attempt(1, 10)))
	must(t, s.AppendRecord(locked, Attempt(1, 10).ID, 0, [][]byte{[]byte("x")}))
	must(t, s.Sign(locked, Attempt(1, 10).ID, Drafts(1, 1), "group/project", true))
	must(t, s.Decide(locked, Attempt(1, 10).ID, Decision(1, 1)))
}

// oddText has what a reason may quote and a file may be called.
func oddText(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Begin(ctx, Attempt(1, 10)))
	must(t, s.Decide(ctx, Attempt(1, 10).ID, store.Decision{State: store.StateRefused, Reason: "security: \x00 \xff '\"\\", Ended: attesttest.Start()}))
	a, err := s.Attempt(ctx, Attempt(1, 10).ID)
	must(t, err)
	if a.Reason != "security: \ufffd \ufffd '\"\\" {
		t.Errorf("%q", a.Reason)
	}
	must(t, s.Begin(ctx, Attempt(2, 11)))
	d := Decision(2, 1)
	d.Bundles[0].Subjects = []attest.Subject{ // in the order of their bytes
		{Name: "B", SHA256: attesttest.SHA256("1")},
		{Name: "a b", SHA256: attesttest.SHA256("2")},
		{Name: "a\\'\"%_", SHA256: attesttest.SHA256("3")},
		{Name: "é", SHA256: attesttest.SHA256("4")},
		{Name: "\U0001f600", SHA256: attesttest.SHA256("5")},
	}
	must(t, s.Decide(ctx, Attempt(2, 11).ID, d))
	bs, err := Bundles(ctx, s, Attempt(2, 11).ID)
	must(t, err)
	if diff := cmp.Diff(d.Bundles, bs); diff != "" {
		t.Error(diff)
	}
}
