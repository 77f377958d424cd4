// Package client is a stand-in: the request and status types.
package client

import "time"

type State int

const (
	StateUnspecified State = iota
	StateRunning
	StateSuccess
	StateFailure
	StateCancelled
)

func (s State) String() string {
	return [...]string{"unspecified", "running", "success", "failure", "cancelled"}[s]
}

type ErrorKind int

const (
	ErrorNone ErrorKind = iota
	ErrorUnknown
	ErrorInternal
	ErrorStepFailure
	ErrorCancelled
	ErrorTimeout
)

type Status struct {
	Id        string
	Message   string
	State     State
	ErrorKind ErrorKind
}

type Variable struct {
	Key, Value   string
	File, Masked bool
}

type RunRequest struct {
	Id                string
	Timeout           *time.Duration
	WorkDir, BuildDir string
	Env               map[string]string
	Variables         []Variable
	Steps             string
}
