package authority

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"hallmark.build/attest/authority/authoritypb"
)

func TestCheckFields(t *testing.T) {
	for n, ok := range map[int]bool{0: true, 1: true, maxFields - 1: true, maxFields: true, maxFields + 1: false} {
		data, err := proto.Marshal(&authoritypb.AppendRequest{Lines: make([][]byte, n)})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkFields(data); (err == nil) != ok {
			t.Errorf("%d fields: %v", n, err)
		}
	}
}

// FuzzFields holds that what passes has no more lines than that.
func FuzzFields(f *testing.F) {
	f.Add([]byte{0x12, 0x00}, 3)
	f.Add([]byte{0x0a, 0x01, 'x', 0x12, 0x01, 'y'}, maxFields)
	f.Add([]byte{0x13, 0x14}, maxFields)
	f.Add([]byte{0xff}, 1)
	f.Fuzz(func(t *testing.T, part []byte, times int) {
		if times < 0 || times > 2*maxFields || len(part) > 64 {
			return
		}
		data := bytes.Repeat(part, times)
		var req authoritypb.AppendRequest
		if checkFields(data) == nil && proto.Unmarshal(data, &req) == nil && len(req.GetLines()) > maxFields {
			t.Errorf("%d lines", len(req.GetLines()))
		}
	})
}
