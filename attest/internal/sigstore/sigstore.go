// Package sigstore has the parts of Sigstore's formats that who signs and who reads must see alike.
package sigstore

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strconv"
)

// PAE is DSSE's pre-authentication encoding: what is signed of an envelope.
func PAE(payloadType string, payload []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(payload) + len(payloadType) + 64)
	b.WriteString("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	b.Write(payload)
	return b.Bytes()
}

// JobClaim finds an extension that a Fulcio writes into a certificate for a CI
// job's token alone: of the job's source, build configuration or run. It is ""
// if there is none.
func JobClaim(leaf *x509.Certificate) string {
	fulcio := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}
	last := len(fulcio)
	for _, ext := range leaf.Extensions {
		if len(ext.Id) == last+1 && ext.Id[:last].Equal(fulcio) &&
			slices.Contains([]int{2, 3, 4, 5, 6, 9, 10, 12, 13, 14, 15, 18, 19, 20, 21}, ext.Id[last]) {
			return ext.Id.String()
		}
	}
	return ""
}
