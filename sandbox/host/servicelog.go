package host

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"hallmark.build/executor/joblog"
	"hallmark.build/sandbox"
)

// Bounds of what is kept of a service's output.
const (
	lineBytes   = 64 << 10 // a longer line is broken
	pieceBytes  = 1800     // of a line, as one line of the job's log
	tailBytes   = 8 << 10
	tailLines   = 50
	waitingNews = 1000 // lines for the log of the stage to come
)

// A serviceLog keeps the end of what one service says, and hands it on where
// the job wants it.
type serviceLog struct {
	source string // what the job log calls the service
	mask   *strings.Replacer
	news   *serviceNews
	live   bool // every line is news

	mu    sync.Mutex
	tail  []string
	bytes int
}

// maskOf hides the values that GitLab shows nobody. GitLab Runner hides them
// too, but only where they come in one piece, and here long lines are broken.
func maskOf(values []string) *strings.Replacer {
	values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
	slices.SortStableFunc(values, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	var pairs []string
	for _, v := range values {
		pairs = append(pairs, v, "[MASKED]")
	}
	return strings.NewReplacer(pairs...)
}

// read takes the service's output to its end.
func (l *serviceLog) read(r io.Reader) {
	in := bufio.NewReaderSize(r, lineBytes)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			l.take(time.Now(), l.mask.Replace(string(bytes.TrimRight(line, "\r\n"))))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// take keeps one line, in pieces that the job's log can show.
func (l *serviceLog) take(at time.Time, text string) {
	stamp := at.UTC().Format("2006-01-02T15:04:05.000000Z") + " "
	for {
		piece := text[:min(len(text), pieceBytes)]
		text = text[len(piece):]
		l.keep(stamp + piece)
		if text == "" {
			return
		}
	}
}

func (l *serviceLog) keep(line string) {
	l.mu.Lock()
	l.tail = append(l.tail, line)
	l.bytes += len(line)
	for len(l.tail) > tailLines || l.bytes > tailBytes && len(l.tail) > 1 {
		l.bytes -= len(l.tail[0])
		l.tail = slices.Delete(l.tail, 0, 1)
	}
	l.mu.Unlock()
	if l.live {
		l.news.tell(func(out *joblog.Log) { out.Quote(l.source, line) })
	}
}

// last is the end of what the service said.
func (l *serviceLog) last() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.tail)
}

// serviceNews is what the job's log is to be told of services. Only a stage has
// a log, so between two of them news wait.
type serviceNews struct {
	mu      sync.Mutex
	out     *joblog.Log
	waiting []func(*joblog.Log)
	lost    int
}

func (n *serviceNews) tell(say func(*joblog.Log)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.out != nil:
		say(n.out)
	case len(n.waiting) < waitingNews:
		n.waiting = append(n.waiting, say)
	default:
		n.lost++
	}
}

// attach sends news to a stage's log until the function that it returns is
// called.
func (n *serviceNews) attach(out *joblog.Log) (detach func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, say := range n.waiting {
		say(out)
	}
	if n.lost > 0 {
		out.Printf("%d more lines of services came between two stages", n.lost)
	}
	n.out, n.waiting, n.lost = out, nil, 0
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.out = nil
	}
}

// ended tells that a service ended by itself, with the last that it said unless
// the log has that already.
func (n *serviceNews) ended(s *service) {
	n.tell(func(out *joblog.Log) {
		out.Break()
		out.Warn(fmt.Sprintf("Service %s %s", s.name(), s.end()))
		said := s.said.last()
		if !s.said.live {
			for _, line := range said[max(0, len(said)-10):] {
				out.Quote(s.said.source, line)
			}
		}
		if inUse(said) {
			out.Hint("a job's services and scripts share one network: something else has the port already. Give the service a port of its own, by its command or variables")
		}
	})
}

// inUse reports whether a service complained, in the words of the C library or
// of its own, that it cannot have its port.
func inUse(said []string) bool {
	return slices.ContainsFunc(said, func(line string) bool {
		line = strings.ToLower(line)
		return strings.Contains(line, "address already in use") || strings.Contains(line, "address in use") || strings.Contains(line, "eaddrinuse")
	})
}

func isUser(err error) bool {
	_, user := errors.AsType[*sandbox.UserError](err)
	return user
}
