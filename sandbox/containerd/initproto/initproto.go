// Package initproto is the language between the host and a container's init.
//
// # Setting
//
// Each container's PID 1 is hallmark-init. It connects once to a unix socket
// of type SOCK_SEQPACKET, so one packet is one message, and the host never has
// to enter the container's namespaces to start something in it. The host sends
// Setup once, then Start for one stage after another, with the stage's three
// standard descriptors beside it (SCM_RIGHTS), and Signal while a stage runs.
// An environment that does not fit beside the rest comes ahead of its Start, in
// as many Environ as it takes.
// Init answers Setup with Ready and Start with Exited, each of them with Failed
// if it could not be done. When the connection ends, init ends, and with it
// everything in its pid namespace.
//
// # Trust
//
// The host trusts init as far as the tenant cannot touch it. It is not
// trusted for liveness: the host keeps the time, and kills the container
// without asking. Either side ends the connection on the first message that it
// does not understand.
//
// # Form
//
//	message = version kind field...
//	version = 0x01
//	string  = length bytes     list = count string...     bool = 0x00 | 0x01
//
// Numbers are unsigned varints in their shortest form. Strings carry any bytes,
// because environments do; those that end up in the kernel hold no NUL. Nothing
// may follow the last field.
package initproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Limits of the protocol. A packet must fit into the socket's default send
// buffer (212,992 bytes on Linux).
const (
	MaxMessage = 192 << 10
	MaxStrings = 8192    // entries of one list
	MaxEnviron = 8 << 20 // bytes of all Environ of one Start; no kernel takes more
	MaxText    = 1024    // bytes of Failed.Text
	Stdio      = 3       // descriptors beside Start
)

const version = 1

// Places inside every container. They lie on a tmpfs of their own below /dev,
// which the runtime makes afresh for each container: no image can have
// anything there.
const (
	Dir       = "/dev/hallmark"
	Init      = Dir + "/init"
	Control   = Dir + "/control"
	Socket    = Control + "/socket"
	CAFile    = Dir + "/ca.pem"    // the job's authority alone
	RootsFile = Dir + "/roots.pem" // the image's roots and the job's authority
	JavaFile  = Dir + "/roots.p12" // the same for Java, without password
)

// What init says by its exit status if it cannot speak over the socket.
const (
	ExitConnect  = 71 // no connection to the host
	ExitProtocol = 72 // the host said what init does not understand
	ExitClosed   = 73 // the host closed the connection
	ExitHarden   = 74 // the kernel refused to protect init
)

// A Message is one of Setup, Environ, Start, Signal, Ready, Exited and Failed.
type Message interface{ append([]byte) []byte }

// Setup is the host's first message: what to do before any stage.
type Setup struct {
	CA    []byte // PEM; empty leaves the trust stores alone
	MaxID uint32 // the highest user or group id that is mapped
	Files []File // to be written into the root file system
	// Dirs are made where they are missing, mode 0755, as far as they can be.
	Dirs []string
}

// A File is written whole, mode 0644.
type File struct {
	Path string
	Data []byte
}

// Environ is the beginning, or more, of the environment of the Start to come.
type Environ struct{ Env []string }

// Start runs one stage. Seq counts up and is never 0.
type Start struct {
	Seq   uint32
	Args  []string
	Shell bool // append the first shell found to Args
	Env   []string
	Dir   string
	User  string
}

// Signal sends a signal to every process of the stage.
type Signal struct {
	Seq    uint32
	Signal uint8
}

// Ready answers Setup. Stores names the trust stores that the CA was added to.
type Ready struct{ Stores []string }

// Exited says that the stage is over and none of its processes is left.
type Exited struct {
	Seq      uint32
	Code     uint8
	Signal   uint8 // 0, or the signal that killed it; Code is 128+Signal then
	Duration time.Duration
}

// A Reason says why something could not be done.
type Reason uint8

// Reasons. Only System is not the job's or its image's fault.
const (
	NoShell   Reason = 1 + iota // the image has no shell
	NoUser                      // the image does not know the user
	NoCommand                   // the image does not have the command
	NotRun                      // the kernel refuses to run the command
	BadImage                    // the image's files are not what they should be
	System                      // none of the above
)

// Failed answers Setup (Seq 0) or Start.
type Failed struct {
	Seq    uint32
	Reason Reason
	Text   string
}

const (
	kindSetup = 1 + iota
	kindStart
	kindSignal
	kindReady
	kindExited
	kindFailed
	kindEnviron
)

// ErrTooLarge says that a message would not fit into one packet.
var ErrTooLarge = fmt.Errorf("message is larger than %d bytes", MaxMessage)

var errMalformed = errors.New("malformed message")

// Encode gives a message's only form.
func Encode(m Message) ([]byte, error) {
	b := m.append([]byte{version})
	if len(b) > MaxMessage {
		return nil, ErrTooLarge
	}
	return b, nil
}

