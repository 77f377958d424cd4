package containerd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// occupied is what lies below a directory, in bytes of the disk.
func occupied(dir string) (total int64) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}

// An image that unpacks to more than the disk has ends before the disk is full,
// and no other one with it.
func TestImageThatFillsTheDiskEndsAlone(t *testing.T) {
	b := start(t)
	ref, err := b.push("bomb", []entry{{name: "zeros", mode: 0o644, data: strings.Repeat("\x00", 128<<20)}}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	// Its last layer never comes, so that it is on its way when it is measured.
	last, err := layer([]entry{{name: "last", mode: 0o644, data: "last"}})
	if err != nil {
		t.Fatal(err)
	}
	bomb := must(mutate.AppendLayers(must(remote.Image(must(name.ParseReference(ref)))), last))
	if err := remote.Write(must(name.ParseReference(strings.TrimPrefix(b.shelf.URL, "http://")+"/test/bomb:whole")), bomb); err != nil {
		t.Fatal(err)
	}
	other, _, shared := twins(t, b, "beside")
	gate := make(chan struct{})
	host, _ := counting(t, b, map[string]chan struct{}{must(last.Digest()).String(): make(chan struct{}), shared: gate})
	cfg := b.config("f")
	cfg.PlainHTTP, cfg.PullsAtOnce = append(cfg.PlainHTTP, host), 2
	r, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	room := occupied(cfg.Root) + leastFree + 64<<20
	r.arrivals.free = func() (int64, error) { return room - occupied(cfg.Root), nil }

	small := make(chan error, 1)
	go func() { small <- r.Pull(t.Context(), Order{Reference: host + other, Customer: "small"}) }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = r.Pull(ctx, Order{Reference: host + "/test/bomb@" + must(bomb.Digest()).String(), Customer: "bomb"})
	if user, ok := errors.AsType[*sandbox.UserError](err); !ok || user.Hint == "" {
		t.Errorf("the bomb: %v, want an error of the job's", err)
	}
	waitFor(t, func() bool { return !r.squeezed() })
	close(gate)
	if err := <-small; err != nil {
		t.Errorf("the image beside it: %v", err)
	}
}
