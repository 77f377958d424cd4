// Command fetch downloads and says how long it took: the client of the download
// benchmark, the same inside a job and outside.
//
//	fetch [-n COUNT] [-parallel CLIENTS] LABEL URL
//
// With -n it asks for URL-0, URL-1 and so on. The sum is that of all bodies'
// sums, in order.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	n := flag.Int("n", 0, "how many `files`; 0 for URL itself")
	parallel := flag.Int("parallel", 1, "how many at once")
	flag.Parse()
	if flag.NArg() != 2 {
		flag.Usage()
		os.Exit(2)
	}
	urls := []string{flag.Arg(1)}
	if *n > 0 {
		urls = urls[:0]
		for i := range *n {
			urls = append(urls, fmt.Sprintf("%s-%d", flag.Arg(1), i))
		}
	}
	if err := run(flag.Arg(0), urls, *parallel); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(label string, urls []string, parallel int) error {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = parallel
	client := &http.Client{Transport: transport}
	sums := make([][sha256.Size]byte, len(urls))
	errs := make([]error, parallel)
	var next, bytes atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for c := range parallel {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(urls) || errs[c] != nil {
					return
				}
				var n int64
				n, sums[i], errs[c] = fetch(client, urls[i])
				bytes.Add(n)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	all := sha256.New()
	for _, s := range sums {
		all.Write(s[:])
	}
	fmt.Printf("fetched %s %d %d %x\n", label, took.Microseconds(), bytes.Load(), all.Sum(nil))
	return nil
}

func fetch(client *http.Client, url string) (n int64, sum [sha256.Size]byte, err error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, sum, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, sum, fmt.Errorf("%s: %s", url, resp.Status)
	}
	h := sha256.New()
	n, err = io.Copy(h, resp.Body)
	return n, [sha256.Size]byte(h.Sum(nil)), err
}
