package coordinator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Job is what a test asks for. What it leaves out gets the value that a
// small project's job has.
type Job struct {
	ID         int64
	Name       string // build
	Stage      string // build
	Project    string // group/project; the repository is <Project>.git
	ProjectID  int64  // 77
	PipelineID int64  // 9000 + ID
	UserID     int64  // 3
	Ref        string // main; whole, such as refs/merge-requests/1/head, for no branch
	Tag        bool
	Protected  bool
	SHA        string // the ref's commit in the repository
	Format     string // sha1

	Image        Image
	Services     []Image
	Script       []string
	AfterScript  []string
	MoreSteps    []Step // between script and after_script
	Variables    []Variable
	Artifacts    []ArtifactRule
	Caches       []CacheRule
	Dependencies []int64 // earlier jobs whose artifacts this one gets
	Hooks        []Hook
	Depth        int           // 20; negative for the whole history
	Timeout      time.Duration // 10 minutes
	// IDTokens are ID tokens by the name of the variable that holds them, each
	// with the audience that it is for.
	IDTokens map[string]string

	// Interruptible lets a newer pipeline of the same project and ref cancel the
	// job while it runs, as GitLab does unless told otherwise.
	Interruptible bool
	// Runner is the token of the only runner that gets the job, as tags would
	// have it. Empty for any.
	Runner string
	// Held keeps the job out of the queue until Release.
	Held bool
	// Change has the last word on the payload, as decoded JSON.
	Change func(payload map[string]any) `json:"-"`

	signed map[string]string // IDTokens, made
}

// Image is an image as .gitlab-ci.yml names it.
type Image struct {
	Name       string     `json:"name"`
	Alias      string     `json:"alias,omitempty"`
	Command    []string   `json:"command,omitempty"`
	Entrypoint []string   `json:"entrypoint,omitempty"`
	Variables  []Variable `json:"variables,omitempty"`
	PullPolicy []string   `json:"pull_policy,omitempty"`
	User       string     `json:"-"`
}

// MarshalJSON nests the user as GitLab does.
func (i Image) MarshalJSON() ([]byte, error) {
	type plain Image
	v := struct {
		plain
		Options any `json:"executor_opts,omitempty"`
	}{plain: plain(i)}
	if i.User != "" {
		v.Options = map[string]any{"docker": map[string]string{"user": i.User}}
	}
	return json.Marshal(v)
}

// Variable is a job variable.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	File   bool   `json:"file"`
	Masked bool   `json:"masked"`
	Raw    bool   `json:"raw"`
}

// Step is one of a job's scripts.
type Step struct {
	Name         string   `json:"name"`
	Script       []string `json:"script"`
	Timeout      int64    `json:"timeout"`
	When         string   `json:"when"`
	AllowFailure bool     `json:"allow_failure"`
}

// ArtifactRule is one entry of a job's artifacts.
type ArtifactRule struct {
	Name      string   `json:"name"`
	Untracked bool     `json:"untracked"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude,omitempty"`
	When      string   `json:"when"`
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"`
	ExpireIn  string   `json:"expire_in,omitempty"`
}

// Archive is the usual rule: a zip of some paths.
func Archive(paths ...string) []ArtifactRule {
	return []ArtifactRule{{Name: "out", Paths: paths, When: "on_success", Type: "archive", Format: "zip", ExpireIn: "1 week"}}
}

// CacheRule is one entry of a job's cache.
type CacheRule struct {
	Key          string   `json:"key"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"`
	Paths        []string `json:"paths"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys,omitempty"`
}

// Hook is a script around get_sources.
type Hook struct {
	Name   string   `json:"name"`
	Script []string `json:"script"`
}

func (j *Job) fill() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&j.Name, "build")
	set(&j.Stage, "build")
	set(&j.Project, "group/project")
	set(&j.Ref, "main")
	set(&j.Format, "sha1")
	if j.ProjectID == 0 {
		j.ProjectID = 77
	}
	if j.PipelineID == 0 {
		j.PipelineID = 9000 + j.ID
	}
	if j.UserID == 0 {
		j.UserID = 3
	}
	if j.Timeout == 0 {
		j.Timeout = 10 * time.Minute
	}
	switch {
	case j.Depth == 0:
		j.Depth = 20
	case j.Depth < 0:
		j.Depth = 0
	}
	for i := range j.Artifacts {
		set(&j.Artifacts[i].When, "on_success")
		set(&j.Artifacts[i].Type, "archive")
		set(&j.Artifacts[i].Format, "zip")
	}
	for i := range j.Caches {
		set(&j.Caches[i].When, "on_success")
		set(&j.Caches[i].Policy, "pull-push")
	}
}

