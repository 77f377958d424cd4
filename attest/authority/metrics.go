package authority

import (
	"fmt"
	"io"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"google.golang.org/grpc/codes"
)

// meters are what GET /metrics shows. No label's value is chosen by a tenant.
type meters struct {
	set  *metrics.Set
	acts map[Event]*metrics.Counter
}

// newMeters makes every counter of events, so that each is there from the start
// and an alert can tell zero from unknown.
func newMeters() *meters {
	m := &meters{set: metrics.NewSet(), acts: map[Event]*metrics.Counter{}}
	for _, e := range acts {
		m.acts[e] = m.set.NewCounter(fmt.Sprintf("hallmark_acts_total{event=%q}", e))
	}
	for _, e := range refusals {
		m.set.NewCounter(refusalName(e))
	}
	return m
}

func refusalName(e Event) string { return fmt.Sprintf("hallmark_refusals_total{event=%q}", e) }

// count adds one to the event's counter and reports whether it is a refusal.
func (m *meters) count(e Event) (refusal bool) {
	if c, ok := m.acts[e]; ok {
		c.Inc()
		return false
	}
	m.set.GetOrCreateCounter(refusalName(e)).Inc()
	return true
}

// seconds are the bounds of durations: a store's commit, a signature in hardware, a
// checkpoint, a deadline.
var seconds = []float64{0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120}

// called counts a call that was answered, one way or another. Host is the name
// of a host that the admin enrolled.
func (m *meters) called(method string, code codes.Code, host string, took time.Duration) {
	m.set.GetOrCreateCounter(fmt.Sprintf("hallmark_calls_total{method=%q,code=%q,host=%q}", method, code, host)).Inc()
	m.set.GetOrCreatePrometheusHistogramExt(fmt.Sprintf("hallmark_call_seconds{method=%q}", method), seconds).Update(took.Seconds())
}

// timed measures a step of closing: sign, log or store. It is called when the
// step begins, and what it returns when the step ends.
func (m *meters) timed(step string) func() {
	started := time.Now()
	h := m.set.GetOrCreatePrometheusHistogramExt(fmt.Sprintf("hallmark_close_step_seconds{step=%q}", step), seconds)
	return func() { h.UpdateDuration(started) }
}

// gauge shows what f returns whenever somebody looks.
func (m *meters) gauge(name string, f func() float64) { m.set.NewGauge(name, f) }

// watch shows what is in use of the limits.
func (m *meters) watch(l *limits) {
	for name, t := range map[string]*turns{"incoming_bytes": l.incoming, "running_calls": l.running, "opening_calls": l.opening, "signing_calls": l.signing, "locked_jobs": l.locked, "record_bytes": l.records} {
		m.gauge(fmt.Sprintf("hallmark_in_use{what=%q}", name), func() float64 { used, _ := t.state(); return float64(used) })
		m.gauge(fmt.Sprintf("hallmark_waiting{what=%q}", name), func() float64 { _, waiting := t.state(); return float64(waiting) })
	}
	m.gauge(`hallmark_in_use{what="arrived_bytes"}`, func() float64 { return float64(l.arrived.state()) })
	m.gauge("hallmark_open_attempts", func() float64 { return float64(l.allOpen()) })
}

// connections shows how many there are of a kind.
func (m *meters) connections(kind string, c *crowd) {
	m.gauge(fmt.Sprintf("hallmark_connections{kind=%q}", kind), func() float64 { return float64(c.size()) })
}

// handshakeFailed counts a connection that never spoke.
func (m *meters) handshakeFailed() {
	m.set.GetOrCreateCounter("hallmark_handshakes_failed_total").Inc()
}

// write writes all metrics in Prometheus' text format.
func (m *meters) write(w io.Writer) { m.set.WritePrometheus(w) }
