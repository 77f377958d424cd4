package fleet_test

import (
	"testing"
	"time"

	"hallmark.build/attest/store/fleet"
)

func TestAgree(t *testing.T) {
	o := running.Fresh(t)
	first, second := open(t, o), open(t, o)
	for i, s := range []*fleet.Store{first, second, first} {
		if err := s.Agree(t.Context(), map[string]string{"secret": "1", "log": "built-in 7"}); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	if err := second.Agree(t.Context(), map[string]string{"secret": "1", "log": "built-in 8"}); !contains(err, "log is built-in 8 here, but the replicas agreed on built-in 7") {
		t.Errorf("%v", err)
	}
	// A loss may have taken what was agreed on.
	if _, err := fleet.Restored(t.Context(), o, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := second.Agree(t.Context(), map[string]string{"secret": "2", "log": "built-in 8"}); err != nil {
		t.Error(err)
	}
}
