package main

import (
	"errors"
	"slices"
	"strings"
	"syscall"

	"hallmark.build/sandbox/containerd/initproto"
)

// maxDescriptors is how many descriptors one packet is read with; more than
// initproto.Stdio of them end the connection.
const maxDescriptors = 16

// A packet is one message with the descriptors that came beside it.
type packet struct {
	message initproto.Message
	fds     []int
}

// serve obeys the host until it goes away, and returns the exit status.
func serve(host int) int {
	s := &server{host: host, done: make(chan initproto.Exited)}
	packets := make(chan packet)
	failed := make(chan int, 1)
	go func() { failed <- read(host, packets) }()
	for {
		select {
		case p := <-packets:
			if err := s.obey(p); err != nil {
				return initproto.ExitProtocol
			}
		case e := <-s.done:
			s.running = 0
			if s.say(e) != nil {
				return initproto.ExitClosed
			}
		case status := <-failed:
			return status
		}
	}
}

// read hands on what the host says until it says nothing more.
func read(host int, out chan<- packet) int {
	buf := make([]byte, initproto.MaxMessage+1)
	oob := make([]byte, syscall.CmsgSpace(4*maxDescriptors))
	for {
		n, oobn, flags, _, err := syscall.Recvmsg(host, buf, oob, syscall.MSG_CMSG_CLOEXEC)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return initproto.ExitClosed
		}
		p, err := unpack(buf[:n], oob[:oobn], flags)
		if err != nil {
			return initproto.ExitProtocol
		}
		out <- p
	}
}

// unpack refuses everything but a whole message with exactly its descriptors.
// The program ends on a refusal, so what was received need not be closed.
func unpack(data, oob []byte, flags int) (packet, error) {
	if flags&(syscall.MSG_TRUNC|syscall.MSG_CTRUNC) != 0 {
		return packet{}, errors.New("truncated")
	}
	m, err := initproto.Decode(data)
	if err != nil {
		return packet{}, err
	}
	p := packet{message: m}
	controls, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return packet{}, err
	}
	for _, c := range controls {
		if len(c.Data)%4 != 0 { // ParseUnixRights would not survive it
			return packet{}, errors.New("half a descriptor")
		}
		fds, err := syscall.ParseUnixRights(&c)
		if err != nil {
			return packet{}, err
		}
		p.fds = append(p.fds, fds...)
	}
	want := 0
	if _, ok := m.(initproto.Start); ok {
		want = initproto.Stdio
	}
	if len(p.fds) != want {
		return packet{}, errors.New("wrong number of descriptors")
	}
	return p, nil
}

// A server is the state between two messages.
type server struct {
	host    int
	ready   bool
	maxID   uint32
	env     []string // ahead of the next stage
	envSize int
	running uint32 // the stage's number, 0 between stages
	stage   *stage // that runs
	last    uint32
	done    chan initproto.Exited
}

var errOrder = errors.New("message out of order")

func (s *server) obey(p packet) error {
	switch m := p.message.(type) {
	case initproto.Setup:
		if s.ready {
			return errOrder
		}
		s.ready, s.maxID = true, m.MaxID
		return s.say(setup(m))
	case initproto.Environ:
		if !s.ready || s.running != 0 {
			return errOrder
		}
		return s.ahead(m.Env)
	case initproto.Start:
		if !s.ready || s.running != 0 || m.Seq <= s.last {
			return errOrder
		}
		s.last = m.Seq
		m.Env = slices.Concat(s.env, m.Env)
		s.env, s.envSize = nil, 0
		return s.start(m, p.fds)
	case initproto.Signal:
		// A signal for a stage that is over crossed its end on the way.
		if m.Seq == s.running {
			s.stage.stopping.Store(true)
			syscall.Kill(-1, syscall.Signal(m.Signal))
		}
		return nil
	}
	return errOrder
}

// ahead keeps what comes ahead of a stage's start, as far as there is a limit.
func (s *server) ahead(env []string) error {
	for _, e := range env {
		s.envSize += len(e) + 1
	}
	if s.envSize > initproto.MaxEnviron {
		return errors.New("environment too large")
	}
	s.env = append(s.env, env...)
	return nil
}

func (s *server) start(m initproto.Start, fds []int) error {
	st, fail := begin(m, s.maxID, fds)
	for _, fd := range fds {
		syscall.Close(fd)
	}
	if fail != nil {
		return s.say(*fail)
	}
	s.running, s.stage = m.Seq, st
	go func() { s.done <- st.wait() }()
	return nil
}

func (s *server) say(m initproto.Message) error {
	b, err := initproto.Encode(m)
	if err != nil {
		return err
	}
	for {
		switch err := syscall.Sendmsg(s.host, b, nil, nil, syscall.MSG_NOSIGNAL); err {
		case syscall.EINTR:
		default:
			return err
		}
	}
}

// failure words why something could not be done.
func failure(seq uint32, reason initproto.Reason, text ...string) *initproto.Failed {
	return &initproto.Failed{Seq: seq, Reason: reason, Text: strings.Join(text, ": ")}
}
