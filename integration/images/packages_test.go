package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"
)

func TestLayerOfAnOverlay(t *testing.T) {
	upper := t.TempDir()
	at := func(name string) string { return filepath.Join(upper, name) }
	if err := errors.Join(
		os.MkdirAll(at("usr/bin"), 0o755),
		os.MkdirAll(at("usr/share/doc/much"), 0o755),
		os.WriteFile(at("usr/share/doc/much/text"), []byte("read by nobody"), 0o644),
		os.WriteFile(at("usr/bin/tool"), []byte("program"), 0o755),
		os.Link(at("usr/bin/tool"), at("usr/bin/tool2")),
		os.Symlink("tool", at("usr/bin/alias")),
		unix.Mknod(at("usr/bin/gone"), unix.S_IFCHR, 0),
		unix.Mkfifo(at("usr/bin/pipe"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "layer.tar")
	if err := writeTar(file, func(w *tarWriter) error { return w.layer(upper) }); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := []string{"usr/ ", "usr/bin/ ", "usr/bin/.wh.gone ", "usr/bin/alias tool", "usr/bin/tool ", "usr/bin/tool2 usr/bin/tool", "usr/share/ "}
	if d := cmp.Diff(want, entries(t, f)); d != "" {
		t.Error(d)
	}
}

// entries are the names in a tar, each with what it links to.
func entries(t *testing.T, r io.Reader) []string {
	t.Helper()
	var out []string
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(out)
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %s", h.Name, h.Linkname))
	}
}

func TestFreshImageHasTheSameInOtherLayers(t *testing.T) {
	img, _, err := Make(context.Background(), t.TempDir(), tiny("one"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := Fresh(img, "again")
	if err != nil {
		t.Fatal(err)
	}
	before, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	after, err := fresh.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		a, errA := before[i].Digest()
		b, errB := after[i].Digest()
		if errA != nil || errB != nil || a == b {
			t.Errorf("layer %d: %s and %s, %v, %v", i, a, b, errA, errB)
		}
	}
	files := mutate.Extract(fresh)
	defer files.Close()
	if have := entries(t, files); !slices.Contains(have, "mark ") || !slices.Contains(have, "a/b/file ") {
		t.Errorf("files %q", have)
	}
}
