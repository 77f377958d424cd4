package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"
)

// A Digest is the SHA-256 of an artifact.
type Digest [sha256.Size]byte

// String is the digest as "sha256:" with lower-case hex.
func (d Digest) String() string { return "sha256:" + d.Hex() }

// Hex is the digest in lower-case hex.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// ParseDigest reads what [Digest.String] writes.
func ParseDigest(text string) (Digest, error) {
	digits, ok := strings.CutPrefix(text, "sha256:")
	if !ok || !isHex(digits, sha256.Size) {
		return Digest{}, fmt.Errorf("digest %q: want sha256: and 64 lower-case hex digits", text)
	}
	var d Digest
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("digest %q: %w", text, err)
	}
	return d, nil
}

// Hash reads r to its end.
func Hash(r io.Reader) (Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return Digest{}, err
	}
	return Digest(h.Sum(nil)), nil
}

// A Status is how a check ended. The zero Status counts as NotChecked.
type Status string

// The ways a check can end.
const (
	Pass       Status = "PASS"
	Fail       Status = "FAIL"
	NotChecked Status = "NOT CHECKED"
)

// A Check is one named question with its answer.
type Check struct {
	Name     string
	Status   Status
	Detail   string   // one line
	Evidence []string // what in particular, bounded
	// Required says that there is no acceptance without a Pass. A check that
	// is not required can still Fail, and then there is none either.
	Required bool
	// PolicyLine is the line of the policy that a Fail is about; 0 if none.
	PolicyLine int
}

// An Outcome is a verdict in one word. The zero Outcome is a refusal.
type Outcome uint8

// The outcomes.
const (
	Refused   Outcome = iota // evidence was judged and does not suffice
	Undecided                // nothing could be judged
	Verified                 // one bundle passed every check that is asked for
)

func (o Outcome) String() string {
	switch o {
	case Verified:
		return "verified"
	case Undecided:
		return "undecided"
	}
	return "refused"
}

// A Verdict says whether an artifact is attested as the policy wants. The zero
// Verdict is a refusal, and only this package makes one that is not.
type Verdict struct {
	Name              string // of the artifact, for people; nothing is compared with it
	Digest            Digest
	PolicyDigest      string // lower-case hex
	TrustedRootDigest string // lower-case hex

	Bundles      int    // how many were given
	Bundle       int    // which one the checks are about, from 1; 0: none
	BundleDigest string // its SHA-256, lower-case hex

	Checks []Check // all of them in their fixed order, or none
	Claim  *Claim  // what was signed; nil unless the signature holds
	Reason string  // why nothing could be judged
	Hint   string  // what the reader can do about Reason

	outcome Outcome
}

// Outcome is the verdict in one word.
func (v Verdict) Outcome() Outcome { return v.outcome }

// Verified reports whether the artifact is accepted.
func (v Verdict) Verified() bool { return v.outcome == Verified }

// A Claim is what the signed statement says, for people. It is the authority's
// word; which parts of it a tenant chose is told with the build type.
type Claim struct {
	BuilderID    string
	Issuer       string
	Project      string
	Source       string
	Ref          string
	Commit       string
	JobID        string
	JobName      string
	InvocationID string
	Result       string
	SignedAt     time.Time
	StartedOn    time.Time
	FinishedOn   time.Time
	Subjects     int
	Inputs       int
}

// names of all checks, in the order in which they are made and told.
func checkNames() []string {
	return []string{
		"bundle", "signature", "timestamp", "certificate", "log",
		"statement", "builder", "subject", "parameters", "source", "ref", "project",
		"result", "completeness", "images", "inputs", "time",
	}
}

// settle is the one place where an artifact is accepted: every check was made,
// and each passed or was neither asked for nor failed.
func settle(v Verdict) Verdict {
	names := checkNames()
	if len(v.Checks) != len(names) {
		v.outcome = Refused
		return v
	}
	for i, c := range v.Checks {
		if c.Name != names[i] {
			v.outcome = Refused
			return v
		}
		switch {
		case c.Status == Pass:
		case c.Status == NotChecked && !c.Required:
		default:
			v.outcome = Refused
			return v
		}
	}
	v.outcome = Verified
	return v
}

func isHex(s string, size int) bool {
	if len(s) != 2*size {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
