package fleet_test

import (
	"testing"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/storetest"
)

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) store.Store { return open(b, running.Fresh(b)) })
}
