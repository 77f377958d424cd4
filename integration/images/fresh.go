package images

import (
	"archive/tar"
	"compress/gzip"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Fresh is an image again, in layers with other digests: each has a file more,
// which says the mark.
func Fresh(img v1.Image, mark string) (v1.Image, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	out := empty.Image
	for _, l := range layers {
		marked, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return markedTar(l, mark) }, tarball.WithCompressionLevel(gzip.BestSpeed))
		if err != nil {
			return nil, err
		}
		if out, err = mutate.AppendLayers(out, marked); err != nil {
			return nil, err
		}
	}
	made, err := out.ConfigFile()
	if err != nil {
		return nil, err
	}
	made = made.DeepCopy()
	made.Architecture, made.OS, made.Created, made.Config = config.Architecture, config.OS, config.Created, config.Config
	return mutate.ConfigFile(out, made)
}

// markedTar is a layer's tar behind a file that says the mark.
func markedTar(l v1.Layer, mark string) (io.ReadCloser, error) {
	rest, err := l.Uncompressed()
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() {
		defer rest.Close()
		t := tar.NewWriter(w)
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "mark", Mode: 0o644, Size: int64(len(mark)), ModTime: epoch})
		if err == nil {
			_, err = io.WriteString(t, mark)
		}
		if err == nil {
			err = t.Flush()
		}
		if err == nil {
			_, err = io.Copy(w, rest)
		}
		_ = w.CloseWithError(err)
	}()
	return r, nil
}
