package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/world"
)

// bigFile is the size of the one large download, in bytes.
const bigFile = 500 << 20

// downloads are the arguments of testdata/fetch. One client asks for one file
// after another over a connection that is kept; eight do as package managers do.
var downloads = []string{
	fmt.Sprintf("500-MB-http http://%s/size/%d/big", world.PackagesName, bigFile),
	fmt.Sprintf("500-MB-https https://%s/size/%d/big", world.PackagesName, bigFile),
	fmt.Sprintf("-n 1000 1000-small-http http://%s/size/2000/small", world.PackagesName),
	fmt.Sprintf("-n 1000 1000-small-https https://%s/size/2000/small", world.PackagesName),
	fmt.Sprintf("-n 1000 -parallel 8 1000-small-https-by-8 https://%s/size/2000/small", world.PackagesName),
}

// BenchmarkDownload is downloads by a firewalled job, through the border that
// hashes and records them, and by the same program in the host's network
// namespace. The server is the same, and runs in this process; so on a small
// machine server, border and client share the processors.
func BenchmarkDownload(b *testing.B) {
	dir := makeFetch(b)
	if _, err := theWorld.PublishDir("bench/fetch", "main", dir); err != nil {
		b.Fatal(err)
	}
	var script []string
	for _, d := range downloads {
		script = append(script, "./fetch "+d)
	}
	var times series
	sums := map[string]string{}
	border := func() {
		before := cpuTime(theWorld.Sandboxd.PID())
		j := timeJob(b, coordinator.Job{Project: "bench/fetch", Runner: world.Firewalled, Script: script, Image: hermetic().Image, Timeout: benchTime})
		addFetched(b, &times, sums, "border", plain(j.Trace))
		times.add("border", " sandboxd's CPU, whole job", cpuTime(theWorld.Sandboxd.PID())-before)
	}
	direct := func() {
		out := strings.Builder{}
		for _, d := range downloads {
			cmd := exec.CommandContext(b.Context(), filepath.Join(dir, "fetch"), strings.Fields(d)...)
			cmd.Env = []string{"SSL_CERT_FILE=/etc/hallmark/internet-ca.pem"}
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				b.Fatalf("%v\n%s", err, out.String())
			}
		}
		addFetched(b, &times, sums, "direct", out.String())
	}
	inTurns(b, border, direct)
	times.table(b, "border", "direct")
	for _, name := range times.names {
		if strings.HasPrefix(name, " ") {
			continue
		}
		times.report(b, name, name, "border", "direct")
		if strings.HasPrefix(name, "500-MB") {
			for _, side := range []string{"border", "direct"} {
				b.ReportMetric(bigFile/1e6/times.median(side, name).Seconds(), side+"-"+name+"-MB/s")
			}
		}
	}
}

// addFetched reads what fetch said. Both sides must have got the same bytes.
func addFetched(b *testing.B, times *series, sums map[string]string, side, out string) {
	b.Helper()
	found := 0
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 5 || f[0] != "fetched" {
			continue
		}
		us, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		found++
		times.add(side, f[1], time.Duration(us)*time.Microsecond)
		if have, ok := sums[f[1]]; ok && have != f[3]+" "+f[4] {
			b.Fatalf("%s: %s is %s, and was %s", side, f[1], f[3]+" "+f[4], have)
		}
		sums[f[1]] = f[3] + " " + f[4]
	}
	if found != len(downloads) {
		b.Fatalf("%s: %d downloads, want %d:\n%s", side, found, len(downloads), out)
	}
}

// makeFetch builds the client into a directory of its own.
func makeFetch(b *testing.B) string {
	b.Helper()
	dir, err := theWorld.Temp("fetch")
	if err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(dir, "fetch"), "./integration/testdata/fetch")
	cmd.Dir = theWorld.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build fetch: %v\n%s", err, out)
	}
	return dir
}
