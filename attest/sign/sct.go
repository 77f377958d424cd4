package sign

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	ct "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/certificate-transparency-go/x509util"
	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
)

// A ctLog is a certificate transparency log of a trusted root.
type ctLog struct {
	id          [sha256.Size]byte // hash of its key
	key         *ct.SignatureVerifier
	from, until time.Time // zero until: no end
}

func parseCTLogs(list []*trustpb.TransparencyLogInstance) ([]ctLog, error) {
	var out []ctLog
	for i, in := range list {
		l, err := parseCTLog(in)
		if err != nil {
			return nil, fmt.Errorf("log %d (%s): %w", i, in.GetBaseUrl(), err)
		}
		out = append(out, l)
	}
	return out, nil
}

func parseCTLog(in *trustpb.TransparencyLogInstance) (ctLog, error) {
	l := ctLog{}
	key, err := x509.ParsePKIXPublicKey(in.GetPublicKey().GetRawBytes())
	if err != nil {
		return ctLog{}, err
	}
	if l.id = sha256.Sum256(in.GetPublicKey().GetRawBytes()); string(l.id[:]) != string(in.GetLogId().GetKeyId()) {
		return ctLog{}, errors.New("its id is not the hash of its key")
	}
	if l.key, err = ct.NewSignatureVerifier(key); err != nil {
		return ctLog{}, err
	}
	valid := in.GetPublicKey().GetValidFor()
	if start := valid.GetStart(); start != nil {
		l.from = start.AsTime()
	}
	if end := valid.GetEnd(); end != nil {
		l.until = end.AsTime()
	}
	return l, nil
}

// logged wants a log of the trusted root to have promised to list a certificate,
// which chain begins with. A root that has no such log demands nothing.
func (v *verifier) logged(chain []*x509.Certificate) error {
	if len(v.ctLogs) == 0 {
		return nil
	}
	if len(chain) < 2 {
		return errors.New("it is its own authority's")
	}
	leaf, err := ctx509.ParseCertificate(chain[0].Raw)
	if err != nil {
		return err
	}
	issuer, err := ctx509.ParseCertificate(chain[1].Raw)
	if err != nil {
		return err
	}
	promises, err := x509util.ParseSCTsFromSCTList(&leaf.SCTList)
	if err != nil {
		return err
	}
	err = errors.New("no signed certificate timestamp is in it, and the trusted root has certificate transparency logs")
	for _, p := range promises {
		if err = v.promised([]*ctx509.Certificate{leaf, issuer}, p); err == nil {
			return nil
		}
	}
	return err
}

// promised checks one signed certificate timestamp of the first of chain.
func (v *verifier) promised(chain []*ctx509.Certificate, p *ct.SignedCertificateTimestamp) error {
	at := ct.TimestampToTime(p.Timestamp).UTC()
	err := fmt.Errorf("its signed certificate timestamp is of log %x, which the trusted root does not have", p.LogID.KeyID)
	for _, l := range v.ctLogs {
		if l.id != p.LogID.KeyID {
			continue
		}
		if at.Before(l.from) || !l.until.IsZero() && at.After(l.until) {
			err = fmt.Errorf("its signed certificate timestamp is of %s, when the log's key was not trusted", at.Format(time.RFC3339))
			continue
		}
		entry, bad := ct.MerkleTreeLeafForEmbeddedSCT(chain, p.Timestamp)
		if bad == nil {
			bad = l.key.VerifySCTSignature(*p, ct.LogEntry{Leaf: *entry})
		}
		if bad == nil {
			return nil
		}
		err = fmt.Errorf("its signed certificate timestamp: %w", bad)
	}
	return err
}
