package tlog

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hallmark.build/attest/verify/verifytest"
)

// realRekor starts Rekor's own server. It returns the URL of a front that serves
// API and tiles, as an installation does, and what a trusted root says of it.
func realRekor(t *testing.T) (*url.URL, *trustpb.TrustedRoot) {
	t.Helper()
	dir, _ := filepath.Abs(t.TempDir())
	key, err := FileKey(filepath.Join(dir, "rekor.pem"))
	if err != nil {
		t.Fatal(err)
	}
	api, err := startRekor(t, dir)
	for range 2 { // another program may have taken a port
		if err != nil {
			api, err = startRekor(t, dir)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	tiles := http.StripPrefix("/api/v2", http.FileServer(http.Dir(filepath.Join(dir, "tiles"))))
	proxy := httputil.NewSingleHostReverseProxy(api)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			tiles.ServeHTTP(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	u, err := url.Parse(front.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u, trusting(t, key, "rekor.example.com")
}

// startRekor runs it on ports that are free, and waits until it is healthy.
func startRekor(t *testing.T, dir string) (*url.URL, error) {
	t.Helper()
	ports := freePorts(t, 3)
	cmd := exec.Command(filepath.Join("..", "..", ".cache", "bin", "rekor-tiles"), "serve", "--http-address=127.0.0.1", "--http-port="+ports[0],
		"--grpc-port="+ports[1], "--http-metrics-port="+ports[2], "--hostname=rekor.example.com", "--storage-dir="+filepath.Join(dir, "tiles"),
		"--signer-filepath="+filepath.Join(dir, "rekor.pem"), "--checkpoint-interval=1s")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the death signal is the starting thread's
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s", first(said.Bytes(), 4000))
		}
	})
	api := &url.URL{Scheme: "http", Host: "127.0.0.1:" + ports[0]}
	for deadline := time.After(90 * time.Second); ; {
		res, err := http.Get(api.String() + "/healthz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return api, nil
			}
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("rekor ended: %s", first(said.Bytes(), 4000))
		case <-deadline:
			t.Fatalf("rekor does not come up: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}

// trusting is a trusted root that names one log.
func trusting(t *testing.T, key Key, host string) *trustpb.TrustedRoot {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	v, err := newVerifier(host, der)
	if err != nil {
		t.Fatal(err)
	}
	return &trustpb.TrustedRoot{Tlogs: []*trustpb.TransparencyLogInstance{{
		BaseUrl: "https://" + host, HashAlgorithm: commonpb.HashAlgorithm_SHA2_256,
		PublicKey: &commonpb.PublicKey{RawBytes: der, KeyDetails: v.details, ValidFor: &commonpb.TimeRange{Start: timestamppb.New(verifytest.SignedAt().Add(-time.Hour))}},
		LogId:     &commonpb.LogId{KeyId: v.id},
	}}}
}

// TestRealRekor enters signatures in Rekor's own server, also such as it has.
func TestRealRekor(t *testing.T) {
	t.Parallel()
	u, trusted := realRekor(t)
	r, err := NewRekor(RekorOptions{URL: u, Trusted: trusted})
	if err != nil {
		t.Fatal(err)
	}
	a, all := drafts(t, 2)
	root := trustedRoot(t, a, r)
	bundle, entry := enter(t, r, all[0])
	mustVerify(t, bundle, root)
	cosign(t, bundle, root)
	// Our own log makes the same entry.
	_, own := enter(t, open(t, options(t, t.TempDir())), all[0])
	if !bytes.Equal(own.GetCanonicalizedBody(), entry.GetCanonicalizedBody()) {
		t.Errorf("rekor's entry is\n%s\nours\n%s", entry.GetCanonicalizedBody(), own.GetCanonicalizedBody())
	}
	again, twin := enter(t, r, all[0]) // a duplicate, whose proof comes from the tiles
	if twin.GetLogIndex() != entry.GetLogIndex() {
		t.Errorf("entered at %d and %d", entry.GetLogIndex(), twin.GetLogIndex())
	}
	mustVerify(t, again, root)
	enterAll(t, r, all)
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestRealRekorRefuses: what is not a signature is not asked for again.
func TestRealRekorRefuses(t *testing.T) {
	t.Parallel()
	u, trusted := realRekor(t)
	r, err := NewRekor(RekorOptions{URL: u, Trusted: trusted})
	if err != nil {
		t.Fatal(err)
	}
	_, all := drafts(t, 1)
	d, err := parseDraft(all[0])
	if err != nil {
		t.Fatal(err)
	}
	d.digest[0] ^= 1
	if _, err := r.add(t.Context(), d); err == nil || !strings.Contains(err.Error(), "status 400") {
		t.Errorf("got %v", err)
	}
}

// A hostile is a Rekor that answers with a sound entry, spoilt.
type hostile struct {
	t       *testing.T
	log     *BuiltIn // whose key the trusted root names
	draft   []byte
	spoil   func(e *rekorpb.TransparencyLogEntry)
	answer  func(w http.ResponseWriter, sound []byte) bool // true if it has answered
	uploads atomic.Int32
}

func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		http.StripPrefix("/api/v2", h.log.Handler()).ServeHTTP(w, r)
		return
	}
	h.uploads.Add(1)
	_, _ = io.Copy(io.Discard, r.Body)
	_, e := enter(h.t, h.log, h.draft)
	if h.spoil != nil {
		h.spoil(e)
	}
	text, err := protojson.Marshal(e)
	if err != nil {
		h.t.Error(err)
	}
	if h.answer != nil && h.answer(w, text) {
		return
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = w.Write(text)
}

func TestHostileRekor(t *testing.T) {
	t.Parallel()
	a, all := drafts(t, 3)
	l := open(t, options(t, t.TempDir()))
	other := open(t, options(t, t.TempDir())) // same name, other key
	enter(t, l, all[0])
	_, others := enter(t, l, all[1])
	enter(t, l, all[2])
	_, fromOther := enter(t, other, all[0])
	// the same payload and certificate, signed once more
	resigned := a.Bundle(verifytest.Statement())
	_, ofAnotherSignature := enter(t, l, resigned)
	for _, tt := range []struct {
		name   string
		spoil  func(e *rekorpb.TransparencyLogEntry)
		answer func(w http.ResponseWriter, sound []byte) bool
		want   string // "" if it is sound
	}{
		{name: "sound"},
		{name: "unknown signatures first", spoil: func(e *rekorpb.TransparencyLogEntry) {
			cp := e.GetInclusionProof().GetCheckpoint()
			cp.Envelope = strings.Replace(cp.Envelope, "\n\n", "\n\n— evil.example.com AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n— ci.example.com AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n", 1)
		}, want: "somebody else signed it before"},
		{name: "unknown signatures last", spoil: func(e *rekorpb.TransparencyLogEntry) {
			e.GetInclusionProof().GetCheckpoint().Envelope += "— evil.example.com AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
		}},
		{name: "other entry", spoil: func(e *rekorpb.TransparencyLogEntry) { replaceBy(e, others) }, want: "entry of something else"},
		{name: "same payload, other signature", spoil: func(e *rekorpb.TransparencyLogEntry) { replaceBy(e, ofAnotherSignature) }, want: "entry of something else"},
		{name: "proof of another entry", spoil: func(e *rekorpb.TransparencyLogEntry) { e.InclusionProof.Hashes = others.InclusionProof.Hashes }, want: "inclusion"},
		{name: "index of another entry", spoil: func(e *rekorpb.TransparencyLogEntry) { e.LogIndex = others.LogIndex }, want: "different trees"},
		{name: "proof and index of another entry", spoil: func(e *rekorpb.TransparencyLogEntry) {
			e.LogIndex, e.InclusionProof = others.LogIndex, others.InclusionProof
		}, want: "inclusion"},
		{name: "no proof", spoil: func(e *rekorpb.TransparencyLogEntry) { e.InclusionProof = nil }, want: "checkpoint"},
		{name: "no path", spoil: func(e *rekorpb.TransparencyLogEntry) { e.InclusionProof.Hashes = nil }, want: "inclusion"},
		{name: "negative index", spoil: func(e *rekorpb.TransparencyLogEntry) { e.LogIndex, e.InclusionProof.LogIndex = -1, -1 }, want: "different trees"},
		{name: "other root", spoil: func(e *rekorpb.TransparencyLogEntry) { e.InclusionProof.RootHash[0] ^= 1 }, want: "different trees"},
		{name: "other size", spoil: func(e *rekorpb.TransparencyLogEntry) { e.InclusionProof.TreeSize++ }, want: "different trees"},
		{name: "forged checkpoint", spoil: func(e *rekorpb.TransparencyLogEntry) {
			cp := e.GetInclusionProof().GetCheckpoint()
			cp.Envelope = strings.Replace(cp.Envelope, "\n4\n", "\n5\n", 1)
		}, want: "not signed by log"},
		{name: "checkpoint signed by another key", spoil: func(e *rekorpb.TransparencyLogEntry) {
			e.InclusionProof = fromOther.InclusionProof
		}, want: "not signed by log"},
		{name: "unsigned checkpoint", spoil: func(e *rekorpb.TransparencyLogEntry) {
			cp := e.GetInclusionProof().GetCheckpoint()
			cp.Envelope, _, _ = strings.Cut(cp.Envelope, "—")
		}, want: "not signed by log"},
		{name: "untrusted log", spoil: func(e *rekorpb.TransparencyLogEntry) { replaceBy(e, fromOther) }, want: "is not in the trusted root"},
		{name: "no log id", spoil: func(e *rekorpb.TransparencyLogEntry) { e.LogId = nil }, want: "is not in the trusted root"},
		{name: "other kind", spoil: func(e *rekorpb.TransparencyLogEntry) { e.KindVersion.Kind = "dsse" }, want: "kind"},
		{name: "other version", spoil: func(e *rekorpb.TransparencyLogEntry) { e.KindVersion.Version = "0.0.1" }, want: "kind"},
		{name: "not JSON", answer: said(201, "hello"), want: "answers with no log entry"},
		{name: "nothing", answer: said(201, ""), want: "answers with no log entry"},
		{name: "empty", answer: said(201, "{}"), want: "is not in the trusted root"},
		{name: "huge", answer: said(201, `{"x":"`+strings.Repeat("x", 2*maxAnswer)+`"}`), want: "more than"},
		{name: "deep", answer: said(201, strings.Repeat(`{"inclusionProof":`, 20_000)), want: "answers with no log entry"},
		{name: "redirect", answer: func(w http.ResponseWriter, _ []byte) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(http.StatusTemporaryRedirect)
			return true
		}, want: "status 307"},
		{name: "refused", answer: said(400, "no"), want: "status 400"},
		{name: "duplicate of nothing", answer: said(409, ""), want: "at no index"},
		{name: "duplicate of another entry", answer: duplicate("1"), want: "inclusion"},
		{name: "duplicate of this entry", answer: duplicate("0")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := &hostile{t: t, log: l, draft: all[0], spoil: tt.spoil, answer: tt.answer}
			server := httptest.NewServer(h)
			t.Cleanup(server.Close)
			r := rekorAt(t, server.URL, l)
			bundle, err := r.Enter(t.Context(), all[0])
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				mustVerify(t, bundle, trustedRoot(t, a, r))
			} else if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n := h.uploads.Load(); n != 1 {
				t.Errorf("uploaded %d times", n)
			}
		})
	}
}

func rekorAt(t *testing.T, at string, l Log) *Rekor {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRekor(RekorOptions{URL: u, Trusted: &trustpb.TrustedRoot{Tlogs: l.Trusted()}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func replaceBy(e, by *rekorpb.TransparencyLogEntry) {
	proto.Reset(e)
	proto.Merge(e, by)
}

func said(status int, text string) func(http.ResponseWriter, []byte) bool {
	return func(w http.ResponseWriter, _ []byte) bool {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
		return true
	}
}

func duplicate(index string) func(http.ResponseWriter, []byte) bool {
	return func(w http.ResponseWriter, _ []byte) bool {
		w.Header().Set("X-Log-Index", index)
		w.WriteHeader(http.StatusConflict)
		return true
	}
}

// TestRekorThatFailsForAWhile is asked again, and then has the entry once.
func TestRekorThatFailsForAWhile(t *testing.T) {
	t.Parallel()
	a, all := drafts(t, 1)
	l := open(t, options(t, t.TempDir()))
	var tries int
	h := &hostile{t: t, log: l, draft: all[0], answer: func(w http.ResponseWriter, _ []byte) bool {
		switch tries++; tries {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2: // the answer is lost on the way
			panic(http.ErrAbortHandler)
		case 3:
			return duplicate("0")(w, nil)
		}
		return true
	}}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	r := rekorAt(t, server.URL, l)
	bundle, entry := enter(t, r, all[0])
	mustVerify(t, bundle, trustedRoot(t, a, r))
	if entry.GetLogIndex() != 0 || entry.GetInclusionProof().GetTreeSize() != 1 || tries != 3 {
		t.Errorf("entry %d of %d after %d tries", entry.GetLogIndex(), entry.GetInclusionProof().GetTreeSize(), tries)
	}
}

// TestSlowRekor: the caller's patience counts, not the server's.
func TestSlowRekor(t *testing.T) {
	t.Parallel()
	_, all := drafts(t, 1)
	l := open(t, options(t, t.TempDir()))
	enter(t, l, all[0])
	release := make(chan struct{})
	h := &hostile{t: t, log: l, draft: all[0], answer: func(w http.ResponseWriter, _ []byte) bool {
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "{")
		w.(http.Flusher).Flush()
		<-release
		return true
	}}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := rekorAt(t, server.URL, l).Enter(ctx, all[0]); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestRekorNeedsATrustedLog(t *testing.T) {
	t.Parallel()
	l := open(t, options(t, t.TempDir()))
	_, all := drafts(t, 1)
	u := &url.URL{Scheme: "https", Host: "rekor.example.com"}
	rsa := proto.CloneOf(l.Trusted()[0])
	rsa.PublicKey.RawBytes = []byte("not a key of ours")
	for _, logs := range [][]*trustpb.TransparencyLogInstance{nil, {rsa}} {
		if _, err := NewRekor(RekorOptions{URL: u, Trusted: &trustpb.TrustedRoot{Tlogs: logs}}); err == nil || !strings.Contains(err.Error(), "names no log") {
			t.Errorf("%d logs: %v", len(logs), err)
		}
	}
	server := httptest.NewServer(&hostile{t: t, log: l, draft: all[0]})
	t.Cleanup(server.Close)
	r := rekorAt(t, server.URL, l)
	for _, now := range []time.Time{verifytest.SignedAt().AddDate(-1, 0, 0), verifytest.SignedAt().AddDate(1, 0, 0)} {
		trusted := proto.CloneOf(l.Trusted()[0])
		trusted.PublicKey.ValidFor.End = timestamppb.New(verifytest.SignedAt().AddDate(0, 1, 0))
		bounded, err := NewRekor(RekorOptions{URL: r.url, Trusted: &trustpb.TrustedRoot{Tlogs: []*trustpb.TransparencyLogInstance{trusted}}, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bounded.Enter(t.Context(), all[0]); !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), "does not trust") {
			t.Errorf("at %s: %v", now, err)
		}
	}
}

// TestRekorRequest is what Rekor's API wants.
func TestRekorRequest(t *testing.T) {
	t.Parallel()
	_, all := drafts(t, 1)
	d, err := parseDraft(all[0])
	if err != nil {
		t.Fatal(err)
	}
	text, err := rekorRequest(d)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || len(got["hashedRekordRequestV002"]) != 2 {
		t.Errorf("%s", text)
	}
}

func FuzzRekorAnswer(f *testing.F) {
	_, all := drafts(f, 1)
	l := open(f, options(f, f.TempDir()))
	bundle, e := enter(f, l, all[0])
	d, err := parseDraft(all[0])
	if err != nil {
		f.Fatal(err)
	}
	text, err := protojson.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(bundle)
	f.Add([]byte(`{"logIndex":"0","inclusionProof":{"checkpoint":{"envelope":"x"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		answer, err := parseAnswer(data)
		if err != nil {
			return
		}
		if _, err := d.verifyEntry(l.active.verifier, answer); err == nil && !bytes.Equal(answer.GetCanonicalizedBody(), d.body) {
			t.Errorf("believed: %s", data)
		}
	})
}