type jobInfo struct {
	Name                string  `json:"name"`
	Stage               string  `json:"stage"`
	PipelineID          int64   `json:"pipeline_id"`
	ProjectID           int64   `json:"project_id"`
	ProjectName         string  `json:"project_name"`
	ProjectFullPath     string  `json:"project_full_path"`
	NamespaceID         int64   `json:"namespace_id"`
	RootNamespaceID     int64   `json:"root_namespace_id"`
	OrganizationID      int64   `json:"organization_id"`
	InstanceID          string  `json:"instance_id"`
	InstanceUUID        string  `json:"instance_uuid"`
	UserID              int64   `json:"user_id"`
	TimeInQueueSeconds  float64 `json:"time_in_queue_seconds"`
	JobsOnSharedRunners string  `json:"project_jobs_running_on_instance_runners_count"`
	QueueSize           int64   `json:"queue_size"`
	QueueDepth          int64   `json:"queue_depth"`
}

type gitInfo struct {
	RepoURL          string   `json:"repo_url"`
	RepoObjectFormat string   `json:"repo_object_format"`
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"`
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"`
	Protected        bool     `json:"protected"`
}

type runnerInfo struct {
	Timeout int64 `json:"timeout"`
}

type credential struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

type dependency struct {
	ID            int64  `json:"id"`
	Name          string `json:"name"`
	Token         string `json:"token"`
	ArtifactsFile *file  `json:"artifacts_file,omitempty"`
}

type file struct {
	Filename string `json:"filename"`
	Size     int64  `json:"size"`
}

type features struct {
	TraceSections     bool     `json:"trace_sections"`
	TokenMaskPrefixes []string `json:"token_mask_prefixes"`
	FailureReasons    []string `json:"failure_reasons"`
}

// payload is the answer to a request for a job, in GitLab's order of fields.
type payload struct {
	ID            int64          `json:"id"`
	Token         string         `json:"token"`
	AllowGitFetch bool           `json:"allow_git_fetch"`
	JobInfo       jobInfo        `json:"job_info"`
	GitInfo       gitInfo        `json:"git_info"`
	RunnerInfo    runnerInfo     `json:"runner_info"`
	Variables     []Variable     `json:"variables"`
	Steps         []Step         `json:"steps"`
	Hooks         []Hook         `json:"hooks"`
	Image         *Image         `json:"image"`
	Services      []Image        `json:"services"`
	Artifacts     []ArtifactRule `json:"artifacts"`
	Cache         []CacheRule    `json:"cache"`
	Credentials   []credential   `json:"credentials"`
	Dependencies  []dependency   `json:"dependencies"`
	Features      features       `json:"features"`
}

func (j *Job) payload(base *url.URL, token string, deps []dependency) ([]byte, error) {
	repo := *base
	repo.User = url.UserPassword("gitlab-ci-token", token)
	repo.Path = "/" + j.Project + ".git"
	p := payload{
		ID: j.ID, Token: token, AllowGitFetch: true,
		JobInfo: jobInfo{
			Name: j.Name, Stage: j.Stage, PipelineID: j.PipelineID,
			ProjectID: j.ProjectID, ProjectName: path.Base(j.Project), ProjectFullPath: j.Project,
			NamespaceID: 5, RootNamespaceID: 5, OrganizationID: 1, InstanceID: "1",
			InstanceUUID: "7a4a6f0e-7a3c-4f1e-9b43-0a4dbb3a6c11", UserID: j.UserID,
			TimeInQueueSeconds: 0.4, JobsOnSharedRunners: "0", QueueSize: 1, QueueDepth: 1,
		},
		GitInfo: gitInfo{
			RepoURL: repo.String(), RepoObjectFormat: j.Format, Ref: j.Ref, SHA: j.SHA,
			BeforeSHA: strings.Repeat("0", len(j.SHA)), RefType: "branch", Depth: j.Depth, Protected: j.Protected,
		},
		RunnerInfo:   runnerInfo{Timeout: int64(j.Timeout / time.Second)},
		Variables:    append(j.predefined(base, repo.String(), token), j.Variables...),
		Services:     j.Services,
		Artifacts:    j.Artifacts,
		Cache:        j.Caches,
		Hooks:        j.Hooks,
		Dependencies: deps,
		Features: features{
			TraceSections: true, TokenMaskPrefixes: []string{"glpat-", "glcbt-"},
			FailureReasons: []string{"unknown_failure", "script_failure", "runner_system_failure", "job_execution_timeout", "stuck_or_timeout_failure"},
		},
	}
	remote := "+refs/heads/" + j.Ref + ":refs/remotes/origin/" + j.Ref
	if j.Tag {
		p.GitInfo.RefType = "tag"
		remote = "+refs/tags/" + j.Ref + ":refs/tags/" + j.Ref
	}
	pipeline := fmt.Sprintf("refs/pipelines/%d", j.PipelineID)
	p.GitInfo.Refspecs = []string{"+" + pipeline + ":" + pipeline}
	switch {
	case j.Depth == 0:
		p.GitInfo.Refspecs = append(p.GitInfo.Refspecs, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
	case !j.detached():
		p.GitInfo.Refspecs = append(p.GitInfo.Refspecs, remote)
	}
	if j.Image.Name != "" {
		p.Image = &j.Image
	}
	timeout := int64(j.Timeout / time.Second)
	if len(j.Script) > 0 {
		p.Steps = append(p.Steps, Step{Name: "script", Script: j.Script, Timeout: timeout, When: "on_success"})
	}
	p.Steps = append(p.Steps, j.MoreSteps...)
	if len(j.AfterScript) > 0 {
		p.Steps = append(p.Steps, Step{Name: "after_script", Script: j.AfterScript, Timeout: timeout, When: "always", AllowFailure: true})
	}
	return j.encode(p)
}

// detached reports whether the job is a merge request's: no branch, no tag.
func (j *Job) detached() bool { return strings.HasPrefix(j.Ref, "refs/") }

func (j *Job) encode(p payload) ([]byte, error) {
	out, err := json.Marshal(p)
	if err != nil || j.Change == nil {
		return out, err
	}
	var m map[string]any
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, err
	}
	j.Change(m)
	return json.Marshal(m)
}

