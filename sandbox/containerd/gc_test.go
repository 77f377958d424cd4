package containerd

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// noise is a text that does not pack.
func noise(n int) string {
	r := rand.NewChaCha8([32]byte{byte(n)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return string(b)
}

// keeper is a Runtime of its own, with three images of a megabyte each.
type keeper struct {
	*Runtime
	log  bytes.Buffer
	refs map[string]string
}

func (k *keeper) here(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, name := range slices.Sorted(maps.Keys(k.refs)) {
		there, err := k.Present(t.Context(), k.refs[name])
		if err != nil {
			t.Fatal(err)
		}
		if there {
			list = append(list, name)
		}
	}
	return list
}

// age makes an image look as if it had last been asked for some time ago.
func (k *keeper) age(t *testing.T, name string, ago time.Duration) {
	t.Helper()
	_, err := k.client.ImageService().Update(t.Context(), images.Image{
		Name: k.refs[name], Labels: map[string]string{labelUsed: strconv.FormatInt(time.Now().Add(-ago).Unix(), 10)},
	}, "labels."+labelUsed)
	if err != nil {
		t.Fatal(err)
	}
}

// setKeep changes what a runtime keeps, once nothing watches its disk any more: a
// pull's watch looks once more after the pull has ended.
func setKeep(r *Runtime, keep Keep) {
	watched := func() bool {
		r.arrivals.mu.Lock()
		defer r.arrivals.mu.Unlock()
		return r.arrivals.watched
	}
	for watched() {
		time.Sleep(squeezeEvery / 10)
	}
	r.cfg.Keep = keep
}

func (k *keeper) collect(t *testing.T, keep Keep, want ...string) {
	t.Helper()
	setKeep(k.Runtime, keep)
	if err := k.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, k.here(t)); d != "" {
		t.Errorf("%+v: %s", keep, d)
	}
}

func (k *keeper) pull(t *testing.T) {
	t.Helper()
	for name, ref := range k.refs {
		if err := k.Pull(t.Context(), Order{Reference: ref}); err != nil {
			t.Fatal(err)
		}
		k.age(t, name, time.Duration(len(name))*time.Hour)
	}
}

func TestCollect(t *testing.T) {
	b := start(t)
	k := &keeper{refs: map[string]string{}}
	for i, name := range []string{"a", "bb", "ccc"} {
		ref, err := b.push("kept-"+name, []entry{
			{name: "bin/", mode: 0o755}, {name: "bin/sh", mode: 0o755, from: "/bin/busybox"}, {name: "bin/cat", data: "->sh", mode: 0o777},
			{name: "noise", mode: 0o644, data: noise(1<<20 + i)},
		}, v1.Config{})
		if err != nil {
			t.Fatal(err)
		}
		k.refs[name] = ref
	}
	begin := func() {
		var err error
		if k.Runtime, err = Start(t.Context(), b.config("k"), slog.New(slog.NewTextHandler(&k.log, nil))); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	k.pull(t)
	full, err := k.usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.collect(t, Keep{}, "a", "bb", "ccc")
	k.collect(t, Keep{For: 4 * time.Hour, Bytes: full.images, MinFree: 1}, "a", "bb", "ccc")

	// By age, but not what is held; and by name again once it is let go.
	release := k.Hold(k.refs["ccc"])
	k.collect(t, Keep{For: 90 * time.Minute}, "a", "ccc")
	release()
	release() // twice is once
	// What was asked for when outlives this program.
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	begin()
	defer func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}()
	k.collect(t, Keep{For: 90 * time.Minute}, "a")

	// By space: the longest unused first, and no more than is needed.
	k.pull(t)
	k.collect(t, Keep{Bytes: full.images - 1}, "a", "bb")
	if now, err := k.usage(t.Context()); err != nil || now.images > full.images-2<<20 {
		t.Errorf("%d bytes after an image of 1 MiB went, packed and unpacked, of %d (%v)", now.images, full.images, err)
	}
	// By the disk: nothing that is held goes, whatever it costs.
	defer k.Hold(k.refs["bb"])()
	k.collect(t, Keep{MinFree: 1 << 62}, "bb")
	for _, why := range []string{`why="unused for long"`, `why="images take too much space"`, `why="the disk is nearly full"`} {
		if !strings.Contains(k.log.String(), why) {
			t.Errorf("the log does not say %s:\n%s", why, k.log.String())
		}
	}
}

// A container keeps what it stands on, whatever becomes of the image's name; and
// what was collected can be pulled again.
func TestCollectSparesContainers(t *testing.T) {
	b := start(t)
	r := b.second(t, b.config("u"))
	s := b.spec("base")
	c, err := r.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	setKeep(r, Keep{Bytes: 1})
	if err := r.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if there, err := r.Present(t.Context(), b.images["base"]); there || err != nil {
		t.Errorf("the image's name is still here: %v", err)
	}
	if got := run(t, c, shell("cat /etc/group")); !strings.Contains(got.out, "wheel") {
		t.Errorf("%+v", got)
	}
	if err := r.Pull(t.Context(), Order{Reference: b.images["base"]}); err != nil {
		t.Error(err)
	}
	if err := c.Delete(context.Background()); err != nil {
		t.Error(err)
	}
	(&bench{runtime: r}).clean(t, s.Session)
}

// counting is a registry before the shelf that counts downloads of blobs by
// digest, and gives out none of those in stalled before it may.
func counting(t *testing.T, b *bench, stalled map[string]chan struct{}) (host string, count func(digest string) int) {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(must(url.Parse(b.shelf.URL)))
	var mu sync.Mutex
	counts := map[string]int{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, digest, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
			mu.Lock()
			counts[digest]++
			mu.Unlock()
			if gate := stalled[digest]; gate != nil {
				select {
				case <-gate:
				case <-r.Context().Done():
				}
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	host = strings.TrimPrefix(srv.URL, "http://")
	b.runtime.cfg.PlainHTTP = append(b.runtime.cfg.PlainHTTP, host)
	return host, func(digest string) int { mu.Lock(); defer mu.Unlock(); return counts[digest] }
}

// twins are two images above one layer. It returns their references below the
// shelf's host, and the layer's digest.
func twins(t *testing.T, b *bench, repo string) (one, two, shared string) {
	t.Helper()
	ref, err := b.push(repo, []entry{{name: "shared", mode: 0o644, data: repo + noise(200_000)}}, v1.Config{})
	if err != nil {
		t.Fatal(err)
	}
	base := must(remote.Image(must(name.ParseReference(ref))))
	shared = must(must(base.Layers())[0].Digest()).String()
	var refs []string
	for _, more := range []string{"one", "two"} {
		l, err := layer([]entry{{name: more, mode: 0o644, data: more}})
		if err != nil {
			t.Fatal(err)
		}
		img := must(mutate.AppendLayers(base, l))
		to := must(name.ParseReference(strings.TrimPrefix(b.shelf.URL, "http://") + "/test/" + repo + ":" + more))
		if err := remote.Write(to, img); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, "/test/"+repo+"@"+must(img.Digest()).String())
	}
	return refs[0], refs[1], shared
}

// A layer of two images that are pulled at once is fetched once.
func TestLayersAreSharedByPullsAtOnce(t *testing.T) {
	b := start(t)
	one, two, shared := twins(t, b, "sharing")
	gate := make(chan struct{})
	host, count := counting(t, b, map[string]chan struct{}{shared: gate})
	b.runtime.queue.most = 2
	defer func() { b.runtime.queue.most = 0 }()
	var wg sync.WaitGroup
	for _, ref := range []string{one, two} {
		wg.Go(func() {
			if err := b.runtime.Pull(t.Context(), Order{Reference: host + ref, Customer: ref}); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool { return count(shared) > 0 && b.runtime.unpackingWaits() })
	close(gate)
	wg.Wait()
	if n := count(shared); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

// unpackingWaits reports whether a pull waits for another one's work.
func (r *Runtime) unpackingWaits() bool {
	r.unpacking.mu.Lock()
	defer r.unpacking.mu.Unlock()
	for _, l := range r.unpacking.open {
		if l.users > 1 {
			return true
		}
	}
	return false
}

// A tenant's own registry that never finishes with a layer holds up nobody who
// wants the same layer from another one.
func TestStallingRegistryHoldsUpNoOther(t *testing.T) {
	b := start(t)
	one, two, shared := twins(t, b, "stalling")
	evil, evils := counting(t, b, map[string]chan struct{}{shared: make(chan struct{})})
	good, _ := counting(t, b, nil)
	b.runtime.queue.most = 2
	defer func() { b.runtime.queue.most = 0 }()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var failed atomic.Bool
	wg.Go(func() { failed.Store(b.runtime.Pull(ctx, Order{Reference: evil + one, Customer: "evil"}) != nil) })
	waitFor(t, func() bool { return evils(shared) > 0 })
	if err := b.runtime.Pull(t.Context(), Order{Reference: good + two, Customer: "good"}); err != nil {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	if !failed.Load() {
		t.Error("the stalled pull came to an end")
	}
}
