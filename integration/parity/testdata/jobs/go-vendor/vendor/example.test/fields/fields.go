// Package fields splits text.
package fields

import "strings"

// Of are the fields of a text.
func Of(s string) []string { return strings.Fields(s) }
