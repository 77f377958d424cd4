package git

import (
	"strings"
	"testing"
)

func TestAnswer(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		pack       bool
	}{
		{"version 2", pkt("packfile") + "0012\x01PACK\x00\x00\x00\x02....", true},
		{"after what is shallow", pkt("shallow-info", "shallow "+one, "delim", "packfile") + "0009\x01PACK", true},
		{"after progress", pkt("packfile") + pkt("\x02Counting objects") + "0009\x01PACK", true},
		{"version 0", pkt("shallow "+one, "flush", "NAK") + "0009\x01PACK", true},
		{"without bands", pkt("NAK") + "PACK\x00\x00\x00\x02", true},
		{"acknowledgements alone", pkt("acknowledgments", "ACK "+one, "flush"), false},
		{"not our ref", pkt("ERR upload-pack: not our ref "+one) + "0009\x01PACK", false},
		{"in the second band", pkt("packfile") + "0009\x02PACK", false},
		{"a page", "<html>0009\x01PACK", false},
		{"none", "", false},
		{"cut off", pkt("packfile") + "0009\x01PAC", false},
		{"too far behind", strings.Repeat(pkt("ACK "+one), maxAnswer/40) + "0009\x01PACK", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var whole, bits Answer
			whole.Write([]byte(tt.body))
			for i := range len(tt.body) {
				bits.Write([]byte{tt.body[i]})
			}
			if whole.Pack() != tt.pack || bits.Pack() != tt.pack {
				t.Errorf("at once %v, byte by byte %v, want %v", whole.Pack(), bits.Pack(), tt.pack)
			}
		})
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(pkt("packfile")+"0009\x01PACK"), 3)
	f.Add([]byte("0003PACK"), 1)
	f.Fuzz(func(t *testing.T, body []byte, cut int) {
		var whole, parts Answer
		whole.Write(body)
		if cut < 0 || cut > len(body) {
			cut = len(body) / 2
		}
		parts.Write(body[:cut])
		parts.Write(body[cut:])
		if whole.Pack() != parts.Pack() {
			t.Errorf("%q cut at %d: %v, in one %v", body, cut, parts.Pack(), whole.Pack())
		}
		if whole.Pack() && !strings.Contains(string(body), packMagic) {
			t.Errorf("%q: a pack", body)
		}
	})
}
