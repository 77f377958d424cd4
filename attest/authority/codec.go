package authority

import (
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that this one guards
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// maxFields bounds the fields of a message: two bytes on the wire can be an empty
// line, which takes many times that in memory.
const maxFields = 1 << 16

var (
	errFields  = fmt.Errorf("a message of more than %d fields", maxFields)
	errMessage = fmt.Errorf("a message of more than %d bytes", MaxMessage)
)

// pieces are what has come of a request. Each was copied from the form in which
// gRPC has it: there, a byte that came alone takes as much as fifty.
type pieces struct{ data []byte }

// decode makes a request of bytes, if it has a bounded number of fields.
func decode(data []byte, req any) error {
	m, ok := req.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "%T is no request", req)
	}
	if err := checkFields(data); err != nil {
		return err
	}
	if err := proto.Unmarshal(data, m); err != nil {
		return status.Errorf(codes.Internal, "malformed request: %v", err)
	}
	return nil
}

// An answer is a message of which is known when the transport has let go of it:
// when it is written, or its stream has ended.
type answer struct {
	message any
	gone    chan struct{}
}

func newAnswer(message any) *answer { return &answer{message: message, gone: make(chan struct{})} }

// Get makes room for the answer's bytes: an answer is a [mem.BufferPool] of one buffer.
func (a *answer) Get(size int) *[]byte {
	b := make([]byte, size)
	return &b
}

// Put is given the buffer back by whoever uses it last.
func (a *answer) Put(*[]byte) { close(a.gone) }

// frugal is the codec of protocol buffers, which also reads pieces and writes
// answers.
type frugal struct{ encoding.CodecV2 }

func newFrugal() frugal { return frugal{encoding.GetCodecV2("proto")} }

// Marshal puts an answer's bytes where it learns that they are gone. So few that gRPC
// would not give them back are said to be gone at once: they fill no memory.
func (f frugal) Marshal(v any) (mem.BufferSlice, error) {
	a, ok := v.(*answer)
	if !ok {
		return f.CodecV2.Marshal(v)
	}
	data, err := f.CodecV2.Marshal(a.message)
	if err != nil {
		return nil, err
	}
	if mem.IsBelowBufferPoolingThreshold(data.Len()) {
		close(a.gone)
		return data, nil
	}
	defer data.Free()
	buffer := a.Get(data.Len())
	data.CopyTo(*buffer)
	return mem.BufferSlice{mem.NewBuffer(buffer, a)}, nil
}

// Unmarshal adds a piece to those that came before.
func (f frugal) Unmarshal(data mem.BufferSlice, v any) error {
	p, ok := v.(*pieces)
	if !ok {
		return f.CodecV2.Unmarshal(data, v)
	}
	p.data = slices.Grow(p.data, data.Len())
	for _, part := range data {
		p.data = append(p.data, part.ReadOnlyData()...)
	}
	return nil
}

// checkFields counts the fields of a message, if it is one.
func checkFields(b []byte) error {
	for n := 0; len(b) > 0; n++ {
		if n == maxFields {
			return errFields
		}
		_, _, length := protowire.ConsumeField(b)
		if length < 0 {
			return nil // for the codec to refuse
		}
		b = b[length:]
	}
	return nil
}
