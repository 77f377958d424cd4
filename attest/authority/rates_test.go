package authority

import (
	"fmt"
	"testing"
	"time"
)

func TestRates(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRates(60, 3, func() time.Time { return now })
	for range 3 {
		if _, ok := r.take("a"); !ok {
			t.Fatal("refused within the burst")
		}
		if !r.ready("b") {
			t.Fatal("to look is to take")
		}
	}
	if r.ready("a") {
		t.Error("ready, and nothing there")
	}
	wait, ok := r.take("a")
	if ok || wait != time.Second {
		t.Errorf("%v, %v", wait, ok)
	}
	if _, ok := r.take("b"); !ok {
		t.Error("one key's rate is another's")
	}
	now = now.Add(wait)
	if _, ok := r.take("a"); !ok {
		t.Error("refused after the wait")
	}
	if _, ok := r.take("a"); ok {
		t.Error("two for one token")
	}
	now = now.Add(time.Hour)
	for range 3 {
		if _, ok := r.take("a"); !ok {
			t.Error("refused after a rest")
		}
	}
	if _, ok := r.take("a"); ok {
		t.Error("a rest saves up more than a burst")
	}
}

func TestRatesForget(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRates(60, 3, func() time.Time { return now })
	for i := range 3 * maxRates {
		r.take(fmt.Sprint(i))
	}
	if len(r.full) > maxRates {
		t.Errorf("%d keys", len(r.full))
	}
}
