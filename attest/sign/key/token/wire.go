package token

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const maxValue = 1024 // bytes of an answer's value

const (
	done   = 0
	failed = 1
)

type request struct {
	id     uint32
	digest [sha256.Size]byte
}

type answer struct {
	id     uint32
	status uint8
	value  []byte
}

func (r request) write(w io.Writer) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, r.id), r.digest[:]...))
	return err
}

// readRequest answers io.EOF at the end of the requests.
func readRequest(r io.Reader) (request, error) {
	var buf [4 + sha256.Size]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return request{}, err
	}
	return request{binary.BigEndian.Uint32(buf[:4]), [sha256.Size]byte(buf[4:])}, nil
}

func (a answer) write(w io.Writer) error {
	value := a.value[:min(len(a.value), maxValue)]
	out := binary.BigEndian.AppendUint32(nil, a.id)
	out = append(out, a.status)
	out = binary.BigEndian.AppendUint16(out, uint16(len(value)))
	_, err := w.Write(append(out, value...))
	return err
}

func readAnswer(r io.Reader) (answer, error) {
	var head [7]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return answer{}, err
	}
	a := answer{id: binary.BigEndian.Uint32(head[:4]), status: head[4]}
	size := binary.BigEndian.Uint16(head[5:])
	switch {
	case a.status > failed:
		return answer{}, fmt.Errorf("answer of status %d", a.status)
	case size > maxValue:
		return answer{}, fmt.Errorf("answer of %d bytes", size)
	}
	a.value = make([]byte, size)
	if _, err := io.ReadFull(r, a.value); err != nil {
		return answer{}, errors.Join(errors.New("answer is cut off"), err)
	}
	return a, nil
}

// result is an answer's value, or its error as one line of printable text.
func (a answer) result() ([]byte, error) {
	if a.status == done {
		return a.value, nil
	}
	return nil, errors.New(printable(a.value))
}

func printable(text []byte) string {
	out := make([]rune, 0, len(text))
	for _, r := range string(text) {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}
