package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Limits on a credential helper.
const (
	helperTimeout = 20 * time.Second
	maxAnswer     = 64 << 10 // bytes
)

// notFound is what helpers print when they have no login for a registry.
const notFound = "credentials not found in native keychain"

// A helper is a program docker-credential-NAME of the host's.
type helper struct {
	program string
	server  string // as the program knows it
}

// asking is the helper, to be asked for a registry.
func (h helper) asking(registry string) helper {
	h.server = registry
	if registry == DockerHub {
		h.server = "https://index.docker.io/v1/"
	}
	return h
}

// get asks for the login. That the helper has none is no error.
func (h helper) get(ctx context.Context) (l Login, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+h.program, "get") //nolint:gosec // the admin's file names it
	cmd.Stdin = strings.NewReader(h.server)
	out := limited{stop: cancel}
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if strings.TrimSpace(out.text.String()) == notFound {
			return Login{}, false, nil
		}
		// What it printed may hold secrets.
		return Login{}, false, fmt.Errorf("credential helper %s: %w", h.program, err)
	}
	var answer struct{ Username, Secret string }
	if out.full || json.Unmarshal(out.text.Bytes(), &answer) != nil {
		return Login{}, false, fmt.Errorf("credential helper %s: its answer makes no sense", h.program)
	}
	l = Login{User: answer.Username, Password: answer.Secret}
	if answer.Username == "<token>" {
		l = Login{IdentityToken: answer.Secret}
	}
	if err := l.check(); err != nil {
		return Login{}, false, fmt.Errorf("credential helper %s: %w", h.program, err)
	}
	return l, !l.Anonymous(), nil
}

// limited keeps a program's output to a bound, and stops the program at it.
type limited struct {
	text bytes.Buffer // not embedded: its ReadFrom knows no bound
	full bool
	stop func()
}

func (l *limited) Write(p []byte) (int, error) {
	if l.text.Len()+len(p) > maxAnswer {
		l.full = true
		l.stop()
		return 0, errors.New("too long an answer")
	}
	return l.text.Write(p)
}
