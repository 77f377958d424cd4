package policy

import (
	"encoding/base64"
	"errors"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// A StepKind is what one request does in an upload of an object in blocks.
type StepKind string

const (
	StepBegin  StepKind = "begin"  // S3: an upload of its own
	StepBlock  StepKind = "block"  // one block, which nobody sees until it is committed
	StepCommit StepKind = "commit" // the list of blocks that are the object from then on
	StepAbort  StepKind = "abort"  // S3: forget the parts
)

// A Step is one request of such an upload. The zero Step is a request for the
// object as a whole.
type Step struct {
	Kind StepKind
	// Upload is S3's name of the upload. Azure has none: there blocks belong to
	// the object.
	Upload string
	// Block is Azure's block id, or S3's part number.
	Block string
}

// maxParts is S3's own bound.
const maxParts = 10_000

// parseStep reads a request's method and query, and returns the query without
// what makes it a step. What is neither one step nor none is refused.
func parseStep(method, rawQuery string) (Step, string, error) {
	values, err := url.ParseQuery(rawQuery)
	if err != nil {
		return Step{}, "", errors.New("the query cannot be parsed")
	}
	var said []string
	for _, name := range []string{"blockid", "comp", "partNumber", "uploadId", "uploads"} {
		if len(values[name]) > 1 {
			return Step{}, "", errors.New("the query says a thing twice")
		}
		if values.Has(name) {
			said = append(said, name)
		}
	}
	step := Step{Upload: values.Get("uploadId"), Block: values.Get("partNumber")}
	switch strings.Join(append(said, method), " ") {
	case "comp PUT":
		step.Kind = map[string]StepKind{"blocklist": StepCommit}[values.Get("comp")]
	case "blockid comp PUT":
		step.Kind = map[string]StepKind{"block": StepBlock}[values.Get("comp")]
		step.Block = values.Get("blockid")
	case "uploads POST":
		step.Kind = StepBegin
	case "partNumber uploadId PUT":
		step.Kind = StepBlock
	case "uploadId POST":
		step.Kind = StepCommit
	case "uploadId DELETE":
		step.Kind = StepAbort
	}
	switch {
	case len(said) == 0:
		return Step{}, rawQuery, nil
	case step.Kind == "" || values.Get("uploads") != "" || values.Has("uploadId") && step.Upload == "" || !step.proper():
		return Step{}, "", errors.New("the query is not that of one step of an upload in blocks")
	}
	for _, name := range said {
		values.Del(name)
	}
	return step, values.Encode(), nil
}

var uploadID = regexp.MustCompile(`^[A-Za-z0-9._~-]{1,1000}$`)

// UploadID reports whether S3 could call an upload so.
func UploadID(s string) bool { return uploadID.MatchString(s) }

// proper reports whether upload and block have the forms that they have with
// those who make them.
func (s Step) proper() bool {
	switch {
	case s.Upload != "" && !uploadID.MatchString(s.Upload):
		return false
	case s.Kind == StepAbort:
		return s.Upload != ""
	case s.Kind != StepBlock:
		return true
	case s.Upload != "":
		n, err := strconv.Atoi(s.Block)
		return err == nil && n >= 1 && n <= maxParts && strconv.Itoa(n) == s.Block
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(s.Block)
	return err == nil && len(raw) >= 1 && len(raw) <= 64 && base64.StdEncoding.EncodeToString(raw) == s.Block
}
