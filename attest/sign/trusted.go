package sign

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	commonpb "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TrustedRootMediaType is the media type of what [EncodeTrustedRoot] writes.
const TrustedRootMediaType = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"

const maxTrustedRoot = 4 << 20

// ParseTrustedRoot reads a Sigstore trusted root, strictly.
func ParseTrustedRoot(text []byte) (*trustpb.TrustedRoot, error) {
	if len(text) > maxTrustedRoot {
		return nil, fmt.Errorf("trusted root: more than %d MiB", maxTrustedRoot>>20)
	}
	var root trustpb.TrustedRoot
	if err := protojson.Unmarshal(text, &root); err != nil {
		return nil, fmt.Errorf("trusted root: %w", err)
	}
	for _, list := range [][]*trustpb.CertificateAuthority{root.GetCertificateAuthorities(), root.GetTimestampAuthorities()} {
		if _, err := parseAuthorities(list); err != nil {
			return nil, fmt.Errorf("trusted root: %w", err)
		}
	}
	return &root, nil
}

// EncodeTrustedRoot writes a trusted root as verifiers read it.
func EncodeTrustedRoot(root *trustpb.TrustedRoot) ([]byte, error) { return encode(root) }

// trustedRoot is what verifiers must be given to believe these keys: each
// within its window. Of outside services it has what the configuration has.
func trustedRoot(o Options, all []Generation) *trustpb.TrustedRoot {
	out := &trustpb.TrustedRoot{MediaType: TrustedRootMediaType}
	for _, g := range all {
		switch {
		case !g.Trusted():
		case g.Role == RoleCA:
			out.CertificateAuthorities = append(out.CertificateAuthorities, authorityOf(o.Issuer, g))
		case g.Role == RoleTimestamp:
			out.TimestampAuthorities = append(out.TimestampAuthorities, authorityOf(o.Issuer, g))
		}
	}
	if o.Fulcio != nil {
		out.CertificateAuthorities = append(out.CertificateAuthorities, o.Trusted.GetCertificateAuthorities()...)
		out.Ctlogs = o.Trusted.GetCtlogs()
	}
	if o.Timestamp != nil {
		out.TimestampAuthorities = append(out.TimestampAuthorities, o.Trusted.GetTimestampAuthorities()...)
	}
	return out
}

func authorityOf(uri string, g Generation) *trustpb.CertificateAuthority {
	top := g.chain[len(g.chain)-1]
	out := &trustpb.CertificateAuthority{
		Subject:   &commonpb.DistinguishedName{Organization: organization, CommonName: top.Subject.CommonName},
		Uri:       uri,
		CertChain: &commonpb.X509CertificateChain{},
		ValidFor:  &commonpb.TimeRange{Start: timestamppb.New(g.From), End: timestamppb.New(g.Until)},
	}
	for _, c := range g.chain {
		out.CertChain.Certificates = append(out.CertChain.Certificates, &commonpb.X509Certificate{RawBytes: c.Raw})
	}
	return out
}

// An authority is one entry of a trusted root.
type authority struct {
	chain       []*x509.Certificate // the root last
	from, until time.Time           // zero until: no end
}

func parseAuthorities(list []*trustpb.CertificateAuthority) ([]authority, error) {
	var out []authority
	for i, in := range list {
		a, err := parseAuthority(in)
		if err != nil {
			return nil, fmt.Errorf("authority %d: %w", i, err)
		}
		out = append(out, a)
	}
	return out, nil
}

func parseAuthority(in *trustpb.CertificateAuthority) (authority, error) {
	var a authority
	for _, raw := range in.GetCertChain().GetCertificates() {
		c, err := x509.ParseCertificate(raw.GetRawBytes())
		if err != nil {
			return authority{}, err
		}
		a.chain = append(a.chain, c)
	}
	if len(a.chain) == 0 {
		return authority{}, errors.New("no certificate")
	}
	if start := in.GetValidFor().GetStart(); start != nil {
		a.from = start.AsTime()
	}
	if end := in.GetValidFor().GetEnd(); end != nil {
		a.until = end.AsTime()
	}
	return a, nil
}

func (a authority) trustedAt(t time.Time) bool {
	return !t.Before(a.from) && (a.until.IsZero() || !t.After(a.until))
}

func (a authority) root() *x509.Certificate { return a.chain[len(a.chain)-1] }

// A verifier checks what was signed, here or elsewhere, as readers will.
type verifier struct {
	certificates, timestamps []authority
	ctLogs                   []ctLog
}

func newVerifier(root *trustpb.TrustedRoot) (*verifier, error) {
	cas, err := parseAuthorities(root.GetCertificateAuthorities())
	if err != nil {
		return nil, fmt.Errorf("certificate authorities: %w", err)
	}
	tsas, err := parseAuthorities(root.GetTimestampAuthorities())
	if err != nil {
		return nil, fmt.Errorf("timestamp authorities: %w", err)
	}
	logs, err := parseCTLogs(root.GetCtlogs())
	if err != nil {
		return nil, fmt.Errorf("certificate transparency: %w", err)
	}
	return &verifier{cas, tsas, logs}, nil
}

// certificate wants a chain for code signing to an authority that is trusted at
// that time, and answers it.
func (v *verifier) certificate(leaf *x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	err := fmt.Errorf("no certificate authority in the trusted root is trusted at %s", at.Format(time.RFC3339))
	for _, a := range v.certificates {
		if !a.trustedAt(at) {
			continue
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(a.root())
		for _, c := range a.chain[:len(a.chain)-1] {
			between.AddCert(c)
		}
		chains, bad := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		})
		if err = bad; err == nil {
			return chains[0], nil
		}
	}
	return nil, err
}

// timestamp wants a token over the signature from an authority that was trusted
// at the token's time, which it answers.
func (v *verifier) timestamp(token, signature []byte, o verification.VerifyOpts) (time.Time, error) {
	err := errors.New("no timestamp authority in the trusted root")
	for i := len(v.timestamps) - 1; i >= 0; i-- { // the newest is the likeliest
		a := v.timestamps[i]
		o.Roots, o.Intermediates, o.TSACertificate = []*x509.Certificate{a.root()}, a.chain[:len(a.chain)-1], nil
		if !a.chain[0].IsCA {
			o.TSACertificate = a.chain[0]
		}
		stamp, bad := verification.VerifyTimestampResponse(token, bytes.NewReader(signature), o)
		switch {
		case bad != nil:
			err = bad
		case !a.trustedAt(stamp.Time):
			err = fmt.Errorf("its authority is not trusted at %s", stamp.Time.UTC().Format(time.RFC3339))
		default:
			return stamp.Time.UTC(), nil
		}
	}
	return time.Time{}, err
}
