package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const size = 64 << 20

func mounted(t testing.TB, m *Maker, dir, name string) (*Disk, string) {
	t.Helper()
	at := filepath.Join(dir, name)
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := m.Mount(t.Context(), at, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, at
}

func usage(t *testing.T, d *Disk) Usage {
	t.Helper()
	u, err := d.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// fill writes until there is no room.
func fill(t *testing.T, f *os.File) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for range 2 * size / len(buf) {
		if _, err := f.Write(buf); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("the end of the disk is told as %v", err)
			}
			return
		}
	}
	t.Fatal("the disk has no end")
}

// device is what is mounted at a place.
func device(t *testing.T, at string) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 8 && fields[4] == at {
			_, after, _ := strings.Cut(line, " - ")
			return strings.Fields(after)[1]
		}
	}
	return ""
}

// attached reports whether a loop device has a file of this directory's.
func attached(t *testing.T, dev, dir string) bool {
	t.Helper()
	back, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
	if err != nil {
		return false
	}
	return strings.HasPrefix(string(back), dir)
}

func TestFullDiskIsFullForItsJobAlone(t *testing.T) {
	dir := t.TempDir()
	m := New(dir)
	one, at := mounted(t, m, dir, "one")
	two, beside := mounted(t, m, dir, "two")
	if u := usage(t, one); u.Full || u.Crowded || u.MaxBytes < size/2 || u.MaxBytes > size {
		t.Errorf("an empty disk: %+v", u)
	}
	// A file without a name counts like any other.
	fd, err := unix.Open(at, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "nameless")
	fill(t, f)
	if u := usage(t, one); !u.Full || u.Bytes < u.MaxBytes*9/10 {
		t.Errorf("a full disk: %+v", u)
	}
	if u := usage(t, two); u.Full || u.Bytes > size/10 {
		t.Errorf("the disk beside a full one: %+v", u)
	}
	if err := os.WriteFile(filepath.Join(beside, "x"), make([]byte, 1<<20), 0o600); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if u := usage(t, one); u.Full {
		t.Errorf("a disk that was full: %+v", u)
	}
}

func TestFilesEnd(t *testing.T) {
	dir := t.TempDir()
	d, at := mounted(t, New(dir), dir, "job")
	// A sparse file of any size takes no room.
	if err := os.Truncate(touch(t, at, "sparse"), 1<<40); err != nil {
		t.Error(err)
	}
	for i := range int64(2 * size / bytesPerInode) {
		f, err := os.Create(filepath.Join(at, fmt.Sprint(i)))
		if errors.Is(err, unix.ENOSPC) {
			if u := usage(t, d); !u.Crowded || u.Files != u.MaxFiles || u.Full {
				t.Errorf("no file more: %+v", u)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	t.Error("files have no end")
}

func touch(t *testing.T, at, name string) string {
	t.Helper()
	path := filepath.Join(at, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	d, at := mounted(t, New(dir), dir, "job")
	dev := device(t, at)
	if !attached(t, dev, dir) {
		t.Fatalf("%q at %s is no device of ours", dev, at)
	}
	if names := list(t, dir); len(names) != 1 {
		t.Errorf("the image has a name: %v", names)
	}
	f, err := os.Create(filepath.Join(at, "x"))
	if err != nil {
		t.Fatal(err)
	}
	fill(t, f)
	f.Close()
	for range 2 {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if attached(t, dev, dir) || device(t, at) != "" {
		t.Error("device or mount outlived the disk")
	}
	if _, err := d.Usage(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("usage of a closed disk: %v", err)
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestSweep leaves what a killed program leaves, in two moments of its life.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	m := New(dir)
	root := filepath.Join(dir, "jobs")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(root, "job")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := m.Mount(t.Context(), at, size)
	if err != nil {
		t.Fatal(err)
	}
	dev := device(t, at)
	inside := filepath.Join(at, "inside")
	if err := os.Mkdir(inside, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", inside, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	d.root.Close() // as the kernel does with a dead process
	if err := Sweep(root); err != nil {
		t.Fatal(err)
	}
	if attached(t, dev, dir) || device(t, at) != "" || device(t, inside) != "" {
		t.Error("device or mount outlived the sweep")
	}

	f, err := blank(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	loop, err := attach(f, "never mounted")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	name := loop.Name()
	loop.Close()
	if attached(t, name, dir) {
		t.Error("a device that was never mounted stays")
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	m := New(dir)
	var wg sync.WaitGroup
	for i := range 20 {
		at := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			d, err := m.Mount(t.Context(), at, size)
			if err != nil {
				t.Error(err)
				return
			}
			// Whose disk is whose shows in what is on it.
			if err := os.WriteFile(filepath.Join(at, "own"), []byte(at), 0o600); err != nil {
				t.Error(err)
			}
			if names := list(t, at); len(names) != 2 { // and lost+found
				t.Errorf("%s: %v", at, names)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSizesRefused(t *testing.T) {
	m := New(t.TempDir())
	for _, n := range []int64{-1, 0, Min - 1, Max + 1} {
		if err := m.Prepare(t.Context(), n); err == nil {
			t.Errorf("a disk of %d bytes is made", n)
		}
	}
	if _, err := m.Mount(t.Context(), filepath.Join(m.dir, "absent"), size); err == nil {
		t.Error("mounted on a directory that is not there")
	}
}

func TestRoom(t *testing.T) {
	free, all, err := Room(t.TempDir())
	if err != nil || free < 0 || all <= 0 || free > all {
		t.Errorf("%d of %d, %v", free, all, err)
	}
	if _, _, err := Room("/nowhere"); err == nil {
		t.Error("a directory that is not there has room")
	}
}

// BenchmarkDisk is a disk from nothing to mounted, and away again.
func BenchmarkDisk(b *testing.B) {
	dir := b.TempDir()
	m := New(dir)
	at := filepath.Join(dir, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		b.Fatal(err)
	}
	if err := m.Prepare(b.Context(), 32<<30); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		d, err := m.Mount(b.Context(), at, 32<<30)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
