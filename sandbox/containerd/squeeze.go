package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"hallmark.build/sandbox"
)

// An image lies outside of its job's quota, since others may want it too, and a
// few megabytes of layers can unpack to more than the disk has. So while images
// are pulled the disk is looked at, and before it is full the pull that takes
// most of it has to end.

const (
	squeezeEvery = 100 * time.Millisecond
	leastFree    = 512 << 20 // bytes that pulls leave, whatever Keep.MinFree is
	leastFiles   = 64        // pulls leave the disk room for one file in that many
	perFile      = 16 << 10  // what a file weighs against bytes: as many as mkfs has for one
	sweepTimeout = time.Minute
)

// arrivals are the pulls that may write.
type arrivals struct {
	mu      sync.Mutex
	running map[*arrival]bool
	watched bool
	squeeze func() bool // whether the disk is nearly full
	large   int64       // bytes from which on an image is to blame for that
}

var errFull = errors.New("this host's disk is nearly full")

// An arrival is one image on its way.
type arrival struct {
	reference string
	since     time.Time
	stop      context.CancelCauseFunc
	ended     chan struct{}
}

// arrive has the disk watched until leave is called. The context ends, with the
// cause, if the image takes too much.
func (r *Runtime) arrive(ctx context.Context, reference string) (_ context.Context, leave func()) {
	ctx, stop := context.WithCancelCause(ctx)
	a := &arrival{reference: reference, since: time.Now(), stop: stop, ended: make(chan struct{})}
	r.arrivals.mu.Lock()
	defer r.arrivals.mu.Unlock()
	if r.arrivals.running == nil {
		r.arrivals.running = map[*arrival]bool{}
	}
	r.arrivals.running[a] = true
	if !r.arrivals.watched {
		r.arrivals.watched = true
		go r.watchArrivals(context.WithoutCancel(ctx))
	}
	return ctx, func() {
		r.arrivals.mu.Lock()
		defer r.arrivals.mu.Unlock()
		delete(r.arrivals.running, a)
		close(a.ended)
		stop(nil)
	}
}

// list are the pulls under way. Without any the watch ends.
func (as *arrivals) list() []*arrival {
	as.mu.Lock()
	defer as.mu.Unlock()
	var list []*arrival
	for a := range as.running {
		list = append(list, a)
	}
	as.watched = len(list) > 0
	return list
}

func (r *Runtime) watchArrivals(ctx context.Context) {
	tick := time.NewTicker(squeezeEvery)
	defer tick.Stop()
	for range tick.C {
		list := r.arrivals.list()
		if len(list) == 0 {
			return
		}
		if !r.arrivals.squeeze() {
			continue
		}
		if err := r.Collect(ctx); err != nil {
			r.log.Warn("images were not tidied", "error", err)
		}
		if r.arrivals.squeeze() {
			r.endLargest(ctx, list)
		}
	}
}

// nearlyFull reports whether pulls have to stop: bytes or files are at their end.
func (r *Runtime) nearlyFull() bool {
	var st unix.Statfs_t
	if unix.Statfs(r.cfg.Root, &st) != nil {
		return false
	}
	return int64(st.Bavail)*st.Bsize < max(leastFree, r.cfg.Keep.MinFree/2) || st.Files > 0 && st.Ffree < st.Files/leastFiles
}

// endLargest ends the pull that has written most, and waits until that is gone.
func (r *Runtime) endLargest(ctx context.Context, list []*arrival) {
	largest, most := list[0], snapshots.Usage{Size: -1}
	for _, a := range list {
		u, err := r.written(ctx, a)
		if err != nil {
			r.log.Warn("a pull's share of the disk is not known", "image", a.reference, "error", err)
		}
		if weight(u) > weight(most) {
			largest, most = a, u
		}
	}
	r.log.Warn("pull ended: the disk is nearly full", "image", largest.reference, "bytes", most.Size, "files", most.Inodes)
	why := errFull
	if weight(most) >= r.arrivals.large {
		why = &sandbox.UserError{
			Err:  fmt.Errorf("%w, and of all images on their way this one takes most: %s in %d files so far", errFull, megabytes(most.Size), most.Inodes),
			Hint: "use a smaller image, or ask the runner's admin for more room",
		}
	}
	largest.stop(why)
	<-largest.ended
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	if err := r.sweepContent(ctx); err != nil {
		r.log.Warn("images were not tidied", "error", err)
	}
}

func weight(u snapshots.Usage) int64 { return u.Size + u.Inodes*perFile }

// written is what a pull has added to the disk, packed and unpacked.
func (r *Runtime) written(ctx context.Context, a *arrival) (total snapshots.Usage, err error) {
	layers, chains, err := r.partsOf(ctx, a.reference)
	if err != nil {
		return total, err
	}
	running, err := r.client.ContentStore().ListStatuses(ctx)
	if err != nil {
		return total, err
	}
	for _, s := range running {
		if _, d, ok := strings.Cut(s.Ref, "layer-"); ok && layers[d] {
			total.Size += s.Offset
		}
	}
	sn := r.client.SnapshotService(snapshotter)
	err = sn.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		chain := i.Name[strings.LastIndexByte(i.Name, ' ')+1:] // a layer's that is being unpacked has more before it
		if !chains[chain] || i.Created.Before(a.since) {
			return nil
		}
		size, err := sn.Usage(ctx, i.Name)
		if errdefs.IsNotFound(err) {
			return nil
		}
		total.Add(size)
		return err
	})
	return total, err
}

// partsOf are an image's layers, by their digests packed and by those of the
// chains that they unpack to. None while its manifest or configuration is not here.
func (r *Runtime) partsOf(ctx context.Context, reference string) (layers, chains map[string]bool, err error) {
	layers, chains = map[string]bool{}, map[string]bool{}
	_, d, _ := strings.Cut(reference, "@")
	var manifest ocispec.Manifest
	if there, err := r.readDocument(ctx, digest.Digest(d), &manifest); err != nil || !there {
		return nil, nil, err
	}
	for _, l := range manifest.Layers {
		layers[l.Digest.String()] = true
	}
	var config struct {
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if _, err := r.readDocument(ctx, manifest.Config.Digest, &config); err != nil {
		return nil, nil, err
	}
	for _, c := range identity.ChainIDs(config.RootFS.DiffIDs) {
		chains[c.String()] = true
	}
	return layers, chains, nil
}

// readDocument reads JSON out of the content store, if it is there.
func (r *Runtime) readDocument(ctx context.Context, d digest.Digest, into any) (there bool, err error) {
	ra, err := r.client.ContentStore().ReaderAt(ctx, ocispec.Descriptor{Digest: d})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer ra.Close()
	if ra.Size() > maxConfig {
		return false, errors.New("a document that is too large")
	}
	raw := make([]byte, ra.Size())
	if _, err := content.ReaderAt(ra).ReadAt(raw, 0); err != nil {
		return false, err
	}
	return true, json.Unmarshal(raw, into)
}
