package verify

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	rekorpb "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/bundle"
)

// Limits of what is read. Depth is limited by maxDepth.
const (
	MaxBundle      = 64 << 20 // bytes of one bundle
	MaxBundles     = 128      // bundles for one artifact
	MaxTotal       = 256 << 20
	MaxTrustedRoot = 1 << 20

	maxTimestamps = 8
	maxLogEntries = 8
)

const bundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// bundleText is a bundle's JSON. What is there only to be refused with a
// better reason than "unknown key" is a RawMessage.
type bundleText struct {
	MediaType            string        `json:"mediaType"`
	VerificationMaterial *materialText `json:"verificationMaterial"`
	Envelope             *envelopeText `json:"dsseEnvelope"`

	MessageSignature json.RawMessage `json:"messageSignature"`
}

type materialText struct {
	Certificate *certificateText `json:"certificate"`
	LogEntries  []entryText      `json:"tlogEntries"`
	Timestamps  *timestampsText  `json:"timestampVerificationData"`

	PublicKey json.RawMessage `json:"publicKey"`
	Chain     json.RawMessage `json:"x509CertificateChain"`
}

type certificateText struct {
	RawBytes b64 `json:"rawBytes"`
}

type timestampsText struct {
	RFC3161 []timestampText `json:"rfc3161Timestamps"`
}

type timestampText struct {
	SignedTimestamp b64 `json:"signedTimestamp"`
}

type envelopeText struct {
	Payload     b64             `json:"payload"`
	PayloadType string          `json:"payloadType"`
	Signatures  []signatureText `json:"signatures"`
}

type signatureText struct {
	Sig   b64    `json:"sig"`
	KeyID string `json:"keyid"`
}

// A parsedBundle is a bundle of acceptable form. Nothing in it is verified.
type parsedBundle struct {
	payload     []byte
	payloadType string
	leaf        *x509.Certificate
	timestamps  int
	logEntries  int
	entity      *bundle.Bundle // the same values, for sigstore-go
}

// errUnreadable marks text that is not JSON at all: it says nothing, neither
// for nor against the artifact.
var errUnreadable = errors.New("not a bundle")

func parseBundle(text []byte) (*parsedBundle, error) {
	switch {
	case len(text) == 0:
		return nil, fmt.Errorf("%w: empty", errUnreadable)
	case len(text) > MaxBundle:
		return nil, fmt.Errorf("%w: more than %d MiB", errUnreadable, MaxBundle>>20)
	}
	var t bundleText
	if err := decode(text, &t); errors.Is(err, errNotJSON) {
		return nil, fmt.Errorf("%w: not JSON, or cut off", errUnreadable)
	} else if err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(t.VerificationMaterial.Certificate.RawBytes)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	pb, err := t.proto()
	if err != nil {
		return nil, err
	}
	entity, err := bundle.NewBundle(pb)
	if err != nil {
		return nil, err
	}
	return &parsedBundle{
		payload:     t.Envelope.Payload,
		payloadType: t.Envelope.PayloadType,
		leaf:        leaf,
		timestamps:  len(pb.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps),
		logEntries:  len(pb.VerificationMaterial.TlogEntries),
		entity:      entity,
	}, nil
}

func (t *bundleText) check() error {
	m, e := t.VerificationMaterial, t.Envelope
	switch {
	case t.MediaType != bundleMediaType:
		return fmt.Errorf("media type %q: want %q", t.MediaType, bundleMediaType)
	case t.MessageSignature != nil:
		return errors.New("signs bytes, not a statement about them")
	case e == nil:
		return errors.New("no DSSE envelope")
	case len(e.Signatures) != 1:
		return fmt.Errorf("%d signatures: want exactly one", len(e.Signatures))
	case len(e.Signatures[0].Sig) == 0:
		return errors.New("the signature is empty")
	case e.Signatures[0].KeyID != "":
		return errors.New("has a key id, which nothing vouches for")
	case m == nil:
		return errors.New("no verification material")
	case m.PublicKey != nil:
		return errors.New("names a public key instead of a certificate")
	case m.Chain != nil:
		return errors.New("has a chain of certificates instead of one")
	case m.Certificate == nil || len(m.Certificate.RawBytes) == 0:
		return errors.New("no certificate")
	case len(m.LogEntries) > maxLogEntries:
		return fmt.Errorf("%d log entries: more than %d", len(m.LogEntries), maxLogEntries)
	case m.Timestamps != nil && len(m.Timestamps.RFC3161) > maxTimestamps:
		return fmt.Errorf("%d timestamps: more than %d", len(m.Timestamps.RFC3161), maxTimestamps)
	}
	return nil
}

func (t *bundleText) proto() (*bundlepb.Bundle, error) {
	stamps := &bundlepb.TimestampVerificationData{}
	if t.VerificationMaterial.Timestamps != nil {
		for _, stamp := range t.VerificationMaterial.Timestamps.RFC3161 {
			stamps.Rfc3161Timestamps = append(stamps.Rfc3161Timestamps,
				&commonpb.RFC3161SignedTimestamp{SignedTimestamp: stamp.SignedTimestamp})
		}
	}
	var entries []*rekorpb.TransparencyLogEntry
	for i := range t.VerificationMaterial.LogEntries {
		entry, err := t.VerificationMaterial.LogEntries[i].proto()
		if err != nil {
			return nil, fmt.Errorf("log entry %d %w", i+1, err)
		}
		entries = append(entries, entry)
	}
	return &bundlepb.Bundle{
		MediaType: t.MediaType,
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content: &bundlepb.VerificationMaterial_Certificate{
				Certificate: &commonpb.X509Certificate{RawBytes: t.VerificationMaterial.Certificate.RawBytes},
			},
			TlogEntries:               entries,
			TimestampVerificationData: stamps,
		},
		Content: &bundlepb.Bundle_DsseEnvelope{DsseEnvelope: &dssepb.Envelope{
			Payload:     t.Envelope.Payload,
			PayloadType: t.Envelope.PayloadType,
			Signatures:  []*dssepb.Signature{{Sig: t.Envelope.Signatures[0].Sig}},
		}},
	}, nil
}

func sum(data []byte) string {
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}
