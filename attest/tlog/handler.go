package tlog

import (
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/transparency-dev/tessera/api/layout"
)

// Handler serves the logs to readers (c2sp.org/tlog-tiles): the one that is
// written to at the root, and each below its number. It serves what the
// published checkpoint covers, and nothing else that may be in the directory.
func (l *BuiltIn) Handler() http.Handler {
	dirs := map[string]tileDir{}
	for _, s := range l.shards {
		dirs[strconv.Itoa(s.Number)] = s.tiles(l.root)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "read only", http.StatusMethodNotAllowed)
			return
		}
		path, dir := strings.TrimPrefix(r.URL.Path, "/"), l.tiles
		if number, rest, ok := strings.Cut(path, "/"); ok && dirs[number] != "" {
			path, dir = rest, dirs[number]
		}
		dir.serve(w, r, path)
	})
}

func (d tileDir) serve(w http.ResponseWriter, r *http.Request, path string) {
	checkpoint, err := d.checkpoint(r.Context())
	if err != nil {
		http.Error(w, "no checkpoint", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if path == layout.CheckpointPath {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(checkpoint)
		return
	}
	tile, ok := parseTilePath(path)
	if !ok || !tile.covered(checkpoint) {
		http.NotFound(w, r)
		return
	}
	data, err := os.ReadFile(filepath.Join(string(d), filepath.FromSlash(path)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Cache-Control", "public, max-age=604800, immutable")
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(data)
}

// A tilePath is a path of a tile, or of a bundle of entries.
type tilePath struct {
	level   uint64 // 0 for entries
	index   uint64
	partial uint8 // 0 for a full one
}

// parseTilePath reads a path that is spelled in the one way that it has.
func parseTilePath(path string) (tilePath, bool) {
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 100 {
		return tilePath{}, false
	}
	level, index, ok := strings.Cut(rest, "/")
	if !ok {
		return tilePath{}, false
	}
	entries := level == "entries"
	if entries {
		level = "0"
	}
	var t tilePath
	var err error
	if t.level, t.index, t.partial, err = layout.ParseTileLevelIndexPartial(level, index); err != nil {
		return tilePath{}, false
	}
	spelled := layout.TilePath(t.level, t.index, t.partial)
	if entries {
		spelled = layout.EntriesPath(t.index, t.partial)
	}
	return t, spelled == path
}

// covered tells whether all of the tile is in the tree of a checkpoint: a crash
// can leave tiles of a tree that never was published.
func (t tilePath) covered(checkpoint []byte) bool {
	lines := strings.SplitN(string(checkpoint), "\n", 3)
	if len(lines) < 3 {
		return false
	}
	size, err := parseSize(lines[1])
	if err != nil || t.level*layout.TileHeight >= 64 {
		return false
	}
	hashes := size >> (t.level * layout.TileHeight)
	width := uint64(t.partial)
	if width == 0 {
		width = layout.TileWidth
	}
	return t.index < hashes/layout.TileWidth || t.index == hashes/layout.TileWidth && hashes%layout.TileWidth >= width
}
