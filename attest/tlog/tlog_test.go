package tlog

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"k8s.io/klog/v2"

	"hallmark.build/attest/policy"
	"hallmark.build/attest/verify"
	"hallmark.build/attest/verify/verifytest"
)

func TestMain(m *testing.M) {
	// Tessera's talk.
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	_ = flags.Parse([]string{"-logtostderr=false", "-stderrthreshold=FATAL"})
	klog.SetOutput(io.Discard)
	if dir := os.Getenv("HALLMARK_TLOG_CHILD"); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// options are those of a log below dir.
func options(t testing.TB, dir string) Options {
	t.Helper()
	o, err := optionsIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func optionsIn(dir string) (Options, error) {
	key, err := FileKey(filepath.Join(dir, "log.pem"))
	return Options{
		Tiles: filepath.Join(dir, "tiles"), History: filepath.Join(dir, "history"), Key: key, Now: verifytest.SignedAt,
		BaseURL: &url.URL{Scheme: "https", Host: "ci.example.com:8443", Path: "/log"},
	}, err
}

func open(t testing.TB, o Options) *BuiltIn {
	t.Helper()
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l
}

func closeLog(t testing.TB, l *BuiltIn) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// drafts makes bundles without entries.
func drafts(t testing.TB, n int) (*verifytest.Authority, [][]byte) {
	t.Helper()
	a := verifytest.New(t)
	var out [][]byte
	for range n {
		out = append(out, a.Bundle(verifytest.Statement()))
	}
	return a, out
}

func enter(t testing.TB, l Log, draft []byte) ([]byte, *rekorpb.TransparencyLogEntry) {
	t.Helper()
	bundle, err := l.Enter(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	return bundle, entryOf(t, bundle)
}

func entryOf(t testing.TB, bundle []byte) *rekorpb.TransparencyLogEntry {
	t.Helper()
	var b bundlepb.Bundle
	if err := protojson.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	if n := len(b.GetVerificationMaterial().GetTlogEntries()); n != 1 {
		t.Fatalf("%d entries", n)
	}
	return b.GetVerificationMaterial().GetTlogEntries()[0]
}

// trustedRoot is what verifiers get for an authority and a log.
func trustedRoot(t testing.TB, a *verifytest.Authority, l Log) []byte {
	t.Helper()
	a.Logs = nil
	for _, instance := range l.Trusted() {
		text, err := protojson.Marshal(instance)
		if err != nil {
			t.Fatal(err)
		}
		a.Logs = append(a.Logs, json.RawMessage(text))
	}
	return a.TrustedRoot()
}

// verdict is that of our verifier, which runs sigstore-go's too.
func verdict(t testing.TB, bundle, root []byte) verify.Verdict {
	t.Helper()
	pol, err := policy.Parse([]byte(verifytest.Policy))
	if err != nil {
		t.Fatal(err)
	}
	return verify.Artifact(t.Context(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, pol, root)
}

func mustVerify(t testing.TB, bundle, root []byte) {
	t.Helper()
	v := verdict(t, bundle, root)
	logged := false
	for _, c := range v.Checks {
		logged = logged || c.Name == "log" && c.Status == verify.Pass
	}
	if !v.Verified() || !logged {
		t.Errorf("%s %s", v.Outcome(), v.Reason)
		for _, c := range v.Checks {
			if c.Status == verify.Fail {
				t.Errorf("%+v", c)
			}
		}
	}
}

func TestEnter(t *testing.T) {
	t.Parallel()
	l := open(t, options(t, t.TempDir()))
	a, drafts := drafts(t, 3)
	for i, draft := range drafts {
		bundle, entry := enter(t, l, draft)
		if entry.GetLogIndex() != int64(i) {
			t.Errorf("entry %d has index %d", i, entry.GetLogIndex())
		}
		root := trustedRoot(t, a, l)
		mustVerify(t, bundle, root)
		cosign(t, bundle, root)
		if again, e := enter(t, l, draft); e.GetLogIndex() != int64(i) {
			t.Errorf("entered again at %d", e.GetLogIndex())
		} else {
			mustVerify(t, again, root)
		}
	}
}

// cosign verifies a bundle with the real one.
func cosign(t testing.TB, bundle, root []byte) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	cmd := exec.Command(filepath.Join("..", "..", ".cache", "bin", "cosign"), "verify-blob-attestation",
		"--bundle", write("bundle", bundle), "--trusted-root", write("root", root), "--insecure-ignore-sct",
		"--use-signed-timestamps", "--certificate-identity", verifytest.BuilderID, "--certificate-oidc-issuer", verifytest.Issuer,
		"--type", "slsaprovenance1", write("artifact", verifytest.Artifact()))
	cmd.Env = append(os.Environ(), "HOME="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Verified OK") {
		t.Errorf("cosign: %v\n%s", err, out)
	}
}

func TestConcurrentCallsShareCheckpoints(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	l := open(t, o)
	a, drafts := drafts(t, 64)
	bundles := make([][]byte, 2*len(drafts))
	var wg sync.WaitGroup
	for i := range bundles {
		wg.Go(func() { bundles[i], _ = l.Enter(t.Context(), drafts[i%len(drafts)]) })
	}
	wg.Wait()
	root, seen := trustedRoot(t, a, l), map[int64]bool{}
	for i, b := range bundles {
		if b == nil {
			t.Fatal("not entered")
		}
		index := entryOf(t, b).GetLogIndex()
		if twin := entryOf(t, bundles[(i+len(drafts))%len(bundles)]).GetLogIndex(); twin != index {
			t.Errorf("one draft at %d and %d", index, twin)
		}
		seen[index] = true
	}
	if len(seen) != len(drafts) || !seen[0] || !seen[int64(len(drafts)-1)] {
		t.Errorf("%d places", len(seen))
	}
	mustVerify(t, bundles[17], root)
	if got := len(checkpoints(t, o)); got > len(drafts)/2 {
		t.Errorf("%d checkpoints for %d entries", got, len(drafts))
	}
}

func checkpoints(t testing.TB, o Options) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(o.History, "1.checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// TestReopen: what was entered before has its place afterwards.
func TestReopen(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	a, drafts := drafts(t, 4)
	var root []byte
	for round, draft := range drafts {
		l, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for i, before := range drafts[:round] {
			if _, e := enter(t, l, before); e.GetLogIndex() != int64(i) {
				t.Errorf("round %d: draft %d is at %d", round, i, e.GetLogIndex())
			}
		}
		bundle, e := enter(t, l, draft)
		if e.GetLogIndex() != int64(round) {
			t.Errorf("draft %d is at %d", round, e.GetLogIndex())
		}
		if root == nil {
			root = trustedRoot(t, a, l)
		}
		mustVerify(t, bundle, root)
		closeLog(t, l)
		if _, err := l.Enter(t.Context(), draft); err == nil || !strings.Contains(err.Error(), "closed") {
			t.Errorf("closed log: %v", err)
		}
	}
}

func TestOneProcess(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	open(t, o)
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second: %v", err)
	}
}

func TestRefusedDrafts(t *testing.T) {
	t.Parallel()
	l := open(t, options(t, t.TempDir()))
	a, drafts := drafts(t, 1)
	entered, _ := enter(t, l, drafts[0])
	for _, tt := range []struct {
		name  string
		draft []byte
		want  string
	}{
		{"nothing", nil, "not a Sigstore bundle"},
		{"not JSON", []byte("bundle"), "not a Sigstore bundle"},
		{"empty", []byte("{}"), "0 DSSE signatures"},
		{"entered", entered, "has 1 log entries already"},
		{"unknown field", []byte(`{"x":1}`), "not a Sigstore bundle"},
		{"other payload", a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.Payload = func(p []byte) []byte { return append(p, ' ') }
		}), "does not verify"},
		{"other signature", a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.Signature = func(s []byte) []byte { s[len(s)-1] ^= 1; return s }
		}), "does not verify"},
		{"no certificate", a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) { delete(b["verificationMaterial"].(map[string]any), "certificate") }
		}), "no certificate"},
		{"two signatures", a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.Bundle = func(b map[string]any) {
				e := b["dsseEnvelope"].(map[string]any)
				e["signatures"] = append(e["signatures"].([]any), e["signatures"].([]any)[0])
			}
		}), "2 DSSE signatures"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := l.Enter(t.Context(), tt.draft); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, e := enter(t, l, a.Bundle(verifytest.Statement())); e.GetLogIndex() != 1 {
		t.Errorf("a refused draft is in the log: next is %d", e.GetLogIndex())
	}
}

