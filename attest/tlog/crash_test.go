package tlog

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// child enters drafts from standard input until it is killed, and writes each
// bundle that it was given.
func child(dir string) {
	o, err := optionsIn(dir)
	if err != nil {
		panic(err)
	}
	l, err := Open(context.Background(), o)
	if err != nil {
		panic(err)
	}
	answers := make(chan []byte)
	go func() {
		for bundle := range answers {
			fmt.Println(base64.StdEncoding.EncodeToString(bundle))
		}
	}()
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			select {} // to be killed
		}
		draft, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil {
			panic(err)
		}
		go func() {
			bundle, err := l.Enter(context.Background(), draft)
			if err != nil {
				panic(err)
			}
			answers <- bundle
		}()
	}
}

// TestKilled kills a log at one moment after another while it is written to.
// Whatever it answered is in the log that follows, once.
func TestKilled(t *testing.T) {
	t.Parallel()
	const rounds, each = 15, 8
	o := options(t, t.TempDir())
	a, all := drafts(t, rounds*each)
	answered := map[int64][]byte{}
	for round := range rounds {
		wait := time.Duration(round) * 8 * time.Millisecond
		for _, bundle := range killedAfter(t, filepath.Dir(o.Tiles), all[:(round+1)*each], wait, round%3 > 0) {
			index := entryOf(t, bundle).GetLogIndex()
			if before, ok := answered[index]; ok && string(entryOf(t, before).GetCanonicalizedBody()) != string(entryOf(t, bundle).GetCanonicalizedBody()) {
				t.Fatalf("round %d: two entries at %d", round, index)
			}
			answered[index] = bundle
		}
	}
	l := open(t, o)
	enterAll(t, l, all)
	places := map[int64]bool{}
	for _, draft := range all {
		_, e := enter(t, l, draft)
		places[e.GetLogIndex()] = true
		if e.GetInclusionProof().GetTreeSize() != int64(len(all)) {
			t.Fatalf("the log has %d entries for %d drafts", e.GetInclusionProof().GetTreeSize(), len(all))
		}
		if before, ok := answered[e.GetLogIndex()]; ok && string(entryOf(t, before).GetCanonicalizedBody()) != string(e.GetCanonicalizedBody()) {
			t.Errorf("entry %d is another one now", e.GetLogIndex())
		}
	}
	if len(places) != len(all) {
		t.Errorf("%d places for %d drafts", len(places), len(all))
	}
	root := trustedRoot(t, a, l)
	for _, bundle := range answered {
		mustVerify(t, bundle, root)
	}
	t.Logf("%d answers before the kills, %d checkpoints", len(answered), len(checkpoints(t, o)))
}

// killedAfter gives drafts to a log in a process of its own, which it kills so long
// after the start or the first answer, and returns what that answered.
func killedAfter(t *testing.T, dir string, drafts [][]byte, wait time.Duration, answered bool) [][]byte {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "HALLMARK_TLOG_CHILD="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range drafts {
		if _, err := fmt.Fprintln(in, base64.StdEncoding.EncodeToString(d)); err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
	}
	kill := sync.OnceFunc(func() { time.AfterFunc(wait, func() { _ = cmd.Process.Kill() }) })
	if !answered {
		kill()
	}
	var bundles [][]byte
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // an answer that was cut off was not given
		}
		bundle, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
		if err != nil {
			t.Fatal(err)
		}
		bundles = append(bundles, bundle)
		kill()
	}
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Fatalf("the log ended by itself: %s", stderr.String())
	}
	return bundles
}

