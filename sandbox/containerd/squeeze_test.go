package containerd

import (
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// occupied is what lies below a directory, in bytes of the disk and in files.
func occupied(dir string) (bytes, files int64) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(path, &st) == nil {
			bytes, files = bytes+st.Blocks*512, files+1
		}
		return nil
	})
	return bytes, files
}

// An image that unpacks to more than the disk has ends before the disk is full,
// and no other one with it.
func TestImageThatFillsTheDiskEndsAlone(t *testing.T) {
	b := start(t)
	const size, many = 64 << 20, 5000
	var files []entry
	for i := range 2 * many {
		files = append(files, entry{name: strconv.Itoa(i), mode: 0o644})
	}
	bombs := map[string][]entry{"bytes": {{name: "zeros", mode: 0o644, data: strings.Repeat("\x00", 2*size)}}, "files": files}
	cfg := b.config("f")
	cfg.PullsAtOnce = 2
	r, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	if r.arrivals.squeeze() {
		t.Error("this machine's disk is nearly full")
	}
	r.arrivals.large = size / 2
	for what, entries := range bombs {
		// The bomb's last layer never comes, so that it is on its way when it is
		// measured.
		ref, err := b.push("bomb-"+what, entries, v1.Config{})
		if err != nil {
			t.Fatal(err)
		}
		last, err := layer([]entry{{name: "last", mode: 0o644, data: what}})
		if err != nil {
			t.Fatal(err)
		}
		bomb := must(mutate.AppendLayers(must(remote.Image(must(name.ParseReference(ref)))), last))
		if err := remote.Write(must(name.ParseReference(strings.TrimPrefix(b.shelf.URL, "http://")+"/test/bomb-"+what+":whole")), bomb); err != nil {
			t.Fatal(err)
		}
		other, _, shared := twins(t, b, "beside-"+what)
		gate := make(chan struct{})
		host, _ := counting(t, b, map[string]chan struct{}{must(last.Digest()).String(): make(chan struct{}), shared: gate})
		r.cfg.PlainHTTP = append(r.cfg.PlainHTTP, host)
		before, filesBefore := occupied(cfg.Root)
		r.arrivals.squeeze = func() bool {
			now, filesNow := occupied(cfg.Root)
			return now > before+size || filesNow > filesBefore+many
		}
		small := make(chan error, 1)
		go func() { small <- r.Pull(t.Context(), Order{Reference: host + other, Customer: "small"}) }()
		err = r.Pull(t.Context(), Order{Reference: host + "/test/bomb-" + what + "@" + must(bomb.Digest()).String(), Customer: "bomb"})
		if user, ok := errors.AsType[*sandbox.UserError](err); !ok || user.Hint == "" {
			t.Errorf("%s: %v, want an error of the job's", what, err)
		}
		waitFor(t, func() bool { return !r.arrivals.squeeze() })
		close(gate)
		if err := <-small; err != nil {
			t.Errorf("%s: the image beside it: %v", what, err)
		}
	}
	// Where others have filled the disk the job is not to blame.
	other, _, shared := twins(t, b, "innocent")
	host, _ := counting(t, b, map[string]chan struct{}{shared: make(chan struct{})})
	r.cfg.PlainHTTP = append(r.cfg.PlainHTTP, host)
	r.arrivals.squeeze = func() bool { return true }
	err = r.Pull(t.Context(), Order{Reference: host + other})
	if _, user := errors.AsType[*sandbox.UserError](err); user || !errors.Is(err, errFull) {
		t.Errorf("a small image on a full disk: %v, want the host's failure", err)
	}
}
