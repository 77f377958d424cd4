package sign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	bundlepb "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	dssepb "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"hallmark.build/attest"
	"hallmark.build/attest/internal/private"
	"hallmark.build/attest/internal/sigstore"
)

// LeafLifetime is how long a signing certificate is valid.
const LeafLifetime = 10 * time.Minute

// BundleMediaType is the media type of what Sign makes.
const BundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Options of a Signer. What is empty is built in.
type Options struct {
	Dir          string // of the keyring, for its owner alone
	Issuer       string // names the authority in its certificates and its trusted root
	CAKey        string // URI of the key that issues certificates; "" makes a file in Dir
	TimestampKey string // URI of the key that signs time; "" makes a file in Dir

	Fulcio    *Fulcio           // issues certificates in place of CAKey
	Timestamp *TimestampService // signs time in place of TimestampKey

	// Trusted says whom to believe of these two. Their answers are verified
	// with it, and it becomes part of what readers are told to trust.
	Trusted *trustpb.TrustedRoot

	Now func() time.Time // the authority's clock; nil means time.Now
}

func (o Options) withDefaults() (Options, error) {
	if o.Issuer == "" {
		return o, errors.New("sign: issuer is empty")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil || o.Dir == "" {
		return o, errors.New("sign: no directory for the keyring")
	}
	o.Dir = dir
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, nil
}

// external reports whether an outside service does what a role's key would.
func (o Options) external(role Role) bool {
	return role == RoleCA && o.Fulcio != nil || role == RoleTimestamp && o.Timestamp != nil
}

func (o Options) uri(role Role) string {
	if role == RoleCA {
		return o.CAKey
	}
	return o.TimestampKey
}

// A Signer signs statements. It is safe for concurrent use, and of several
// processes on one directory.
type Signer struct {
	o         Options
	fulcio    *fulcioClient
	timestamp *timestampClient

	mu   sync.Mutex
	ring *ring
	keys map[string]*heldKey // by generation
}

// A ring is one state of the keyring. It does not change.
type ring struct {
	file        os.FileInfo // the file that it was read from
	generations []Generation
	trusted     *trustpb.TrustedRoot
	verifier    *verifier
}

// Open reads the keyring and opens the keys that sign now, and makes them on
// first use.
func Open(ctx context.Context, o Options) (*Signer, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Signer{o: o, keys: map[string]*heldKey{}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("sign: %w", err), s.Close())
	}
	return s, nil
}

func (s *Signer) open(ctx context.Context) error {
	if err := private.Dir(s.o.Dir); err != nil {
		return err
	}
	if err := ensure(ctx, s.o); err != nil {
		return err
	}
	if err := s.connect(); err != nil {
		return err
	}
	r, err := s.current()
	if err != nil {
		return err
	}
	if err := s.configured(r); err != nil {
		return err
	}
	for _, role := range []Role{RoleCA, RoleTimestamp} {
		if s.o.external(role) {
			continue
		}
		if _, _, err := s.signing(ctx, r, role); err != nil && !errors.Is(err, errNone) {
			return err
		}
	}
	return nil
}

// connect makes the clients of outside services.
func (s *Signer) connect() error {
	outside, err := newVerifier(s.o.Trusted)
	if err != nil {
		return fmt.Errorf("trusted root: %w", err)
	}
	if s.o.Fulcio != nil {
		if s.fulcio, err = newFulcio(*s.o.Fulcio, outside); err != nil {
			return err
		}
	}
	if s.o.Timestamp != nil {
		if s.timestamp, err = newTimestampClient(*s.o.Timestamp, outside); err != nil {
			return err
		}
	}
	return nil
}

// configured refuses a keyring in which a key of the configuration does not
// sign, nor is about to: somebody changed the one and not the other.
func (s *Signer) configured(r *ring) error {
	now := s.o.Now()
	for _, role := range []Role{RoleCA, RoleTimestamp} {
		if s.o.external(role) {
			continue
		}
		found := false
		for _, g := range r.generations {
			found = found || g.Role == role && g.Key == s.o.uri(role) && !g.over(now)
		}
		if !found {
			return fmt.Errorf("the %s key of the configuration is not in use: `hallmark-attestd keys rotate %s` takes it into use", role, role)
		}
	}
	return nil
}

// Close lets go of the keys. No Sign may be in flight.
func (s *Signer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for id, h := range s.keys {
		if h.key != nil {
			err = errors.Join(err, h.key.Close())
		}
		delete(s.keys, id)
	}
	return err
}

