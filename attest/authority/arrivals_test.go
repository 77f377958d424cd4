package authority

import (
	"slices"
	"testing"
)

// TestArrivals holds that whoever has the most has to go, and with the largest of
// its requests, whoever comes.
func TestArrivals(t *testing.T) {
	var went []string
	all := newArrivals(100)
	enter := func(peer, name string) *request {
		return all.enter(peer, func() { went = append(went, name) })
	}
	modest, small, large := enter("modest", "modest"), enter("greedy", "small"), enter("greedy", "large")
	for _, step := range []struct {
		who  *request
		n    int64
		stay bool
		went []string
		used int64
	}{
		{small, 30, true, nil, 30},
		{large, 35, true, nil, 65},
		{modest, 35, true, nil, 100},
		{modest, 1, true, []string{"large"}, 66},
		{large, 10, false, []string{"large"}, 66},
		{small, 10, true, []string{"large"}, 76},
		{modest, 10, true, []string{"large"}, 86},
		{modest, 20, false, []string{"large", "modest"}, 40}, // now it has the most itself
	} {
		if stay := step.who.grow(step.n); stay != step.stay || !slices.Equal(went, step.went) || all.state() != step.used {
			t.Errorf("%d more: stays: %t, went: %v, used: %d, want %+v", step.n, stay, went, all.state(), step)
		}
	}
	for r, out := range map[*request]bool{modest: true, large: true, small: false} {
		for range 2 { // leaving twice is leaving once
			if r.leave() != out {
				t.Errorf("%s went out: %t", r.peer, !out)
			}
		}
	}
	if all.state() != 0 || len(all.in) != 0 {
		t.Errorf("left behind: %d bytes, %d requests", all.state(), len(all.in))
	}
}
