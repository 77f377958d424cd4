package executor

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode"
)

// MaxPayload is the size of the largest job response that is read.
const MaxPayload = 16 << 20

// Limits of single values. A job response is a re-encoding by GitLab Runner, so
// a value beyond these was never a working job.
const (
	maxName    = 1 << 10 // bytes of a job's, stage's, variable's or file's name
	maxRef     = 4 << 10 // bytes of a git ref, also of a refspec
	maxURL     = 8 << 10 // bytes of an address
	maxToken   = 8 << 10 // bytes of a token
	maxTimeout = 1 << 30 // seconds
)

// Job is what GitLab asked for: the content of JOB_RESPONSE_FILE.
//
// ID, Token, Info, Git, Runner, Credentials, Dependencies, Features and
// PolicyOptions are GitLab's word, carried by the runner. Everything else is
// the tenant's. The whole of it is secret: it holds the job's token more than
// once, and passwords. Printing or logging a Job shows its number only.
type Job struct {
	ID             int64                      `json:"id"`
	Token          string                     `json:"token"`
	AllowGitFetch  bool                       `json:"allow_git_fetch"`
	Info           JobInfo                    `json:"job_info"`
	Git            GitInfo                    `json:"git_info"`
	Runner         RunnerInfo                 `json:"runner_info"`
	Inputs         json.RawMessage            `json:"inputs"` // nil if it carries nothing
	Variables      []Variable                 `json:"variables"`
	Steps          []Step                     `json:"steps"`
	Image          Image                      `json:"image"`
	Services       []Image                    `json:"services"`
	Artifacts      []Artifact                 `json:"artifacts"`
	Caches         []Cache                    `json:"cache"`
	Credentials    []Credential               `json:"credentials"`
	Dependencies   []Dependency               `json:"dependencies"`
	Features       Features                   `json:"features"`
	Secrets        map[string]json.RawMessage `json:"secrets"` // by variable name; values hold tokens
	Hooks          []Hook                     `json:"hooks"`
	Run            json.RawMessage            `json:"run"` // a JSON list; nil unless the job has run:
	PolicyOptions  PolicyOptions              `json:"policy_options"`
	SuspendOptions SuspendOptions             `json:"suspend_options"`

	// Unknown lists the fields that this version does not know, in order, by
	// path: "git_info.foo", "services[1].bar". What they mean for the job is
	// unknown too, so a job that has some cannot be described completely.
	Unknown []string `json:"-"`
}

// JobInfo identifies the job within GitLab. Name and Stage are the words of the
// tenant's YAML, authentically handed on.
type JobInfo struct {
	Name               string  `json:"name"`
	Stage              string  `json:"stage"`
	PipelineID         int64   `json:"pipeline_id"`
	ProjectID          int64   `json:"project_id"`
	ProjectName        string  `json:"project_name"`
	ProjectFullPath    string  `json:"project_full_path"`
	NamespaceID        int64   `json:"namespace_id"`
	RootNamespaceID    int64   `json:"root_namespace_id"`
	OrganizationID     int64   `json:"organization_id"`
	InstanceID         string  `json:"instance_id"`
	InstanceUUID       string  `json:"instance_uuid"`
	UserID             int64   `json:"user_id"`
	ScopedUserID       *int64  `json:"scoped_user_id"`
	TimeInQueueSeconds float64 `json:"time_in_queue_seconds"`
	RunningJobs        string  `json:"project_jobs_running_on_instance_runners_count"`
	QueueSize          int64   `json:"queue_size"`
	QueueDepth         int64   `json:"queue_depth"`
}

// GitInfo says what is to be built.
type GitInfo struct {
	RepoURL          string   `json:"repo_url"` // with credentials, see [Job.Repository]
	RepoObjectFormat string   `json:"repo_object_format"`
	Ref              string   `json:"ref"`
	SHA              string   `json:"sha"`
	BeforeSHA        string   `json:"before_sha"`
	RefType          string   `json:"ref_type"` // "branch" or "tag"
	Refspecs         []string `json:"refspecs"`
	Depth            int      `json:"depth"`     // the tenant's: GIT_DEPTH
	Protected        *bool    `json:"protected"` // nil: GitLab did not say
}