// Decode reads a message and accepts exactly what Encode gives.
func Decode(b []byte) (Message, error) {
	if len(b) < 2 || len(b) > MaxMessage || b[0] != version {
		return nil, errMalformed
	}
	r := &reader{rest: b[2:]}
	var m Message
	switch b[1] {
	case kindSetup:
		m = r.setup()
	case kindStart:
		m = r.start()
	case kindSignal:
		m = r.signal()
	case kindReady:
		m = Ready{Stores: r.list()}
	case kindExited:
		m = r.exited()
	case kindFailed:
		m = r.failed()
	case kindEnviron:
		m = Environ{Env: r.env()}
	default:
		return nil, errMalformed
	}
	if r.bad || len(r.rest) != 0 {
		return nil, errMalformed
	}
	return m, nil
}

func (m Setup) append(b []byte) []byte {
	b = appendString(append(b, kindSetup), string(m.CA))
	b = binary.AppendUvarint(b, uint64(m.MaxID))
	b = binary.AppendUvarint(b, uint64(len(m.Files)))
	for _, f := range m.Files {
		b = appendString(appendString(b, f.Path), string(f.Data))
	}
	return appendList(b, m.Dirs)
}

func (r *reader) setup() Message {
	m := Setup{CA: []byte(r.text()), MaxID: uint32(r.number(1<<32 - 1))}
	for range r.number(MaxStrings) {
		f := File{Path: r.path(), Data: []byte(r.text())}
		if r.bad {
			return nil
		}
		m.Files = append(m.Files, f)
	}
	m.Dirs = r.list()
	for _, d := range m.Dirs {
		if !strings.HasPrefix(d, "/") {
			r.bad = true
		}
	}
	return m
}

func (m Environ) append(b []byte) []byte { return appendList(append(b, kindEnviron), m.Env) }

func (m Start) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, kindStart), uint64(m.Seq))
	b = appendList(b, m.Args)
	b = append(b, map[bool]byte{true: 1}[m.Shell])
	b = appendList(b, m.Env)
	return appendString(appendString(b, m.Dir), m.User)
}

func (r *reader) start() Message {
	m := Start{Seq: r.seq(), Args: r.list(), Shell: r.number(1) == 1, Env: r.env(), Dir: r.path(), User: r.word()}
	if !m.Shell && len(m.Args) == 0 || len(m.Args) > 0 && m.Args[0] == "" {
		r.bad = true
	}
	return m
}

func (m Signal) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, kindSignal), uint64(m.Seq))
	return binary.AppendUvarint(b, uint64(m.Signal))
}

func (r *reader) signal() Message {
	m := Signal{Seq: r.seq(), Signal: uint8(r.number(64))}
	if m.Signal == 0 {
		r.bad = true
	}
	return m
}

func (m Ready) append(b []byte) []byte { return appendList(append(b, kindReady), m.Stores) }

func (m Exited) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, kindExited), uint64(m.Seq))
	b = binary.AppendUvarint(b, uint64(m.Code))
	b = binary.AppendUvarint(b, uint64(m.Signal))
	return binary.AppendUvarint(b, uint64(m.Duration))
}

func (r *reader) exited() Message {
	m := Exited{Seq: r.seq(), Code: uint8(r.number(255)), Signal: uint8(r.number(64)), Duration: time.Duration(r.number(1<<63 - 1))}
	if m.Signal != 0 && m.Code != 128+m.Signal {
		r.bad = true
	}
	return m
}

func (m Failed) append(b []byte) []byte {
	text := m.Text
	if len(text) > MaxText {
		text = text[:MaxText]
	}
	b = binary.AppendUvarint(append(b, kindFailed), uint64(m.Seq))
	b = binary.AppendUvarint(b, uint64(m.Reason))
	return appendString(b, text)
}

func (r *reader) failed() Message {
	m := Failed{Seq: uint32(r.number(1<<32 - 1)), Reason: Reason(r.number(uint64(System))), Text: r.text()}
	if m.Reason == 0 || len(m.Text) > MaxText {
		r.bad = true
	}
	return m
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendList(b []byte, list []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, s)
	}
	return b
}

// A reader takes fields off a message. After the first fault it gives zero
// values, so that callers check once.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) number(limit uint64) uint64 {
	v, n := binary.Uvarint(r.rest)
	if r.bad || n <= 0 || v > limit || n > 1 && r.rest[n-1] == 0 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) seq() uint32 {
	v := uint32(r.number(1<<32 - 1))
	if v == 0 {
		r.bad = true
	}
	return v
}

// text is a string of any bytes.
func (r *reader) text() string {
	n := r.number(uint64(len(r.rest)))
	if r.bad || n > uint64(len(r.rest)) {
		r.bad = true
		return ""
	}
	s := string(r.rest[:n])
	r.rest = r.rest[n:]
	return s
}

// word is a string that the kernel can take.
func (r *reader) word() string {
	s := r.text()
	if strings.IndexByte(s, 0) >= 0 {
		r.bad = true
		return ""
	}
	return s
}

// path is an absolute path.
func (r *reader) path() string {
	s := r.word()
	if !strings.HasPrefix(s, "/") {
		r.bad = true
		return ""
	}
	return s
}

func (r *reader) list() []string {
	n := r.number(MaxStrings)
	if r.bad || n > uint64(len(r.rest)) {
		r.bad = true
		return nil
	}
	var list []string
	for range n {
		list = append(list, r.word())
	}
	return list
}

// env is a list of variables, each with a name.
func (r *reader) env() []string {
	list := r.list()
	for _, e := range list {
		if strings.IndexByte(e, '=') < 1 {
			r.bad = true
		}
	}
	return list
}
