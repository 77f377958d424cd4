package tlog

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"hallmark.build/attest/internal/durable"
)

// A history is the file of every checkpoint that a log has signed.
type history struct {
	f    *os.File
	v    *verifier
	end  int64      // of the last whole line
	last checkpoint // no root if there is none
}

// openHistory opens or makes the file, and reads its end. What a crash left of a
// line was never handed out and is cut off.
func openHistory(name string, v *verifier) (*history, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	h := &history{f: f, v: v}
	if err := errors.Join(h.readEnd(), durable.SyncDir(filepath.Dir(name))); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return h, nil
}

const maxLine = 1 << 10

func (h *history) readEnd() error {
	info, err := h.f.Stat()
	if err != nil {
		return err
	}
	from := max(0, info.Size()-2*maxLine)
	end := make([]byte, info.Size()-from)
	if _, err := h.f.ReadAt(end, from); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	whole := bytes.LastIndexByte(end, '\n') + 1
	if whole == 0 && from > 0 {
		return errors.New("no line at its end")
	}
	h.end = from + int64(whole)
	if whole < len(end) {
		if err := errors.Join(h.f.Truncate(h.end), h.f.Sync()); err != nil {
			return err
		}
	}
	if whole == 0 {
		return nil
	}
	end = end[:whole-1]
	h.last, err = h.v.parseLine(string(end[bytes.LastIndexByte(end, '\n')+1:]))
	return err
}

// append makes a checkpoint durable.
func (h *history) append(cp checkpoint) error {
	line := fmt.Appendf(nil, "%d %s %s\n", cp.size, base64.StdEncoding.EncodeToString(cp.root), cp.sig)
	if _, err := h.f.WriteAt(line, h.end); err != nil {
		return err // the next one overwrites what there is of it
	}
	if err := h.f.Sync(); err != nil {
		return err
	}
	h.end += int64(len(line))
	h.last = cp
	return nil
}

// parseLine reads a line and verifies its signature.
func (v *verifier) parseLine(line string) (checkpoint, error) {
	fields := strings.Split(line, " ")
	if len(line) > maxLine || len(fields) != 3 {
		return checkpoint{}, fmt.Errorf("line %.60q is not SIZE ROOT SIGNATURE", line)
	}
	size, err := parseSize(fields[0])
	if err != nil {
		return checkpoint{}, err
	}
	root, err := parseRoot(fields[1])
	if err != nil {
		return checkpoint{}, err
	}
	return v.open(fmt.Appendf(nil, "%s\n— %s %s\n", text(v.origin, size, root), v.origin, fields[2]))
}

// readHistory calls each with every checkpoint of a file, in order. It leaves out
// the beginning of a line that is being written.
func readHistory(r io.Reader, v *verifier, each func(checkpoint) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	lines.Split(wholeLines)
	for n := 1; lines.Scan(); n++ {
		cp, err := v.parseLine(lines.Text())
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if err := each(cp); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

func wholeLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF {
		return len(data), nil, nil
	}
	return 0, nil, nil
}
