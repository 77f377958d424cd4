package attest

import "hallmark.build/sandbox/record"

// An Origin is what a record says of where an input comes from: that an
// attestation has it among its subjects. The statement repeats it. The record is
// the host's word, so the authority compares each with what it has signed itself.
type Origin struct {
	Entry       int64
	SHA256      string // of the input
	Attestation string // sha256 of the bundle
	Invocation  string
}

// Origins lists what a record says of its inputs' attestations.
func Origins(entries []record.Entry) ([]Origin, error) {
	var out []Origin
	for _, e := range entries {
		if e.Kind != record.CacheUsed {
			continue
		}
		var k record.Cache
		if r := decode(e, &k); r != nil {
			return nil, r
		}
		if k.Attestation != "" {
			out = append(out, Origin{e.Seq, k.SHA256, k.Attestation, k.Invocation})
		}
	}
	return out, nil
}
