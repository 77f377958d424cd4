package images

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func tiny(data string) Recipe {
	return Recipe{Name: "tiny", Files: []File{{Path: "/a/b/file", Data: []byte(data), Mode: 0o644}, {Path: "/a/link", Link: "b/file"}}}
}

func TestImageIsMadeOnceAndAgainWhenItsRecipeChanges(t *testing.T) {
	ctx, cache := context.Background(), t.TempDir()
	first, info, err := Make(ctx, cache, tiny("one"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if info.Cached {
		t.Error("the first image came from the cache")
	}
	again, info, err := Make(ctx, cache, tiny("one"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if !info.Cached {
		t.Error("the same recipe was made again")
	}
	a, _ := first.Digest()
	b, _ := again.Digest()
	if a != b {
		t.Errorf("from the cache %s, before %s", b, a)
	}
	changed, info, err := Make(ctx, cache, tiny("two"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c, _ := changed.Digest(); info.Cached || c == a {
		t.Error("a changed file gave the old image")
	}
	if dirs, _ := filepath.Glob(filepath.Join(cache, "*")); len(dirs) != 1 {
		t.Errorf("cache holds %v, want the newest image alone", dirs)
	}
}

func TestImageIsTheSameWhereverItIsMade(t *testing.T) {
	var digests []string
	for range 2 {
		img, _, err := Make(context.Background(), t.TempDir(), tiny("one"), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("digests differ: %v", digests)
	}
}

func TestBrokenCacheEntryIsMadeAgain(t *testing.T) {
	ctx, cache := context.Background(), t.TempDir()
	if _, _, err := Make(ctx, cache, tiny("one"), io.Discard); err != nil {
		t.Fatal(err)
	}
	index, _ := filepath.Glob(filepath.Join(cache, "tiny-*", "index.json"))
	if len(index) != 1 {
		t.Fatalf("index files: %v", index)
	}
	if err := os.WriteFile(index[0], nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, info, err := Make(ctx, cache, tiny("one"), io.Discard); err != nil || info.Cached {
		t.Errorf("cached %v, error %v", info.Cached, err)
	}
}

func TestPushedImageCanBePulled(t *testing.T) {
	ctx := context.Background()
	img, _, err := Make(ctx, t.TempDir(), tiny("one"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Serve(l, l.Addr().String(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, pinned, err := r.Push(ctx, "test/tiny", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewDigest(pinned, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	if layers, err := got.Layers(); err != nil || len(layers) != 1 {
		t.Errorf("%d layers, error %v", len(layers), err)
	}
}

func TestMissingFileIsAnError(t *testing.T) {
	r := Recipe{Name: "tiny", Files: []File{{Path: "/x", Host: "/nonexistent/file"}}}
	if _, _, err := Make(context.Background(), t.TempDir(), r, io.Discard); err == nil {
		t.Error("an image was made from a file that is not there")
	}
}
