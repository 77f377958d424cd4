package authority_test

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"

	"hallmark.build/attest/authority"
	"hallmark.build/attest/authority/authoritypb"
)

// window is what HTTP/2 lets a peer send at first.
const window = 1<<16 - 1

// crumbs sends bytes of a call in frames of so many each, as its window allows.
func (r *raw) crumbs(t *testing.T, stream uint32, data []byte, each int, room *int) {
	t.Helper()
	for len(data) > 0 {
		for *room < each {
			frame, err := r.framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if update, ok := frame.(*http2.WindowUpdateFrame); ok && update.StreamID == stream {
				*room += int(update.Increment)
			}
		}
		n := min(each, len(data))
		if err := r.framer.WriteData(stream, false, data[:n]); err != nil {
			t.Fatal(err)
		}
		*room -= n
		data = data[n:]
	}
}

// piece is a piece of a request, with what gRPC puts before it.
func piece(n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), make([]byte, n)...)
}

// living is the memory that is in use.
func living() int64 {
	runtime.GC()
	runtime.GC() // what pools held goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCrumbs holds that a request which comes byte by byte, each in a frame of its
// own, takes no multiple of its size. As gRPC keeps frames it would take 20 times
// as much.
func TestCrumbs(t *testing.T) {
	f := newFleet(t)
	r, err := f.raw(t.Context(), "127.0.0.1", nil, f.join("runner-1").keyPair(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stream, err := r.begin(appendMethod)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.handled(); err != nil {
		t.Fatal(err)
	}
	before, room := living(), window
	const sent = 4 * authority.MaxPiece
	r.crumbs(t, stream, bytes.Repeat(piece(authority.MaxPiece), 4), 1, &room)
	f.settles(`hallmark_in_use{what="arrived_bytes"} ` + strconv.Itoa(sent))
	if held := living() - before; held > 8*sent {
		t.Errorf("%d bytes in as many frames take %d bytes", sent, held)
	}
}

// TestArriving holds that requests which come slowly are bounded in all: one of the
// host that has the most goes, and others do not notice.
func TestArriving(t *testing.T) {
	f := newFleet(t)
	f.a.SetArriving(4 * authority.MaxPiece)
	greedy, modest := f.join("runner-1"), f.join("runner-2")
	r, err := f.raw(t.Context(), "127.0.0.1", nil, greedy.keyPair(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stream, err := r.begin(appendMethod)
	if err != nil {
		t.Fatal(err)
	}
	room := window
	r.crumbs(t, stream, bytes.Repeat(piece(authority.MaxPiece), 3), 8<<10, &room)
	f.settles(`hallmark_in_use{what="arrived_bytes"} ` + strconv.Itoa(3*authority.MaxPiece))
	res, err := modest.Open(t.Context(), requestFor(4242))
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 2*authority.MaxPiece))
	_, err = modest.Append(t.Context(), &authoritypb.AppendRequest{Attempt: res.GetAttempt(), Lines: [][]byte{line}})
	wantCode(t, err, codes.InvalidArgument) // it was read
	if code, err := r.ended(); err != nil || code != strconv.Itoa(int(codes.ResourceExhausted)) {
		t.Errorf("the greedy host's call ended with code %q, %v", code, err)
	}
	f.settles(`hallmark_in_use{what="arrived_bytes"} 0`)
	f.settles(`hallmark_in_use{what="incoming_bytes"} 0`)
}
