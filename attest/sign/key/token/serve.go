package token

import (
	"bufio"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"sync"
)

// Serve answers requests with a signer's signatures until there are no more.
// It signs as many at a time as there are workers.
func Serve(r io.Reader, w io.Writer, signer crypto.Signer, workers int) error {
	pub, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return err
	}
	s := server{w: w, signer: signer}
	if err := s.write(answer{value: pub}); err != nil {
		return err
	}
	requests := make(chan request)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for req := range requests {
				s.answer(req)
			}
		})
	}
	err = each(bufio.NewReader(r), requests)
	wg.Wait()
	return err
}

func each(r io.Reader, requests chan<- request) error {
	defer close(requests)
	for {
		req, err := readRequest(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		requests <- req
	}
}

// Fail tells the other end why nothing is served.
func Fail(w io.Writer, err error) error {
	return answer{status: failed, value: []byte(err.Error())}.write(w)
}

type server struct {
	signer crypto.Signer

	mu sync.Mutex
	w  io.Writer
}

func (s *server) answer(req request) {
	out := answer{id: req.id}
	signature, err := s.signer.Sign(rand.Reader, req.digest[:], crypto.SHA256)
	if err != nil {
		out.status, out.value = failed, []byte(err.Error())
	} else {
		out.value = signature
	}
	_ = s.write(out) // who has gone away asks no more
}

func (s *server) write(a answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.write(s.w)
}
