package host

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"hallmark.build/executor"
	"hallmark.build/sandbox"
	"hallmark.build/sandbox/record"
)

// jobFacts are what GitLab owns of the payload; the authority checks them.
func jobFacts(j *executor.Job) record.Job {
	repo, _ := j.Repository() // accept has seen it
	return record.Job{
		ID: j.ID, Name: j.Info.Name, Stage: j.Info.Stage,
		ProjectID: j.Info.ProjectID, Project: j.Info.ProjectFullPath,
		PipelineID: j.Info.PipelineID, UserID: j.Info.UserID,
		SourceURI: repo.String(), Ref: j.Git.Ref, RefType: j.Git.RefType, Protected: j.Git.Protected,
		SHA: j.Git.SHA, TimeoutSec: int64(j.Runner.Timeout),
	}
}

// external is all that a tenant controls of a job, complete. image is the name
// that is run: the payload's, or the admin's default.
func external(j *executor.Job, profile sandbox.Profile, image string, key []byte) record.External {
	repo, _ := j.Repository()
	commit := committer{key}
	ext := record.External{
		Source: repo.String(), Ref: fullRef(j.Git), Project: j.Info.ProjectFullPath,
		JobName: j.Info.Name, JobStage: j.Info.Stage, PipelineSource: firstValue(j.Variables, "CI_PIPELINE_SOURCE"),
		Profile: string(profile), Variables: commit.variables(j.Variables),
		Secrets: slices.Sorted(maps.Keys(j.Secrets)),
	}
	img := commit.image(j.Image)
	img.Name = image
	ext.Image = &img
	for _, s := range j.Services {
		ext.Services = append(ext.Services, commit.image(s))
	}
	for _, s := range j.Steps {
		ext.Steps = append(ext.Steps, record.Step{Name: s.Name, Digest: linesDigest(s.Script), When: s.When,
			AllowFailure: s.AllowFailure, TimeoutSec: int64(s.Timeout)})
	}
	for _, k := range j.Hooks {
		ext.Hooks = append(ext.Hooks, record.Step{Name: k.Name, Digest: linesDigest(k.Script)})
	}
	for _, a := range j.Artifacts {
		ext.Artifacts = append(ext.Artifacts, record.ArtifactRule{Name: a.Name, Type: a.Type, Format: a.Format,
			Paths: a.Paths, Exclude: a.Exclude, Untracked: a.Untracked, When: a.When, ExpireIn: a.ExpireIn})
	}
	for _, c := range j.Caches {
		ext.Caches = append(ext.Caches, record.CacheRule{Key: c.Key, Policy: c.Policy, Paths: c.Paths,
			Untracked: c.Untracked, When: c.When, FallbackKeys: c.FallbackKeys})
	}
	for _, d := range j.Dependencies {
		ext.Dependencies = append(ext.Dependencies, record.DependencyChoice{ID: d.ID, Name: d.Name})
	}
	if len(j.Run) > 0 && string(j.Run) != "null" {
		sum := sha256.Sum256(j.Run)
		ext.RunDigest = hex.EncodeToString(sum[:])
	}
	return ext
}

// fullRef is a ref as git knows it; the authority has the same rule. A branch can
// be called "refs/heads/main": it is not main.
func fullRef(g executor.GitInfo) string {
	switch {
	case g.RefType == "tag":
		return "refs/tags/" + g.Ref
	case strings.HasPrefix(g.Ref, "refs/heads/"), strings.HasPrefix(g.Ref, "refs/tags/"):
	case strings.HasPrefix(g.Ref, "refs/"):
		return g.Ref
	}
	return "refs/heads/" + g.Ref
}

// firstValue is the value that GitLab itself sent, unless the tenant's is the
// only one: a claim either way.
func firstValue(vars []executor.Variable, key string) string {
	for _, v := range vars {
		if v.Key == key && v.Public && !v.Masked {
			return v.Value
		}
	}
	return ""
}

// masked are the values that GitLab shows nobody.
func masked(vars []executor.Variable) []string {
	var out []string
	for _, v := range vars {
		if v.Masked {
			out = append(out, v.Value)
		}
	}
	return out
}

func linesDigest(lines []string) string {
	sum := sha256.New()
	for _, l := range lines {
		sum.Write([]byte(l + "\n"))
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// A committer stands in for values that must not be published: who knows the
// value can have the authority confirm it, and nobody can guess it.
type committer struct{ key []byte }

func (c committer) variables(vars []executor.Variable) []record.Variable {
	out := make([]record.Variable, 0, len(vars))
	for _, v := range vars {
		r := record.Variable{Name: v.Key, Public: v.Public, Masked: v.Masked, File: v.File, Raw: v.Raw}
		// GitLab calls public what stands in .gitlab-ci.yml. Logins are not for
		// publishing wherever they stand.
		if v.Public && !v.Masked && v.Key != fromVariable {
			r.Value = &v.Value
		} else {
			r.Commitment = c.to(v.Key, v.Value)
		}
		out = append(out, r)
	}
	return out
}

func (c committer) to(name, value string) string {
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(name + "\x00" + value))
	return hex.EncodeToString(mac.Sum(nil))
}

func (c committer) image(i executor.Image) record.ImageParameter {
	p := record.ImageParameter{Name: i.Name, Alias: i.Alias, Entrypoint: i.Entrypoint, Command: i.Command,
		User: i.ExecutorOpts.Docker.User, Platform: i.ExecutorOpts.Docker.Platform, PullPolicy: i.PullPolicy}
	if len(i.Variables) > 0 {
		p.Variables = c.variables(i.Variables)
	}
	return p
}