// RunnerInfo holds the only authoritative timeout.
type RunnerInfo struct {
	UUID    string `json:"uuid"`
	Timeout int    `json:"timeout"` // seconds
}

// Variable is one variable of the job. Names may repeat: the last one counts.
type Variable struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Public bool   `json:"public"`
	File   bool   `json:"file"`
	Masked bool   `json:"masked"`
	Raw    bool   `json:"raw"`
}

// Step is one script of the job.
type Step struct {
	Name         string   `json:"name"`
	Script       []string `json:"script"`
	Timeout      int      `json:"timeout"`
	When         string   `json:"when"`
	AllowFailure bool     `json:"allow_failure"`
}

// Image is the job's image or a service.
type Image struct {
	Name         string          `json:"name"`
	Alias        string          `json:"alias"` // several, see [Image.Aliases]
	Command      []string        `json:"command"`
	Entrypoint   []string        `json:"entrypoint"`
	Ports        []Port          `json:"ports"`
	Variables    []Variable      `json:"variables"`
	PullPolicy   []string        `json:"pull_policy"`
	ExecutorOpts ExecutorOptions `json:"executor_opts"`
}

// Aliases splits Alias as GitLab Runner does.
func (i Image) Aliases() []string {
	return strings.Fields(strings.ReplaceAll(i.Alias, ",", " "))
}

// Port is a port that an image says it serves.
type Port struct {
	Number   int    `json:"number"`
	Protocol string `json:"protocol"`
	Name     string `json:"name"`
}

// ExecutorOptions are what image: and services: ask of one executor.
type ExecutorOptions struct {
	Docker     DockerOptions     `json:"docker"`
	Kubernetes KubernetesOptions `json:"kubernetes"`
}

// DockerOptions are image:docker.
type DockerOptions struct {
	Platform string `json:"platform"`
	User     string `json:"user"`
}

// KubernetesOptions are image:kubernetes.
type KubernetesOptions struct {
	User string `json:"user"`
}

// Artifact is one upload that the job asks for.
type Artifact struct {
	Name      string   `json:"name"`
	Untracked bool     `json:"untracked"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude"`
	When      string   `json:"when"`
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"`
	ExpireIn  string   `json:"expire_in"`
}

// Cache is one cache that the job asks for.
type Cache struct {
	Key          string   `json:"key"`
	Untracked    bool     `json:"untracked"`
	Policy       string   `json:"policy"`
	Paths        []string `json:"paths"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys"`
}

