// Package ast is a stand-in with the two node kinds the runner names.
package ast

// Expr is a syntax tree node.
type Expr interface {
	Walk(v Visitor) (Expr, error)
}

// Visitor is called before and after a node's children.
type Visitor interface {
	Enter(e Expr) (Visitor, error)
	Exit(e Expr) (Expr, error)
}

// Literal is plain text.
type Literal struct{ Text string }

// Template is an interpolation; the stand-in's parser never makes one.
type Template struct{}

func (l *Literal) Walk(v Visitor) (Expr, error)  { return walk(l, v) }
func (t *Template) Walk(v Visitor) (Expr, error) { return walk(t, v) }

func walk(e Expr, v Visitor) (Expr, error) {
	inner, err := v.Enter(e)
	if err != nil {
		return nil, err
	}
	if inner == nil {
		return e, nil
	}
	return inner.Exit(e)
}
