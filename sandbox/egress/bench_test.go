package egress

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// benchWorld is a world whose record is a real file, synced at every entry.
func benchWorld(b *testing.B, data []byte) *world {
	b.Helper()
	log, err := record.Create(filepath.Join(b.TempDir(), "record"), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { log.Close() })
	if _, err := log.Append(record.JobOpened, record.Opened{}); err != nil {
		b.Fatal(err)
	}
	w := newWorld(b, options{profile: sandbox.Firewalled, origin: fixed(data), change: func(c *Config) { c.Record = log }})
	w.begin(sandbox.BuildScript)
	return w
}

// clients are one that goes straight to the origin and one inside the
// namespace, alike in all else.
func clients(b *testing.B, w *world) (direct, border *http.Client) {
	b.Helper()
	outer, inner := x509.NewCertPool(), x509.NewCertPool()
	outer.AddCert(w.outer.cert)
	inner.AppendCertsFromPEM(w.b.CA())
	origin := w.origin.Listener.Addr().String()
	direct = &http.Client{Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return tls.Dial("tcp", origin, &tls.Config{RootCAs: outer, ServerName: "good.test"})
		},
		DisableCompression: true, ReadBufferSize: 64 << 10,
	}}
	address := net.JoinHostPort("93.184.216.34", fmt.Sprint(w.port))
	netns := w.netns(sandbox.Build)
	border = &http.Client{Transport: &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			c, err := dialInside(netns, address)
			if err != nil {
				return nil, err
			}
			t := tls.Client(c, &tls.Config{RootCAs: inner, ServerName: "good.test"})
			return t, t.Handshake()
		},
		DisableCompression: true, ReadBufferSize: 64 << 10,
	}}
	b.Cleanup(direct.CloseIdleConnections)
	b.Cleanup(border.CloseIdleConnections)
	return direct, border
}

// dialInside makes a connection from inside a namespace.
func dialInside(netns, address string) (net.Conn, error) {
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked
		f, err := os.Open(netns)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		c, err := net.Dial("tcp", address)
		done <- result{c, err}
	}()
	r := <-done
	return r.c, r.err
}

func get(b *testing.B, c *http.Client, url string) {
	b.Helper()
	resp, err := c.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("status %d: %v", resp.StatusCode, err)
	}
}

// BenchmarkDownload fetches one file of 500 MB directly and through the border,
// in turns, and reports both and their ratio.
func BenchmarkDownload(b *testing.B) {
	data := make([]byte, 500_000_000)
	if _, err := rand.Read(data); err != nil {
		b.Fatal(err)
	}
	w := benchWorld(b, data)
	compare(b, w, float64(len(data))/1e6, "MB/s", func(c *http.Client) { get(b, c, w.url("/500MB")) })
}

// BenchmarkSmall fetches 1,000 files of 10 KB, one after another.
func BenchmarkSmall(b *testing.B) {
	w := benchWorld(b, []byte(strings.Repeat("x", 10_000)))
	compare(b, w, 1000, "requests/s", func(c *http.Client) {
		for i := range 1000 {
			get(b, c, w.url(fmt.Sprint("/", i)))
		}
	})
}

// BenchmarkSmallParallel fetches 1,000 files of 10 KB, 16 at a time.
func BenchmarkSmallParallel(b *testing.B) {
	w := benchWorld(b, []byte(strings.Repeat("x", 10_000)))
	compare(b, w, 1000, "requests/s", func(c *http.Client) {
		c.Transport.(*http.Transport).MaxIdleConnsPerHost = 16
		next := make(chan int)
		done := make(chan struct{})
		for range 16 {
			go func() {
				for i := range next {
					get(b, c, w.url(fmt.Sprint("/", i)))
				}
				done <- struct{}{}
			}()
		}
		for i := range 1000 {
			next <- i
		}
		close(next)
		for range 16 {
			<-done
		}
	})
}

func compare(b *testing.B, w *world, amount float64, unit string, run func(*http.Client)) {
	b.Helper()
	direct, border := clients(b, w)
	var spent [2]time.Duration
	for b.Loop() {
		for i, c := range []*http.Client{direct, border} {
			start := time.Now()
			run(c)
			spent[i] += time.Since(start)
		}
	}
	n := float64(b.N)
	b.ReportMetric(amount*n/spent[0].Seconds(), "direct-"+unit)
	b.ReportMetric(amount*n/spent[1].Seconds(), "border-"+unit)
	b.ReportMetric(spent[1].Seconds()/spent[0].Seconds(), "border/direct")
}

// BenchmarkNamespace makes a namespace with its rules, self-test included.
func BenchmarkNamespace(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root to make network namespaces")
	}
	for b.Loop() {
		ns, err := newNamespace(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		ns.close()
	}
}
