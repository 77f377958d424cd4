package workspace

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func BenchmarkVerifySource(b *testing.B) {
	for _, format := range []string{"sha1", "sha256"} {
		b.Run(format, func(b *testing.B) {
			w := newWorkspace(b)
			project := w.host(projectDir)
			from := publicDir(b)
			run(b, from, "git", "init", "-q", "--object-format="+format, ".")
			total := int64(0)
			for i := range 5000 {
				content := bytes.Repeat(fmt.Appendf(nil, "file %d, a line of source text\n", i), 20+i%400)
				total += int64(len(content))
				mustWrite(b, fmt.Sprintf("%s/d%d/e%d/f%d.c", from, i%20, i%97, i), string(content))
			}
			run(b, from, "git", "add", ".")
			run(b, from, "git", "commit", "-q", "-m", "m")
			commit := run(b, from, "git", "rev-parse", "HEAD")
			getSources(b, project, from, commit, format)
			b.SetBytes(total)
			for b.Loop() {
				got, err := w.VerifySource(b.Context(), projectDir, commit, format, "")
				if err != nil || got.Outcome != outcomeMatch {
					b.Fatalf("%+v, %v", got, err)
				}
			}
		})
	}
}

// benchArchive is a project of about 200 MB and the zip file of it.
func benchArchive(b *testing.B, project string) []byte {
	b.Helper()
	random := rand.NewChaCha8([32]byte{1})
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := range 200 {
		data := make([]byte, 1<<20)
		random.Read(data[:len(data)/2]) // half of it does not compress
		name := fmt.Sprintf("f%d", i)
		mustWrite(b, filepath.Join(project, name), string(data))
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o644)
		f, err := z.CreateHeader(h)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkMatch(b *testing.B) {
	var data []byte
	w := sealed(b, func(_ testing.TB, project string) { data = benchArchive(b, project) })
	f := spooled(b, data)
	b.SetBytes(200 << 20)
	b.Run("match", func(b *testing.B) {
		b.SetBytes(200 << 20)
		for b.Loop() {
			if _, err := w.Match(b.Context(), f, int64(len(data)), "zip", "a.zip"); err != nil {
				b.Fatal(err)
			}
		}
	})
	// What it costs at least to learn each file's digest, one after the other.
	b.Run("unzip", func(b *testing.B) {
		b.SetBytes(200 << 20)
		for b.Loop() {
			z, err := zip.NewReader(f, int64(len(data)))
			if err != nil {
				b.Fatal(err)
			}
			for _, e := range z.File {
				r, err := e.Open()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(sha256.New(), r); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for b.Loop() {
		w := newWorkspace(b)
		mustWrite(b, w.host(projectDir)+".tmp/gitlab_runner_env", "A=1\n")
		if _, err := w.Seal(b.Context(), projectDir); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRemove(b *testing.B) {
	dir := publicDir(b)
	parent, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer parent.Close()
	for b.Loop() {
		b.StopTimer()
		for i := range 10_000 {
			mustWrite(b, fmt.Sprintf("%s/tree/%d/%d", dir, i%100, i), "")
		}
		b.StartTimer()
		if err := removeAt(int(parent.Fd()), "tree"); err != nil {
			b.Fatal(err)
		}
	}
}
