package authority

import (
	"fmt"
	"io"

	"github.com/VictoriaMetrics/metrics"
)

// meters are what GET /metrics shows. No label's value is chosen by a tenant.
type meters struct {
	set      *metrics.Set
	acts     map[Event]*metrics.Counter
	refusals map[Event]*metrics.Counter
}

// newMeters makes every counter of events, so that each is there from the start
// and an alert can tell zero from unknown.
func newMeters() *meters {
	m := &meters{set: metrics.NewSet(), acts: map[Event]*metrics.Counter{}, refusals: map[Event]*metrics.Counter{}}
	for _, e := range acts {
		m.acts[e] = m.set.NewCounter(fmt.Sprintf("hallmark_acts_total{event=%q}", e))
	}
	for _, e := range refusals {
		m.refusals[e] = m.set.NewCounter(fmt.Sprintf("hallmark_refusals_total{event=%q}", e))
	}
	return m
}

// count adds one to the event's counter and reports whether it is a refusal.
func (m *meters) count(e Event) (refusal bool) {
	if c, ok := m.acts[e]; ok {
		c.Inc()
		return false
	}
	m.refusals[e].Inc()
	return true
}

// write writes all metrics in Prometheus' text format.
func (m *meters) write(w io.Writer) { m.set.WritePrometheus(w) }
