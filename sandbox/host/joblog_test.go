package host

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hallmark.build/executor/joblog"
)

func TestFullJobLogHoldsNobodyUp(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	size, err := unix.FcntlInt(w.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	l := &jobLog{file: w, patience: time.Millisecond}
	for range 2 {
		joblog.New(l).Printf("dropped")
		if _, err := l.Write([]byte("x")); !errors.Is(err, errLogFull) {
			t.Errorf("write to a full pipe: %v", err)
		}
	}
	if _, err := r.Read(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	joblog.New(l).Printf("heard")
	got := make([]byte, 100)
	n, err := r.Read(got)
	if err != nil || !strings.Contains(string(got[:n]), "heard") {
		t.Errorf("read %q, %v", got[:n], err)
	}
	_ = r.Close()
	if _, err := l.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write without a reader: %v", err)
	}
}

func TestOutputCanBeOpenedAgainForWritingAlone(t *testing.T) {
	r, w, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, tc := range []struct {
		name string
		file *os.File
		want os.FileMode
	}{{"pipe", w, 0o622}, {"file", file, 0o600}} {
		if err := letReopen(tc.file); err != nil {
			t.Fatal(err)
		}
		info, err := tc.file.Stat()
		if err != nil || info.Mode().Perm() != tc.want {
			t.Errorf("%s: mode %v, %v; want %v", tc.name, info.Mode().Perm(), err, tc.want)
		}
	}
}

// pipe is one whose ends block, as those are that a driver hands over.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w"), nil
}
