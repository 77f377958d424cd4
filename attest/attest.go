package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"hallmark.build/sandbox/record"
)

// The statement's fixed words.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://slsa.dev/provenance/v1"
	BuildType     = "https://hallmark.build/gitlab-job/v1"
	PayloadType   = "application/vnd.in-toto+json"
)

// Limits of statements.
const (
	MaxSubjects      = 1024      // what verifiers take in one statement
	MaxStatement     = 32 << 20  // bytes of one, so that verifiers take its bundle
	MaxAllStatements = 128 << 20 // bytes of all of one record: each part repeats the predicate
)

const timeFormat = "2006-01-02T15:04:05.000000Z"

// Facts are what the authority itself knows.
type Facts struct {
	BuilderID      string            // names the security mode; the signer's identity
	BuilderVersion map[string]string // versions of the trusted programs
	GitLabURL      string            // the GitLab that confirmed the job
}

// A Statement is one in-toto statement, ready to be signed. Only [Statements]
// makes one that is [Statement.Intact].
type Statement struct {
	JSON      []byte
	Subjects  []Subject
	BuilderID string

	seal [sha256.Size]byte
}

// A Subject is one output.
type Subject struct {
	Name   string
	SHA256 string // lower-case hex
}

// Intact reports whether the statement is as Statements made it. A signer
// signs nothing else.
func (s Statement) Intact() bool {
	return len(s.JSON) > 0 && s.seal == s.sum()
}

func (s Statement) sum() [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "hallmark statement\x00%d\x00%s", len(s.BuilderID), s.BuilderID)
	h.Write(s.JSON)
	return [sha256.Size]byte(h.Sum(nil))
}

// Statements builds the statements of a closed record, several if there are
// more than MaxSubjects subjects. A record that must not or cannot be attested
// gives a *Refusal.
func Statements(entries []record.Entry, facts Facts) ([]Statement, error) {
	if facts.BuilderID == "" {
		return nil, errors.New("attest: builder id is empty")
	}
	s, err := check(entries)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(facts.BuilderID, "/"+s.opened.Profile) {
		return nil, &Refusal{BuilderContradiction, 0, fmt.Sprintf("builder id %s is not of profile %s", facts.BuilderID, s.opened.Profile)}
	}
	all, refusal := subjects(s)
	if refusal != nil {
		return nil, refusal
	}
	return write(s, facts, all)
}

func write(s *story, facts Facts, all []Subject) ([]Statement, error) {
	p := predicateOf(s, facts)
	count := (len(all) + MaxSubjects - 1) / MaxSubjects
	digest := subjectsDigest(all)
	out := make([]Statement, 0, count)
	size := 0
	for i := range count {
		part := all[i*MaxSubjects : min(len(all), (i+1)*MaxSubjects)]
		if count > 1 {
			p.Part = &partOf{Part: i + 1, Parts: count, Subjects: len(all), SubjectsDigest: digest}
		}
		text, err := encode(statement{
			Type: StatementType, Subject: resources(part), PredicateType: PredicateType, Predicate: p,
		})
		if err != nil {
			return nil, fmt.Errorf("attest: encode: %w", err)
		}
		if size += len(text); len(text) > MaxStatement || size > MaxAllStatements {
			return nil, &Refusal{TooLarge, -1, fmt.Sprintf("%d outputs with %d inputs make more than a statement of %d MiB, or than %d MiB of them",
				len(all), len(p.BuildDefinition.ResolvedDependencies), MaxStatement>>20, MaxAllStatements>>20)}
		}
		st := Statement{JSON: text, Subjects: part, BuilderID: facts.BuilderID}
		st.seal = st.sum()
		out = append(out, st)
	}
	return out, nil
}

// encode writes compact JSON in the order of the struct's fields, with map keys
// sorted, and leaves <, > and & as they are.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func stamp(t time.Time) string { return t.UTC().Format(timeFormat) }

// isHex reports whether s is n digits of lower-case hex.
func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isSHA256(s string) bool { return isHex(s, 2*sha256.Size) }

// linesDigest hashes entries as they stand in the record.
func linesDigest(entries []record.Entry) string {
	h := sha256.New()
	for _, e := range entries {
		h.Write(e.Line)
		h.Write([]byte{'\n'})
	}
	return hex.EncodeToString(h.Sum(nil))
}
