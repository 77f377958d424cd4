package main

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"hallmark.build/sandbox/host"
)

// TestInWords tells what a host asks again about, what it may ask about later,
// and what is final.
func TestInWords(t *testing.T) {
	const again, later, final = "again", "later", "final"
	for code, want := range map[codes.Code]string{
		codes.Unavailable: again, codes.DeadlineExceeded: again,
		codes.Unauthenticated: later, codes.Internal: later, codes.Unknown: later,
		codes.PermissionDenied: final, codes.FailedPrecondition: final, codes.InvalidArgument: final, codes.NotFound: final, codes.ResourceExhausted: final,
	} {
		err, have := inWords(status.Error(code, "no")), final
		if _, ok := errors.AsType[*host.UnavailableError](err); ok {
			have = again
		}
		if _, ok := errors.AsType[*host.UndecidedError](err); ok {
			have = later
		}
		if have != want {
			t.Errorf("%v is %s, want %s", code, have, want)
		}
	}
}
