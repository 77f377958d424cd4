package tlog

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/transparency-dev/tessera/api/layout"
)

func TestHandler(t *testing.T) {
	t.Parallel()
	o := options(t, t.TempDir())
	_, all := drafts(t, 3)
	l := open(t, o)
	enterAll(t, l, all)
	// what a crash may have left, and what else lies there
	for _, name := range []string{"tile/0/000.p/9", "tile/0/000", "secret", "tile/0/000.p/31234567"} {
		if err := os.WriteFile(filepath.Join(string(l.tiles), name), []byte("left over"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(http.StripPrefix("/log", l.Handler()))
	t.Cleanup(server.Close)
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/checkpoint", 200}, {"GET", "/1/checkpoint", 200}, {"HEAD", "/checkpoint", 200},
		{"GET", "/tile/0/000.p/3", 200}, {"GET", "/tile/entries/000.p/3", 200}, {"GET", "/1/tile/0/000.p/3", 200},
		{"GET", "/tile/0/000", 404}, {"GET", "/tile/0/000.p/9", 404}, {"GET", "/tile/0/001.p/1", 404}, {"GET", "/tile/1/000.p/1", 404},
		{"GET", "/tile/63/000.p/1", 404}, {"GET", "/tile/0/000.p/31234567", 404}, {"GET", "/tile/0/000.p/03", 404},
		{"GET", "/secret", 404}, {"GET", "/.state/treeState", 404}, {"GET", "/", 404}, {"GET", "", 404}, {"GET", "/2/checkpoint", 404},
		{"GET", "/tile/../secret", 404}, {"GET", "/tile/0/..%2f..%2fsecret", 404}, {"GET", "/tile/entries/%2e%2e/%2e%2e/secret", 404},
		{"GET", "/1/1/checkpoint", 404}, {"GET", "//checkpoint", 404},
		{"POST", "/checkpoint", 405}, {"PUT", "/tile/0/000.p/3", 405}, {"DELETE", "/checkpoint", 405},
	} {
		req, err := http.NewRequest(tt.method, server.URL+"/log"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tt.status || strings.Contains(string(body), "left over") {
			t.Errorf("%s %s: %s %.40q", tt.method, tt.path, res.Status, body)
		}
	}
}

func FuzzTilePath(f *testing.F) {
	for _, seed := range []string{"tile/0/000", "tile/entries/x001/x234/067.p/8", "tile/63/000.p/255", "tile/0/../checkpoint", "tile/0/.p", "tile//000.p/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, ok := parseTilePath(path)
		if !ok {
			return
		}
		if path != layout.TilePath(tile.level, tile.index, tile.partial) && path != layout.EntriesPath(tile.index, tile.partial) {
			t.Errorf("%q is accepted", path)
		}
		if !filepath.IsLocal(path) || strings.Contains(path, "..") || tile.level > 63 {
			t.Errorf("%q leads elsewhere", path)
		}
		tile.covered([]byte("x\n300\ny\n"))
	})
}

func FuzzDraft(f *testing.F) {
	_, all := drafts(f, 1)
	f.Add(all[0])
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"signatures":[{}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := parseDraft(text)
		if err == nil && (len(d.leafHash) != 32 || len(d.body) == 0 || d.leaf == nil) {
			t.Error("half a draft")
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	o := options(f, f.TempDir())
	l := open(f, o)
	text, err := l.tiles.checkpoint(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	v := l.active.verifier
	f.Add(text)
	f.Add([]byte("ci.example.com\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— x AAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cp, err := v.open(data)
		if err == nil && (cp.size != 0 || len(cp.root) != 32) {
			t.Errorf("a checkpoint that nobody signed: %q", data)
		}
		_, _, _ = parseText(string(data), "ci.example.com")
	})
}

func FuzzHistory(f *testing.F) {
	o := options(f, f.TempDir())
	l := open(f, o)
	text, err := os.ReadFile(filepath.Join(o.History, "1.checkpoints"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("1 AAAA AAAA\n2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = readHistory(strings.NewReader(string(data)), l.active.verifier, func(cp checkpoint) error {
			if cp.size != 0 {
				t.Errorf("a checkpoint that nobody signed: %q", data)
			}
			return nil
		})
	})
}

func FuzzShards(f *testing.F) {
	o := options(f, f.TempDir())
	open(f, o)
	text, err := os.ReadFile(filepath.Join(o.History, shardsFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("[]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		shards, err := parseShards(data)
		if err == nil && (len(shards) == 0 || shards[0].verifier == nil) {
			t.Error("half a list")
		}
	})
}

func FuzzWitnessPolicy(f *testing.F) {
	f.Add([]byte("witness w1 w.example+00000000+AQAA http://w\nquorum w1\n"))
	f.Add([]byte("quorum none\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if group, err := parseWitnesses(data); err == nil && group.Satisfied(nil) {
			t.Error("asks for nobody")
		}
	})
}
