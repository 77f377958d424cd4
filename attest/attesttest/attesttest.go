// Package attesttest makes evidence records for tests of the packages that read them.
package attesttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"hallmark.build/sandbox/record"
)

// An Event is an entry that has not been put in line yet.
type Event struct {
	Kind record.Kind
	Data any
}

// Start is when sample records start.
func Start() time.Time { return time.Date(2026, 11, 26, 15, 4, 5, 0, time.UTC) }

// Lines puts events in line, a second apart from start on.
func Lines(start time.Time, events []Event) ([][]byte, error) {
	var (
		chain record.Chain
		out   [][]byte
		prev  = record.Genesis
	)
	for i, ev := range events {
		data, err := encode(ev.Data)
		if err != nil {
			return nil, err
		}
		line, err := encode(struct {
			Seq  int             `json:"seq"`
			Kind record.Kind     `json:"kind"`
			Time string          `json:"time"`
			Prev string          `json:"prev"`
			Data json.RawMessage `json:"data"`
		}{i, ev.Kind, start.Add(time.Duration(i) * time.Second).UTC().Format("2006-01-02T15:04:05.000000Z"), prev, data})
		if err != nil {
			return nil, err
		}
		e, err := chain.Add(line)
		if err != nil {
			return nil, err
		}
		prev = e.Hash
		out = append(out, line)
	}
	return out, nil
}

