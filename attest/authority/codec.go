package authority

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec that this one guards
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxFields bounds the fields of a message: two bytes on the wire can be an empty
// line, which takes many times that in memory.
const maxFields = 1 << 16

var errFields = fmt.Errorf("a message of more than %d fields", maxFields)

// A guarded message is decoded only if it has a bounded number of fields.
// Otherwise it stays empty, and excess says why: gRPC would answer an error of
// its codec in words and with a code of its own.
type guarded struct {
	message any
	excess  error
}

// frugal is the codec of protocol buffers, which also reads guarded messages.
type frugal struct{ encoding.CodecV2 }

func newFrugal() frugal { return frugal{encoding.GetCodecV2("proto")} }

// Unmarshal counts a message's fields before anything is made of them.
func (f frugal) Unmarshal(data mem.BufferSlice, v any) error {
	g, ok := v.(*guarded)
	if !ok {
		return f.CodecV2.Unmarshal(data, v)
	}
	buffer := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buffer.Free()
	if g.excess = checkFields(buffer.ReadOnlyData()); g.excess != nil {
		return nil
	}
	return f.CodecV2.Unmarshal(mem.BufferSlice{buffer}, g.message)
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
