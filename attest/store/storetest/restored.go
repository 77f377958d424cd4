package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/store"
)

// Fill brings a store to a state that is worth a backup: an attempt in every
// state, a host and an invitation.
func Fill(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	for n := 1; n <= 5; n++ {
		must(t, s.Begin(ctx, Attempt(n, int64(n))))
		must(t, s.AppendRecord(ctx, Attempt(n, 0).ID, 0, [][]byte{[]byte("one"), []byte("two")}))
	}
	must(t, s.Sign(ctx, Attempt(2, 0).ID, Drafts(2, 2), "group/project", true))
	must(t, s.Decide(ctx, Attempt(3, 0).ID, Decision(3, 3)))
	must(t, s.Decide(ctx, Attempt(4, 0).ID, store.Decision{State: store.StateRefused, Reason: "security: x", Ended: attesttest.Start()}))
	must(t, s.Begin(ctx, Attempt(6, 5), Attempt(5, 0).ID))
	must(t, s.Decide(ctx, Attempt(6, 0).ID, Decision(6, 0)))
	must(t, s.Invite(ctx, Invitation("restored-1", "runner-1")))
	must(t, s.Invite(ctx, Invitation("restored-2", "runner-2")))
	_, err := s.Enrol(ctx, attesttest.SHA256("restored-1"), attesttest.SHA256("key-1"), attesttest.Start(), attesttest.Start().Add(time.Hour))
	must(t, err)
}

// Restored looks at a store that was filled, backed up, restored and settled:
// all is there, and what was open is over.
func Restored(t *testing.T, s store.Store, ended []string) {
	t.Helper()
	ctx := t.Context()
	must(t, s.Check(ctx))
	if diff := cmp.Diff([]string{Attempt(1, 0).ID}, ended); diff != "" {
		t.Error(diff)
	}
	for n, want := range map[int]store.State{
		1: store.StateRefused, 2: store.StateSigned, 3: store.StateClosed, 4: store.StateRefused, 5: store.StateSuperseded, 6: store.StateClosed,
	} {
		a, err := s.Attempt(ctx, Attempt(n, 0).ID)
		must(t, err)
		if a.State != want || n == 1 && a.Reason != store.WasOpen {
			t.Errorf("attempt %d is %s (%s), want %s", n, a.State, a.Reason, want)
		}
		if data, err := s.Record(ctx, a.ID); err != nil || n != 6 && string(data) != "one\ntwo\n" {
			t.Errorf("attempt %d: record %q, %v", n, data, err)
		}
	}
	// What may have been signed since is never signed again.
	open := Attempt(1, 0).ID
	for name, err := range map[string]error{
		"signed":   s.Sign(ctx, open, Drafts(9, 1), "group/project", true),
		"closed":   s.Decide(ctx, open, Decision(9, 1)),
		"appended": s.AppendRecord(ctx, open, 8, [][]byte{[]byte("x")}),
		"replaced": s.Begin(ctx, Attempt(7, 1), open),
	} {
		if !errors.Is(err, store.ErrDecided) {
			t.Errorf("an attempt that was open was %s: %v", name, err)
		}
	}
	restoredBundles(t, s)
	_, err := s.Host(ctx, "runner-1")
	must(t, err)
	// It may have been used, or withdrawn, after the copy was made.
	_, err = s.Enrol(ctx, attesttest.SHA256("restored-2"), attesttest.SHA256("key-2"), attesttest.Start(), attesttest.Start().Add(time.Hour))
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an invitation of the copy: %v", err)
	}
	must(t, s.Check(ctx))
}

func restoredBundles(t *testing.T, s store.Store) {
	t.Helper()
	ctx := t.Context()
	bs, err := Bundles(ctx, s, Attempt(3, 0).ID)
	must(t, err)
	if diff := cmp.Diff(Decision(3, 3).Bundles, bs); diff != "" {
		t.Error(diff)
	}
	for _, f := range []func() ([]store.Found, error){
		func() ([]store.Found, error) { return s.ByJob(ctx, 3, 10) },
		func() ([]store.Found, error) { return s.ByProject(ctx, "group/project", 10) },
		func() ([]store.Found, error) {
			return s.BySubject(ctx, attesttest.SHA256("same in all"), store.Filter{}, 10)
		},
	} {
		if found, err := f(); err != nil || len(found) != 3 {
			t.Errorf("%d found, %v", len(found), err)
		}
	}
	drafts, err := s.Drafts(ctx, Attempt(2, 0).ID)
	must(t, err)
	if diff := cmp.Diff(Drafts(2, 2), drafts); diff != "" {
		t.Error(diff)
	}
	must(t, s.Decide(ctx, Attempt(2, 0).ID, Decision(2, 2)))
}
