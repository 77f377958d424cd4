package attest

import (
	"strconv"

	"hallmark.build/sandbox/record"
)

type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     predicate  `json:"predicate"`
}

type predicate struct {
	BuildDefinition buildDefinition `json:"buildDefinition"`
	RunDetails      runDetails      `json:"runDetails"`
	Completeness    Completeness    `json:"hallmark_completeness"`
	Result          result          `json:"hallmark_result"`
	Source          sourceOutcome   `json:"hallmark_source"`
	Part            *partOf         `json:"hallmark_part,omitempty"`
}

type buildDefinition struct {
	BuildType            string             `json:"buildType"`
	ExternalParameters   record.External    `json:"externalParameters"`
	InternalParameters   internalParameters `json:"internalParameters"`
	ResolvedDependencies []resource         `json:"resolvedDependencies"`
}

// internalParameters are set by the platform. Identifiers are strings: JSON
// readers change large numbers.
type internalParameters struct {
	RunnerVersion   string      `json:"runnerVersion,omitempty"`
	ExecutorVersion string      `json:"executorVersion"`
	SandboxdVersion string      `json:"sandboxdVersion"`
	ConfigDigest    string      `json:"configDigest"`
	Runtime         string      `json:"runtime"`
	Kernel          string      `json:"kernel"`
	Architecture    string      `json:"architecture"`
	MemoryBytes     int64       `json:"memoryBytes"`
	CPUMillis       int64       `json:"cpuMillis"`
	Pids            int64       `json:"pids"`
	Limits          *limits     `json:"limits,omitempty"`
	Network         network     `json:"network"`
	GitLab          gitlabFacts `json:"gitlab"`
}

type network struct {
	Build        string `json:"build"`
	Helper       string `json:"helper"`
	PolicyDigest string `json:"policyDigest"`
}

type gitlabFacts struct {
	URL            string `json:"url"`
	JobID          string `json:"jobId"`
	PipelineID     string `json:"pipelineId"`
	ProjectID      string `json:"projectId"`
	UserID         string `json:"userId"`
	SHA            string `json:"sha"`
	RefType        string `json:"refType"`
	Protected      *bool  `json:"protected,omitempty"`
	TimeoutSeconds int64  `json:"timeoutSeconds"`
}

type runDetails struct {
	Builder    builder    `json:"builder"`
	Metadata   metadata   `json:"metadata"`
	Byproducts []resource `json:"byproducts"`
}

type builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

type metadata struct {
	InvocationID string `json:"invocationId"`
	StartedOn    string `json:"startedOn"`
	FinishedOn   string `json:"finishedOn"`
}

// resource is in-toto's ResourceDescriptor.
type resource struct {
	Name             string            `json:"name,omitempty"`
	URI              string            `json:"uri,omitempty"`
	Digest           map[string]string `json:"digest,omitempty"`
	DownloadLocation string            `json:"downloadLocation,omitempty"`
	MediaType        string            `json:"mediaType,omitempty"`
	Annotations      map[string]any    `json:"annotations,omitempty"`
}

type result struct {
	Result   string        `json:"result"`
	ExitCode int           `json:"exitCode"`
	Stages   []stageResult `json:"stages"`
}

type stageResult struct {
	Stage      string `json:"stage"`
	Role       string `json:"role"`
	Outcome    string `json:"outcome"`
	ExitCode   int    `json:"exitCode"`
	DurationMS int64  `json:"durationMs"`
}

type sourceOutcome struct {
	Outcome string   `json:"outcome"`
	Commit  string   `json:"commit"` // what was asked for
	Tree    string   `json:"tree,omitempty"`
	Found   string   `json:"found,omitempty"`
	Files   int64    `json:"files"`
	Bytes   int64    `json:"bytes"`
	Differs []string `json:"differs,omitempty"`
	// Converted are files as .gitattributes has them in a work tree.
	Converted int64 `json:"converted,omitempty"`
}

type partOf struct {
	Part           int    `json:"part"`
	Parts          int    `json:"parts"`
	Subjects       int    `json:"subjects"`
	SubjectsDigest string `json:"subjectsDigest"`
}

func predicateOf(s *story, facts Facts) predicate {
	listed, folded := sortFetches(s)
	return predicate{
		BuildDefinition: buildDefinition{
			BuildType:            BuildType,
			ExternalParameters:   externalOf(s.opened.External),
			InternalParameters:   internalOf(s, facts),
			ResolvedDependencies: dependencies(s, listed),
		},
		RunDetails: runDetails{
			Builder: builder{ID: facts.BuilderID, Version: facts.BuilderVersion},
			Metadata: metadata{
				InvocationID: s.opened.InvocationID,
				StartedOn:    stamp(s.started),
				FinishedOn:   stamp(s.finished),
			},
			Byproducts: byproducts(s, folded),
		},
		Completeness: completeness(s),
		Result:       resultOf(s),
		Source:       sourceOf(s),
	}
}

// externalOf keeps "steps" an array where a job has none.
func externalOf(x record.External) record.External {
	if x.Steps == nil {
		x.Steps = []record.Step{}
	}
	return x
}

func internalOf(s *story, facts Facts) internalParameters {
	p, j, n := s.opened.Platform, s.opened.Job, s.opened.Network
	return internalParameters{
		RunnerVersion: p.RunnerVersion, ExecutorVersion: p.ExecutorVersion, SandboxdVersion: p.SandboxdVersion,
		ConfigDigest: p.ConfigDigest, Runtime: p.Runtime, Kernel: p.Kernel, Architecture: p.Architecture,
		MemoryBytes: p.MemoryBytes, CPUMillis: p.CPUMillis, Pids: p.Pids, Limits: limitsOf(p.Limits),
		Network: network{Build: n.Build, Helper: n.Helper, PolicyDigest: n.PolicyDigest},
		GitLab: gitlabFacts{
			URL:   facts.GitLabURL,
			JobID: number(j.ID), PipelineID: number(j.PipelineID), ProjectID: number(j.ProjectID), UserID: number(j.UserID),
			SHA: j.SHA, RefType: j.RefType, Protected: j.Protected, TimeoutSeconds: j.TimeoutSec,
		},
	}
}

func number(n int64) string { return strconv.FormatInt(n, 10) }

func resultOf(s *story) result {
	r := result{Result: s.closing.Result, ExitCode: s.closing.ExitCode, Stages: make([]stageResult, len(s.stages))}
	for i, e := range s.stages {
		r.Stages[i] = stageResult{Stage: e.Stage, Role: e.Role, Outcome: e.Outcome, ExitCode: e.ExitCode, DurationMS: e.DurationMS}
	}
	return r
}

// sourceOf says what the comparison found. A job whose sources were never
// compared, because it got no further, has none.
func sourceOf(s *story) sourceOutcome {
	if s.source == nil {
		return sourceOutcome{Outcome: sourceAbsent, Commit: s.opened.Job.SHA}
	}
	return sourceOutcome{
		Outcome: s.source.Outcome, Commit: s.source.Commit, Tree: s.source.Tree, Found: s.source.Found,
		Files: s.source.Files, Bytes: s.source.Bytes, Differs: s.source.Differs, Converted: s.source.Converted,
	}
}
