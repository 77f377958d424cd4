package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/store"
)

// contextThatEnds ends soon: what waits longer would wait for ever.
func contextThatEnds(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, 50*time.Millisecond)
}

// Invitation is a sample; token is what its digest is made from.
func Invitation(token, host string) store.Invitation {
	return store.Invitation{
		TokenSHA256: attesttest.SHA256(token), Host: host, Projects: []string{"group/*"}, Profiles: []string{"hermetic", "firewalled"},
		Created: attesttest.Start(), Expires: attesttest.Start().Add(time.Hour),
	}
}

func hosts(t *testing.T, s store.Store) {
	ctx := t.Context()
	start, later := attesttest.Start(), attesttest.Start().Add(24*time.Hour)
	token, key := attesttest.SHA256, attesttest.SHA256
	must(t, s.Invite(ctx, Invitation("a", "runner-1")))
	if err := s.Invite(ctx, Invitation("a", "runner-2")); err == nil {
		t.Error("one token for two hosts")
	}
	for _, wrong := range []struct {
		token string
		at    time.Time
	}{{"x", start}, {"a", start.Add(time.Hour)}} {
		if _, err := s.Enrol(ctx, token(wrong.token), key("1"), wrong.at, later); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("enrolled by %q at %s: %v", wrong.token, wrong.at, err)
		}
	}
	want := store.Host{
		Name: "runner-1", KeySHA256: key("1"), Projects: []string{"group/*"}, Profiles: []string{"hermetic", "firewalled"}, Enrolled: start, Expires: later,
	}
	have, err := s.Enrol(ctx, token("a"), key("1"), start, later)
	must(t, err)
	sameHost(t, want, have)
	if _, err := s.Enrol(ctx, token("a"), key("2"), start, later); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a token was used twice: %v", err)
	}
	// One key is one host's. The refused invitation is still good.
	must(t, s.Invite(ctx, Invitation("b", "runner-2")))
	if _, err := s.Enrol(ctx, token("b"), key("1"), start, later); !errors.Is(err, store.ErrConflict) {
		t.Errorf("one key for two hosts: %v", err)
	}
	_, err = s.Enrol(ctx, token("b"), key("2"), start, later)
	must(t, err)
	// Renewal.
	if err := s.RenewHost(ctx, "runner-1", key("x"), key("3"), later); !errors.Is(err, store.ErrConflict) {
		t.Errorf("renewed with another's key: %v", err)
	}
	if err := s.RenewHost(ctx, "runner-1", key("1"), key("2"), later); !errors.Is(err, store.ErrConflict) {
		t.Errorf("renewed to another's key: %v", err)
	}
	want.KeySHA256, want.Expires = key("3"), later.Add(time.Hour)
	must(t, s.RenewHost(ctx, "runner-1", key("1"), key("3"), want.Expires))
	have, err = s.Host(ctx, "runner-1")
	must(t, err)
	sameHost(t, want, have)
	// Revocation, and enrolment by a new invitation.
	must(t, s.Invite(ctx, Invitation("c", "runner-1")))
	must(t, s.RevokeHost(ctx, "runner-1", later))
	must(t, s.RevokeHost(ctx, "runner-1", later.Add(time.Hour)))
	want.Revoked = later
	have, err = s.Host(ctx, "runner-1")
	must(t, err)
	sameHost(t, want, have)
	if err := s.RenewHost(ctx, "runner-1", key("3"), key("4"), later); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a revoked host was renewed: %v", err)
	}
	if _, err := s.Enrol(ctx, token("c"), key("4"), start, later); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a revoked host's invitation: %v", err)
	}
	must(t, s.Invite(ctx, Invitation("d", "runner-1")))
	have, err = s.Enrol(ctx, token("d"), key("4"), start, later)
	must(t, err)
	want.KeySHA256, want.Expires, want.Revoked = key("4"), later, time.Time{}
	sameHost(t, want, have)
	all, err := s.Hosts(ctx)
	must(t, err)
	if len(all) != 2 || all[0].Name != "runner-1" || all[1].Name != "runner-2" {
		t.Errorf("%+v", all)
	}
	noHost(t, s)
	oneEnrols(t, s)
	noneIsLeft(t, s)
}

func sameHost(t *testing.T, want, have store.Host) {
	t.Helper()
	if diff := cmp.Diff(want, have); diff != "" {
		t.Error(diff)
	}
}

func noHost(t *testing.T, s store.Store) {
	_, err := s.Host(t.Context(), "nobody")
	for _, err := range []error{err, s.RevokeHost(t.Context(), "nobody", attesttest.Start())} {
		if !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%v", err)
		}
	}
}

// oneEnrols lets many use one token.
func oneEnrols(t *testing.T, s store.Store) {
	ctx := t.Context()
	must(t, s.Invite(ctx, Invitation("race", "runner-3")))
	var (
		wg  sync.WaitGroup
		won atomic.Int32
	)
	for i := range 8 {
		wg.Go(func() {
			_, err := s.Enrol(ctx, attesttest.SHA256("race"), attesttest.SHA256(string(rune('A'+i))), attesttest.Start(), attesttest.Start().Add(time.Hour))
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, store.ErrNotFound):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := won.Load(); n != 1 {
		t.Errorf("%d enrolled by one token", n)
	}
}

// noneIsLeft holds that a host's other invitations go with the one that it
// used, and with the host, even if it never came.
func noneIsLeft(t *testing.T, s store.Store) {
	ctx := t.Context()
	start, later := attesttest.Start(), attesttest.Start().Add(24*time.Hour)
	enrol := func(token string) error {
		_, err := s.Enrol(ctx, attesttest.SHA256(token), attesttest.SHA256("key of "+token), start, later)
		return err
	}
	must(t, s.Invite(ctx, Invitation("lost", "runner-8")))
	must(t, s.Invite(ctx, Invitation("second", "runner-8")))
	must(t, enrol("second"))
	if err := enrol("lost"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an invitation from before: %v", err)
	}
	must(t, s.Invite(ctx, Invitation("withdrawn", "runner-9")))
	must(t, s.RevokeHost(ctx, "runner-9", later))
	if err := enrol("withdrawn"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a withdrawn invitation: %v", err)
	}
}
