package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Keep says how long images stay that nobody uses. Zero means no limit.
type Keep struct {
	Bytes   int64         // of all images together, packed and unpacked
	For     time.Duration // since an image was last asked for
	MinFree int64         // bytes that the disk below Root must have left
}

// tidyEvery is how often images are looked through without another occasion.
const tidyEvery = 10 * time.Minute

// labelUsed is when an image was last asked for, in seconds since 1970. It is
// containerd's to keep, so that it outlives this program.
const labelUsed = "hallmark.build/used"

// holds counts who uses which image.
type holds struct {
	mu    sync.Mutex
	count map[string]int // by reference
}

// Hold keeps an image from being collected until release is called. It need not
// be here yet. Whoever wants to run an image holds it before it is pulled.
func (r *Runtime) Hold(reference string) (release func()) {
	r.holds.mu.Lock()
	defer r.holds.mu.Unlock()
	if r.holds.count == nil {
		r.holds.count = map[string]int{}
	}
	r.holds.count[reference]++
	return sync.OnceFunc(func() {
		r.holds.mu.Lock()
		defer r.holds.mu.Unlock()
		if r.holds.count[reference]--; r.holds.count[reference] == 0 {
			delete(r.holds.count, reference)
		}
	})
}

// touch notes that an image was asked for.
func (r *Runtime) touch(ctx context.Context, reference string) error {
	_, err := r.client.ImageService().Update(ctx, images.Image{
		Name:   reference,
		Labels: map[string]string{labelUsed: strconv.FormatInt(time.Now().Unix(), 10)},
	}, "labels."+labelUsed)
	return err
}

func lastUse(img images.Image) time.Time {
	if s, err := strconv.ParseInt(img.Labels[labelUsed], 10, 64); err == nil {
		return time.Unix(s, 0)
	}
	return img.UpdatedAt
}

// TidyImages removes images that need not be kept, now and then, until ctx ends.
func (r *Runtime) TidyImages(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		if err := r.Collect(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("images were not tidied", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.untidy:
		}
	}
}

// grown says that there is more to keep than before.
func (r *Runtime) grown() {
	select {
	case r.untidy <- struct{}{}:
	default:
	}
}

// Collect removes images that nobody holds, the longest unused first, as far as
// Config.Keep asks for it. What a container stands on stays in any case.
func (r *Runtime) Collect(ctx context.Context) error {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	list, err := r.client.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	slices.SortFunc(list, func(a, b images.Image) int { return lastUse(a).Compare(lastUse(b)) })
	usage, err := r.usage(ctx)
	if err != nil {
		return err
	}
	for _, img := range list {
		why := r.cfg.Keep.reason(usage, time.Since(lastUse(img)))
		if why == "" {
			// The list is in order of age, and the space is there.
			return nil
		}
		removed, err := r.removeImage(ctx, img.Name)
		if err != nil {
			return err
		}
		if !removed {
			continue
		}
		before := usage
		if usage, err = r.usage(ctx); err != nil {
			return err
		}
		r.log.Info("image removed", "image", img.Name, "why", why, "freed_bytes", before.images-usage.images,
			"images_bytes", usage.images, "disk_free_bytes", usage.free, "last_used", lastUse(img).UTC().Format(time.RFC3339))
	}
	return nil
}

// usage is how much there is, in bytes.
type usage struct{ images, free int64 }

// reason says why an image may not stay, or nothing.
func (k Keep) reason(u usage, unused time.Duration) string {
	switch {
	case k.For > 0 && unused > k.For:
		return "unused for long"
	case k.Bytes > 0 && u.images > k.Bytes:
		return "images take too much space"
	case k.MinFree > 0 && u.free < k.MinFree:
		return "the disk is nearly full"
	}
	return ""
}

func (r *Runtime) usage(ctx context.Context) (usage, error) {
	var u usage
	err := r.client.ContentStore().Walk(ctx, func(i content.Info) error {
		u.images += i.Size
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("images: %w", err)
	}
	sn := r.client.SnapshotService(snapshotter)
	err = sn.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			return nil // a container's own
		}
		size, err := sn.Usage(ctx, i.Name)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		u.images += size.Size
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("images: %w", err)
	}
	u.free, err = diskFree(r.cfg.Root)
	return u, err
}

func diskFree(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// removeImage removes one image unless somebody holds it, and waits until its
// space is free.
func (r *Runtime) removeImage(ctx context.Context, reference string) (removed bool, err error) {
	r.holds.mu.Lock()
	if r.holds.count[reference] > 0 {
		r.holds.mu.Unlock()
		return false, nil
	}
	// The name alone goes here. Whoever holds the image from now on finds that
	// it is gone, and pulls it.
	err = r.client.ImageService().Delete(ctx, reference)
	r.holds.mu.Unlock()
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove image %s: %w", reference, err)
	}
	return true, r.sweepContent(ctx)
}

// sweepContent has containerd remove what nothing refers to any more. It does so
// when a lease ends.
func (r *Runtime) sweepContent(ctx context.Context) error {
	lm := r.client.LeasesService()
	l, err := lm.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	if err := lm.Delete(ctx, l, leases.SynchronousDelete); err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

// dropLeases ends what pulls of an earlier run have kept from being removed.
func (r *Runtime) dropLeases(ctx context.Context) error {
	lm := r.client.LeasesService()
	list, err := lm.List(ctx)
	if err != nil {
		return fmt.Errorf("containerd: leases: %w", err)
	}
	var errs []error
	for _, l := range list {
		if err := lm.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("containerd: leases: %w", err))
		}
	}
	return errors.Join(errs...)
}

// makeRoom removes images before a pull if the disk is nearly full.
func (r *Runtime) makeRoom(ctx context.Context) {
	free, err := diskFree(r.cfg.Root)
	if err == nil && (r.cfg.Keep.MinFree == 0 || free >= r.cfg.Keep.MinFree) {
		return
	}
	if err := r.Collect(ctx); err != nil {
		r.log.Warn("images were not tidied", "error", err)
	}
}
