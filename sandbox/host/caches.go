package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/cache"
	"hallmark.build/sandbox/record"
	"hallmark.build/sandbox/workspace"
)

// A job's /cache is its own, empty, and gone with it. What a later job is to find
// there the host keeps, elsewhere, under the digest that the job's attestation
// names. The runner's helper unpacks and packs; before it unpacks the host lays
// the archives in its place, and after it has packed takes them out again.

// Modes of caches.
const (
	cachesOff  = "off"
	cachesOwn  = "own"
	cachesFull = "full"
)

// Caches says what jobs may keep for later ones.
type Caches struct {
	Modes  map[sandbox.Profile]string // "off" where there is none
	Limits cache.Limits
	// Servers are where the runner keeps caches in object storage. See objectcaches.go.
	Servers []*url.URL
}

func (h *Host) openCaches() (err error) {
	if h.caches, err = cache.Open(h.cacheDir(), h.cfg.Caches.Limits); err != nil {
		return err
	}
	if _, err := h.caches.Collect(time.Now()); err != nil {
		h.log.Error("caches", "error", err)
	}
	return nil
}

// cacheMode is what the admin lets jobs of the profile do.
func (h *Host) cacheMode(p sandbox.Profile) string {
	if mode := h.cfg.Caches.Modes[p]; mode != "" {
		return mode
	}
	return cachesOff
}

// cacheScope is what the job shares caches with. All of it are facts of the
// payload that the authority has checked, or that no tenant sets.
func (h *Host) cacheScope(j *job) cache.Scope {
	return cache.Scope{
		GitLab: h.cfg.GitLab.String(), Project: j.payload.Info.ProjectID,
		Protected: j.payload.Git.Protected != nil && *j.payload.Git.Protected, Profile: string(j.profile),
	}
}

// jobCaches is what an attempt has to do with caches.
type jobCaches struct {
	given map[string]string // digests by name
	kept  []keptCache
}

// A keptCache is stored, and to be found once the attempt is attested.
type keptCache struct {
	name  string
	entry cache.Entry
}

// archives finds the local archives that the runner's script unpacks or packs.
// Tenants can write such names into the script too, by their variables: they get
// no more than what their project's jobs share anyway.
var archives = regexp.MustCompile(`/cache/((?:[A-Za-z0-9_.-]+/){1,32}([0-9a-f]{64})/cache\.zip)`)

// maxArchives bounds what one script can name. GitLab allows four caches, each
// with five fallbacks.
const maxArchives = 64

// A cacheFile is an archive in the job's /cache.
type cacheFile struct {
	path string // below /cache
	name string // hash of the key
	key  string // for readers
}

func (j *job) cacheFiles(script []byte) []cacheFile {
	var out []cacheFile
	for _, m := range archives.FindAllSubmatch(script, -1) {
		f := cacheFile{path: string(m[1]), name: string(m[2]), key: j.cacheKey(string(m[2]))}
		if path.Clean(f.path) == f.path && !strings.HasPrefix(f.path, "../") && !slices.Contains(out, f) && len(out) < maxArchives {
			out = append(out, f)
		}
	}
	return out
}

// cacheKey is what readers call a cache, by the hash of its key: the key, where
// the host can tell.
func (j *job) cacheKey(name string) string {
	for _, k := range j.payload.CacheKeys() {
		if sha256Hex(k.Value) == name {
			return k.Label
		}
	}
	return name
}

