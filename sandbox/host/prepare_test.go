package host

import (
	"errors"
	"strings"
	"testing"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
)

// TestVariablesThatStandForTooMuch: a payload of a few megabytes must not become
// terabytes in this daemon.
func TestVariablesThatStandForTooMuch(t *testing.T) {
	job := func(refs int) *executor.Job {
		return &executor.Job{
			ID: 7, Git: executor.GitInfo{RepoURL: "https://gitlab.example.com:8443/group/project.git"}, Image: executor.Image{Name: "alpine"},
			Variables: []executor.Variable{{Key: "A", Value: strings.Repeat("a", 1<<20)}, {Key: "B", Value: strings.Repeat("$A", refs)}},
		}
	}
	h := serviceHost(0)
	if err := h.accept(job(2)); err != nil {
		t.Error(err)
	}
	err := h.accept(job(1 << 20))
	if user, ok := errors.AsType[*sandbox.UserError](err); !ok || user.Hint == "" {
		t.Errorf("%v, want an error of the job's", err)
	}
}
