package verify

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
)

// The one kind of log entry that is read, Rekor's of version 2.
const (
	entryKind    = "hashedrekord"
	entryVersion = "0.0.2"
)

// maxPath bounds the hashes of a proof: a tree has fewer than 2^63 leaves.
const maxPath = 63

// entryText is a log entry's JSON.
type entryText struct {
	LogIndex    decimal          `json:"logIndex"`
	LogID       *logIDText       `json:"logId"`
	KindVersion *kindVersionText `json:"kindVersion"`
	Proof       *proofText       `json:"inclusionProof"`
	Body        b64              `json:"canonicalizedBody"`

	IntegratedTime json.RawMessage `json:"integratedTime"`
	Promise        json.RawMessage `json:"inclusionPromise"`
}

type logIDText struct {
	KeyID b64 `json:"keyId"`
}

type kindVersionText struct {
	Kind    string `json:"kind"`
	Version string `json:"version"`
}

type proofText struct {
	LogIndex   decimal         `json:"logIndex"`
	RootHash   b64             `json:"rootHash"`
	TreeSize   decimal         `json:"treeSize"`
	Hashes     []b64           `json:"hashes"`
	Checkpoint *checkpointText `json:"checkpoint"`
}

type checkpointText struct {
	Envelope string `json:"envelope"`
}

// entryHead is what an entry's body says of its own kind.
type entryHead struct {
	Version string `json:"apiVersion"`
	Kind    string `json:"kind"`
}

// proto checks that an entry says everything once, or the same each time: other
// readers may take the number, the root or the kind from the other place.
func (e *entryText) proto() (*rekorpb.TransparencyLogEntry, error) {
	switch {
	case e.IntegratedTime != nil || e.Promise != nil:
		return nil, errors.New("has a time or a promise in place of a proof")
	case e.LogID == nil || len(e.LogID.KeyID) == 0:
		return nil, errors.New("names no log")
	case e.Proof == nil || e.Proof.Checkpoint == nil:
		return nil, errors.New("has no proof")
	case len(e.Proof.Hashes) > maxPath:
		return nil, fmt.Errorf("has a proof of %d hashes: more than %d", len(e.Proof.Hashes), maxPath)
	case e.LogIndex != e.Proof.LogIndex:
		return nil, fmt.Errorf("is number %d, its proof is for %d", e.LogIndex, e.Proof.LogIndex)
	case e.KindVersion == nil || *e.KindVersion != kindVersionText{entryKind, entryVersion}:
		return nil, fmt.Errorf("is not a %s %s", entryKind, entryVersion)
	}
	var head entryHead
	if err := json.Unmarshal(e.Body, &head); err != nil || head != (entryHead{entryVersion, entryKind}) {
		return nil, errors.New("has a body of another kind")
	}
	c, err := parseCheckpoint(e.Proof.Checkpoint.Envelope)
	if err != nil {
		return nil, err
	}
	if c.size != int64(e.Proof.TreeSize) || !bytes.Equal(c.root, e.Proof.RootHash) {
		return nil, errors.New("has a proof for another tree than its checkpoint's")
	}
	proof := &rekorpb.InclusionProof{
		LogIndex: int64(e.Proof.LogIndex), RootHash: e.Proof.RootHash, TreeSize: int64(e.Proof.TreeSize),
		Checkpoint: &rekorpb.Checkpoint{Envelope: e.Proof.Checkpoint.Envelope},
	}
	for _, hash := range e.Proof.Hashes {
		proof.Hashes = append(proof.Hashes, hash)
	}
	return &rekorpb.TransparencyLogEntry{
		LogIndex: int64(e.LogIndex), LogId: &commonpb.LogId{KeyId: e.LogID.KeyID},
		KindVersion:    &rekorpb.KindVersion{Kind: entryKind, Version: entryVersion},
		InclusionProof: proof, CanonicalizedBody: e.Body,
	}, nil
}

// A checkpoint is what a log says of its tree (c2sp.org/tlog-checkpoint).
type checkpoint struct {
	origin string
	size   int64
	root   []byte
	first  string // whose signature is the first
}

func parseCheckpoint(note string) (checkpoint, error) {
	text, signatures, _ := strings.Cut(note, "\n\n")
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 3 {
		return checkpoint{}, errors.New("has a checkpoint of less than three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return checkpoint{}, errors.New("has a checkpoint without a size")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil {
		return checkpoint{}, errors.New("has a checkpoint without a root")
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(signatures, "— "), " ")
	return checkpoint{lines[0], size, root, first}, nil
}

// checkOrigin wants a checkpoint to be the log's by its first line, and signed by
// it first, for readers who look at the first signature alone. Witnesses sign
// after the log.
func checkOrigin(entry *rekorpb.TransparencyLogEntry, baseURL string) error {
	u, err := url.Parse(baseURL)
	if err != nil {
		return err
	}
	c, err := parseCheckpoint(entry.GetInclusionProof().GetCheckpoint().GetEnvelope())
	if err != nil {
		return err
	}
	if c.origin != u.Hostname() || c.first != u.Hostname() {
		return errors.New("somebody else signed the checkpoint before its log")
	}
	return nil
}

// decimal is a whole number in its one canonical form, a string as protobuf
// writes it.
type decimal int64

func (d *decimal) UnmarshalJSON(text []byte) error {
	if len(text) < 2 || text[0] != '"' {
		return errors.New("want a number in a string")
	}
	inside := string(text[1 : len(text)-1])
	n, err := strconv.ParseInt(inside, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != inside {
		return fmt.Errorf("%q is not a whole number", inside)
	}
	*d = decimal(n)
	return nil
}