// Credential opens a registry.
type Credential struct {
	Type     string `json:"type"`
	URL      string `json:"url"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// Dependency is an earlier job whose artifacts this one takes.
type Dependency struct {
	ID            int64         `json:"id"`
	Token         string        `json:"token"`
	Name          string        `json:"name"`
	ArtifactsFile ArtifactsFile `json:"artifacts_file"`
}

// ArtifactsFile is empty for a dependency that left no artifacts.
type ArtifactsFile struct {
	Filename string `json:"filename"`
	Size     int64  `json:"size"`
}

// Features are what GitLab can do with the runner's reports.
type Features struct {
	TraceSections     bool     `json:"trace_sections"`
	TokenMaskPrefixes []string `json:"token_mask_prefixes"`
	FailureReasons    []string `json:"failure_reasons"`
	Tracing           *Tracing `json:"tracing"`
}

// Tracing asks the runner to report spans. Hallmark has no use for it.
type Tracing struct {
	TraceID       string         `json:"trace_id"`
	SpanParentID  string         `json:"span_parent_id"`
	OTELEndpoints []OTELEndpoint `json:"otel_endpoints"`
}

// OTELEndpoint takes spans.
type OTELEndpoint struct {
	URL  string          `json:"url"`
	Auth json.RawMessage `json:"auth"`
}

// Hook is a script of the tenant's that runs around get_sources.
type Hook struct {
	Name   string   `json:"name"`
	Script []string `json:"script"`
}

// PolicyOptions say whether a pipeline execution policy made the job.
type PolicyOptions struct {
	ExecutionPolicyJob         bool     `json:"execution_policy_job"`
	Name                       string   `json:"policy_name"`
	VariableOverrideAllowed    *bool    `json:"policy_variables_override_allowed"`
	VariableOverrideExceptions []string `json:"policy_variables_override_exceptions"`
}

// SuspendOptions have no effect on a custom executor.
type SuspendOptions struct {
	OnSuccess      bool   `json:"suspend_on_success"`
	OnFailure      bool   `json:"suspend_on_failure"`
	EnvironmentKey string `json:"runtime_environment_key"`
}

// ParseJob reads a job response. Fields that it does not know it lists in
// Job.Unknown; what is malformed, or beyond a limit, it refuses with a
// [*FieldError] that names the field and never holds a value.
func ParseJob(data []byte) (*Job, error) {
	if len(data) > MaxPayload {
		return nil, &FieldError{jobResponse, "", fmt.Sprintf("%d bytes, more than %d", len(data), MaxPayload)}
	}
	j := &Job{}
	unknown, err := decode(jobResponse, data, j)
	if err != nil {
		return nil, err
	}
	j.Unknown = unknown
	if err := j.normalize(); err != nil {
		return nil, err
	}
	if err := j.check(); err != nil {
		return nil, err
	}
	return j, nil
}

const jobResponse = "job response"

// normalize brings the fields that come in several forms into one.
func (j *Job) normalize() error {
	// The runner sends inputs as {} whatever the job says. Anything else is of
	// a newer runner, and what it would mean is unknown.
	if text := string(j.Inputs); text != "" && text != "{}" && text != "[]" {
		j.Unknown = append(j.Unknown, "inputs")
	} else {
		j.Inputs = nil
	}
	if err := j.normalizeRun(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(j.Secrets)) {
		if j.Secrets[name] == nil {
			continue
		}
		unknown, err := decode(jobResponse, j.Secrets[name], &secret{}, "secrets", name)
		if err != nil {
			return err
		}
		j.Unknown = append(j.Unknown, unknown...)
	}
	if j.Git.RepoObjectFormat == "" {
		j.Git.RepoObjectFormat = "sha1"
	}
	return nil
}

// normalizeRun undoes the string in which GitLab sends run:.
func (j *Job) normalizeRun() error {
	if len(j.Run) > 0 && j.Run[0] == '"' {
		var text string
		if err := json.Unmarshal(j.Run, &text); err != nil {
			return fieldError("run", "not a JSON string")
		}
		j.Run = json.RawMessage(strings.TrimSpace(text))
	}
	switch {
	case len(j.Run) == 0 || string(j.Run) == "[]":
		j.Run = nil
		return nil
	case j.Run[0] != '[':
		return fieldError("run", "want a list, or a string that holds one")
	}
	// The list stands in an object of its own so that the same rules hold for
	// it as for the rest.
	wrapped := slices.Concat([]byte(`{"run":`), j.Run, []byte(`}`))
	var checked struct {
		Run json.RawMessage `json:"run"`
	}
	unknown, err := decode(jobResponse, wrapped, &checked)
	if err != nil {
		return err
	}
	if len(unknown) > 0 || checked.Run == nil {
		return fieldError("run", "not one list")
	}
	j.Run = checked.Run
	return nil
}

func fieldError(field, format string, args ...any) error {
	return &FieldError{jobResponse, field, fmt.Sprintf(format, args...)}
}

// check holds every value that others rely on to its form.
func (j *Job) check() error {
	if j.ID <= 0 {
		return fieldError("id", "want a positive number")
	}
	if err := text("token", j.Token, 1, maxToken); err != nil {
		return err
	}
	if j.Runner.Timeout < 0 || j.Runner.Timeout > maxTimeout {
		return fieldError("runner_info.timeout", "out of range")
	}
	for _, check := range []func() error{j.checkInfo, j.checkGit, j.checkVariables, j.checkDependencies, j.checkNames} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (j *Job) checkInfo() error {
	if j.Info.ProjectID <= 0 {
		return fieldError("job_info.project_id", "want a positive number")
	}
	if j.Info.PipelineID <= 0 {
		return fieldError("job_info.pipeline_id", "want a positive number")
	}
	if j.Info.UserID < 0 {
		return fieldError("job_info.user_id", "want a number that is not negative")
	}
	if err := text("job_info.project_full_path", j.Info.ProjectFullPath, 1, maxName); err != nil {
		return err
	}
	if p := j.Info.ProjectFullPath; path.Clean("/"+p) != "/"+p {
		return fieldError("job_info.project_full_path", "not a plain path")
	}
	if n := len(j.Info.Name); n == 0 || n > maxName {
		return fieldError("job_info.name", "want 1 to %d bytes", maxName)
	}
	if len(j.Info.Stage) > maxName {
		return fieldError("job_info.stage", "more than %d bytes", maxName)
	}
	return nil
}

func (j *Job) checkGit() error {
	digits := 0
	switch j.Git.RepoObjectFormat {
	case "sha1":
		digits = 40
	case "sha256":
		digits = 64
	default:
		return fieldError("git_info.repo_object_format", `want "sha1" or "sha256"`)
	}
	if !lowerHex(j.Git.SHA, digits) {
		return fieldError("git_info.sha", "want %d lower-case hex digits", digits)
	}
	if j.Git.BeforeSHA != "" && !lowerHex(j.Git.BeforeSHA, digits) {
		return fieldError("git_info.before_sha", "want %d lower-case hex digits", digits)
	}
	if t := j.Git.RefType; t != "branch" && t != "tag" {
		return fieldError("git_info.ref_type", `want "branch" or "tag"`)
	}
	if err := text("git_info.ref", j.Git.Ref, 1, maxRef); err != nil {
		return err
	}
	for i, r := range j.Git.Refspecs {
		if err := text(fmt.Sprintf("git_info.refspecs[%d]", i), r, 1, 2*maxRef); err != nil {
			return err
		}
	}
	if j.Git.Depth < 0 {
		return fieldError("git_info.depth", "want a number that is not negative")
	}
	if err := text("git_info.repo_url", j.Git.RepoURL, 1, maxURL); err != nil {
		return err
	}
	_, err := j.Repository()
	return err
}

func (j *Job) checkVariables() error {
	if err := variables("variables", j.Variables); err != nil {
		return err
	}
	for i, s := range j.Services {
		if err := variables(fmt.Sprintf("services[%d].variables", i), s.Variables); err != nil {
			return err
		}
	}
	return variables("image.variables", j.Image.Variables)
}

func (j *Job) checkDependencies() error {
	for i, d := range j.Dependencies {
		at := fmt.Sprintf("dependencies[%d]", i)
		if d.ID <= 0 {
			return fieldError(at+".id", "want a positive number")
		}
		if d.ArtifactsFile.Size < 0 {
			return fieldError(at+".artifacts_file.size", "want a number that is not negative")
		}
		if err := text(at+".token", d.Token, 0, maxToken); err != nil {
			return err
		}
	}
	return nil
}

// checkNames bounds the names that end up in file names, logs and records.
func (j *Job) checkNames() error {
	type name struct{ field, value string }
	names := []name{{"image.name", j.Image.Name}}
	add := func(list string, i int, field, value string) {
		names = append(names, name{fmt.Sprintf("%s[%d].%s", list, i, field), value})
	}
	for i, s := range j.Steps {
		add("steps", i, "name", s.Name)
	}
	for i, s := range j.Services {
		add("services", i, "name", s.Name)
		add("services", i, "alias", s.Alias)
	}
	for i, a := range j.Artifacts {
		add("artifacts", i, "name", a.Name)
	}
	for i, c := range j.Caches {
		add("cache", i, "key", c.Key)
	}
	for i, d := range j.Dependencies {
		add("dependencies", i, "name", d.Name)
	}
	for i, h := range j.Hooks {
		add("hooks", i, "name", h.Name)
	}
	for _, n := range names {
		if len(n.value) > maxName {
			return fieldError(n.field, "more than %d bytes", maxName)
		}
	}
	return nil
}

func variables(field string, vars []Variable) error {
	for i, v := range vars {
		if n := len(v.Key); n == 0 || n > maxName {
			return fieldError(fmt.Sprintf("%s[%d].key", field, i), "want 1 to %d bytes", maxName)
		}
	}
	return nil
}

// text holds one of GitLab's own strings to a length, and keeps control
// characters out of it.
func text(field, s string, least, most int) error {
	if len(s) < least {
		return fieldError(field, "missing")
	}
	if len(s) > most {
		return fieldError(field, "more than %d bytes", most)
	}
	if strings.IndexFunc(s, unicode.IsControl) >= 0 {
		return fieldError(field, "holds a control character")
	}
	return nil
}

func lowerHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// Repository is the repository's URL without credentials.
func (j *Job) Repository() (*url.URL, error) {
	const field = "git_info.repo_url"
	// An error of url.Parse quotes the URL, token and all.
	u, err := url.Parse(j.Git.RepoURL)
	if err != nil {
		return nil, fieldError(field, "not a URL")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "file":
		return nil, fieldError(field, "want the scheme https, http or file")
	case u.Scheme != "file" && u.Hostname() == "":
		return nil, fieldError(field, "names no host")
	case u.Opaque != "" || path.Clean("/"+strings.TrimSuffix(u.Path, ".git")) == "/":
		return nil, fieldError(field, "names no project")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, fieldError(field, "has a query or fragment")
	}
	u.User = nil
	return u, nil
}

// ProjectDir is where GitLab Runner puts the work tree in a builds directory
// that is not shared: below it, at the path of the repository's URL, or at
// project-<id> where the URL has no host or an odd path. What comes back always
// lies below buildsDir.
func (j *Job) ProjectDir(buildsDir string) string {
	dir := j.projectSlug()
	if j.gitStrategy() == "empty" {
		dir += "-empty"
	}
	return path.Join(buildsDir, dir)
}

// projectSlug repeats Build.ProjectSlug of GitLab Runner.
func (j *Job) projectSlug() string {
	fallback := fmt.Sprintf("project-%d", j.Info.ProjectID)
	u, err := url.Parse(j.Git.RepoURL)
	if err != nil || u.Host == "" {
		return fallback
	}
	slug := path.Clean(strings.TrimSuffix(u.Path, ".git"))
	if slug == "." || strings.Contains(slug, "..") {
		return fallback
	}
	return slug
}

// gitStrategy is the job's GIT_STRATEGY, with references expanded once as the
// runner does. References to what the runner alone knows stay empty; were one
// of them to matter, the work tree would not be found, and the job refused.
func (j *Job) gitStrategy() string { return j.Setting("GIT_STRATEGY") }

// Setting is the value of a variable that means something to the runner, with
// references expanded once as the runner does. It is empty where the job has no
// such variable.
func (j *Job) Setting(key string) string {
	v, ok := j.lookup(key)
	if !ok || v.Raw {
		return v.Value
	}
	return j.Expand(v.Value)
}

// Expand replaces references to the job's variables in a text. References to
// what the runner alone knows become empty.
func (j *Job) Expand(text string) string {
	last := variableSet(j.Variables).last()
	return newExpansion(func(name string) string {
		if name == "$" {
			return "$"
		}
		return last[name].Value
	}).of(text)
}

func (j *Job) lookup(key string) (Variable, bool) {
	for _, v := range slices.Backward(j.Variables) {
		if v.Key == key {
			return v, true
		}
	}
	return Variable{}, false
}

// String names the job and shows nothing else of it.
func (j Job) String() string { return fmt.Sprintf("job %d", j.ID) }

// GoString is String, for %#v.
func (j Job) GoString() string { return j.String() }

// LogValue is String, for log/slog.
func (j Job) LogValue() slog.Value { return slog.StringValue(j.String()) }

// String shows the name alone: values may be secrets.
func (v Variable) String() string { return v.Key }

// String shows whom the credential is for, without the password.
func (c Credential) String() string { return c.Type + " " + c.URL }

// String names the job, without its token.
func (d Dependency) String() string { return fmt.Sprintf("job %d", d.ID) }

// secret lists the fields of one entry of Job.Secrets that this version knows.
type secret struct {
	Vault  json.RawMessage `json:"vault"`
	GCP    json.RawMessage `json:"gcp_secret_manager"`
	Azure  json.RawMessage `json:"azure_key_vault"`
	AWS    json.RawMessage `json:"aws_secrets_manager"`
	GitLab json.RawMessage `json:"gitlab_secrets_manager"`
	File   *bool           `json:"file"`
}
