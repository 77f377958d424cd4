package host

import (
	"context"
	"os"
	"regexp"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox/egress"
	"hallmark.build/sandbox/record"
)

// Where the runner has an object storage for caches, its helper moves archives
// itself, across the border. Nothing is laid into the job's /cache then, nor kept
// of it: an archive of this host beside a newer one in the storage would be one
// cache too many. Nothing points to an archive there either. Whose it is the
// authority alone can tell, by its digest.

// cachePatience is how long the authority is asked about a cache. The runner's
// helper waits thirty seconds for an answer.
const cachePatience = 10 * time.Second

// remoteURL is how the runner's scripts tell the helper of an object storage.
var remoteURL = regexp.MustCompile(`\bcache-(?:extractor|archiver)\b[^\n]*?--(?:gocloud-)?url\b`)

// remote reports whether a script's caches lie in an object storage that the
// border lets the helper reach. A tenant who gets such words into the script goes
// without caches.
func (h *Host) remote(script []byte) bool {
	return len(h.cfg.Caches.Servers) > 0 && remoteURL.Match(script)
}

// objectCaches decides over a job's caches in object storage.
type objectCaches struct {
	h *Host
	j *job
}

// objectCaches is nil for a job that has no caches: whatever its helper sends then
// is none.
func (h *Host) objectCaches(j *job) egress.Caches {
	if len(j.payload.Caches) == 0 {
		return nil
	}
	return objectCaches{h, j}
}

// hashedName is the runner's name for an object: the hash of the key, below its
// first two digits.
var hashedName = regexp.MustCompile(`^(?:[0-9a-f]{2}/)?([0-9a-f]{64})$`)

func (c objectCaches) used(a egress.CacheArchive, action string) record.Cache {
	hash := sha256Hex(a.Object) // of a key that is not hashed
	if m := hashedName.FindStringSubmatch(a.Object); m != nil {
		hash = m[1]
	}
	return record.Cache{Stage: string(a.Stage), Key: c.j.cacheKey(hash), Action: action, SHA256: a.SHA256, Bytes: a.Bytes}
}

// Restore implements [egress.Caches].
func (c objectCaches) Restore(ctx context.Context, a egress.CacheArchive) (bool, error) {
	used := c.used(a, "restored")
	origin, err := c.h.vouchedFor(ctx, c.j, a.SHA256, "")
	switch {
	case err != nil && ctx.Err() != nil:
		return false, nil // the stage is over
	case err != nil:
		return false, c.h.refuseCache(c.j, used, err, c.j.downloads.note)
	}
	used.Invocation, used.Attestation = origin.Invocation, origin.Bundle
	if _, err := c.j.record.Append(record.CacheUsed, used); err != nil {
		return false, err
	}
	c.j.downloads.note("cache   %s: sha256:%s, %s", joblog.Clean(used.Key), used.SHA256, originInWords(origin))
	return true, nil
}

// Match implements [egress.Caches].
func (c objectCaches) Match(ctx context.Context, a egress.CacheArchive, file *os.File) (bool, error) {
	_, err := c.j.space.Match(ctx, file, a.Bytes, "zip", "cache.zip")
	switch {
	case err != nil && ctx.Err() != nil:
		return false, nil // the stage is over
	case err != nil:
		return false, c.Refused(a, err)
	}
	return true, nil
}

// Stored implements [egress.Caches].
func (c objectCaches) Stored(a egress.CacheArchive) error {
	used := c.used(a, "stored")
	c.j.downloads.note("cache   %s: sha256:%s, for later jobs once this one is attested", joblog.Clean(used.Key), used.SHA256)
	_, err := c.j.record.Append(record.CacheUsed, used)
	return err
}

// Refused implements [egress.Caches].
func (c objectCaches) Refused(a egress.CacheArchive, why error) error {
	return c.h.refuseCache(c.j, c.used(a, "refused"), why, c.j.downloads.note)
}
