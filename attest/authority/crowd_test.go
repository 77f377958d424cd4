package authority

import (
	"fmt"
	"testing"
)

type member struct{ closed bool }

func (m *member) Close() error { m.closed = true; return nil }

func TestCrowd(t *testing.T) {
	c := newCrowd(4, 3)
	var greedy []*member
	for range 4 {
		m := &member{}
		greedy = append(greedy, m)
		c.enter("greedy", m)
	}
	if !greedy[0].closed || greedy[1].closed || c.size() != 3 {
		t.Errorf("beyond its own bound, the oldest of a key goes: %d are in", c.size())
	}
	modest := &member{}
	leave := c.enter("modest", modest)
	other := &member{}
	c.enter("other", other)
	if !greedy[1].closed || greedy[2].closed || modest.closed || other.closed || c.size() != 4 {
		t.Errorf("beyond the total, the oldest of the greediest key goes: %d are in", c.size())
	}
	leave()
	leave()
	if modest.closed || c.size() != 3 {
		t.Errorf("who has left is not there any more: %d are in", c.size())
	}
}

// TestCrowdFlood holds that who came last is let in, however many others do
// nothing but come.
func TestCrowdFlood(t *testing.T) {
	c := newCrowd(64, 8)
	for i := range 10_000 {
		m := &member{}
		if c.enter(fmt.Sprint(i%100), m); m.closed {
			t.Fatalf("number %d was not let in", i)
		}
		if c.size() > 64 {
			t.Fatalf("%d are in", c.size())
		}
	}
}
