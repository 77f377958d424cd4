package executor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// minimal is the smallest job response that is accepted. Tests change it by
// replacing text.
const minimal = `{
 "id": 1, "token": "glcbt-SECRET",
 "job_info": {"name": "j", "stage": "test", "pipeline_id": 2, "project_id": 3, "project_full_path": "group/project"},
 "git_info": {"repo_url": "https://ci:glcbt-SECRET@gitlab.example/group/project.git", "repo_object_format": "sha1",
  "ref": "main", "sha": "d49edef2fa099e976829257ce85b024f105ff0c4", "before_sha": "0000000000000000000000000000000000000000",
  "ref_type": "branch", "refspecs": ["+refs/heads/main:refs/remotes/origin/main"], "protected": null},
 "runner_info": {"timeout": 600}, "variables": [], "steps": [], "image": {"name": ""}, "services": []
}`

// with replaces old, which must be there, in minimal.
func with(t testing.TB, old, new string) []byte {
	t.Helper()
	if strings.Count(minimal, old) != 1 {
		t.Fatalf("%q stands %d times in the minimal job", old, strings.Count(minimal, old))
	}
	return []byte(strings.Replace(minimal, old, new, 1))
}

func readJob(t testing.TB, name string) *Job {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	j, err := ParseJob(data)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestParseCapturedJob(t *testing.T) {
	j := readJob(t, "job-success.json")
	if len(j.Unknown) != 0 {
		t.Errorf("unknown fields %q in a job of the runner that we know", j.Unknown)
	}
	no := false
	wantGit := GitInfo{
		RepoURL:          "http://gitlab-ci-token:glcbt-64_JOBTOKENJOBTOKEN@127.0.0.1:44291/group/project.git",
		RepoObjectFormat: "sha1",
		Ref:              "main",
		SHA:              "d49edef2fa099e976829257ce85b024f105ff0c4",
		BeforeSHA:        "0000000000000000000000000000000000000000",
		RefType:          "branch",
		Refspecs:         []string{"+refs/pipelines/9001:refs/pipelines/9001", "+refs/heads/main:refs/remotes/origin/main"},
		Depth:            20,
		Protected:        &no,
	}
	wantImage := Image{
		Name:         "registry.example/img-plain:1",
		Entrypoint:   []string{"/bin/sh", "-c"},
		PullPolicy:   []string{"if-not-present"},
		ExecutorOpts: ExecutorOptions{Docker: DockerOptions{Platform: "linux/amd64", User: "1000:1000"}},
	}
	wantDependencies := []Dependency{{ID: 4100, Token: "glcbt-dep-token", Name: "build", ArtifactsFile: ArtifactsFile{"artifacts.zip", 300}}}
	wantArtifact := Artifact{
		Name: "out-$CI_JOB_NAME", Paths: []string{"out/", "src/hello.txt"}, Exclude: []string{"out/skip*"},
		When: "always", Type: "archive", Format: "zip", ExpireIn: "1 week",
	}
	for _, d := range []string{
		cmp.Diff(int64(4242), j.ID),
		cmp.Diff("glcbt-64_JOBTOKENJOBTOKEN", j.Token),
		cmp.Diff(int64(77), j.Info.ProjectID), // the tenant's CI_PROJECT_ID says 1
		cmp.Diff("group/project", j.Info.ProjectFullPath),
		cmp.Diff(1.5, j.Info.TimeInQueueSeconds),
		cmp.Diff(wantGit, j.Git),
		cmp.Diff(wantImage, j.Image),
		cmp.Diff(600, j.Runner.Timeout),
		cmp.Diff([]string{"db", "database"}, j.Services[0].Aliases()),
		cmp.Diff(wantArtifact, j.Artifacts[0]),
		cmp.Diff(wantDependencies, j.Dependencies),
		cmp.Diff([]Cache{{Key: "deps-main", Policy: "pull-push", Paths: []string{"cached/"}, When: "always", FallbackKeys: []string{"deps-default"}}}, j.Caches),
		cmp.Diff([]Credential{{"registry", "registry.example", "gitlab-ci-token", "glcbt-64_JOBTOKENJOBTOKEN"}}, j.Credentials),
		cmp.Diff([]Hook{{"pre_get_sources_script", []string{"echo hook pre_get_sources"}}}, j.Hooks),
		cmp.Diff("after_script", j.Steps[1].Name),
		cmp.Diff("/builds/group/project", j.ProjectDir("/builds")),
	} {
		if d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	// Order and duplicates of variables are kept: the last one counts.
	var ids []string
	for _, v := range j.Variables {
		if v.Key == "CI_JOB_ID" {
			ids = append(ids, v.Value)
		}
	}
	if diff := cmp.Diff([]string{"4242", "1"}, ids); diff != "" {
		t.Errorf("CI_JOB_ID (-want +got):\n%s", diff)
	}
	if j := readJob(t, "job-failure.json"); j.ID != 4250 || len(j.Unknown) != 0 {
		t.Errorf("job-failure.json: id %d, unknown %q", j.ID, j.Unknown)
	}
}

func TestParseFullJob(t *testing.T) {
	j := readJob(t, "job-full.json")
	if len(j.Unknown) != 0 {
		t.Errorf("unknown fields %q", j.Unknown)
	}
	// Beyond 2^53, where a float64 would round.
	if j.ID != 9007199254740993 || j.Info.PipelineID != 9007199254740995 || *j.Info.ScopedUserID != 9007199254740997 {
		t.Errorf("ids %d, %d, %d: not exact", j.ID, j.Info.PipelineID, *j.Info.ScopedUserID)
	}
	if j.Git.Protected == nil || !*j.Git.Protected {
		t.Error("git_info.protected is lost")
	}
	if len(j.Secrets) != 2 || !bytes.Contains(j.Secrets["DB_PASSWORD"], []byte(`"vault"`)) {
		t.Errorf("secrets: %d of 2", len(j.Secrets))
	}
	if got := string(j.Run); got != `[{"name": "hello", "step": "./step", "inputs": {"n": 1}}]` {
		t.Errorf("run: %s", got)
	}
	if diff := cmp.Diff([]Port{{80, "http", "web"}, {}}, j.Image.Ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if !j.PolicyOptions.ExecutionPolicyJob || j.PolicyOptions.VariableOverrideAllowed == nil || !j.SuspendOptions.OnSuccess {
		t.Error("policy or suspend options are lost")
	}
}

func TestParseJobLenient(t *testing.T) {
	tests := []struct {
		name string
		data []byte
		ok   func(*Job) bool
	}{
		{"minimal", []byte(minimal), func(j *Job) bool { return j.ID == 1 && j.Git.Protected == nil }},
		{"no object format is sha1", with(t, `"repo_object_format": "sha1",`, ``), func(j *Job) bool { return j.Git.RepoObjectFormat == "sha1" }},
		{"no before_sha", with(t, `"before_sha": "0000000000000000000000000000000000000000",`, ``), func(j *Job) bool { return j.Git.BeforeSHA == "" }},
		{"empty inputs", with(t, `"id": 1`, `"id": 1, "inputs": {}`), func(j *Job) bool { return j.Inputs == nil }},
		{"list of no inputs", with(t, `"id": 1`, `"id": 1, "inputs": []`), func(j *Job) bool { return j.Inputs == nil }},
		{"null inputs", with(t, `"id": 1`, `"id": 1, "inputs": null`), func(j *Job) bool { return j.Inputs == nil }},
		{"run as a string", with(t, `"id": 1`, `"id": 1, "run": "[{\"name\":\"x\"}]"`), func(j *Job) bool { return string(j.Run) == `[{"name":"x"}]` }},
		{"run as a list", with(t, `"id": 1`, `"id": 1, "run": [ {"name":"x"} ]`), func(j *Job) bool { return string(j.Run) == `[ {"name":"x"} ]` }},
		{"empty run", with(t, `"id": 1`, `"id": 1, "run": []`), func(j *Job) bool { return j.Run == nil }},
		{"empty run as a string", with(t, `"id": 1`, `"id": 1, "run": "[]"`), func(j *Job) bool { return j.Run == nil }},
		{"null run", with(t, `"id": 1`, `"id": 1, "run": null`), func(j *Job) bool { return j.Run == nil }},
		{"null secrets", with(t, `"id": 1`, `"id": 1, "secrets": null`), func(j *Job) bool { return j.Secrets == nil }},
		{"null secret", with(t, `"id": 1`, `"id": 1, "secrets": {"A": null}`), func(j *Job) bool { return len(j.Secrets) == 1 }},
		{"null lists", with(t, `"variables": []`, `"variables": null`), func(j *Job) bool { return j.Variables == nil }},
		{"empty list", with(t, `"variables": []`, `"variables": [ ]`), func(j *Job) bool { return j.Variables != nil }},
		{"file repository", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `file:///srv/git/project.git`), func(j *Job) bool { return j.ProjectDir("/builds") == "/builds/project-3" }},
		{"odd branch", with(t, `"ref": "main"`, `"ref": "feature/ü👩‍👩‍👧"`), func(j *Job) bool { return j.Git.Ref != "" }},
		{"white space around", []byte("\n\t " + minimal + " \n"), func(j *Job) bool { return j.ID == 1 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j, err := ParseJob(tt.data)
			if err != nil {
				t.Fatal(err)
			}
			if !tt.ok(j) || len(j.Unknown) > 0 {
				t.Errorf("wrong job, unknown fields %q", j.Unknown)
			}
		})
	}
}

func TestUnknownFieldsAreListed(t *testing.T) {
	tests := []struct {
		name string
		data []byte
		want []string
	}{
		{"top", with(t, `"id": 1`, `"id": 1, "future": {"x": [1, {"y": null}]}`), []string{"future"}},
		{"null", with(t, `"id": 1`, `"id": 1, "future": null`), []string{"future"}},
		{"nested", with(t, `"ref": "main"`, `"ref": "main", "foo": 1`), []string{"git_info.foo"}},
		{"in a list", with(t, `"services": []`, `"services": [{"name": "a"}, {"name": "b", "executor_opts": {"docker": {"privileged": true}}}]`), []string{"services[1].executor_opts.docker.privileged"}},
		{"case matters", with(t, `"id": 1`, `"ID": 5, "id": 1, "Git_Info": {}`), []string{"ID", "Git_Info"}},
		{"an escaped name is the name", with(t, `"runner_info"`, `"runner\u005finfo"`), nil},
		{"odd names are quoted", with(t, `"id": 1`, `"id": 1, "a b\n\u001b[31mü": 1, "": 2, "[0]": 3`), []string{`["a b\n\x1b[31m\u00fc"]`, `[""]`, `["[0]"]`}},
		{"long names are cut", with(t, `"id": 1`, `"id": 1, "`+strings.Repeat("x", 1000)+`": 1`), []string{`["` + strings.Repeat("x", 64) + `"]`}},
		{"inputs with content", with(t, `"id": 1`, `"id": 1, "inputs": {"a": 1}`), []string{"inputs"}},
		{"inputs as the server sends them", with(t, `"id": 1`, `"id": 1, "inputs": [{"key":"a"}]`), []string{"inputs"}},
		{"a new kind of secret", with(t, `"id": 1`, `"id": 1, "secrets": {"B": {"vault": {}}, "A": {"conjur": {}}}`), []string{"secrets.A.conjur"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j, err := ParseJob(tt.data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, j.Unknown); diff != "" {
				t.Errorf("unknown (-want +got):\n%s", diff)
			}
			if j.ID != 1 {
				t.Errorf("id %d: a name of another case was taken", j.ID)
			}
		})
	}
}

func TestParseJobRefuses(t *testing.T) {
	nested := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	many := "[" + strings.TrimSuffix(strings.Repeat("{},", 1<<14+1), ",") + "]"
	long := strings.Repeat("x", 1<<14)
	tests := []struct {
		name, field string
		data        []byte
	}{
		{"nothing", "", nil},
		{"white space", "", []byte(" ")},
		{"a list", "", []byte(`[]`)},
		{"null", "", []byte(`null`)},
		{"cut off", "git_info.repo_url", []byte(minimal[:strings.Index(minimal, "gitlab.example")])},
		{"cut off at the end", "", []byte(strings.TrimSuffix(minimal, "\n}"))},
		{"two values", "", []byte(minimal + "{}")},
		{"rubbish behind", "", []byte(minimal + "x")},
		{"not JSON", "id", with(t, `"id": 1`, `"id": SECRET`)},
		{"comma too many", "", with(t, `"services": []`, `"services": [],`)},
		{"comma missing", "", with(t, `"id": 1,`, `"id": 1`)},
		{"invalid UTF-8", "", with(t, `"ref": "main"`, "\"ref\": \"ma\xffin\"")},
		{"NUL in a string", "variables[0].value", with(t, `"variables": []`, `"variables": [{"key":"A","value":"SECRET\u0000"}]`)},
		{"id twice", "id", with(t, `"id": 1`, `"id": 1, "id": 2`)},
		{"id twice by escape", "id", with(t, `"id": 1`, `"id": 1, "\u0069d": 2`)},
		{"unknown field twice", "future", with(t, `"id": 1`, `"id": 1, "future": 1, "future": 1`)},
		{"twice inside an unknown field", "future.a", with(t, `"id": 1`, `"id": 1, "future": {"a":1,"a":1}`)},
		{"twice inside run", "run[0].a", with(t, `"id": 1`, `"id": 1, "run": [{"a":1,"a":1}]`)},
		{"twice inside run as a string", "run[0].a", with(t, `"id": 1`, `"id": 1, "run": "[{\"a\":1,\"a\":1}]"`)},
		{"twice inside a secret", "secrets.A.vault", with(t, `"id": 1`, `"id": 1, "secrets": {"A":{"vault":{},"vault":{}}}`)},
		{"too deep", "future[0][0]", with(t, `"id": 1`, `"id": 1, "future": `+nested)},
		{"too deep in run", "run[0][0]", with(t, `"id": 1`, `"id": 1, "run": `+nested)},
		{"too many items", "variables", with(t, `"variables": []`, `"variables": `+many)},
		{"too many unknown items", "future", with(t, `"id": 1`, `"id": 1, "future": `+many)},
		{"too many unknown fields", "u256", with(t, `"id": 1`, `"id": 1`+members("u", 257))},
		{"too many members", "future.u16383", with(t, `"id": 1`, `"id": 1, "future": {"x":1`+members("u", 1<<14+1)+`}`)},
		{"too many values", "future", with(t, `"id": 1`, `"id": 1, "future": [`+strings.TrimSuffix(strings.Repeat(many+",", 17), ",")+`]`)},
		{"a name too long", "", with(t, `"id": 1`, `"id": 1, "`+long+`": 1`)},

		{"no id", "id", with(t, `"id": 1,`, ``)},
		{"id zero", "id", with(t, `"id": 1`, `"id": 0`)},
		{"id negative", "id", with(t, `"id": 1`, `"id": -1`)},
		{"id null", "id", with(t, `"id": 1`, `"id": null`)},
		{"id a string", "id", with(t, `"id": 1`, `"id": "1"`)},
		{"id a fraction", "id", with(t, `"id": 1`, `"id": 1.0`)},
		{"id with an exponent", "id", with(t, `"id": 1`, `"id": 1e3`)},
		{"id over 64 bits", "id", with(t, `"id": 1`, `"id": 9223372036854775808`)},
		{"token missing", "token", with(t, `"token": "glcbt-SECRET",`, ``)},
		{"token with a newline", "token", with(t, `"token": "glcbt-SECRET"`, `"token": "glcbt-SECRET\nX: y"`)},
		{"token too long", "token", with(t, `"token": "glcbt-SECRET"`, `"token": "`+long+`"`)},
		{"token a number", "token", with(t, `"token": "glcbt-SECRET"`, `"token": 1`)},
		{"no project", "job_info.project_id", with(t, `"project_id": 3,`, ``)},
		{"no pipeline", "job_info.pipeline_id", with(t, `"pipeline_id": 2,`, ``)},
		{"negative user", "job_info.user_id", with(t, `"project_id": 3`, `"project_id": 3, "user_id": -1`)},
		{"no project path", "job_info.project_full_path", with(t, `"project_full_path": "group/project"`, `"project_full_path": ""`)},
		{"project path climbs", "job_info.project_full_path", with(t, `"project_full_path": "group/project"`, `"project_full_path": "group/../other"`)},
		{"project path absolute", "job_info.project_full_path", with(t, `"project_full_path": "group/project"`, `"project_full_path": "/group"`)},
		{"project path with a newline", "job_info.project_full_path", with(t, `"project_full_path": "group/project"`, `"project_full_path": "group\nx"`)},
		{"no job name", "job_info.name", with(t, `"name": "j"`, `"name": ""`)},
		{"job name too long", "job_info.name", with(t, `"name": "j"`, `"name": "`+long+`"`)},
		{"stage too long", "job_info.stage", with(t, `"stage": "test"`, `"stage": "`+long+`"`)},
		{"job_info a list", "job_info", with(t, `"job_info": {`, `"job_info": [], "x": {`)},
		{"sha too short", "git_info.sha", with(t, `"sha": "d49e`, `"sha": "49e`)},
		{"sha upper case", "git_info.sha", with(t, `"sha": "d49e`, `"sha": "D49E`)},
		{"sha not hex", "git_info.sha", with(t, `"sha": "d49e`, `"sha": "g49e`)},
		{"sha of the other format", "git_info.sha", with(t, `"repo_object_format": "sha1"`, `"repo_object_format": "sha256"`)},
		{"sha an option", "git_info.sha", with(t, `"sha": "d49edef2fa099e976829257ce85b024f105ff0c4"`, `"sha": "--upload-pack=x"`)},
		{"before_sha not hex", "git_info.before_sha", with(t, `"before_sha": "0000`, `"before_sha": "zzzz`)},
		{"unknown object format", "git_info.repo_object_format", with(t, `"repo_object_format": "sha1"`, `"repo_object_format": "md5"`)},
		{"unknown ref type", "git_info.ref_type", with(t, `"ref_type": "branch"`, `"ref_type": "merge"`)},
		{"no ref type", "git_info.ref_type", with(t, `"ref_type": "branch",`, ``)},
		{"no ref", "git_info.ref", with(t, `"ref": "main",`, ``)},
		{"ref with a newline", "git_info.ref", with(t, `"ref": "main"`, `"ref": "main\nx"`)},
		{"refspec empty", "git_info.refspecs[0]", with(t, `"+refs/heads/main:refs/remotes/origin/main"`, `""`)},
		{"depth negative", "git_info.depth", with(t, `"ref": "main"`, `"ref": "main", "depth": -1`)},
		{"repository not a URL", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `https://ci:glcbt-SECRET@git lab/%zz`)},
		{"repository over ssh", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `ssh://git@gitlab.example/group/project.git`)},
		{"repository of ext transport", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `ext::sh -c id`)},
		{"repository without host", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `https:///group/project.git`)},
		{"repository without path", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `https://gitlab.example/`)},
		{"repository of a suffix alone", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `https://gitlab.example/.git`)},
		{"repository of dots", "git_info.repo_url", with(t, `https://ci:glcbt-SECRET@gitlab.example/group/project.git`, `https://gitlab.example/a/../.git`)},
		{"repository with a query", "git_info.repo_url", with(t, `project.git"`, `project.git?private_token=SECRET"`)},
		{"repository with a fragment", "git_info.repo_url", with(t, `project.git"`, `project.git#SECRET"`)},
		{"timeout negative", "runner_info.timeout", with(t, `"timeout": 600`, `"timeout": -1`)},
		{"timeout huge", "runner_info.timeout", with(t, `"timeout": 600`, `"timeout": 99999999999`)},
		{"variable without a name", "variables[0].key", with(t, `"variables": []`, `"variables": [{"value":"SECRET"}]`)},
		{"variable's name too long", "variables[0].key", with(t, `"variables": []`, `"variables": [{"key":"`+long+`","value":"SECRET"}]`)},
		{"variable's value no string", "variables[0].value", with(t, `"variables": []`, `"variables": [{"key":"A","value":7}]`)},
		{"variable's flag no flag", "variables[0].masked", with(t, `"variables": []`, `"variables": [{"key":"A","masked":"yes"}]`)},
		{"service's variable without a name", "services[0].variables[0].key", with(t, `"services": []`, `"services": [{"name":"a","variables":[{"value":"SECRET"}]}]`)},
		{"image's name too long", "image.name", with(t, `"image": {"name": ""}`, `"image": {"name": "`+long+`"}`)},
		{"step's script a string", "steps[0].script", with(t, `"steps": []`, `"steps": [{"name":"script","script":"SECRET"}]`)},
		{"artifact's name too long", "artifacts[0].name", with(t, `"id": 1`, `"id": 1, "artifacts": [{"name":"`+long+`"}]`)},
		{"cache key too long", "cache[0].key", with(t, `"id": 1`, `"id": 1, "cache": [{"key":"`+long+`"}]`)},
		{"dependency without id", "dependencies[0].id", with(t, `"id": 1`, `"id": 1, "dependencies": [{"token":"SECRET"}]`)},
		{"dependency of negative size", "dependencies[0].artifacts_file.size", with(t, `"id": 1`, `"id": 1, "dependencies": [{"id":1,"artifacts_file":{"size":-1}}]`)},
		{"dependency's token with a newline", "dependencies[0].token", with(t, `"id": 1`, `"id": 1, "dependencies": [{"id":1,"token":"SECRET\n"}]`)},
		{"run a number", "run", with(t, `"id": 1`, `"id": 1, "run": 1`)},
		{"run an object", "run", with(t, `"id": 1`, `"id": 1, "run": {"a":1}`)},
		{"run a string without JSON", "run", with(t, `"id": 1`, `"id": 1, "run": "SECRET"`)},
		{"run a string that breaks out", "run", with(t, `"id": 1`, `"id": 1, "run": "[],\"x\":[]"`)},
		{"run a string with a second value", "", with(t, `"id": 1`, `"id": 1, "run": "[1]}{"`)},
		{"secrets a list", "secrets", with(t, `"id": 1`, `"id": 1, "secrets": []`)},
		{"secret a string", "secrets.A", with(t, `"id": 1`, `"id": 1, "secrets": {"A":"SECRET"}`)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseJob(tt.data)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), "SECRET") {
				t.Errorf("%q gives a secret away", err)
			}
			fieldErr, ok := errors.AsType[*FieldError](err)
			if !ok {
				t.Fatalf("%T %v: want a *FieldError", err, err)
			}
			if !strings.HasPrefix(fieldErr.Field, tt.field) || tt.field == "" && fieldErr.Field != "" && tt.name != "a name too long" {
				t.Errorf("%q names the field %q, want %q", err, fieldErr.Field, tt.field)
			}
		})
	}
}

