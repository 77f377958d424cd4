package tlog

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/encoding/protojson"

	"hallmark.build/attest/internal/sigstore"
)

// Kind and version of every entry.
const (
	entryKind    = "hashedrekord"
	entryVersion = "0.0.2"
)

// Limits of what is read. Statements of 10,000 dependencies are 2 MB.
const (
	maxBundle = 64 << 20
	maxEntry  = 1<<16 - 1 // c2sp.org/tlog-tiles
)

// A draft is a bundle on its way into the log.
type draft struct {
	bundle    *bundlepb.Bundle
	digest    [sha256.Size]byte // of the pre-authentication encoding
	signature []byte
	leaf      *x509.Certificate
	body      []byte // the entry
	leafHash  []byte
}

// parseDraft reads a bundle that has no entry yet.
func parseDraft(text []byte) (*draft, error) {
	d, err := parseSigned(text)
	if err != nil {
		return nil, fmt.Errorf("tlog: bundle: %w", err)
	}
	if n := len(d.bundle.GetVerificationMaterial().GetTlogEntries()); n > 0 {
		return nil, fmt.Errorf("tlog: bundle: has %d log entries already", n)
	}
	return d, nil
}

// parseSigned reads what is signed in a bundle, and checks the signature: a log
// of signatures that do not verify proves nothing.
func parseSigned(text []byte) (*draft, error) {
	if len(text) > maxBundle {
		return nil, fmt.Errorf("more than %d bytes", maxBundle)
	}
	b := &bundlepb.Bundle{}
	if err := protojson.Unmarshal(text, b); err != nil {
		return nil, errors.New("is not a Sigstore bundle")
	}
	envelope := b.GetDsseEnvelope()
	if n := len(envelope.GetSignatures()); n != 1 {
		return nil, fmt.Errorf("has %d DSSE signatures: want one", n)
	}
	d := &draft{bundle: b, signature: envelope.GetSignatures()[0].GetSig()}
	var err error
	if d.leaf, err = x509.ParseCertificate(b.GetVerificationMaterial().GetCertificate().GetRawBytes()); err != nil {
		return nil, errors.New("has no certificate that parses")
	}
	key, ok := d.leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the certificate's key is not ECDSA P-256")
	}
	d.digest = sha256.Sum256(sigstore.PAE(envelope.GetPayloadType(), envelope.GetPayload()))
	if !ecdsa.VerifyASN1(key, d.digest[:], d.signature) {
		return nil, errors.New("the signature does not verify with the certificate's key")
	}
	if d.body, err = hashedRekord(d.digest[:], d.signature, d.leaf.Raw); err != nil {
		return nil, err
	}
	if len(d.body) > maxEntry {
		return nil, fmt.Errorf("its log entry would have %d bytes: the most is %d", len(d.body), maxEntry)
	}
	d.leafHash = rfc6962.DefaultHasher.HashLeaf(d.body)
	return d, nil
}

// hashedRekord is the entry. Its members stand in the order of their names and
// its strings need no escape, so that encoding/json writes the canonical form
// (RFC 8785) that Rekor hashes.
func hashedRekord(digest, signature, certificate []byte) ([]byte, error) {
	type (
		data struct {
			Algorithm string `json:"algorithm"`
			Digest    []byte `json:"digest"`
		}
		rawBytes struct {
			RawBytes []byte `json:"rawBytes"`
		}
		verifier struct {
			KeyDetails      string   `json:"keyDetails"`
			X509Certificate rawBytes `json:"x509Certificate"`
		}
		sig struct {
			Content  []byte   `json:"content"`
			Verifier verifier `json:"verifier"`
		}
		record struct {
			Data      data `json:"data"`
			Signature sig  `json:"signature"`
		}
		spec struct {
			HashedRekordV002 record `json:"hashedRekordV002"`
		}
		entry struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Spec       spec   `json:"spec"`
		}
	)
	return json.Marshal(entry{entryVersion, entryKind, spec{record{
		data{"SHA2_256", digest},
		sig{signature, verifier{"PKIX_ECDSA_P256_SHA_256", rawBytes{certificate}}},
	}}})
}

// with is the bundle with its entry.
func (d *draft) with(entry *rekorpb.TransparencyLogEntry) ([]byte, error) {
	d.bundle.VerificationMaterial.TlogEntries = []*rekorpb.TransparencyLogEntry{entry}
	text, err := protojson.Marshal(d.bundle)
	if err != nil {
		return nil, fmt.Errorf("tlog: bundle: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil { // protojson's white space varies
		return nil, fmt.Errorf("tlog: bundle: %w", err)
	}
	return b.Bytes(), nil
}

// entry says where a draft stands in a log.
func (d *draft) entry(v *verifier, index uint64, cp checkpoint, path [][]byte) *rekorpb.TransparencyLogEntry {
	return &rekorpb.TransparencyLogEntry{
		LogIndex:    int64(index),
		LogId:       &commonpb.LogId{KeyId: v.id},
		KindVersion: &rekorpb.KindVersion{Kind: entryKind, Version: entryVersion},
		InclusionProof: &rekorpb.InclusionProof{
			LogIndex: int64(index), TreeSize: int64(cp.size), RootHash: cp.root, Hashes: path,
			Checkpoint: &rekorpb.Checkpoint{Envelope: string(cp.note)},
		},
		CanonicalizedBody: d.body,
	}
}

// verifyEntry checks that the entry is of this draft and in the log, whoever
// made it.
func (d *draft) verifyEntry(v *verifier, e *rekorpb.TransparencyLogEntry) (checkpoint, error) {
	p := e.GetInclusionProof()
	if kind := e.GetKindVersion(); kind.GetKind() != entryKind || kind.GetVersion() != entryVersion {
		return checkpoint{}, fmt.Errorf("%w: entry of kind %.40q %.40q", ErrContradiction, kind.GetKind(), kind.GetVersion())
	}
	if !bytes.Equal(e.GetCanonicalizedBody(), d.body) {
		return checkpoint{}, fmt.Errorf("%w: entry of something else", ErrContradiction)
	}
	if !bytes.Equal(e.GetLogId().GetKeyId(), v.id) {
		return checkpoint{}, fmt.Errorf("%w: entry of another log", ErrContradiction)
	}
	cp, err := v.open([]byte(p.GetCheckpoint().GetEnvelope()))
	if err != nil {
		return checkpoint{}, fmt.Errorf("%w: %w", ErrContradiction, err)
	}
	if e.GetLogIndex() < 0 || p.GetLogIndex() != e.GetLogIndex() || p.GetTreeSize() != int64(cp.size) || !bytes.Equal(p.GetRootHash(), cp.root) {
		return checkpoint{}, fmt.Errorf("%w: proof and checkpoint are of different trees", ErrContradiction)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(e.GetLogIndex()), cp.size, d.leafHash, p.GetHashes(), cp.root); err != nil {
		return checkpoint{}, fmt.Errorf("%w: inclusion: %w", ErrContradiction, err)
	}
	return cp, nil
}
