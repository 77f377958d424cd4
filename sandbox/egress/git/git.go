// Package git knows git's fetch protocol over HTTP: which objects a request asks for.
//
// The work tree is compared with the job's commit from outside, but a pack may
// hold more than that commit: refspecs, variables and hooks are the job's, and
// whatever came with the pack can be read in .git. What a client asked for
// crosses the border in the clear, in pkt-lines, so it is read there.
//
// Sources: gitprotocol-http, gitprotocol-pack and gitprotocol-v2 of git's own
// documentation.
package git

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Limits of one request. A client that asks for more is not read to its end,
// and what it got counts as unknown.
const (
	MaxRequest = 1 << 20 // bytes, uncompressed
	MaxWants   = 4096
)

// Commands of a request.
const (
	Refs  = "refs"  // names of refs and what they point to: no objects
	Fetch = "fetch" // objects
)

// A Request is what a client asked of git-upload-pack.
type Request struct {
	Command string
	Wants   []string // object ids in lower-case hex, sorted, each once
}

// ParseRequest reads the body of a POST to git-upload-pack, of any version of
// the protocol. encoding is its Content-Encoding: git compresses long ones. An
// error means that nobody can say what was asked for.
func ParseRequest(body io.Reader, encoding string) (Request, error) {
	switch encoding {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return Request{}, fmt.Errorf("git: request: %w", err)
		}
		body = z // of several members all, as some servers read them
	default:
		return Request{}, fmt.Errorf("git: request: encoding %q is not known", encoding)
	}
	limited := &io.LimitedReader{R: body, N: MaxRequest + 1}
	req, err := parse(bufio.NewReader(limited))
	if limited.N == 0 {
		return Request{}, fmt.Errorf("git: request of more than %d bytes", MaxRequest)
	}
	if err != nil {
		return Request{}, fmt.Errorf("git: request: %w", err)
	}
	return req, nil
}

func parse(r *bufio.Reader) (Request, error) {
	req := Request{Command: Fetch}
	for first := true; ; first = false {
		line, special, err := readLine(r)
		switch {
		case errors.Is(err, io.EOF):
			if first {
				return Request{}, errors.New("is empty")
			}
			slices.Sort(req.Wants)
			req.Wants = slices.Compact(req.Wants)
			return req, nil
		case err != nil:
			return Request{}, err
		case special:
			continue
		}
		if err := req.add(line, first); err != nil {
			return Request{}, err
		}
	}
}

// add reads one line. What does not name an object wanted does not matter,
// unless it could stand for one.
func (req *Request) add(line string, first bool) error {
	word, rest, _ := strings.Cut(line, " ")
	command, isCommand := strings.CutPrefix(line, "command=")
	switch {
	case isCommand && first && command == "ls-refs":
		req.Command = Refs
	case isCommand && first && command == "fetch":
	case isCommand:
		return fmt.Errorf("command %q is not known", clip(command))
	case word == "want":
		id, _, _ := strings.Cut(rest, " ") // version 0 has its capabilities here
		if req.Command != Fetch || !isObject(id) {
			return fmt.Errorf("%q names no object", clip(line))
		}
		if len(req.Wants) == MaxWants {
			return fmt.Errorf("wants more than %d objects", MaxWants)
		}
		req.Wants = append(req.Wants, id)
	case word == "want-ref" || word == "packfile-uris":
		return fmt.Errorf("%q lets the server choose what is sent", clip(line))
	}
	return nil
}

// readLine reads one pkt-line; special ones have no text.
func readLine(r *bufio.Reader) (text string, special bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("is cut off")
		}
		return "", false, err
	}
	n, err := strconv.ParseUint(string(head[:]), 16, 16)
	if err != nil || n == 3 {
		return "", false, fmt.Errorf("%q is no length of a line", clip(string(head[:])))
	}
	if n < 4 {
		return "", true, nil
	}
	data := make([]byte, n-4)
	if _, err := io.ReadFull(r, data); err != nil {
		return "", false, errors.New("is cut off")
	}
	return strings.TrimSuffix(string(data), "\n"), false, nil
}

func isObject(id string) bool {
	return (len(id) == 40 || len(id) == 64) && strings.Trim(id, "0123456789abcdef") == ""
}

func clip(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
