package fleet

import "time"

// WithHold spares tests waiting maxHold.
func (o Options) WithHold(d time.Duration) Options {
	o.hold = d
	return o
}
