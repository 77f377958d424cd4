// Package api is a stand-in: the wrapper's states; callbacks do nothing.
package api

import (
	"context"
	"errors"

	"github.com/sirupsen/logrus"
)

var ErrProcessNotInitialized = errors.New("process not initialized")

type Status int

const (
	StatusUnknown Status = iota
	StatusRunning
	StatusInShutdown
	StatusStopped
)

func (s Status) String() string {
	return [...]string{"unknown", "running", "in shutdown", "stopped"}[s]
}

type ShutdownCallback interface{ Run(context.Context) }

type ShutdownCallbackDef interface {
	URL() string
	Method() string
}

type InitGracefulShutdownRequest interface{ ShutdownCallbackDef() ShutdownCallbackDef }

type inert struct{}

func (inert) Run(context.Context) {}

func NewShutdownCallback(logrus.FieldLogger, ShutdownCallbackDef) ShutdownCallback { return inert{} }