// TestContradictions: directories that are not those of the log that was signed.
func TestContradictions(t *testing.T) {
	t.Parallel()
	_, all := drafts(t, 8)
	for _, tt := range []struct {
		name string
		harm func(t *testing.T, o *Options, old string)
		want string
	}{
		{"tiles rolled back", func(t *testing.T, o *Options, old string) { swap(t, o.Tiles, old) }, "it has 2 entries, and had 5"},
		{"tiles gone", func(t *testing.T, o *Options, _ string) { remove(t, o.Tiles) }, "is gone, and had 5 entries"},
		{"checkpoint gone", func(t *testing.T, o *Options, _ string) {
			remove(t, filepath.Join(o.Tiles, "1", "checkpoint"))
		}, "is gone, and had 5 entries"},
		{"history gone", func(t *testing.T, o *Options, _ string) { remove(t, o.History) }, "knows nothing of"},
		{"checkpoints gone", func(t *testing.T, o *Options, _ string) {
			remove(t, filepath.Join(o.History, "1.checkpoints"))
		}, "of which the history knows 0"},
		{"forked at the same size", func(t *testing.T, o *Options, _ string) {
			fork := forkOf(t, *o, all[3:8])
			swap(t, o.Tiles, fork)
		}, "its 5 entries are not those that it had"},
		{"forked and longer", func(t *testing.T, o *Options, _ string) {
			fork := forkOf(t, *o, all[2:8])
			swap(t, o.Tiles, fork)
		}, "of which the history knows 5"},
		{"forked, longer, not published", func(t *testing.T, o *Options, old string) {
			fork := forkOf(t, *o, all[2:8])
			data, err := os.ReadFile(filepath.Join(o.Tiles, "1", "checkpoint"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(fork, "1", "checkpoint"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			swap(t, o.Tiles, fork)
		}, "its first 5 entries are not those that it had"},
		{"other key", func(t *testing.T, o *Options, _ string) { o.Key = otherKey(t) }, "the key is not that of log 1"},
		{"tiles of another log", func(t *testing.T, o *Options, _ string) {
			other := options(t, t.TempDir())
			l := open(t, other)
			enterAll(t, l, all[:6])
			closeLog(t, l)
			swap(t, o.Tiles, other.Tiles)
		}, "not signed by log ci.example.com"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := options(t, dir)
			grow(t, o, all[:2])
			old := filepath.Join(dir, "old")
			if err := os.CopyFS(old, os.DirFS(o.Tiles)); err != nil {
				t.Fatal(err)
			}
			grow(t, o, all[2:5])
			tt.harm(t, &o, old)
			_, err := Open(t.Context(), o)
			if !errors.Is(err, ErrContradiction) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func grow(t *testing.T, o Options, drafts [][]byte) {
	t.Helper()
	l, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drafts {
		enter(t, l, d)
	}
	closeLog(t, l)
}

// forkOf makes the tiles that the same key would have signed of other entries.
func forkOf(t *testing.T, o Options, drafts [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	o.Tiles, o.History = filepath.Join(dir, "tiles"), filepath.Join(dir, "history")
	grow(t, o, drafts)
	return o.Tiles
}

func swap(t *testing.T, dir, by string) {
	t.Helper()
	remove(t, dir)
	if err := os.CopyFS(dir, os.DirFS(by)); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, name string) {
	t.Helper()
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
}

func otherKey(t *testing.T) Key {
	t.Helper()
	key, err := FileKey(filepath.Join(t.TempDir(), "other.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestGuard: whatever Tessera would have it sign, the key signs no fork.
func TestGuard(t *testing.T) {
	t.Parallel()
	_, all := drafts(t, 3)
	o := options(t, t.TempDir())
	l := open(t, o)
	enterAll(t, l, all)
	last := l.guard.history.last
	other := append([]byte{}, last.root...)
	other[0] ^= 1
	for _, tt := range []struct{ name, text string }{
		{"smaller", text("ci.example.com", 2, last.root)},
		{"same size, other root", text("ci.example.com", last.size, other)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &guard{key: l.guard.key, v: l.guard.v, tile: l.guard.tile, history: l.guard.history}
			if _, err := g.Sign([]byte(tt.text)); !errors.Is(err, ErrContradiction) {
				t.Errorf("signed: %v", err)
			}
			if _, err := g.Sign([]byte(text("ci.example.com", last.size, last.root))); !errors.Is(err, ErrContradiction) {
				t.Errorf("signs again: %v", err)
			}
		})
	}
	for _, tt := range []struct{ name, text string }{
		{"other log", text("other.example.com", last.size, last.root)},
		{"extension line", text("ci.example.com", last.size, last.root) + "x\n"},
		{"larger, tiles not there", text("ci.example.com", 1000, other)},
		{"no checkpoint", "hello\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := l.guard.Sign([]byte(tt.text)); err == nil {
				t.Error("signed")
			}
		})
	}
	if _, err := l.guard.Sign([]byte(text("ci.example.com", last.size, last.root))); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if got := len(checkpoints(t, o)); got > 4 {
		t.Errorf("%d checkpoints", got)
	}
}

// TestTornHistory: a line that a crash cut off was never handed out.
func TestTornHistory(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 3)
	grow(t, o, all[:2])
	name := filepath.Join(o.History, "1.checkpoints")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(whole, "3 q83vq83v"...), 0o600); err != nil {
		t.Fatal(err)
	}
	grow(t, o, all[2:])
	lines := checkpoints(t, o)
	if got := strings.Join(lines, "\n") + "\n"; !strings.HasPrefix(got, string(whole)) || !strings.HasPrefix(lines[len(lines)-1], "3 ") {
		t.Errorf("history is\n%s", got)
	}
}

func TestDamagedHistory(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 1)
	grow(t, o, all)
	lines := checkpoints(t, o)
	last := strings.Fields(lines[len(lines)-1])
	for _, tt := range []struct{ name, line, want string }{
		{"other size", "2 " + last[1] + " " + last[2], "not signed by log"},
		{"other root", last[0] + " " + base64.StdEncoding.EncodeToString(make([]byte, 32)) + " " + last[2], "not signed by log"},
		{"short root", last[0] + " AAAA " + last[2], "root"},
		{"not a size", "01 " + last[1] + " " + last[2], "size"},
		{"two fields", last[0] + " " + last[1], "SIZE ROOT SIGNATURE"},
		{"long", strings.Repeat("x", 3000), "is not SIZE ROOT SIGNATURE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(o.History, "1.checkpoints"), []byte(tt.line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRotate: a log that follows another has its own key, name and directory;
// bundles of both verify from one trusted root.
func TestRotate(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	a, all := drafts(t, 2)
	l := open(t, o)
	first, _ := enter(t, l, all[0])
	if err := Rotate(o); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("while it is open: %v", err)
	}
	closeLog(t, l)
	if err := Rotate(o); err == nil || !strings.Contains(err.Error(), "the key is that of log 1") {
		t.Errorf("same key: %v", err)
	}
	next := o
	next.Key = ecdsaKey(t)
	if err := Rotate(next); err != nil {
		t.Fatal(err)
	}
	if n, err := Number(o.History); err != nil || n != 2 {
		t.Errorf("log %d, %v", n, err)
	}
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrContradiction) {
		t.Errorf("with the old key: %v", err)
	}
	l = open(t, next)
	second, entry := enter(t, l, all[1])
	if entry.GetLogIndex() != 0 {
		t.Errorf("the new log begins at %d", entry.GetLogIndex())
	}
	if _, e := enter(t, l, all[0]); e.GetLogIndex() != 0 || !bytes.Equal(e.GetLogId().GetKeyId(), l.shards[0].verifier.id) {
		t.Errorf("what the old log has is entered in the new one, at %d", e.GetLogIndex())
	}
	trusted := l.Trusted()
	if len(trusted) != 2 || trusted[0].GetPublicKey().GetValidFor().GetEnd() == nil || trusted[1].GetPublicKey().GetValidFor().GetEnd() != nil ||
		trusted[0].GetBaseUrl() != "https://ci.example.com:8443/log" || trusted[1].GetBaseUrl() != "https://log2.ci.example.com:8443/log/2" {
		t.Errorf("trusted: %v", trusted)
	}
	root := trustedRoot(t, a, l)
	for _, bundle := range [][]byte{first, second} {
		mustVerify(t, bundle, root)
		cosign(t, bundle, root)
	}
}

// ecdsaKey is one as tokens and key services have them.
func ecdsaKey(t *testing.T) Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return DigestKey(token{key})
}

type token struct{ key *ecdsa.PrivateKey }

func (k token) Public() *ecdsa.PublicKey { return &k.key.PublicKey }
func (k token) Sign(_ context.Context, digest []byte) ([]byte, error) {
	return k.key.Sign(rand.Reader, digest, crypto.SHA256)
}
