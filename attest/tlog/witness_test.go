package tlog

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	fnote "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
)

// A witness is one of C2SP's tlog-witness, for one log: it cosigns a checkpoint
// that extends the last one it saw.
type witness struct {
	log    *verifier
	signer *fnote.Signer
	vkey   string

	mu   sync.Mutex
	size uint64
	root []byte
	fail func(w http.ResponseWriter) bool // answers in its place
}

func newWitness(t *testing.T, log *verifier, name string) *witness {
	t.Helper()
	skey, vkey, err := note.GenerateKey(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := fnote.NewSignerForCosignatureV1(skey)
	if err != nil {
		t.Fatal(err)
	}
	return &witness{log: log, signer: signer, vkey: vkey}
}

func (x *witness) serve(t *testing.T) (url string) {
	server := httptest.NewServer(x)
	t.Cleanup(server.Close)
	return server.URL
}

func (x *witness) setFail(f func(w http.ResponseWriter) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail = f
}

func (x *witness) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x.mu.Lock()
	defer x.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	if x.fail != nil && x.fail(w) {
		return
	}
	head, text, _ := strings.Cut(string(body), "\n\n")
	lines := strings.Split(head, "\n")
	old, err := strconv.ParseUint(strings.TrimPrefix(lines[0], "old "), 10, 64)
	if err != nil {
		http.Error(w, "old size", http.StatusBadRequest)
		return
	}
	var path [][]byte
	for _, line := range lines[1:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			http.Error(w, "proof", http.StatusBadRequest)
			return
		}
		path = append(path, hash)
	}
	cp, err := x.log.open([]byte(text))
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if old != x.size {
		w.Header().Set("Content-Type", "text/x.tlog.size")
		w.WriteHeader(http.StatusConflict)
		fmt.Fprintln(w, x.size)
		return
	}
	if old > 0 {
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old, cp.size, path, x.root, cp.root); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
	}
	signed, err := note.Sign(&note.Note{Text: text[:strings.Index(text, "\n\n")+1]}, x.signer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	x.size, x.root = cp.size, cp.root
	_, sig, _ := strings.Cut(string(signed), "\n\n")
	_, _ = io.WriteString(w, sig)
}

// logVerifier is that of the log which these options make.
func logVerifier(t *testing.T, o Options) *verifier {
	t.Helper()
	dir := o
	dir.Tiles, dir.History = t.TempDir(), t.TempDir()+"/history"
	return open(t, dir).active.verifier
}