func sha256Hex(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// restoreCaches lays those archives in the job's /cache that it may be given.
// A refused one is a cache miss: the job goes on without.
func (h *Host) restoreCaches(ctx context.Context, j *job, script []byte, out *joblog.Log) error {
	files := j.cacheFiles(script)
	if h.cacheMode(j.profile) == cachesOff {
		if len(files) > 0 {
			out.Printf("caches are off under profile %s: nothing is restored or kept", j.profile)
		}
		return nil
	}
	dir, err := j.space.Cache()
	if err != nil {
		return err
	}
	defer dir.Close()
	// The job is to find there what the host gives it, and nothing else.
	if err := workspace.Empty(ctx, dir); err != nil {
		return fmt.Errorf("clear /cache: %w", err)
	}
	j.caches.given = map[string]string{}
	if h.remote(script) {
		return nil
	}
	for _, f := range files {
		if err := h.restoreCache(ctx, j, dir, f, out); err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) restoreCache(ctx context.Context, j *job, dir *os.Root, f cacheFile, out *joblog.Log) error {
	e, err := h.caches.Find(h.cacheScope(j), f.name)
	if errors.Is(err, cache.ErrNotFound) {
		return nil
	}
	used := record.Cache{Stage: string(sandbox.RestoreCache), Key: f.key, Action: "restored", SHA256: e.SHA256, Bytes: e.Bytes}
	var origin Origin
	if err == nil {
		origin, err = h.vouchedFor(ctx, j, e.SHA256, e.Invocation)
	}
	if err == nil {
		used.Invocation, used.Attestation = origin.Invocation, origin.Bundle
		err = h.place(ctx, j, dir, f, e)
	}
	if errors.Is(err, cache.ErrNotFound) {
		return nil // collected in between
	}
	if err != nil && ctx.Err() != nil {
		return nil // the script will not start, and says so
	}
	if err != nil {
		return h.refuseCache(j, used, err, out.Printf)
	}
	if _, err := j.record.Append(record.CacheUsed, used); err != nil {
		return err
	}
	j.caches.given[f.name] = e.SHA256
	if err := h.caches.Used(h.cacheScope(j), f.name, time.Now()); err != nil {
		j.logger(h.log).Warn("cache", "error", err)
	}
	out.Printf("cache   %s: sha256:%s, %s", joblog.Clean(f.key), e.SHA256, originInWords(origin))
	return nil
}

func originInWords(o Origin) string {
	if o.Bundle == "" {
		return "of unknown origin"
	}
	return fmt.Sprintf("attested, of job %d", o.Job)
}

// vouchedFor finds the attestation that has an archive among its subjects, that of
// the invocation if there are several. In mode own there must be one, of the same
// project, protection and profile; in mode full there may be none.
func (h *Host) vouchedFor(ctx context.Context, j *job, sha256, invocation string) (Origin, error) {
	origins, err := h.provenance(ctx, j, sha256, 0, min(j.pump.patience, cachePatience))
	full := h.cacheMode(j.profile) == cachesFull
	if err != nil && !full {
		return Origin{}, fmt.Errorf("the authority was asked who made it: %w", err)
	}
	scope := h.cacheScope(j)
	same := func(o Origin) bool {
		return o.Project == j.payload.Info.ProjectFullPath && o.Protected == scope.Protected && strings.HasSuffix(o.Builder, "/"+scope.Profile)
	}
	if i := slices.IndexFunc(origins, func(o Origin) bool { return same(o) && o.Invocation == invocation }); i >= 0 {
		return origins[i], nil
	}
	if i := slices.IndexFunc(origins, same); i >= 0 {
		return origins[i], nil
	}
	if full {
		return Origin{}, nil
	}
	return Origin{}, errors.New("no attested job of this project and protection has made it")
}

// place copies an archive into the job's /cache. The job may do with the copy
// what it likes.
func (h *Host) place(ctx context.Context, j *job, dir *os.Root, f cacheFile, e cache.Entry) error {
	if err := j.makeCacheDirs(dir, path.Dir(f.path)); err != nil {
		return err
	}
	_ = dir.Remove(f.path)
	file, err := dir.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = h.caches.Copy(ctx, e, file)
	if err == nil {
		err = errors.Join(file.Chown(int(j.ids.First), int(j.ids.First)), file.Chmod(0o666))
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		// The helper packs anew what is newer than the archive.
		err = dir.Chtimes(f.path, e.Stored, e.Stored)
	}
	if err != nil {
		return errors.Join(err, dir.Remove(f.path))
	}
	return nil
}

func (j *job) makeCacheDirs(dir *os.Root, below string) error {
	at := ""
	for part := range strings.SplitSeq(below, "/") {
		at = path.Join(at, part)
		err := dir.Mkdir(at, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err = errors.Join(err, dir.Lchown(at, int(j.ids.First), int(j.ids.First)), dir.Chmod(at, 0o777)); err != nil {
			return err
		}
	}
	return nil
}

// refuseCache records that the job goes on without a cache, and says why.
func (h *Host) refuseCache(j *job, used record.Cache, why error, say func(format string, args ...any)) error {
	used.Action, used.Detail, used.Invocation, used.Attestation = "refused", joblog.Clean(why.Error()), "", ""
	say("cache   %s: refused: %s", joblog.Clean(used.Key), used.Detail)
	j.logger(h.log).Warn("cache refused", "stage", used.Stage, "key", used.Key, "sha256", used.SHA256, "error", why)
	_, err := j.record.Append(record.CacheUsed, used)
	return err
}

// keepCaches takes the archives that the helper has made. They are found by later
// jobs once the attempt is attested. One that cannot be kept is said and recorded,
// and fails no job.
func (h *Host) keepCaches(ctx context.Context, j *job, stage sandbox.Stage, script []byte, out *joblog.Log) error {
	if h.cacheMode(j.profile) == cachesOff || h.remote(script) {
		return nil
	}
	dir, err := j.space.Cache()
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, f := range j.cacheFiles(script) {
		used := record.Cache{Stage: string(stage), Key: f.key, Action: "stored"}
		err := h.keepCache(ctx, j, dir, f, &used)
		switch {
		case errors.Is(err, errNothingToKeep):
			continue
		case err != nil && ctx.Err() != nil:
			return nil // the runner wants no more
		case err != nil:
			if err := h.refuseCache(j, used, err, out.Printf); err != nil {
				return err
			}
			continue
		}
		if _, err := j.record.Append(record.CacheUsed, used); err != nil {
			return err
		}
		out.Printf("cache   %s: kept once the job is attested, sha256:%s", joblog.Clean(f.key), used.SHA256)
	}
	return j.held(ctx)
}

var errNothingToKeep = errors.New("there is no new archive")

// keepCache stores one archive, if it is what it should be: of files as they lie
// in the sealed work tree. The helper that made it is the tenant's.
func (h *Host) keepCache(ctx context.Context, j *job, dir *os.Root, f cacheFile, used *record.Cache) error {
	file, err := openCacheFile(dir, f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return errNothingToKeep
	}
	if err != nil {
		return err
	}
	defer file.Close()
	object, err := h.caches.Put(ctx, file)
	if errors.Is(err, cache.ErrTooLarge) {
		return fmt.Errorf("the archive is larger than %d MiB (cache.archive)", h.cfg.Caches.Limits.Archive>>20)
	}
	if err != nil {
		return err
	}
	used.SHA256, used.Bytes = object.SHA256, object.Bytes
	err = h.matchCache(ctx, j, f, object)
	if err != nil {
		h.caches.Release(object.SHA256)
		return err
	}
	j.caches.kept = append(j.caches.kept, keptCache{f.name, cache.Entry{
		Key: f.key, SHA256: object.SHA256, Bytes: object.Bytes, Invocation: j.opened.InvocationID, Stored: time.Now().UTC(),
	}})
	return nil
}

// matchCache compares a stored archive with the sealed work tree. One that the
// job was given and has left as it was is known already.
func (h *Host) matchCache(ctx context.Context, j *job, f cacheFile, o cache.Object) error {
	if j.caches.given[f.name] == o.SHA256 {
		return errNothingToKeep
	}
	archive, err := h.caches.Open(o.SHA256)
	if err != nil {
		return err
	}
	defer archive.Close()
	_, err = j.space.Match(ctx, archive, o.Bytes, "zip", "cache.zip")
	return err
}

// openCacheFile opens a plain file of the job's, and nothing that can block.
func openCacheFile(dir *os.Root, name string) (*os.File, error) {
	file, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("/cache/%s: is no plain file of the job's", name)
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("/cache/%s: is no plain file", name), err, file.Close())
	}
	return file, nil
}

// publishCaches lets later jobs find what the attempt kept, if it is attested.
func (h *Host) publishCaches(j *job) {
	if len(j.caches.kept) == 0 || j.fate() != attested && j.fate() != signed {
		return
	}
	log := j.logger(h.log)
	for _, k := range j.caches.kept {
		if err := h.caches.Point(h.cacheScope(j), k.name, k.entry); err != nil {
			log.Error("cache not kept", "key", k.entry.Key, "error", err)
		}
	}
	if n, err := h.caches.Collect(time.Now()); err != nil || n > 0 {
		log.Info("caches collected", "archives_removed", n, "error", err)
	}
}

// releaseCaches lets go what nobody will find.
func (h *Host) releaseCaches(j *job) {
	for _, k := range j.caches.kept {
		h.caches.Release(k.entry.SHA256)
	}
	j.caches.kept = nil
}
