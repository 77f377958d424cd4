package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the codec of everything but pieces
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// MaxPiece bounds a message of a call's request. A larger request goes in
// several: the authority takes them in one by one, and never holds more of one
// than this in the form that gRPC gives it, which a hostile peer can make many
// times as large as what it sends.
const MaxPiece = 16 << 10

// InPieces sends what is larger than a piece in several. Others are ordinary calls.
func InPieces(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	m, ok := req.(proto.Message)
	if !ok || proto.Size(m) <= MaxPiece {
		return invoke(ctx, method, req, reply, conn, opts...)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	if len(data) > MaxMessage {
		return status.Errorf(codes.ResourceExhausted, "a request of %d bytes, more than %d", len(data), MaxMessage)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	codec := grpc.ForceCodecV2(pieces{encoding.GetCodecV2("proto")})
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, method, append(slices.Clone(opts), codec)...)
	if err != nil {
		return err
	}
	for piece := range slices.Chunk(data, MaxPiece) {
		if err := stream.SendMsg(piece); errors.Is(err, io.EOF) {
			break // it was answered already
		} else if err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(reply)
}

// pieces is the codec of protocol buffers, which also writes bytes as they are.
type pieces struct{ encoding.CodecV2 }

// Marshal is for a piece, as calls have no other messages here.
func (pieces) Marshal(v any) (mem.BufferSlice, error) {
	piece, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("authority: %T is no piece of a request", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(piece)}, nil
}
