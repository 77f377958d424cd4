package authority_test

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"hallmark.build/attest/authority"
	"hallmark.build/attest/sign/key/keytest"
	"hallmark.build/attest/tlog"
)

// BenchmarkHosts takes jobs through their whole life over mutual TLS, with the
// embedded store: 1, 8 and 64 hosts at a time, each with one job. The timestamp
// authority's key is a file in any case.
func BenchmarkHosts(b *testing.B) {
	keys := map[string]string{"file": "", "softhsm": keytest.New(b).Generate("ca", "01")}
	for _, key := range []string{"file", "softhsm"} {
		for _, log := range []string{"none", "built-in"} {
			for _, n := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("key=%s/log=%s/hosts=%d", key, log, n), func(b *testing.B) {
					f := newFleetWith(b, func(w *world) {
						w.caKey = keys[key]
						if log == "built-in" {
							w.change = func(c *authority.Config) { c.Transparency = builtIn(b) }
						}
					})
					benchmarkHosts(b, f, n)
				})
			}
		}
	}
}

func benchmarkHosts(b *testing.B, f *fleet, n int) {
	hosts := make([]*host, n)
	for i := range hosts {
		hosts[i] = f.join(fmt.Sprintf("runner-%d", i))
	}
	var (
		job  atomic.Int64
		work sync.WaitGroup
	)
	b.ResetTimer()
	for _, h := range hosts {
		work.Go(func() {
			for id := job.Add(1); id <= int64(b.N); id = job.Add(1) {
				if out, err := f.attest(b.Context(), h, id); err != nil || len(out.GetAttestations()) != 1 {
					b.Errorf("job %d: %v, %v", id, out, err)
					return
				}
			}
		})
	}
	work.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "attestations/s")
}

// builtIn is a log of its own.
func builtIn(b *testing.B) *tlog.BuiltIn {
	b.Helper()
	dir := b.TempDir()
	key, err := tlog.FileKey(filepath.Join(dir, "keys", "log.pem"))
	if err != nil {
		b.Fatal(err)
	}
	l, err := tlog.Open(b.Context(), tlog.Options{
		Tiles: filepath.Join(dir, "tiles"), History: filepath.Join(dir, "history"), Key: key,
		BaseURL: &url.URL{Scheme: "https", Host: "ci.example.com", Path: "/log"},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close(context.Background()) })
	return l
}