func TestWitnesses(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	v := logVerifier(t, o)
	a, all := drafts(t, 6)
	one, two, three := newWitness(t, v, "one.example.com"), newWitness(t, v, "two.example.com"), newWitness(t, v, "three.example.com")
	down := func(w http.ResponseWriter) bool { w.WriteHeader(http.StatusServiceUnavailable); return true }
	three.setFail(down)

	l, err := Open(t.Context(), o) // before there are any
	if err != nil {
		t.Fatal(err)
	}
	if _, e := enter(t, l, all[0]); strings.Contains(e.GetInclusionProof().GetCheckpoint().GetEnvelope(), "— one") {
		t.Error("a witness that nobody asked")
	}
	closeLog(t, l)

	o.WitnessPolicy = fmt.Appendf(nil, "# policy\nwitness w1 %s %s\nwitness w2 %s %s\nwitness w3 %s %s\ngroup g 2 w1 w2 w3\nquorum g\n",
		one.vkey, one.serve(t), two.vkey, two.serve(t), three.vkey, three.serve(t))
	l = open(t, o)
	bundle, e := enter(t, l, all[1])
	root := trustedRoot(t, a, l)
	mustVerify(t, bundle, root)
	cosign(t, bundle, root)
	envelope := e.GetInclusionProof().GetCheckpoint().GetEnvelope()
	if !strings.Contains(envelope, "— one.example.com ") || !strings.Contains(envelope, "— two.example.com ") {
		t.Errorf("checkpoint\n%s", envelope)
	}
	if _, e := enter(t, l, all[0]); !l.witnesses.Satisfied([]byte(e.GetInclusionProof().GetCheckpoint().GetEnvelope())) {
		t.Error("an entry from before the policy is not witnessed")
	}

	// One of two needed is down: nothing comes out, until it is back.
	two.setFail(down)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := l.Enter(ctx, all[2]); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "witnesses") {
		t.Errorf("without the quorum: %v", err)
	}
	published, err := l.tiles.checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !l.witnesses.Satisfied(published) || !strings.Contains(string(published), "\n2\n") {
		t.Errorf("published without the quorum:\n%s", published)
	}
	two.setFail(nil)
	if _, e := enter(t, l, all[2]); e.GetLogIndex() != 2 {
		t.Errorf("entered at %d", e.GetLogIndex())
	}

	// Witnesses that answer badly do not count.
	stranger := newWitness(t, v, "two.example.com") // same name, other key
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter) bool
	}{
		{"huge", func(w http.ResponseWriter) bool {
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
			return true
		}},
		{"nothing", func(http.ResponseWriter) bool { return true }},
		{"signature of something else", func(w http.ResponseWriter) bool {
			signed, err := note.Sign(&note.Note{Text: "ci.example.com\n9\nAAAA\n"}, two.signer)
			if err != nil {
				t.Error(err)
			}
			_, sig, _ := strings.Cut(string(signed), "\n\n")
			_, _ = io.WriteString(w, sig)
			return true
		}},
		{"signature of a stranger", func(w http.ResponseWriter) bool {
			signed, err := note.Sign(&note.Note{Text: string(published)[:strings.Index(string(published), "\n\n")+1]}, stranger.signer)
			if err != nil {
				t.Error(err)
			}
			_, sig, _ := strings.Cut(string(signed), "\n\n")
			_, _ = io.WriteString(w, sig)
			return true
		}},
		{"redirect", func(w http.ResponseWriter) bool {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusFound)
			return true
		}},
		{"conflict without end", func(w http.ResponseWriter) bool {
			w.Header().Set("Content-Type", "text/x.tlog.size")
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintln(w, 1)
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			two.setFail(tt.answer)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if _, err := l.Enter(ctx, all[3]); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
	two.setFail(nil)
	if _, e := enter(t, l, all[3]); e.GetLogIndex() != 3 {
		t.Errorf("entered at %d", e.GetLogIndex())
	}
}

// TestWitnessSeesAFork: a log that was replaced by a fork gets no signature, even
// if its history was replaced too.
func TestWitnessSeesAFork(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	x := newWitness(t, logVerifier(t, o), "one.example.com")
	o.WitnessPolicy = fmt.Appendf(nil, "witness w1 %s %s\nquorum w1\n", x.vkey, x.serve(t))
	_, all := drafts(t, 4)
	grow(t, o, all[:2])
	remove(t, o.Tiles)
	remove(t, o.History)
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "larger than log size 0") {
		t.Errorf("an empty log: %v", err)
	}
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	for _, d := range all[2:] {
		if _, err := l.Enter(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	if x.size != 2 {
		t.Errorf("the witness has signed %d", x.size)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = l.Close(ended) // no checkpoint will ever come
}

func TestWitnessPolicies(t *testing.T) {
	t.Parallel()
	v := logVerifier(t, options(t, t.TempDir()))
	one := newWitness(t, v, "one.example.com").vkey
	for _, tt := range []struct{ name, policy, want string }{
		{"empty", "", "must define a quorum"},
		{"asks nobody", "witness w1 " + one + " http://127.0.0.1:1\nquorum none\n", "asks for no witness"},
		{"asks none of a group", "witness w1 " + one + " http://127.0.0.1:1\ngroup g 0 w1\nquorum g\n", "asks for no witness"},
		{"one witness twice", "witness w1 " + one + " http://127.0.0.1:1\nwitness w2 " + one + " http://127.0.0.1:2\ngroup g 2 w1 w2\nquorum g\n", "w1 and w2 have the same key"},
		{"unknown word", "wittness w1\nquorum w1\n", "unknown keyword"},
		{"unknown witness", "quorum w1\n", "not found"},
		{"no key", "witness w1 x http://127.0.0.1:1\nquorum w1\n", `w1: key "x"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options(t, t.TempDir())
			o.WitnessPolicy = []byte(tt.policy)
			l, err := Open(t.Context(), o)
			if err == nil {
				closeLog(t, l)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
