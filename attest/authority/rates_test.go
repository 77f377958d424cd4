package authority

import (
	"fmt"
	"strconv"
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

// TestHandshakes: hosts that share a balancer's address have handshakes of their
// own, a greedy host and strangers use up the address's.
func TestHandshakes(t *testing.T) {
	now := time.Unix(1, 0)
	clock := func() time.Time { return now }
	c := &hostCredentials{rate: newRates(60, 3, clock), hostRate: newRates(60, 2, clock)}
	for i := range 100 {
		if err := c.charge(tlsPeer{address: "balancer", host: strconv.Itoa(i)}); err != nil {
			t.Errorf("host %d: %v", i, err)
		}
	}
	if !c.rate.ready("balancer") {
		t.Error("hosts use up the address's")
	}
	for range 3 {
		if err := c.charge(tlsPeer{address: "elsewhere"}); err != nil {
			t.Errorf("stranger: %v", err)
		}
	}
	if c.rate.ready("elsewhere") {
		t.Error("strangers have no limit")
	}
	refused := 0
	for range 5 {
		if c.charge(tlsPeer{address: "balancer", host: "greedy"}) != nil {
			refused++
		}
	}
	if refused != 3 || c.rate.ready("balancer") {
		t.Errorf("greedy: %d of 5 refused; the address has some left: %v", refused, c.rate.ready("balancer"))
	}
}