// TestEntersPastFullTiles takes the log over the width of a tile.
func TestEntersPastFullTiles(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	l := open(t, o)
	a, drafts := drafts(t, 300)
	last := enterAll(t, l, drafts)
	mustVerify(t, last, trustedRoot(t, a, l))
	closeLog(t, l)
	again := open(t, o)
	for _, i := range []int{0, 255, 256, 299} {
		if _, e := enter(t, again, drafts[i]); e.GetInclusionProof().GetTreeSize() != 300 {
			t.Errorf("tree of %d", e.GetInclusionProof().GetTreeSize())
		}
	}
}

func enterAll(t testing.TB, l Log, drafts [][]byte) (last []byte) {
	t.Helper()
	var wg sync.WaitGroup
	bundles := make([][]byte, len(drafts))
	errs := make([]error, len(drafts))
	for i, d := range drafts {
		wg.Go(func() { bundles[i], errs[i] = l.Enter(t.Context(), d) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	return bundles[len(bundles)-1]
}

// BenchmarkEnterQuiet enters one now and then, as a quiet authority does.
func BenchmarkEnterQuiet(b *testing.B) {
	l := open(b, options(b, b.TempDir()))
	_, drafts := drafts(b, b.N)
	var total time.Duration
	for _, d := range drafts {
		time.Sleep(2 * CheckpointInterval)
		start := time.Now()
		enter(b, l, d)
		total += time.Since(start)
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/entry-latency")
}

func BenchmarkEnter(b *testing.B) {
	for _, at := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("concurrent=%d", at), func(b *testing.B) {
			l := open(b, options(b, b.TempDir()))
			_, drafts := drafts(b, b.N)
			work := make(chan []byte)
			var wg sync.WaitGroup
			var mu sync.Mutex
			var total time.Duration
			b.ResetTimer()
			for range at {
				wg.Go(func() {
					for d := range work {
						start := time.Now()
						if _, err := l.Enter(context.Background(), d); err != nil {
							b.Error(err)
						}
						mu.Lock()
						total += time.Since(start)
						mu.Unlock()
					}
				})
			}
			for _, d := range drafts {
				work <- d
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(total.Milliseconds())/float64(b.N), "ms/entry-latency")
		})
	}
}
