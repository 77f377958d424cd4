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
	"hallmark.build/attest/tlog"
)

// BenchmarkHosts takes jobs through their whole life over mutual TLS, with keys
// in files and the embedded store: 1, 8 and 64 hosts at a time, each with one job.
func BenchmarkHosts(b *testing.B) {
	for _, logs := range []string{"none", "built-in"} {
		for _, n := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("log=%s/hosts=%d", logs, n), func(b *testing.B) {
				f := newFleetWith(b, func(w *world) {
					if logs == "built-in" {
						w.change = func(c *authority.Config) { c.Transparency = builtIn(b) }
					}
				})
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
						for {
							id := job.Add(1)
							if id > int64(b.N) {
								return
							}
							if out, err := f.attest(b.Context(), h, id); err != nil || len(out.GetAttestations()) != 1 {
								b.Errorf("job %d: %v, %v", id, out, err)
								return
							}
						}
					})
				}
				work.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "attestations/s")
			})
		}
	}
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
