package tlog

import (
	"context"
	"errors"

	trustpb "github.com/sigstore/protobuf-specs/gen/pb-go/trustroot/v1"
)

// A Log is where signatures are entered. It is safe for concurrent use.
type Log interface {
	// Enter returns the bundle with the proof that its signature is in the
	// log. The same draft has the same entry however often it is entered, also
	// after a crash. It waits for the proof until ctx ends; what has been entered
	// by then stays entered.
	Enter(ctx context.Context, draft []byte) ([]byte, error)
	// Trusted is what a trusted root must say of the log, and of those that it
	// replaces.
	Trusted() []*trustpb.TransparencyLogInstance
	// Close waits for what is being entered. It is idempotent.
	Close(ctx context.Context) error
}

// ErrContradiction means that the log, or the answer of one, contradicts what it
// said before or what it was given. Trying again does not help.
var ErrContradiction = errors.New("the log contradicts itself")
