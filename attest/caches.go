package attest

import (
	"slices"
	"unicode/utf8"

	"hallmark.build/sandbox/record"
)

// A cache that is given to a job is an input: a dependency, by its digest and by
// the attestation that vouches for it. One that is kept is an output, a subject
// like any other, for a later job is to be built from it: only what an
// attestation names can be traced to the job that made it.

// What becomes of a cache.
const (
	cacheRestored = "restored"
	cacheStored   = "stored"
	cacheRefused  = "refused"
)

const maxCacheKey = 1024 // bytes; a key has to be a file's name

type cache struct {
	record.Cache
	seq int64
}

func archiveStage(stage string) bool {
	return stage == "archive_cache" || stage == "archive_cache_on_failure"
}

func (c *checker) addCache(e record.Entry) *Refusal {
	var k record.Cache
	if r := decode(e, &k); r != nil {
		return r
	}
	restoring := k.Stage == "restore_cache"
	switch {
	case k.Key == "" || len(k.Key) > maxCacheKey || !utf8.ValidString(k.Key):
		return refuse(e, Malformed, "key of a cache")
	case k.SHA256 != "" && !isSHA256(k.SHA256) || k.Attestation != "" && !isSHA256(k.Attestation):
		return refuse(e, Malformed, "cache %q: digest", k.Key)
	case k.Bytes < 0 || k.Bytes > maxJSONInteger:
		return refuse(e, NumberTooLarge, "cache %q: size", k.Key)
	case !restoring && !archiveStage(k.Stage):
		return refuse(e, CacheInconsistent, "cache %q in stage %q", k.Key, k.Stage)
	case c.open != nil && c.open.Stage != k.Stage:
		return refuse(e, CacheInconsistent, "cache %q of stage %s while %s ran", k.Key, k.Stage, c.open.Stage)
	case len(c.opened.External.Caches) == 0:
		return refuse(e, CacheInconsistent, "cache %q of a job that has no caches", k.Key)
	case (k.Attestation == "") != (k.Invocation == ""):
		return refuse(e, CacheInconsistent, "cache %q: an attestation without its invocation, or the reverse", k.Key)
	case k.Attestation != "" && k.Action != cacheRestored:
		return refuse(e, CacheInconsistent, "cache %q: %s, with an attestation of another job", k.Key, k.Action)
	}
	switch k.Action {
	case cacheRestored:
		// A service may run by now: what it serves is no cache.
		if !restoring || c.ran[roleBuild] || k.SHA256 == "" {
			return refuse(e, CacheInconsistent, "cache %q restored in %s, after tenant code ran, or without a digest", k.Key, k.Stage)
		}
	case cacheStored:
		if restoring || !c.sealed || k.SHA256 == "" {
			return refuse(e, CacheInconsistent, "cache %q stored in %s, before the seal, or without a digest", k.Key, k.Stage)
		}
	case cacheRefused:
		if k.Detail == "" {
			return refuse(e, CacheInconsistent, "cache %q refused without a reason", k.Key)
		}
	default:
		return refuse(e, CacheInconsistent, "cache %q: %q", k.Key, k.Action)
	}
	c.caches = append(c.caches, cache{k, e.Seq})
	return nil
}

// restored are the caches that the job was given, each once: the runner may try
// to restore them again.
func restored(caches []cache) []cache {
	var out []cache
	seen := map[record.Cache]bool{}
	for _, k := range caches {
		if k.Action == cacheRestored && !seen[k.Cache] {
			seen[k.Cache] = true
			out = append(out, k)
		}
	}
	return out
}

// brings reports whether a cache came across the border. The entry that says what
// became of it stands for it.
func (f fetch) brings() bool { return f.Stage == "restore_cache" && f.brought() }

// checkCacheFetch refuses bytes of an object storage of which no entry before says
// that the job was given them: nobody has asked who made them.
func (c *checker) checkCacheFetch(e record.Entry, f fetch) *Refusal {
	if !f.brings() || slices.ContainsFunc(c.caches, func(k cache) bool { return k.Action == cacheRestored && k.SHA256 == f.SHA256 }) {
		return nil
	}
	return refuse(e, CacheInconsistent, "restore_cache was given sha256:%s, which no entry says is a cache", f.SHA256)
}

// storedAt is where in an object storage a cache came from: the first exchange
// that brought its bytes, without the query, which is a signature. Empty for one
// that the host had.
func (k cache) storedAt(fetches []fetch) string {
	i := slices.IndexFunc(fetches, func(f fetch) bool { return f.brings() && f.SHA256 == k.SHA256 && f.entry.Seq > k.seq })
	if i < 0 {
		return ""
	}
	at := *fetches[i].url
	at.RawQuery = ""
	return at.String()
}

func cacheResources(s *story) []resource {
	var out []resource
	for _, k := range restored(s.caches) {
		notes := map[string]any{"kind": "cache", "key": k.Key, "bytes": k.Bytes}
		if k.Attestation != "" {
			notes["hallmark_attestation"] = "sha256:" + k.Attestation
			notes["hallmark_invocation"] = k.Invocation
		}
		out = append(out, resource{Name: cacheName(k), Digest: sha256Digest(k.SHA256), DownloadLocation: k.storedAt(s.fetches), Annotations: notes})
	}
	return out
}

func cacheCandidates(caches []cache) []candidate {
	var out []candidate
	for _, k := range caches {
		if k.Action == cacheStored {
			out = append(out, candidate{sha256: k.SHA256, artifact: cacheName(k), kind: "cache", seq: k.seq})
		}
	}
	return out
}

func cacheName(k cache) string { return "cache/" + k.Key + ".zip" }
