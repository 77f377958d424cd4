// Package oidc is a stand-in.
package oidc

type Option struct{}

type Source struct{}

func WithSkipIfUnsupportedCloud(bool) Option { return Option{} }
func NewSource(...Option) *Source            { return &Source{} }
