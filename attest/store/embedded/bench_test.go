package embedded_test

import (
	"path/filepath"
	"testing"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/embedded"
	"hallmark.build/attest/store/storetest"
)

func BenchmarkStore(b *testing.B) {
	storetest.Benchmark(b, func(b *testing.B) store.Store {
		s, err := embedded.Open(b.Context(), filepath.Join(b.TempDir(), "store"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { s.Close() })
		return s
	})
}
