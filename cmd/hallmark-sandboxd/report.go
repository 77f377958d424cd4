package main

import (
	"errors"
	"fmt"
	"io"

	"hallmark.build/config"
)

// A hintedError tells what the reader can do.
type hintedError struct {
	error
	hint string
}

func (e *hintedError) Unwrap() error { return e.error }

// report prints an error, all of a configuration's if it is one, with hints.
func report(w io.Writer, err error) {
	hint := ""
	if e, ok := errors.AsType[*hintedError](err); ok {
		hint = e.hint
	}
	if e, ok := errors.AsType[*config.Error](err); ok {
		hint = e.Hint
	}
	if all, ok := errors.AsType[config.Errors](err); ok {
		for _, e := range all {
			tell(w, e, e.Hint)
		}
		return
	}
	tell(w, err, hint)
}

func tell(w io.Writer, err error, hint string) {
	_, _ = fmt.Fprintf(w, "error: %v\n", err)
	if hint != "" {
		_, _ = fmt.Fprintf(w, "hint: %s\n", hint)
	}
}
