// Package gitlabci makes of a .gitlab-ci.yml the jobs that GitLab would hand out for it.
//
// It knows the keywords that say what a job is (extends, default and variables
// among them), not those that decide whether it exists, such as rules. Whatever
// it does not know it refuses: a job that is translated is translated whole.
package gitlabci

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"hallmark.build/integration/coordinator"
)

const (
	maxSize    = 1 << 20
	maxJobs    = 200
	maxExtends = 11 // as deep as GitLab goes
)

// A Job is one of a pipeline's jobs.
type Job struct {
	coordinator.Job
	Tags []string
	// When is on_success, on_failure or always.
	When string
	// Needs are the jobs that have to be over first, as the file names them; nil
	// stands for all of earlier stages.
	Needs []Need
	// MayFail reports whether the pipeline goes on if the job fails.
	MayFail bool
	stage   int
}

// A Need is a job that another one waits for.
type Need struct {
	Job       string `yaml:"job"`
	Artifacts *bool  `yaml:"artifacts"` // true unless it says otherwise
}

// Parse returns the jobs of a file in the order of their stages.
func Parse(data []byte) ([]Job, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), maxSize)
	}
	var order yaml.Node
	var all map[string]any
	if err := errors.Join(yaml.Unmarshal(data, &order), yaml.Unmarshal(data, &all)); err != nil {
		return nil, err
	}
	if err := plain(&order); err != nil {
		return nil, err
	}
	f := &file{all: all, stages: []string{".pre", "build", "test", "deploy", ".post"}}
	if err := f.global(); err != nil {
		return nil, err
	}
	var jobs []Job
	for _, name := range keys(&order) {
		if strings.HasPrefix(name, ".") || slices.Contains(globals, name) {
			continue
		}
		made, err := f.job(name)
		if err != nil {
			return nil, fmt.Errorf("job %s: %w", name, err)
		}
		if jobs = append(jobs, made...); len(jobs) > maxJobs {
			return nil, fmt.Errorf("more than %d jobs", maxJobs)
		}
	}
	if len(jobs) == 0 {
		return nil, errors.New("no job")
	}
	slices.SortStableFunc(jobs, func(a, b Job) int { return a.stage - b.stage })
	return jobs, nil
}

// plain refuses tags such as !reference, which decoding would drop.
func plain(n *yaml.Node) error {
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
		return fmt.Errorf("line %d: %s is not supported", n.Line, n.Tag)
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

// keys of the document's mapping, in order.
func keys(doc *yaml.Node) []string {
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil
	}
	var out []string
	for i := 0; i < len(doc.Content[0].Content); i += 2 {
		out = append(out, doc.Content[0].Content[i].Value)
	}
	return out
}

// globals are the keys of a file that are no jobs.
var globals = []string{"stages", "variables", "default", "image", "services", "before_script", "after_script", "cache", "workflow", "include", "spec", "pages"}

// file is a file that is being read.
type file struct {
	all       map[string]any
	stages    []string
	defaults  map[string]any
	variables variables
}

func (f *file) global() error {
	for _, refused := range []string{"workflow", "include", "spec", "pages"} {
		if _, ok := f.all[refused]; ok {
			return fmt.Errorf("%s is not supported", refused)
		}
	}
	if v, ok := f.all["stages"]; ok {
		var stages []string
		if err := strict(v, &stages); err != nil {
			return fmt.Errorf("stages: %w", err)
		}
		f.stages = append(append([]string{".pre"}, stages...), ".post")
	}
	if err := strict(f.all["variables"], &f.variables); err != nil {
		return fmt.Errorf("variables: %w", err)
	}
	f.defaults = map[string]any{}
	for _, name := range []string{"image", "services", "before_script", "after_script", "cache"} {
		if v, ok := f.all[name]; ok {
			f.defaults[name] = v
		}
	}
	more, ok := f.all["default"].(map[string]any)
	if !ok && f.all["default"] != nil {
		return errors.New("default: no mapping")
	}
	maps.Copy(f.defaults, more)
	for name := range f.defaults {
		if !slices.Contains([]string{"image", "services", "before_script", "after_script", "cache", "artifacts", "tags", "interruptible"}, name) {
			return fmt.Errorf("default: %s is not supported", name)
		}
	}
	return nil
}

// job makes the job of a name, or several where it says parallel.
func (f *file) job(name string) ([]Job, error) {
	raw, err := f.extended(name, 0)
	if err != nil {
		return nil, err
	}
	delete(raw, "extends")
	for key, v := range f.defaults {
		if _, ok := raw[key]; !ok {
			raw[key] = v
		}
	}
	var d definition
	if err := strict(raw, &d); err != nil {
		return nil, err
	}
	return f.make(name, d)
}

// extended is a job with all that it extends below it.
func (f *file) extended(name string, depth int) (map[string]any, error) {
	own, ok := f.all[name].(map[string]any)
	switch {
	case !ok:
		return nil, fmt.Errorf("%s: no mapping of that name", name)
	case depth > maxExtends:
		return nil, errors.New("extends: too deep, or a circle")
	}
	var parents texts
	if err := strict(own["extends"], &parents); err != nil {
		return nil, fmt.Errorf("extends: %w", err)
	}
	out := map[string]any{}
	for _, parent := range parents {
		below, err := f.extended(parent, depth+1)
		if err != nil {
			return nil, err
		}
		merge(out, below)
	}
	merge(out, own)
	return out, nil
}

// merge lays one mapping over another; what is no mapping is replaced.
func merge(into, from map[string]any) {
	for key, v := range from {
		above, ok := v.(map[string]any)
		if !ok {
			into[key] = v
			continue
		}
		below, ok := into[key].(map[string]any)
		if !ok {
			below = map[string]any{}
		}
		below = maps.Clone(below)
		merge(below, above)
		into[key] = below
	}
}

// strict decodes a value of which nothing may be left over.
func strict(v, into any) error {
	if v == nil {
		return nil
	}
	text, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	return d.Decode(into)
}

// Before reports whether a job is of an earlier stage than another.
func (j Job) Before(other Job) bool { return j.stage < other.stage }
