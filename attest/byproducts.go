package attest

import (
	"strings"
	"unicode/utf8"

	"hallmark.build/sandbox/record"
)

// Bounds of what is listed; counts and digests are of all.
const (
	maxListedBlocks = 64
	maxBlockText    = 300 // bytes
)

func byproducts(s *story, rest folded) []resource {
	out := []resource{{
		Name:      "evidence-record",
		Digest:    map[string]string{"sha256": s.digest},
		MediaType: "application/jsonl",
		Annotations: map[string]any{
			"entries": s.head.Entries,
			"head":    s.head.Hash,
		},
	}}
	for _, st := range s.scripts {
		out = append(out, resource{
			Name:        "script/" + st.Stage,
			Digest:      map[string]string{"sha256": st.ScriptDigest},
			Annotations: map[string]any{"stage": st.Stage, "role": st.Role, "bytes": st.ScriptBytes},
		})
	}
	if len(rest.git) > 0 {
		out = append(out, exchanges("git-exchanges", rest.git))
	}
	if len(rest.other) > 0 {
		out = append(out, exchanges("other-exchanges", rest.other))
	}
	if len(s.blocks) > 0 {
		out = append(out, blocked(s.blocks))
	}
	if len(s.hits) > 0 {
		out = append(out, limitsHit(s.hits))
	}
	return out
}

// exchanges stands for the entries of the given exchanges.
func exchanges(name string, fetches []fetch) resource {
	entries := make([]record.Entry, len(fetches))
	var size int64
	for i, f := range fetches {
		entries[i] = f.entry
		size += f.Bytes
	}
	return resource{
		Name:        name,
		Digest:      map[string]string{"sha256": linesDigest(entries)},
		Annotations: map[string]any{"count": len(fetches), "bytes": size},
	}
}

func blocked(blocks []block) resource {
	entries := make([]record.Entry, len(blocks))
	listed := []string{}
	var count int64
	for i, b := range blocks {
		entries[i] = b.entry
		count += 1 + b.Count
		if i < maxListedBlocks {
			listed = append(listed, blockText(b.Block))
		}
	}
	return resource{
		Name:        "blocked-requests",
		Digest:      map[string]string{"sha256": linesDigest(entries)},
		Annotations: map[string]any{"count": count, "entries": len(blocks), "first": listed},
	}
}

func blockText(b record.Block) string {
	words := []string{b.Stage, b.Role, b.Protocol, b.Method, b.Target}
	return cut(strings.Join(strings.Fields(strings.Join(words, " ")), " ") + ": " + b.Rule)
}

func cut(text string) string {
	if len(text) <= maxBlockText {
		return text
	}
	cut := maxBlockText
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + "…"
}
