package workspace

import (
	"errors"
	"fmt"
)

var errDelta = errors.New("delta: malformed")

// applyDelta rebuilds an object from its base. The result is at most limit
// bytes, and exactly what the delta announces.
func applyDelta(base, delta []byte, limit int64) ([]byte, error) {
	want, delta, ok := deltaSize(delta)
	if !ok || want != uint64(len(base)) {
		return nil, fmt.Errorf("%w: size of the base", errDelta)
	}
	size, delta, ok := deltaSize(delta)
	if !ok {
		return nil, fmt.Errorf("%w: size of the result", errDelta)
	}
	if size > uint64(limit) {
		return nil, fmt.Errorf("%w: result of %d bytes", errTooLarge, size)
	}
	// Grown as it fills: an announced size alone must not take memory.
	out := make([]byte, 0, min(size, uint64(len(base)+len(delta))))
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		var part []byte
		switch {
		case op&0x80 != 0:
			var from, n uint64
			from, n, delta, ok = deltaCopy(op, delta)
			if !ok || from > uint64(len(base)) || n > uint64(len(base))-from {
				return nil, fmt.Errorf("%w: copies beyond its base", errDelta)
			}
			part = base[from : from+n]
		case op == 0:
			return nil, fmt.Errorf("%w: reserved instruction", errDelta)
		default:
			if int(op) > len(delta) {
				return nil, fmt.Errorf("%w: cut off", errDelta)
			}
			part, delta = delta[:op], delta[op:]
		}
		if uint64(len(part)) > size-uint64(len(out)) {
			return nil, fmt.Errorf("%w: larger than announced", errDelta)
		}
		out = append(out, part...)
	}
	if uint64(len(out)) != size {
		return nil, fmt.Errorf("%w: smaller than announced", errDelta)
	}
	return out, nil
}

// deltaSize reads a number of seven bits a byte, the lowest first.
func deltaSize(b []byte) (n uint64, rest []byte, ok bool) {
	for i := 0; i < len(b) && i < 9; i++ {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return n, b[i+1:], true
		}
	}
	return 0, nil, false
}

// deltaCopy reads the operands of a copy instruction: which of their bytes are
// there, the instruction's low bits say.
func deltaCopy(op byte, b []byte) (from, n uint64, rest []byte, ok bool) {
	for i := range 7 {
		if op&(1<<i) == 0 {
			continue
		}
		if len(b) == 0 {
			return 0, 0, nil, false
		}
		if i < 4 {
			from |= uint64(b[0]) << (8 * i)
		} else {
			n |= uint64(b[0]) << (8 * (i - 4))
		}
		b = b[1:]
	}
	if n == 0 {
		n = 0x10000
	}
	return from, n, b, true
}