// current is the keyring as it is on disk now. A keyring that cannot be read
// any more is an error, not the one from before.
func (s *Signer) current() (*ring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := os.Stat(filepath.Join(s.o.Dir, keyringFile))
	switch {
	case errors.Is(err, os.ErrNotExist) && s.fulcio != nil && s.timestamp != nil: // never had a key
	case err != nil:
		return nil, err
	}
	if s.ring != nil && same(s.ring.file, info) {
		return s.ring, nil
	}
	r, err := s.load()
	if err != nil {
		return nil, err
	}
	r.file, s.ring = info, r
	return r, nil
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

func (s *Signer) load() (*ring, error) {
	all, err := readKeyring(s.o.Dir)
	if err != nil {
		return nil, err
	}
	r := &ring{generations: all, trusted: trustedRoot(s.o, all)}
	if r.verifier, err = newVerifier(r.trusted); err != nil {
		return nil, err
	}
	return r, nil
}

// Sign makes the bundle of a statement that package attest has made. The
// statement's bytes are in it as they are. No log has seen it yet.
func (s *Signer) Sign(ctx context.Context, st attest.Statement) ([]byte, error) {
	if !st.Intact() {
		return nil, errors.New("sign: not a statement made from a record")
	}
	r, err := s.current()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	signed, err := s.sign(ctx, r, st)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return encode(&bundlepb.Bundle{
		MediaType: BundleMediaType,
		VerificationMaterial: &bundlepb.VerificationMaterial{
			Content: &bundlepb.VerificationMaterial_Certificate{
				Certificate: &commonpb.X509Certificate{RawBytes: signed.leaf.Raw},
			},
			TimestampVerificationData: &bundlepb.TimestampVerificationData{
				Rfc3161Timestamps: []*commonpb.RFC3161SignedTimestamp{{SignedTimestamp: signed.token}},
			},
		},
		Content: &bundlepb.Bundle_DsseEnvelope{DsseEnvelope: &dssepb.Envelope{
			Payload:     st.JSON,
			PayloadType: attest.PayloadType,
			Signatures:  []*dssepb.Signature{{Sig: signed.signature}},
		}},
	})
}

// What was signed, and with what.
type signed struct {
	leaf             *x509.Certificate
	signature, token []byte
}

// sign signs with a key that exists for this statement alone.
func (s *Signer) sign(ctx context.Context, r *ring, st attest.Statement) (signed, error) {
	if err := ctx.Err(); err != nil {
		return signed{}, err
	}
	once, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return signed{}, err
	}
	leaf, err := s.certify(ctx, r, st.BuilderID, once)
	if err != nil {
		return signed{}, fmt.Errorf("certificate: %w", err)
	}
	digest := sha256.Sum256(sigstore.PAE(attest.PayloadType, st.JSON))
	signature, err := ecdsa.SignASN1(rand.Reader, once, digest[:])
	if err != nil {
		return signed{}, err
	}
	token, err := s.stamp(ctx, r, signature)
	if err != nil {
		return signed{}, fmt.Errorf("timestamp: %w", err)
	}
	if err := r.check(leaf, digest[:], signature, token); err != nil {
		return signed{}, fmt.Errorf("own signature: %w", err)
	}
	return signed{leaf, signature, token}, nil
}

// now is to the second, as certificates and timestamps are.
func (s *Signer) now() time.Time { return s.o.Now().UTC().Truncate(time.Second) }

// check verifies what was just made, as a reader with the trusted root will: a
// fault while signing must not leave here, nor a key that has just ended.
func (r *ring) check(leaf *x509.Certificate, digest, signature, token []byte) error {
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !ecdsa.VerifyASN1(pub, digest, signature) {
		return errors.New("it does not verify")
	}
	at, err := r.verifier.timestamp(token, signature, verification.VerifyOpts{})
	if err != nil {
		return fmt.Errorf("timestamp: %w", err)
	}
	if _, err := r.verifier.certificate(leaf, at); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}

// Trusted is what verifiers must be given for the signatures of this keyring,
// old ones too. The logs are for the caller to add.
func (s *Signer) Trusted() (*trustpb.TrustedRoot, error) {
	r, err := s.current()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return proto.CloneOf(r.trusted), nil
}

// encode writes JSON without protojson's deliberately unstable white space.
func encode(m proto.Message) ([]byte, error) {
	text, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
