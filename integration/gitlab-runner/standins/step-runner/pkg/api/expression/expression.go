// Package expression is a stand-in over moa's: literals evaluate to themselves.
package expression

import (
	"errors"

	"gitlab.com/gitlab-org/moa/ast"
	"gitlab.com/gitlab-org/moa/value"
)

// Sensitive is the mark of a value that must not be interpolated.
const Sensitive uint16 = 1

type Input struct {
	Key   string
	Value value.Value
}

type Evaluator struct{}

func NewEvaluator(value.Value) (*Evaluator, error) { return &Evaluator{}, nil }

func (*Evaluator) Eval(_ string, e ast.Expr) (value.Value, error) {
	if l, ok := e.(*ast.Literal); ok {
		return value.String(l.Text), nil
	}
	return value.Null(), errors.New("step-runner stand-in: cannot evaluate")
}
