// Package moa is a stand-in: it holds no expression language. A template
// without "${{" is a literal; one with it is refused, so that a job that needs
// input interpolation fails loudly instead of running with unexpanded text.
package moa

import (
	"errors"
	"strings"

	"gitlab.com/gitlab-org/moa/ast"
)

var errNoTemplates = errors.New("moa stand-in: ${{ }} interpolation is not available in this build")

// ParseTemplate accepts literal text only.
func ParseTemplate(text string) (ast.Expr, error) {
	if strings.Contains(text, "${{") {
		return nil, errNoTemplates
	}
	return &ast.Literal{Text: text}, nil
}

// EscapeTemplate would escape "${{"; nothing in this build evaluates templates.
func EscapeTemplate(s string) string { return s }
