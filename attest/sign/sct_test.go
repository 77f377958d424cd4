package sign_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"strings"
	"testing"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	"github.com/google/certificate-transparency-go/x509util"
	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	"hallmark.build/attest/sign"
)

// A fakeCT promises to list certificates as a certificate transparency log does.
type fakeCT struct {
	t   testing.TB
	key *ecdsa.PrivateKey
}

func (f *fakeCT) der() []byte {
	der, err := x509.MarshalPKIXPublicKey(&f.key.PublicKey)
	if err != nil {
		f.t.Fatal(err)
	}
	return der
}

// trusted is the entry of a trusted root.
func (f *fakeCT) trusted(from time.Time) *trustpb.TransparencyLogInstance {
	id := sha256.Sum256(f.der())
	return &trustpb.TransparencyLogInstance{
		BaseUrl: "https://ct.example.com", HashAlgorithm: commonpb.HashAlgorithm_SHA2_256, LogId: &commonpb.LogId{KeyId: id[:]},
		PublicKey: &commonpb.PublicKey{
			RawBytes: f.der(), KeyDetails: commonpb.PublicKeyDetails_PKIX_ECDSA_P256_SHA_256,
			ValidFor: &commonpb.TimeRange{Start: timestamppb.New(from)},
		},
	}
}

// promise is the extension of a certificate that was issued without it.
func (f *fakeCT) promise(without *x509.Certificate, issuer *x509.Certificate, at time.Time) pkix.Extension {
	f.t.Helper()
	entry := ct.LogEntry{Leaf: ct.MerkleTreeLeaf{
		Version: ct.V1, LeafType: ct.TimestampedEntryLeafType,
		TimestampedEntry: &ct.TimestampedEntry{
			EntryType: ct.PrecertLogEntryType, Timestamp: uint64(at.UnixMilli()),
			PrecertEntry: &ct.PreCert{IssuerKeyHash: sha256.Sum256(issuer.RawSubjectPublicKeyInfo), TBSCertificate: without.RawTBSCertificate},
		},
	}}
	promise := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: sha256.Sum256(f.der())}, Timestamp: uint64(at.UnixMilli())}
	data, err := ct.SerializeSCTSignatureInput(promise, entry)
	if err != nil {
		f.t.Fatal(err)
	}
	digest := sha256.Sum256(data)
	signature, err := ecdsa.SignASN1(rand.Reader, f.key, digest[:])
	if err != nil {
		f.t.Fatal(err)
	}
	promise.Signature = ct.DigitallySigned{
		Algorithm: cttls.SignatureAndHashAlgorithm{Hash: cttls.SHA256, Signature: cttls.ECDSA}, Signature: signature,
	}
	list, err := x509util.MarshalSCTsIntoSCTList([]*ct.SignedCertificateTimestamp{&promise})
	if err != nil {
		f.t.Fatal(err)
	}
	value, err := cttls.Marshal(*list)
	if err != nil {
		f.t.Fatal(err)
	}
	octets, err := asn1.Marshal(value)
	if err != nil {
		f.t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: octets}
}

// TestCertificateTransparency holds that where the trusted root has certificate
// transparency logs, nothing is signed with a certificate that none of them has
// promised to list.
func TestCertificateTransparency(t *testing.T) {
	log := &fakeCT{t: t, key: newKey(t)}
	begun, now := time.Now().Add(-time.Hour), time.Now()
	for name, tt := range map[string]struct {
		roots   []*trustpb.TransparencyLogInstance
		promise func(without, issuer *x509.Certificate) pkix.Extension // none where nil
		want    string                                                 // what it is refused for
	}{
		"promised": {[]*trustpb.TransparencyLogInstance{log.trusted(begun)}, func(c, by *x509.Certificate) pkix.Extension { return log.promise(c, by, now) }, ""},
		"by one of two": {[]*trustpb.TransparencyLogInstance{(&fakeCT{t, newKey(t)}).trusted(begun), log.trusted(begun)},
			func(c, by *x509.Certificate) pkix.Extension { return log.promise(c, by, now) }, ""},
		"no log in the root":            {nil, nil, ""},
		"no log in the root, a promise": {nil, func(c, by *x509.Certificate) pkix.Extension { return log.promise(c, by, now) }, ""},
		"no promise":                    {[]*trustpb.TransparencyLogInstance{log.trusted(begun)}, nil, "no signed certificate timestamp"},
		"of another log": {[]*trustpb.TransparencyLogInstance{(&fakeCT{t, newKey(t)}).trusted(begun)},
			func(c, by *x509.Certificate) pkix.Extension { return log.promise(c, by, now) }, "does not have"},
		"of another certificate": {[]*trustpb.TransparencyLogInstance{log.trusted(begun)},
			func(_, by *x509.Certificate) pkix.Extension { return log.promise(by, by, now) }, "signed certificate timestamp: failed to verify"},
		"of another issuer": {[]*trustpb.TransparencyLogInstance{log.trusted(begun)},
			func(c, _ *x509.Certificate) pkix.Extension { return log.promise(c, c, now) }, "signed certificate timestamp: failed to verify"},
		"before the key": {[]*trustpb.TransparencyLogInstance{log.trusted(now)},
			func(c, by *x509.Certificate) pkix.Extension { return log.promise(c, by, now.Add(-time.Minute)) }, "was not trusted"},
		"no list": {[]*trustpb.TransparencyLogInstance{log.trusted(begun)}, func(_, _ *x509.Certificate) pkix.Extension {
			return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: []byte{4, 2, 0, 9}}
		}, "SCT"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServices(t)
			s.o.Trusted.Ctlogs = tt.roots
			s.fulcio.promise = tt.promise
			_, signer, err := s.sign(t)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				root, err := signer.Trusted()
				if err != nil || len(root.GetCtlogs()) != len(tt.roots) {
					t.Errorf("readers are told of %d logs, not %d, %v", len(root.GetCtlogs()), len(tt.roots), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestCTLogsThatAreNone refuses to start with a trusted root whose logs cannot be
// checked by.
func TestCTLogsThatAreNone(t *testing.T) {
	for name, change := range map[string]func(*trustpb.TransparencyLogInstance){
		"no key":      func(l *trustpb.TransparencyLogInstance) { l.PublicKey = nil },
		"no id":       func(l *trustpb.TransparencyLogInstance) { l.LogId = nil },
		"another id":  func(l *trustpb.TransparencyLogInstance) { l.LogId.KeyId[0] ^= 1 },
		"no such key": func(l *trustpb.TransparencyLogInstance) { l.PublicKey.RawBytes = l.PublicKey.RawBytes[1:] },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServices(t)
			log := (&fakeCT{t, newKey(t)}).trusted(time.Now())
			change(log)
			s.o.Trusted.Ctlogs = []*trustpb.TransparencyLogInstance{log}
			if _, err := sign.Open(t.Context(), s.o); err == nil || !strings.Contains(err.Error(), "certificate transparency") {
				t.Error(err)
			}
		})
	}
}
