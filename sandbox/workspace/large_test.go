package workspace

import (
	"archive/zip"
	"bytes"
	"io"
	"path/filepath"
	"runtime"
	"testing"

	"hallmark.build/sandbox/record"
)

// An image is a file of gigabytes that are zeros, but for a few parts.
type image struct {
	parts []imagePart
	size  int64
}

var zero [64 << 10]byte

type imagePart struct {
	at   int64
	data []byte
}

func (i *image) Write(p []byte) (int, error) {
	if len(p) > len(zero) || !bytes.Equal(p, zero[:len(p)]) {
		i.parts = append(i.parts, imagePart{i.size, bytes.Clone(p)})
	}
	i.size += int64(len(p))
	return len(p), nil
}

func (i *image) ReadAt(p []byte, at int64) (int, error) {
	n := int(min(int64(len(p)), max(0, i.size-at)))
	clear(p[:n])
	for _, part := range i.parts {
		if end := part.at + int64(len(part.data)); part.at < at+int64(n) && end > at {
			copy(p[max(0, part.at-at):n], part.data[max(0, at-part.at):])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestMatchReadsMoreThanFiveGigabytes compares all of a large artifact, whose
// sizes and offsets fit in no 32 bits, in little memory.
func TestMatchReadsMoreThanFiveGigabytes(t *testing.T) {
	const size = 5<<30 + 12345
	t.Setenv("TMPDIR", "/dev/shm") // where reading a hole takes no memory either
	w := sealed(t, func(t testing.TB, project string) {
		sparse(t, filepath.Join(project, "large"), size)
		mustWrite(t, filepath.Join(project, "small"), "small\n")
	})
	archive := &image{}
	z := zip.NewWriter(archive)
	for _, m := range []struct {
		name    string
		content io.Reader
	}{{"large", io.LimitReader(zeros{}, size)}, {"small", bytes.NewReader([]byte("small\n"))}} {
		h := &zip.FileHeader{Name: m.name, Method: zip.Store}
		h.SetMode(0o644)
		f, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	project, err := w.sealedProject()
	if err != nil {
		t.Fatal(err)
	}
	defer project.Close()
	m := matcher{project: int(project.Fd()), compared: maxCompared}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	have, err := m.zip(t.Context(), archive, archive.size)
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	want := record.UploadEntry{Path: "small", Kind: "file", SHA256: sum("small\n"), Bytes: 6, Mode: 0o644}
	if len(have) != 2 || have[0].Bytes != size || have[1] != want {
		t.Errorf("%+v", have)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("took %d bytes of memory", used)
	}
	// The last member's content lies where 32 bits cannot count.
	for _, part := range archive.parts {
		if at := bytes.Index(part.data, []byte("small\n")); at >= 0 && part.at > size {
			part.data[at] = 'S'
		}
	}
	if _, err := m.zip(t.Context(), archive, archive.size); err == nil {
		t.Error("a byte behind the first five gigabytes altered: accepted")
	}
}
