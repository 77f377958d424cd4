package record

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// A Log writes one record to one file. It is safe for concurrent use.
//
// An entry is durable when Append returns. After the first failed write or
// sync the log takes nothing more: what could not be recorded must not happen.
type Log struct {
	now func() time.Time

	mu      sync.Mutex
	file    *os.File
	chain   Chain
	ends    []int64 // offset of the byte after each line's newline
	err     error
	changed chan struct{}

	syncMu sync.Mutex
	synced int64 // entries known to be durable
}

// Create starts a record at path, which must not exist yet. now is the host's
// clock.
func Create(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return &Log{now: now, file: f, changed: make(chan struct{})}, nil
}

// Resume takes up a record that an earlier process left at path. A line that
// was not written whole was never acted upon and is cut off; a record that does
// not check otherwise is an error.
func Resume(path string, now func() time.Time) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	l := &Log{now: now, file: f, changed: make(chan struct{})}
	if err := l.resume(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return l, nil
}

func (l *Log) resume() error {
	lines := newLineReader(l.file)
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) || errors.Is(err, errCutOff) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := l.chain.Add(line); err != nil {
			return err
		}
		l.ends = append(l.ends, l.end()+int64(len(line))+1)
	}
	if err := errors.Join(l.file.Truncate(l.end()), l.file.Sync()); err != nil {
		return fmt.Errorf("record: cut off: %w", err)
	}
	if _, err := l.file.Seek(l.end(), io.SeekStart); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	l.synced = l.chain.Head().Entries
	return nil
}

// Append writes an entry and returns it once it is durable. Concurrent calls
// share one sync.
func (l *Log) Append(kind Kind, data any) (Entry, error) {
	e, err := l.write(kind, data)
	if err != nil {
		return Entry{}, err
	}
	if err := l.sync(e.Seq + 1); err != nil {
		return Entry{}, err
	}
	l.announce()
	return e, nil
}

func (l *Log) write(kind Kind, data any) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return Entry{}, l.err
	}
	before := l.chain
	line, err := l.chain.next(kind, l.now(), data)
	if err != nil {
		return Entry{}, err
	}
	e, err := l.chain.Add(line)
	if err != nil {
		return Entry{}, err
	}
	n, err := l.file.Write(append(line, '\n'))
	if err != nil {
		l.chain = before
		l.err = fmt.Errorf("record: write: %w", err)
		return Entry{}, l.err
	}
	l.ends = append(l.ends, l.end()+int64(n))
	return e, nil
}

func (l *Log) end() int64 {
	if len(l.ends) == 0 {
		return 0
	}
	return l.ends[len(l.ends)-1]
}

func (l *Log) sync(upTo int64) error {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.synced >= upTo {
		return nil
	}
	l.mu.Lock()
	n, err := l.chain.Head().Entries, l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if err := l.file.Sync(); err != nil {
		l.fail(fmt.Errorf("record: sync: %w", err))
		return fmt.Errorf("record: sync: %w", err)
	}
	l.synced = n
	return nil
}

func (l *Log) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
}

// announce wakes those that wait on Changed.
func (l *Log) announce() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
}

// Changed returns a channel that is closed when the next entry is durable. Take
// the channel before looking at Head.
func (l *Log) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Head is the record so far, entries that are not yet durable included.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.chain.Head()
}

// Closed reports whether a closed entry was written.
func (l *Log) Closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.chain.Closed()
}

// Lines returns lines from entry number from on, up to about maxBytes of them
// but at least one where there is one.
func (l *Log) Lines(from int64, maxBytes int) ([][]byte, error) {
	l.mu.Lock()
	ends := l.ends[min(int(from), len(l.ends)):]
	start := int64(0)
	if from > 0 && int(from) <= len(l.ends) {
		start = l.ends[from-1]
	}
	l.mu.Unlock()
	var out [][]byte
	total := 0
	for _, end := range ends {
		size := int(end - start)
		if len(out) > 0 && total+size > maxBytes {
			break
		}
		line := make([]byte, size-1)
		if _, err := l.file.ReadAt(line, start); err != nil {
			return nil, fmt.Errorf("record: read: %w", err)
		}
		out = append(out, line)
		total += size
		start = end
	}
	return out, nil
}

// Close releases the file. It does not end the record.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = errors.New("record: the log was released")
	}
	return l.file.Close()
}