// members returns n members with distinct names, each after a comma.
func members(prefix string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%s%d":1`, prefix, i)
	}
	return b.String()
}

func TestParseJobTooLarge(t *testing.T) {
	data := append([]byte(minimal), bytes.Repeat([]byte(" "), MaxPayload-len(minimal))...)
	if _, err := ParseJob(data); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	if _, err := ParseJob(append(data, ' ')); err == nil {
		t.Error("over the limit: accepted")
	}
}

func TestRepository(t *testing.T) {
	j := readJob(t, "job-full.json")
	u, err := j.Repository()
	if err != nil {
		t.Fatal(err)
	}
	if got := u.String(); got != "https://gitlab.example:8443/group/sub/project.git" {
		t.Errorf("repository %s", got)
	}
}

func TestProjectDir(t *testing.T) {
	variable := func(s string) string { return `"variables": [` + s + `]` }
	url := `https://ci:glcbt-SECRET@gitlab.example/group/project.git`
	tests := []struct{ name, old, new, want string }{
		{"plain", `"id": 1`, `"id": 1`, "/builds/group/project"},
		{"deep", url, `https://gitlab.example/a/b/c/d.git`, "/builds/a/b/c/d"},
		{"without .git", url, `https://gitlab.example/a/b`, "/builds/a/b"},
		{".git once", url, `https://gitlab.example/a/b.git.git`, "/builds/a/b.git"},
		{"relative url root", url, `https://example/gitlab/a/b.git`, "/builds/gitlab/a/b"},
		{"port", url, `http://127.0.0.1:44291/a/b.git`, "/builds/a/b"},
		{"double slashes", url, `https://gitlab.example//a//b.git`, "/builds/a/b"},
		{"escapes", url, `https://gitlab.example/a/b%20c.git`, "/builds/a/b c"},
		{"climbing", url, `https://gitlab.example/a/../../etc.git`, "/builds/etc"},
		{"climbing by escape", url, `https://gitlab.example/a/%2e%2e/%2e%2e/etc.git`, "/builds/etc"},
		{"two dots in a name", url, `https://gitlab.example/a/b..c.git`, "/builds/project-3"},
		{"no host", url, `file:///srv/a.git`, "/builds/project-3"},
		{"empty strategy", `"variables": []`, variable(`{"key":"GIT_STRATEGY","value":"empty"}`), "/builds/group/project-empty"},
		{"other strategy", `"variables": []`, variable(`{"key":"GIT_STRATEGY","value":"none"}`), "/builds/group/project"},
		{"the last strategy counts", `"variables": []`, variable(`{"key":"GIT_STRATEGY","value":"empty"},{"key":"GIT_STRATEGY","value":"fetch"}`), "/builds/group/project"},
		{"expanded strategy", `"variables": []`, variable(`{"key":"A","value":"emp"},{"key":"GIT_STRATEGY","value":"${A}ty"}`), "/builds/group/project-empty"},
		{"expanded once", `"variables": []`, variable(`{"key":"A","value":"$B"},{"key":"B","value":"empty"},{"key":"GIT_STRATEGY","value":"$A"}`), "/builds/group/project"},
		{"raw strategy", `"variables": []`, variable(`{"key":"A","value":"empty"},{"key":"GIT_STRATEGY","value":"$A","raw":true}`), "/builds/group/project"},
		{"strategy of another case", `"variables": []`, variable(`{"key":"GIT_STRATEGY","value":"EMPTY"}`), "/builds/group/project"},
		{"forged directory", `"variables": []`, variable(`{"key":"CI_PROJECT_DIR","value":"/etc"},{"key":"CI_PROJECT_PATH","value":"x"}`), "/builds/group/project"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			j, err := ParseJob(with(t, tt.old, tt.new))
			if err != nil {
				t.Fatal(err)
			}
			if got := j.ProjectDir("/builds"); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// TestPrintingGivesNothingAway prints a job in every way that comes to mind.
func TestPrintingGivesNothingAway(t *testing.T) {
	j := readJob(t, "job-success.json")
	var b bytes.Buffer
	fmt.Fprintf(&b, "%v %+v %#v %s %v %+v %#v %s\n", j, j, j, j, *j, *j, *j, *j)
	fmt.Fprintf(&b, "%v %+v %v %+v %v %+v\n", j.Variables, j.Variables, j.Credentials, j.Credentials[0], j.Dependencies, j.Dependencies[0])
	slog.New(slog.NewTextHandler(&b, nil)).Info("job", "job", j, "value", *j)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("job", "job", j, "value", *j)
	for _, secret := range []string{"JOBTOKEN", "s3cr3t", "glcbt-dep-token", "pw-"} {
		if strings.Contains(b.String(), secret) {
			t.Errorf("printed %q:\n%s", secret, b.String())
		}
	}
	if !strings.Contains(b.String(), "job 4242") {
		t.Errorf("the job's number is missing:\n%s", b.String())
	}
}

func FuzzParseJob(f *testing.F) {
	f.Add([]byte(minimal))
	for _, name := range []string{"job-success.json", "job-failure.json", "job-full.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(strings.Replace(minimal, `"id": 1`, `"id": 1, "run": "[{\"a\":[1]}]", "secrets": {"A":{"x":1}}, "u": [[{}]]`, 1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		j, err := ParseJob(data)
		if err != nil {
			if _, ok := errors.AsType[*FieldError](err); !ok {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("accepted what is not JSON")
		}
		if j.Run != nil && !json.Valid(j.Run) {
			t.Fatalf("run %q", j.Run)
		}
		if !lowerHex(j.Git.SHA, 40) && !lowerHex(j.Git.SHA, 64) {
			t.Fatalf("sha %q", j.Git.SHA)
		}
		u, err := j.Repository()
		if err != nil || u.User != nil {
			t.Fatalf("repository of an accepted job: %v, %v", u, err)
		}
		dir := j.ProjectDir("/builds")
		if !strings.HasPrefix(dir, "/builds/") || strings.Contains(dir, "/../") || filepath.Clean(dir) != dir {
			t.Fatalf("project directory %q", dir)
		}
		// A job without unknown fields means the same to encoding/json.
		if len(j.Unknown) == 0 {
			var plain struct {
				ID  int64   `json:"id"`
				Git GitInfo `json:"git_info"`
			}
			if err := json.Unmarshal(data, &plain); err == nil && (plain.ID != j.ID || plain.Git.SHA != j.Git.SHA) {
				t.Fatalf("encoding/json reads job %d of %s, we %d of %s", plain.ID, plain.Git.SHA, j.ID, j.Git.SHA)
			}
		}
	})
}
