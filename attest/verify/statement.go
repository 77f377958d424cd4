package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"hallmark.build/attest"
	"hallmark.build/sandbox/record"
)

// statementText is an in-toto statement. Its reader is apart from its writer in
// package attest on purpose: a slip in one does not repeat itself in the other.
type statementText struct {
	Type          string        `json:"_type"`
	Subject       []subjectText `json:"subject"`
	PredicateType string        `json:"predicateType"`
	Predicate     predicateText `json:"predicate"`
}

type subjectText struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// predicateText has what is judged; other fields are ignored, as SLSA asks.
type predicateText struct {
	BuildDefinition definitionText      `json:"buildDefinition"`
	RunDetails      runText             `json:"runDetails"`
	Completeness    attest.Completeness `json:"hallmark_completeness"`
	Result          struct {
		Result string `json:"result"`
	} `json:"hallmark_result"`
	Source struct {
		Outcome string `json:"outcome"`
		Commit  string `json:"commit"`
	} `json:"hallmark_source"`
}

func (predicateText) ignoresUnknownKeys() {}

type definitionText struct {
	BuildType            string          `json:"buildType"`
	ExternalParameters   json.RawMessage `json:"externalParameters"`
	InternalParameters   internalText    `json:"internalParameters"`
	ResolvedDependencies []resourceText  `json:"resolvedDependencies"`
}

type internalText struct {
	GitLab struct {
		JobID     string `json:"jobId"`
		SHA       string `json:"sha"`
		Protected *bool  `json:"protected"`
	} `json:"gitlab"`
}

type resourceText struct {
	Name             string            `json:"name"`
	URI              string            `json:"uri"`
	Digest           map[string]string `json:"digest"`
	DownloadLocation string            `json:"downloadLocation"`

	Annotations map[string]json.RawMessage `json:"annotations"`
}

type runText struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	Metadata struct {
		InvocationID string `json:"invocationId"`
		StartedOn    string `json:"startedOn"`
		FinishedOn   string `json:"finishedOn"`
	} `json:"metadata"`
}

// A parsedStatement is a statement that could be read.
type parsedStatement struct {
	statementText
	external record.External
	// externalErr says why the external parameters could not be read in full.
	externalErr       error
	started, finished time.Time
}

// readStatement decodes a payload. It returns the statement together with what
// is wrong with its form, so that the other checks can still be made; without
// a statement nothing can.
func readStatement(payload []byte) (*parsedStatement, error) {
	var s parsedStatement
	if err := decode(payload, &s.statementText); err != nil {
		return nil, err
	}
	s.externalErr = s.readExternal()
	meta := s.Predicate.RunDetails.Metadata
	var errStarted, errFinished error
	s.started, errStarted = instant(meta.StartedOn)
	s.finished, errFinished = instant(meta.FinishedOn)
	return &s, errors.Join(s.form(), errStarted, errFinished)
}

// readExternal keeps the values of the parameters that are known even if there
// are others.
func (s *parsedStatement) readExternal() error {
	text := s.Predicate.BuildDefinition.ExternalParameters
	if len(text) == 0 {
		return errors.New("missing")
	}
	strict := decode(text, &s.external)
	if strict == nil {
		return nil
	}
	s.external = record.External{}
	if err := decodeTolerant(text, &s.external); err != nil {
		s.external = record.External{}
	}
	return strict
}

func instant(text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || text[len(text)-1] != 'Z' {
		return time.Time{}, fmt.Errorf("time %q: want RFC 3339 in UTC", text)
	}
	return at, nil
}

// form checks the fixed words and the shape of the subjects.
func (s *parsedStatement) form() error {
	switch {
	case s.Type != attest.StatementType:
		return fmt.Errorf("_type %q: want %q", s.Type, attest.StatementType)
	case s.PredicateType != attest.PredicateType:
		return fmt.Errorf("predicateType %q: want %q", s.PredicateType, attest.PredicateType)
	case s.Predicate.BuildDefinition.BuildType != attest.BuildType:
		return fmt.Errorf("buildType %q: want %q", s.Predicate.BuildDefinition.BuildType, attest.BuildType)
	case s.Predicate.RunDetails.Metadata.InvocationID == "":
		return errors.New("no invocation id")
	case len(s.Subject) == 0:
		return errors.New("no subject")
	case len(s.Subject) > attest.MaxSubjects:
		return fmt.Errorf("%d subjects: more than %d", len(s.Subject), attest.MaxSubjects)
	}
	seen := make(map[string]bool, len(s.Subject))
	for _, subject := range s.Subject {
		switch {
		case subject.Name == "":
			return errors.New("a subject without a name")
		case seen[subject.Name]:
			return fmt.Errorf("subject %q is there twice", subject.Name)
		case len(subject.Digest) == 0:
			return fmt.Errorf("subject %q has no digest", subject.Name)
		}
		seen[subject.Name] = true
		if err := checkDigests(subject.Digest); err != nil {
			return fmt.Errorf("subject %q: %w", subject.Name, err)
		}
	}
	return nil
}

// checkDigests wants lower-case hex of the right length for each algorithm
// that is known, and at least one that is.
func checkDigests(digests map[string]string) error {
	known := false
	for algorithm, value := range digests {
		sizes := digestSizes(algorithm)
		if sizes == nil {
			continue
		}
		known = true
		fits := false
		for _, size := range sizes {
			fits = fits || isHex(value, size)
		}
		if !fits {
			return fmt.Errorf("digest %s:%s: want lower-case hex of its length", algorithm, value)
		}
	}
	if !known {
		return errors.New("no digest that is known")
	}
	return nil
}

// digestSizes are the lengths in bytes that an algorithm's value may have.
func digestSizes(algorithm string) []int {
	switch algorithm {
	case "sha256":
		return []int{32}
	case "sha384":
		return []int{48}
	case "sha512":
		return []int{64}
	case "gitCommit", "gitTree", "gitBlob", "gitTag":
		return []int{20, 32}
	}
	return nil
}
