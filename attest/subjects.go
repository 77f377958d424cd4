package attest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A candidate is a subject that may still need a longer name.
type candidate struct {
	path     string // of a file; empty for the artifact itself
	sha256   string
	artifact string // file name of the upload
	kind     string // GitLab's type of the upload
	seq      int64  // of the upload's entry
	level    int    // how much of the above the name shows
}

const lastLevel = 3

func (c candidate) name() string {
	parts := []string{strconv.FormatInt(c.seq, 10), c.kind, c.artifact, c.path}
	if c.path == "" {
		parts = parts[:3]
	}
	shown := min(len(parts), 1+c.level)
	return strings.Join(parts[len(parts)-shown:], ":")
}

// subjects lists what GitLab accepted and the caches that the host kept, with
// unique names, sorted.
func subjects(s *story) ([]Subject, *Refusal) {
	all := append(candidates(s.uploads), cacheCandidates(s.caches)...)
	switch {
	case len(all) > 0:
		return unique(all), nil
	case len(s.uploads) == 0:
		return nil, &Refusal{NoOutputs, -1, "the job uploaded nothing"}
	}
	return nil, &Refusal{UploadsRejected, -1, "GitLab accepted none of the job's uploads"}
}

func candidates(uploads []upload) []candidate {
	var all []candidate
	for _, u := range uploads {
		if u.Status < 200 || u.Status > 299 {
			continue
		}
		own := candidate{sha256: u.SHA256, artifact: u.FileName, kind: u.Type, seq: u.seq}
		all = append(all, own)
		for _, m := range u.Entries {
			if m.Kind == "file" {
				file := own
				file.path, file.sha256 = m.Path, m.SHA256
				all = append(all, file)
			}
		}
	}
	return all
}

// unique lengthens names until no two subjects with different digests share
// one, then drops repetitions. Tenants choose names, and can make each round
// clash with the next: a round looks at names that the last one made, no others.
func unique(all []candidate) []Subject {
	named := make(map[string][]int, len(all))
	fresh := make(map[string]bool, len(all))
	for i, c := range all {
		name := c.name()
		named[name] = append(named[name], i)
		fresh[name] = true
	}
	for len(fresh) > 0 {
		fresh = lengthen(all, named, fresh)
	}
	out := make([]Subject, 0, len(named))
	for name, who := range named {
		if len(who) > 0 {
			out = append(out, Subject{Name: name, SHA256: all[who[0]].sha256})
		}
	}
	slices.SortFunc(out, func(a, b Subject) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// lengthen takes every fresh name that stands for several digests one level
// further, and returns the names that this makes. At the last level names begin
// with the number of the entry, within which an upload has each path once: a
// clash there is with a shorter name, which gives way, and the rounds come to an
// end.
func lengthen(all []candidate, named map[string][]int, fresh map[string]bool) map[string]bool {
	var longer []int
	for name := range fresh {
		who := named[name]
		if !slices.ContainsFunc(who, func(i int) bool { return all[i].sha256 != all[who[0]].sha256 }) {
			continue
		}
		named[name] = slices.DeleteFunc(who, func(i int) bool {
			if all[i].level == lastLevel {
				return false
			}
			longer = append(longer, i)
			return true
		})
	}
	made := map[string]bool{}
	for _, i := range longer {
		all[i].level++
		name := all[i].name()
		named[name] = append(named[name], i)
		made[name] = true
	}
	return made
}

func resources(subjects []Subject) []resource {
	out := make([]resource, len(subjects))
	for i, s := range subjects {
		out[i] = resource{Name: s.Name, Digest: map[string]string{"sha256": s.SHA256}}
	}
	return out
}

// subjectsDigest hashes all subjects as sha256sum would list them.
func subjectsDigest(all []Subject) string {
	h := sha256.New()
	for _, s := range all {
		io.WriteString(h, s.SHA256+"  "+s.Name+"\n")
	}
	return hex.EncodeToString(h.Sum(nil))
}
