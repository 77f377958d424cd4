// Package fields is a stand-in: log field names; no field is deprecated.
package fields

const (
	HTTPStatusCode = "status"
	DurationS      = "duration_s"
)

type Deprecation struct{ Standard string }

var (
	Deprecated     = map[string]Deprecation{}
	VariantVersion = map[string]int{}
)
