package executor

import (
	"path"
	"slices"
	"strings"
)

// A CacheKey is a key under which the job may ask for a cache.
type CacheKey struct {
	// Value is what the runner makes of it: with the values of variables. Those
	// that only the runner knows are missing.
	Value string
	// Label is the same for readers: as the job wrote it, if a value in it is not
	// public.
	Label string
}

// maxCacheKey bounds a cache's key in bytes: it names a file, or an object.
const maxCacheKey = 4 << 10

// CacheKeys lists the keys of the job's caches, with those that stand in for them.
func (j *Job) CacheKeys() []CacheKey {
	var out []CacheKey
	add := func(written, value string) {
		switch {
		case value == "" || len(value) > maxCacheKey:
		case j.hides(value):
			out = append(out, CacheKey{Value: value, Label: written})
		default:
			out = append(out, CacheKey{Value: value, Label: value})
		}
	}
	for _, c := range j.Caches {
		if c.Key == "" {
			key := path.Join("/", j.Info.Name, j.Git.Ref)[1:]
			add(key, key)
		}
		for _, key := range append([]string{c.Key}, c.FallbackKeys...) {
			add(key, j.expand(key))
		}
	}
	if len(j.Caches) > 0 {
		const key = "$CACHE_FALLBACK_KEY"
		add(key, j.expand(key))
	}
	return out
}

// hides reports whether a value of a variable that is not public stands in text.
func (j *Job) hides(text string) bool {
	return slices.ContainsFunc(j.Variables, func(v Variable) bool {
		return (v.Masked || !v.Public) && v.Value != "" && strings.Contains(text, v.Value)
	})
}

// expand replaces the references in a text by what the variables come to.
func (j *Job) expand(text string) string {
	return newExpansion(func(name string) string {
		if name == "$" {
			return "$"
		}
		return j.Setting(name)
	}).of(text)
}