// Entries is Lines, read again.
func Entries(start time.Time, events []Event) ([]record.Entry, error) {
	lines, err := Lines(start, events)
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, l := range lines {
		text = append(append(text, l...), '\n')
	}
	entries, _, err := record.Read(bytes.NewReader(text))
	return entries, err
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// SHA256 is the hash of a text, for fields that want one.
func SHA256(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Commit is the sample job's commit.
const Commit = "3f786850e387550fdab836ed7e6dc881de23001b"

// Tree is the sample commit's tree.
const Tree = "89e6c98d92887913cadf06b2adb97f26cde4849b"

// Opened is the sample job: a hermetic build of a Go program.
func Opened() record.Opened {
	public := "1"
	protected := true
	return record.Opened{
		Session: "00112233445566778899aabbccddeeff", Attempt: "ffeeddccbbaa99887766554433221100",
		Nonce:        SHA256("nonce"),
		InvocationID: "https://ci.example.com/hallmark/attempts/ffeeddccbbaa99887766554433221100",
		Profile:      "hermetic",
		Network:      record.Network{Build: "none", Helper: "border", PolicyDigest: SHA256("policy")},
		Job: record.Job{
			ID: 4242, Name: "compile", Stage: "build", ProjectID: 77, Project: "group/project", PipelineID: 9001, UserID: 3,
			SourceURI: "https://gitlab.example.com/group/project.git", Ref: "main", RefType: "branch",
			Protected: &protected, SHA: Commit, TimeoutSec: 3600,
		},
		External: record.External{
			Source: "https://gitlab.example.com/group/project.git", Ref: "refs/heads/main", Project: "group/project",
			JobName: "compile", JobStage: "build", PipelineSource: "push", Profile: "hermetic",
			Image: &record.ImageParameter{Name: "registry.example.com/golang:1.26", PullPolicy: []string{"always"}},
			Variables: []record.Variable{
				{Name: "CGO_ENABLED", Value: &public, Public: true},
				{Name: "DEPLOY_KEY", Commitment: SHA256("commitment"), Masked: true, File: true},
			},
			Steps:     []record.Step{{Name: "script", Digest: SHA256("go build ./...\n"), When: "on_success", TimeoutSec: 3600}},
			Artifacts: []record.ArtifactRule{{Type: "archive", Format: "zip", Paths: []string{"dist/"}, When: "on_success"}},
		},
		Platform: record.Platform{
			RunnerVersion: "19.4.0", ExecutorVersion: "0.1.0", SandboxdVersion: "0.1.0", ConfigDigest: SHA256("config"),
			Runtime: "containerd v2.3.7, runc 1.5.2", Kernel: "6.12.0", Architecture: "amd64",
			MemoryBytes: 4 << 30, CPUMillis: 2000, Pids: 4096,
		},
	}
}

// Job is the sample job's whole record.
func Job() []Event { return JobOf(Opened()) }

// JobOf is the sample job with another first entry.
func JobOf(opened record.Opened) []Event {
	images := []record.Image{image("build", "registry.example.com/golang:1.26", "registry.example.com/golang"),
		image("helper", "registry.example.com/helper:1", "registry.example.com/helper")}
	git := "https://gitlab.example.com/group/project.git"
	return []Event{
		{record.JobOpened, opened},
		{record.ImageResolved, images[0]},
		{record.ImageResolved, images[1]},
		{record.StageStarted, Started("prepare_script")},
		{record.StageEnded, Ended("prepare_script", "success")},
		{record.StageStarted, Started("get_sources")},
		{record.Fetched, Fetch("get_sources", "GET", git+"/info/refs?service=git-upload-pack", "refs")},
		{record.Fetched, GitFetch(git, opened.Job.SHA)},
		{record.StageEnded, Ended("get_sources", "success")},
		{record.SourceVerified, record.Source{Outcome: "match", Commit: opened.Job.SHA, Format: "sha1", Tree: Tree, Files: 12, Bytes: 34567}},
		{record.StageStarted, Started("build_script")},
		{record.Blocked, record.Block{
			Stage: "build_script", Role: "build", Protocol: "https", Method: "GET",
			Target: "https://modules.example.com/<x>&y", Rule: "hermetic", Reason: "no network", Count: 2,
		}},
		{record.StageEnded, Ended("build_script", "success")},
		{record.Sealed, record.Seal{Directory: "/builds/group/project"}},
		{record.StageStarted, Started("upload_artifacts_on_success")},
		{record.Uploaded, Upload("artifacts.zip", "archive", "dist/app", "dist/app.1")},
		{record.StageEnded, Ended("upload_artifacts_on_success", "success")},
		{record.Closed, record.Closing{Result: "success"}},
	}
}

func image(role, name, repository string) record.Image {
	manifest := "sha256:" + SHA256(name+" manifest")
	return record.Image{
		Role: role, Name: name, Reference: repository + "@" + manifest, Manifest: manifest,
		Index: "sha256:" + SHA256(name+" index"), Config: "sha256:" + SHA256(name+" config"), Platform: "linux/amd64",
	}
}

func role(stage string) string {
	switch stage {
	case "build_script", "after_script", "step_release":
		return "build"
	}
	return "helper"
}

// Started is a stage's start in its right container.
func Started(stage string) record.Started {
	return record.Started{Stage: stage, Role: role(stage), ScriptDigest: SHA256(stage), ScriptBytes: int64(len(stage))}
}

// Ended is a stage's end in its right container.
func Ended(stage, outcome string) record.Ended {
	e := record.Ended{Stage: stage, Role: role(stage), Outcome: outcome, DurationMS: 1500}
	if outcome == "failed" {
		e.ExitCode = 1
	}
	return e
}

// Fetch is an exchange that went well.
func Fetch(stage, method, url, content string) record.Fetch {
	return record.Fetch{
		Stage: stage, Role: role(stage), Method: method, URL: url, Status: 200, SHA256: SHA256(content),
		Bytes: int64(len(content)), MediaType: "application/octet-stream", Rule: "test",
	}
}

// GitFetch is a pack from a repository's own address, of the objects asked for.
func GitFetch(repository string, wants ...string) record.Fetch {
	f := Fetch("get_sources", "POST", repository+"/git-upload-pack", "pack")
	f.Git = &record.GitRequest{Command: "fetch", Wants: wants}
	return f
}

// Upload is an artifact that GitLab accepted, with files of the given paths.
func Upload(name, kind string, paths ...string) record.Upload {
	u := record.Upload{
		Stage: "upload_artifacts_on_success", FileName: name, Type: kind, Format: "zip",
		SHA256: SHA256(name + kind), Bytes: 1000, Status: 201,
		Entries: []record.UploadEntry{{Path: "dist", Kind: "directory", Mode: 0o755}},
	}
	for _, p := range paths {
		u.Entries = append(u.Entries, record.UploadEntry{Path: p, Kind: "file", SHA256: SHA256(name + p), Bytes: 10, Mode: 0o644})
	}
	return u
}

// Dependencies adds n fetches to the firewalled sample's build stage.
func Dependencies(n int) []Event {
	opened := Opened()
	opened.Profile, opened.External.Profile, opened.Network.Build = "firewalled", "firewalled", "border"
	job := JobOf(opened)
	out := make([]Event, 0, len(job)+n)
	for _, ev := range job {
		out = append(out, ev)
		if s, ok := ev.Data.(record.Started); ok && s.Stage == "build_script" {
			for i := range n {
				url := fmt.Sprintf("https://modules.example.com/example.com/module%d/@v/v1.%d.0.zip", i, i%7)
				out = append(out, Event{record.Fetched, Fetch("build_script", "GET", url, fmt.Sprint(i))})
			}
		}
	}
	return out
}

// Restored is a cache that the job was given.
func Restored() record.Cache {
	return record.Cache{
		Stage: "restore_cache", Key: "deps", Action: "restored", SHA256: SHA256("cache before"), Bytes: 1000,
		Invocation: "https://ci.example.com/hallmark/attempts/0123456789abcdef0123456789abcdef", Attestation: SHA256("bundle"),
	}
}

// Stored is a cache that the job left.
func Stored() record.Cache {
	return record.Cache{Stage: "archive_cache", Key: "deps", Action: "stored", SHA256: SHA256("cache after"), Bytes: 2000}
}
