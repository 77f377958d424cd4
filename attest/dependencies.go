package attest

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"hallmark.build/sandbox/record"
)

// brought reports whether the exchange is an input. Whatever its status and
// however it ended, a body that crossed the border may have been used: a client
// that hangs up before the last byte has all the others.
func (f fetch) brought() bool {
	return f.Bytes > 0 || f.answered() && f.Method != "HEAD" && f.Incomplete == ""
}

func (f fetch) answered() bool { return f.Status >= 200 && f.Status <= 299 }

func dependencies(s *story, listed []fetch) []resource {
	out := []resource{}
	out = append(out, sourceResources(s)...)
	out = append(out, submoduleResources(submodules(s))...)
	for _, im := range s.images {
		out = append(out, imageResources(im)...)
	}
	out = append(out, cacheResources(s)...)
	return append(out, fetchResources(listed)...)
}

func imageResources(im record.Image) []resource {
	notes := map[string]any{"kind": "image", "role": im.Role, "asked": im.Name, "platform": im.Platform, "config": im.Config}
	if len(im.Names) > 0 {
		notes["names"] = im.Names
	}
	out := []resource{{
		Name: im.Reference, URI: imageURL(im, im.Manifest), Digest: sha256Digest(im.Manifest), Annotations: notes,
	}}
	if im.Index != "" {
		out = append(out, resource{
			Name: repository(im) + "@" + im.Index, URI: imageURL(im, im.Index), Digest: sha256Digest(im.Index),
			Annotations: map[string]any{"kind": "image-index", "role": im.Role, "asked": im.Name},
		})
	}
	return out
}

func repository(im record.Image) string { return strings.TrimSuffix(im.Reference, "@"+im.Manifest) }

// imageURL is a package URL of type oci.
func imageURL(im record.Image, digest string) string {
	repo := repository(im)
	return fmt.Sprintf("pkg:oci/%s@%s?repository_url=%s",
		url.PathEscape(strings.ToLower(path.Base(repo))), url.QueryEscape(digest), url.QueryEscape(repo))
}

func sha256Digest(digest string) map[string]string {
	return map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}
}

// from is where redirects led; empty where there were none.
func (f fetch) from() string {
	if n := len(f.Redirects); n > 0 {
		return f.Redirects[n-1]
	}
	return ""
}

// fetchResources makes one dependency of all exchanges with the same URL,
// digest, origin, end and attestation.
func fetchResources(fetches []fetch) []resource {
	type key struct {
		url, digest, from, incomplete string
		attestation, invocation       string
		status                        int // 0 for every success
	}
	type facts struct {
		mediaType            string // the first answer's
		stages, roles, wants map[string]bool
	}
	found := map[key]*facts{}
	for _, f := range fetches {
		k := key{url: f.URL, digest: f.SHA256, from: f.from(), incomplete: f.Incomplete, attestation: f.Attestation, invocation: f.Invocation}
		if !f.answered() {
			k.status = f.Status
		}
		if found[k] == nil {
			found[k] = &facts{mediaType: f.MediaType, stages: map[string]bool{}, roles: map[string]bool{}, wants: map[string]bool{}}
		}
		found[k].stages[f.Stage] = true
		found[k].roles[f.Role] = true
		if f.Git != nil {
			for _, id := range f.Git.Wants {
				found[k].wants[id] = true
			}
		}
	}
	keys := slices.SortedFunc(maps.Keys(found), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.url, b.url), cmp.Compare(a.digest, b.digest), cmp.Compare(a.from, b.from), cmp.Compare(a.status, b.status), cmp.Compare(a.incomplete, b.incomplete),
			cmp.Compare(a.attestation, b.attestation), cmp.Compare(a.invocation, b.invocation))
	})
	out := make([]resource, 0, len(keys))
	for _, k := range keys {
		f := found[k]
		notes := map[string]any{
			"kind":   "fetched",
			"stages": slices.Sorted(maps.Keys(f.stages)),
			"roles":  slices.Sorted(maps.Keys(f.roles)),
		}
		if k.status != 0 {
			notes["status"] = k.status
		}
		if k.incomplete != "" {
			notes["incomplete"] = k.incomplete
		}
		if k.attestation != "" {
			notes["hallmark_attestation"] = "sha256:" + k.attestation
			notes["hallmark_invocation"] = k.invocation
		}
		if len(f.wants) > 0 {
			notes["wants"] = slices.Sorted(maps.Keys(f.wants))
		}
		out = append(out, resource{
			URI: k.url, Digest: map[string]string{"sha256": k.digest}, DownloadLocation: k.from, MediaType: f.mediaType,
			Annotations: notes,
		})
	}
	return out
}
