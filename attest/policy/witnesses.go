package policy

import (
	"encoding/base64"
	"fmt"
	"strings"

	cosignature "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"hallmark.build/config/tomlfile"
)

// WitnessKeys are the keys of the policy's witnesses.
func (p Policy) WitnessKeys() ([]note.Verifier, error) {
	var keys []note.Verifier
	for _, text := range p.Witnesses {
		key, err := cosignature.NewVerifierForCosignatureV1(text)
		if err != nil {
			return nil, fmt.Errorf("witness %.100q: %w", text, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// checkWitnesses wants keys of witnesses, as they publish them, and to be told how
// many are enough. A witness may have several keys, under its one name, and is one;
// under two names it would be two.
func (p *Policy) checkWitnesses(doc *tomlfile.Document) {
	if len(p.Witnesses) == 0 && !doc.Has("min_witnesses") {
		if doc.Has("witnesses") {
			missing(doc, "witnesses", "leave the key away to ask for none")
		}
		return
	}
	required(doc, "witnesses", p.Witnesses, `as witnesses = ["witness.example.com+bc070de6+BIqI…"]`)
	names, owners := map[string]bool{}, map[string]string{}
	for i, text := range p.Witnesses {
		key, err := cosignature.NewVerifierForCosignatureV1(text)
		if err != nil || !keyed(text, key) {
			doc.Report(at(doc, "witnesses", i), "the name, the key's hash and the key, as name+hash+key", "%.100q is no key of a witness", text)
			continue
		}
		bare := bareKey(text)
		if owner, ok := owners[bare]; ok && owner != key.Name() {
			doc.Report(at(doc, "witnesses", i), "", "%s and %s have the same key", owner, key.Name())
		}
		owners[bare], names[key.Name()] = key.Name(), true
	}
	if p.MinWitnesses < 1 || p.MinWitnesses > max(1, len(names)) {
		doc.Report("min_witnesses", "how many of them must have seen what a log published", "%d: want 1 to %d, as many as there are", p.MinWitnesses, max(1, len(names)))
	}
	if doc.Has("min_logs") && p.MinLogs == 0 {
		doc.Report("min_logs", "leave it away, or the witnesses", "0 asks for no log, and there are no witnesses without one")
	}
}

// keyed reports whether the hash in a key's text is that of the key: a text that was
// copied badly would accept nobody, and not say why. Keys of plain Ed25519 have
// another hash than their cosignatures.
func keyed(text string, key note.Verifier) bool {
	hash, _, _ := strings.Cut(text[len(key.Name())+1:], "+")
	if hash == fmt.Sprintf("%08x", key.KeyHash()) {
		return true
	}
	plain, err := note.NewVerifier(text)
	return err == nil && hash == fmt.Sprintf("%08x", plain.KeyHash())
}

// bareKey is a key without its name and its use.
func bareKey(text string) string {
	key, _ := base64.StdEncoding.DecodeString(text[strings.LastIndexByte(text, '+')+1:])
	return string(key[min(1, len(key)):])
}
