package verify

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// witnessesOf are the names of those among the known who have cosigned a
// checkpoint. A signature that only looks like one of them proves that somebody
// has changed something.
func witnessesOf(envelope string, known []note.Verifier) ([]string, error) {
	opened, err := note.Open([]byte(envelope), note.VerifierList(known...))
	if nobody, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		opened, err = nobody.Note, nil
	}
	if bad, ok := errors.AsType[*note.InvalidSignatureError](err); ok {
		return nil, fmt.Errorf("the checkpoint was not signed by witness %s as it says", bad.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("the checkpoint's signatures: %w", err)
	}
	var names []string
	for _, signature := range opened.Sigs {
		names = append(names, signature.Name)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
