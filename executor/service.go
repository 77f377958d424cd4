package executor

import (
	"fmt"
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

// maxExpanded bounds what the references in one text, or in all variables
// together, may bring, in bytes: with a few of them a payload stands for more than
// there is memory. No process could have a tenth of it in its environment.
const maxExpanded = 64 << 20

// An expansion replaces references until they have brought too much. Each name is
// looked up once.
type expansion struct {
	get  func(name string) string
	seen map[string]string
	left int
}

func newExpansion(get func(name string) string) *expansion {
	return &expansion{get: get, seen: map[string]string{}, left: maxExpanded}
}

func (e *expansion) of(text string) string {
	return os.Expand(text, func(name string) string {
		if e.left < 0 {
			return ""
		}
		value, ok := e.seen[name]
		if !ok {
			value = e.get(name)
			e.seen[name] = value
		}
		if e.left -= len(value); e.left < 0 {
			return ""
		}
		return value
	})
}

// values finds a variable's value as a script would: of a file variable it is the
// file's path.
func (s variableSet) values() func(name string) string {
	last, dir := s.last(), s.content(tempDirVariable)
	return func(name string) string {
		switch name {
		case "$":
			return name
		case "*", "#", "@", "!", "?", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9":
			return ""
		}
		if v, ok := last[name]; ok {
			return v.value(dir)
		}
		return ""
	}
}

// last are the variables that count, by name.
func (s variableSet) last() map[string]Variable {
	last := make(map[string]Variable, len(s))
	for _, v := range s {
		last[v.Key] = v
	}
	return last
}

// value is what a script finds; dir is where the files of file variables are.
func (v Variable) value(dir string) string {
	if v.File {
		return path.Join(dir, v.Key)
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
// from has. The error says that they bring too much; what is beyond is left out.
func (s variableSet) expand(from variableSet) (variableSet, error) {
	out, e := slices.Clone(s), newExpansion(from.values())
	for i, v := range out {
		if !v.Raw {
			out[i].Value = e.of(v.Value)
		}
	}
	if e.left < 0 {
		return out, errExpanded
	}
	return out, nil
}

var errExpanded = fmt.Errorf("variables that refer to others come to more than %d bytes", maxExpanded)

// CheckVariables refuses variables that stand for more than anybody can hold.
func (j *Job) CheckVariables(buildsDir, runnerVersion string) error {
	_, err := j.all(buildsDir, runnerVersion)
	return err
}

// all are the job's variables between those that the runner adds, expanded. Of
// the runner's own, those are missing that only it knows: its short token, its
// numbers for concurrent jobs, and feature flags.
func (j *Job) all(buildsDir, runnerVersion string) (variableSet, error) {
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
	all, _ := j.all(buildsDir, runnerVersion) // CheckVariables has seen the error
	var set variableSet
	for _, v := range all {
		if v.Public {
			set = append(set, v)
		}
	}
	own := variableSet(s.Variables)
	own, _ = own.expand(slices.Concat(all, own))
	return append(set, own...).environ()
}

// BuildEnv is what the build image's entrypoint finds in its environment beside
// the image's own: all of the job's variables, each name once, as scripts see
// them.
func (j *Job) BuildEnv(buildsDir, runnerVersion string) []string {
	all, _ := j.all(buildsDir, runnerVersion)
	return all.environ()
}

// environ gives each variable once.
func (s variableSet) environ() []string {
	last, dir := s.last(), s.content(tempDirVariable)
	var env []string
	for _, v := range s {
		if of, ok := last[v.Key]; ok {
			env = append(env, v.Key+"="+of.value(dir))
			delete(last, v.Key)
		}
	}
	return env
}

// ExpandAll replaces references in a text by the job's variables and those of
// the runner.
func (j *Job) ExpandAll(text, buildsDir, runnerVersion string) string {
	all, _ := j.all(buildsDir, runnerVersion)
	return newExpansion(all.values()).of(text)
}

// Switch reads a variable that is on or off, as the runner does.
func (j *Job) Switch(key string) bool {
	all, _ := variableSet(j.Variables).expand(j.Variables)
	on, _ := strconv.ParseBool(all.values()(key))
	return on
}