// predefined lists what GitLab puts before a project's own variables, in its
// order (app/models/ci/build.rb).
func (j *Job) predefined(base *url.URL, repo, token string) []Variable {
	var out []Variable
	add := func(key, value string) { out = append(out, Variable{Key: key, Value: value, Public: true}) }
	hide := func(key, value string) { out = append(out, Variable{Key: key, Value: value, Masked: true}) }
	id, project := strconv.FormatInt(j.ID, 10), base.String()+"/"+j.Project
	pipeline := strconv.FormatInt(j.PipelineID, 10)

	add("CI_PIPELINE_ID", pipeline)
	add("CI_PIPELINE_URL", project+"/-/pipelines/"+pipeline)
	add("CI_JOB_ID", id)
	add("CI_JOB_URL", project+"/-/jobs/"+id)
	hide("CI_JOB_TOKEN", token)
	add("CI_JOB_STARTED_AT", "2026-11-26T12:00:00Z")
	add("CI_REGISTRY_USER", "gitlab-ci-token")
	hide("CI_REGISTRY_PASSWORD", token)
	out = append(out, Variable{Key: "CI_REPOSITORY_URL", Value: repo})
	add("CI_DEPENDENCY_PROXY_USER", "gitlab-ci-token")
	hide("CI_DEPENDENCY_PROXY_PASSWORD", token)
	for _, name := range slices.Sorted(maps.Keys(j.signed)) {
		hide(name, j.signed[name])
	}
	add("CI_JOB_NAME", j.Name)
	add("CI_JOB_NAME_SLUG", j.Name)
	add("CI_JOB_STAGE", j.Stage)
	add("CI_NODE_TOTAL", "1")
	add("CI", "true")
	add("GITLAB_CI", "true")
	add("CI_SERVER_URL", base.String())
	add("CI_SERVER_HOST", base.Hostname())
	add("CI_SERVER_PORT", port(base))
	add("CI_SERVER_PROTOCOL", base.Scheme)
	add("CI_SERVER_NAME", "GitLab")
	add("CI_SERVER_VERSION", "19.4.0")
	add("CI_API_V4_URL", base.String()+"/api/v4")
	add("CI_PROJECT_ID", strconv.FormatInt(j.ProjectID, 10))
	add("CI_PROJECT_NAME", path.Base(j.Project))
	add("CI_PROJECT_PATH", j.Project)
	add("CI_PROJECT_NAMESPACE", path.Dir(j.Project))
	add("CI_PROJECT_URL", project)
	add("CI_PROJECT_VISIBILITY", "private")
	add("CI_DEFAULT_BRANCH", "main")
	add("CI_PIPELINE_IID", "1")
	add("CI_PIPELINE_SOURCE", "push")
	add("CI_COMMIT_SHA", j.SHA)
	add("CI_COMMIT_SHORT_SHA", j.SHA[:min(8, len(j.SHA))])
	add("CI_COMMIT_BEFORE_SHA", strings.Repeat("0", len(j.SHA)))
	add("CI_COMMIT_REF_NAME", j.Ref)
	add("CI_COMMIT_REF_SLUG", strings.NewReplacer("/", "-", ".", "-").Replace(j.Ref))
	switch {
	case j.Tag:
		add("CI_COMMIT_TAG", j.Ref)
	case !j.detached():
		add("CI_COMMIT_BRANCH", j.Ref)
	}
	add("CI_COMMIT_REF_PROTECTED", strconv.FormatBool(j.Protected))
	add("CI_COMMIT_MESSAGE", "a commit")
	add("CI_RUNNER_ID", strconv.Itoa(runnerID))
	add("CI_RUNNER_DESCRIPTION", "hallmark")
	add("CI_RUNNER_TAGS", `["hallmark"]`)
	add("GITLAB_USER_ID", strconv.FormatInt(j.UserID, 10))
	add("GITLAB_USER_LOGIN", "alice")
	add("GITLAB_USER_NAME", "Alice Example")
	return out
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
