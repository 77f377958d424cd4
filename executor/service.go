package executor

import (
	"os"
	"path"
	"slices"
	"strconv"
)

// tempDirVariable names the directory where the runner's scripts put the files
// of file variables.
const tempDirVariable = "RUNNER_TEMP_PROJECT_DIR"

// variableSet is a list of variables in which the last one of its name counts.
type variableSet []Variable

// get is a variable's value as a script would find it: of a file variable it is
// the file's path.
func (s variableSet) get(name string) string {
	switch name {
	case "$":
		return name
	case "*", "#", "@", "!", "?", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9":
		return ""
	}
	for _, v := range slices.Backward(s) {
		if v.Key != name {
			continue
		}
		return s.value(v)
	}
	return ""
}

func (s variableSet) value(v Variable) string {
	if v.File {
		return path.Join(s.content(tempDirVariable), v.Key)
	}
	return v.Value
}

func (s variableSet) content(name string) string {
	for _, v := range slices.Backward(s) {
		if v.Key == name {
			return v.Value
		}
	}
	return ""
}

// expand replaces the references in the values that are not raw, once, by what
// from has.
func (s variableSet) expand(from variableSet) variableSet {
	out := slices.Clone(s)
	for i, v := range out {
		if !v.Raw {
			out[i].Value = os.Expand(v.Value, from.get)
		}
	}
	return out
}

// all are the job's variables between those that the runner adds, expanded. Of
// the runner's own, those are missing that only it knows: its short token, its
// numbers for concurrent jobs, and feature flags.
func (j *Job) all(buildsDir, runnerVersion string) variableSet {
	given := func(key, value string) Variable { return Variable{Key: key, Value: value, Public: true} }
	set := variableSet{}
	if j.Image.Name != "" {
		set = append(set, given("CI_JOB_IMAGE", j.Image.Name))
	}
	dir := j.ProjectDir(buildsDir)
	set = append(set, given("CI_BUILDS_DIR", buildsDir), given("CI_PROJECT_DIR", dir), given("CI_SERVER", "yes"),
		given("CI_JOB_STATUS", "running"), given("CI_JOB_TIMEOUT", strconv.Itoa(j.Runner.Timeout)))
	set = append(set, j.Variables...)
	set = append(set, given("CI_SHARED_ENVIRONMENT", "true"), given("CI_RUNNER_VERSION", runnerVersion), given(tempDirVariable, dir+".tmp"))
	return set.expand(set)
}

// ServiceEnv is the environment of a service: the job's public variables and
// the service's own, each name once. The service's own may refer to any of the
// job's, as whoever wrote them chose; the public ones stand as scripts see them,
// so that they carry no more in than they are.
func (j *Job) ServiceEnv(s Image, buildsDir, runnerVersion string) []string {
	all := j.all(buildsDir, runnerVersion)
	var set variableSet
	for _, v := range all {
		if v.Public {
			set = append(set, v)
		}
	}
	own := variableSet(s.Variables)
	return append(set, own.expand(slices.Concat(all, own))...).environ()
}

// BuildEnv is what the build image's entrypoint finds in its environment beside
// the image's own: all of the job's variables, each name once, as scripts see
// them.
func (j *Job) BuildEnv(buildsDir, runnerVersion string) []string {
	return j.all(buildsDir, runnerVersion).environ()
}

// environ gives each variable once.
func (s variableSet) environ() []string {
	last := make(map[string]Variable, len(s))
	for _, v := range s {
		last[v.Key] = v
	}
	var env []string
	for _, v := range s {
		if of, ok := last[v.Key]; ok {
			env = append(env, v.Key+"="+s.value(of))
			delete(last, v.Key)
		}
	}
	return env
}

// ExpandAll replaces references in a text by the job's variables and those of
// the runner.
func (j *Job) ExpandAll(text, buildsDir, runnerVersion string) string {
	return os.Expand(text, j.all(buildsDir, runnerVersion).get)
}

// Switch reads a variable that is on or off, as the runner does.
func (j *Job) Switch(key string) bool {
	v := variableSet(j.Variables).expand(j.Variables).get(key)
	on, _ := strconv.ParseBool(v)
	return on
}
