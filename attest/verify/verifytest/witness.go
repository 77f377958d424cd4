package verifytest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"

	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// A Witness cosigns checkpoints of logs, whatever they say.
type Witness struct {
	a    *Authority
	name string
	key  ed25519.PrivateKey
}

// NewWitness makes a witness whose key is made of one byte, so that a document can
// have it: the example policy's is of 1.
func (a *Authority) NewWitness(name string, seed byte) *Witness {
	return &Witness{a, name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

// Key is what readers know the witness by.
func (w *Witness) Key() string {
	key := append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)
	hash := sha256.Sum256(append([]byte(w.name+"\n"), key...))
	return fmt.Sprintf("%s+%x+%s", w.name, hash[:4], b64(key))
}

// Cosign adds the witness's signature to the checkpoint of a log's entry.
func (w *Witness) Cosign(entry map[string]any) map[string]any {
	w.a.t.Helper()
	checkpoint := At(entry, "inclusionProof", "checkpoint")
	envelope := checkpoint["envelope"].(string)
	checkpoint["envelope"] = envelope + w.Line(envelope)
	return entry
}

// Line is the witness's signature of a checkpoint.
func (w *Witness) Line(envelope string) string {
	w.a.t.Helper()
	signer, err := cosignature.NewSignerForCosignatureV1("PRIVATE+KEY+" + w.name + "+00000000+" + b64(append([]byte{4}, w.key.Seed()...)))
	w.a.check(err)
	text, _, _ := strings.Cut(envelope, "\n\n")
	signed, err := note.Sign(&note.Note{Text: text + "\n"}, signer)
	w.a.check(err)
	_, line, _ := strings.Cut(string(signed), "\n\n")
	return line
}
