package verifytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
)

// A Log is a transparency log in the manner of Rekor v2, each entry of which is
// the first.
type Log struct {
	a    *Authority
	name string
	key  *ecdsa.PrivateKey
}

// NewLog makes a log.
func (a *Authority) NewLog(name string) *Log {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	a.check(err)
	return &Log{a, name, key}
}

func (l *Log) public() []byte {
	der, err := x509.MarshalPKIXPublicKey(&l.key.PublicKey)
	l.a.check(err)
	return der
}

// Trusted is the log as it stands in a trusted root, from 2026 on.
func (l *Log) Trusted() any { return l.TrustedIn("2026-01-01T00:00:00Z", "") }

// TrustedIn is the log with a window for its key; no end means none.
func (l *Log) TrustedIn(start, end string) any {
	valid := map[string]any{"start": start}
	if end != "" {
		valid["end"] = end
	}
	id := sha256.Sum256(l.public())
	return map[string]any{
		"baseUrl": "https://" + l.name, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": b64(id[:])},
		"publicKey": map[string]any{
			"rawBytes": b64(l.public()), "keyDetails": "PKIX_ECDSA_P256_SHA_256",
			"validFor": valid,
		},
	}
}

// Entry logs what was signed.
func (l *Log) Entry(s Signed) map[string]any {
	l.a.t.Helper()
	digest := sha256.Sum256(pae(s.PayloadType, s.Payload))
	body := l.a.json(map[string]any{
		"apiVersion": "0.0.2", "kind": "hashedrekord",
		"spec": map[string]any{"hashedRekordV002": map[string]any{
			"data": map[string]any{"algorithm": "SHA2_256", "digest": b64(digest[:])},
			"signature": map[string]any{
				"content": b64(s.Signature),
				"verifier": map[string]any{
					"keyDetails": "PKIX_ECDSA_P256_SHA_256", "x509Certificate": map[string]any{"rawBytes": b64(s.Leaf.Raw)},
				},
			},
		}},
	})
	root := sha256.Sum256(append([]byte{0}, body...))
	id := sha256.Sum256(l.public())
	text := fmt.Sprintf("%s\n1\n%s\n", l.name, b64(root[:]))
	sum := sha256.Sum256([]byte(text))
	sig, err := l.key.Sign(rand.Reader, sum[:], crypto.SHA256)
	l.a.check(err)
	return map[string]any{
		"logIndex": "0", "logId": map[string]any{"keyId": b64(id[:])},
		"kindVersion": map[string]any{"kind": "hashedrekord", "version": "0.0.2"},
		"inclusionProof": map[string]any{
			"logIndex": "0", "treeSize": "1", "rootHash": b64(root[:]), "hashes": []any{},
			"checkpoint": map[string]any{"envelope": fmt.Sprintf("%s\n— %s %s\n", text, l.name, b64(append(id[:4], sig...)))},
		},
		"canonicalizedBody": b64(body),
	}
}
