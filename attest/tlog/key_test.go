package tlog

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hallmark.build/attest/sign/key"
	"hallmark.build/attest/sign/key/keytest"
)

// TestKeyInAToken signs checkpoints with a key that nobody can take away.
func TestKeyInAToken(t *testing.T) {
	uri := keytest.New(t).Generate("log", "01")
	k, err := key.Open(t.Context(), uri, key.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	o := options(t, t.TempDir())
	o.Key = DigestKey(k)
	a, all := drafts(t, 2)
	l := open(t, o)
	root := trustedRoot(t, a, l)
	for _, d := range all {
		bundle, _ := enter(t, l, d)
		mustVerify(t, bundle, root)
		cosign(t, bundle, root)
	}
	if r := audit(t, o, nil); !r.Proven() || r.Logs[0].Entries != 2 {
		t.Errorf("%+v", r)
	}
}

func TestFileKey(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "keys", "log-1.pem")
	first, err := FileKey(name)
	if err != nil {
		t.Fatal(err)
	}
	sound, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	again, err := FileKey(name)
	if err != nil {
		t.Fatal(err)
	}
	if !again.(fileKey).key.Equal(first.(fileKey).key) {
		t.Error("another key the second time")
	}
	for _, tt := range []struct {
		name, text string
		mode       os.FileMode
		want       string
	}{
		{"others can read it", string(sound), 0o644, "lets group or others in"},
		{"empty", "", 0o600, "want one PEM block"},
		{"more follows", string(sound) + "x", 0o600, "want one PEM block"},
		{"a public key", strings.ReplaceAll(string(sound), "PRIVATE", "PUBLIC"), 0o600, "want one PEM block"},
		{"cut off", strings.Replace(string(sound), "MC4CAQ", "MC4CAA", 1), 0o600, "does not parse"},
		{"large", strings.Repeat("x", maxKeyFile+1), 0o600, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "log.pem")
			if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(name, tt.mode); err != nil {
				t.Fatal(err)
			}
			if _, err := FileKey(name); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestFailedStarts: whatever kept the first log from beginning, the next start
// begins it. A log that is lost does not begin anew under its key.
func TestFailedStarts(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	o.Key, o.Keys = nil, filepath.Join(t.TempDir(), "keys")
	_, all := drafts(t, 1)

	bad := o
	bad.BaseURL = &url.URL{Scheme: "https", Host: "no name", Path: "/log"}
	if _, err := Open(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "not that of a host") {
		t.Fatalf("bad URL: %v", err)
	}
	if _, err := Trusted(t.Context(), o); err != nil {
		t.Fatalf("after a bad URL: %v", err)
	}
	key := o.keyFile(1)
	move(t, key, key+unused) // as if it had crashed before
	l := open(t, o)
	enter(t, l, all[0])
	closeLog(t, l)

	if err := os.Link(key, key+unused); err != nil { // as if it had crashed in between
		t.Fatal(err)
	}
	closeLog(t, open(t, o))
	if _, err := os.Stat(key + unused); err == nil {
		t.Error("a key that has signed is there as one that has not")
	}

	remove(t, o.Tiles)
	remove(t, o.History)
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "under a key that has signed it") {
		t.Errorf("lost log: %v", err)
	}
	remove(t, key)
	closeLog(t, open(t, o))
}

// TestRotateOwnKeys: each log has a key, and the one before is destroyed.
func TestRotateOwnKeys(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	o.Key, o.Keys = nil, filepath.Join(t.TempDir(), "keys")
	closeLog(t, open(t, o))
	if err := Rotate(o); err != nil {
		t.Fatal(err)
	}
	closeLog(t, open(t, o))
	if files, err := os.ReadDir(o.Keys); err != nil || len(files) != 1 || files[0].Name() != "log-2.pem" {
		t.Errorf("keys: %v, %v", files, err)
	}
	remove(t, o.keyFile(2))
	if _, err := Open(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lost key: %v", err)
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// A slowKey signs once it is let go.
type slowKey struct {
	Key
	signing, release chan struct{}
}

func (k slowKey) SignCheckpoint(ctx context.Context, text []byte) ([]byte, error) {
	close(k.signing)
	<-k.release
	return k.Key.SignCheckpoint(ctx, text)
}

// TestSlowKey: what is in the log is answered while the key signs.
func TestSlowKey(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	l := open(t, o)
	_, all := drafts(t, 2)
	enter(t, l, all[0])
	slow := slowKey{l.guard.key, make(chan struct{}), make(chan struct{})}
	l.guard.mu.Lock()
	l.guard.key = slow
	l.guard.mu.Unlock()
	second := make(chan error)
	go func() {
		_, err := l.Enter(t.Context(), all[1])
		second <- err
	}()
	<-slow.signing
	if _, e := enter(t, l, all[0]); e.GetLogIndex() != 0 {
		t.Errorf("the first is entry %d", e.GetLogIndex())
	}
	l.guard.key = slow.Key // the guard holds its lock, and has read it
	close(slow.release)
	if err := <-second; err != nil {
		t.Error(err)
	}
}
