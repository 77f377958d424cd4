package gitlabci

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"hallmark.build/integration/coordinator"
)

// definition is a job as the file has it, once all that it extends is in it.
type definition struct {
	Stage         string     `yaml:"stage"`
	Image         image      `yaml:"image"`
	Services      []image    `yaml:"services"`
	Variables     variables  `yaml:"variables"`
	BeforeScript  texts      `yaml:"before_script"`
	Script        texts      `yaml:"script"`
	AfterScript   texts      `yaml:"after_script"`
	Artifacts     *artifacts `yaml:"artifacts"`
	Cache         caches     `yaml:"cache"`
	Needs         *[]need    `yaml:"needs"`
	Dependencies  *[]string  `yaml:"dependencies"`
	Parallel      parallel   `yaml:"parallel"`
	Tags          []string   `yaml:"tags"`
	When          string     `yaml:"when"`
	AllowFailure  mayFail    `yaml:"allow_failure"`
	Interruptible bool       `yaml:"interruptible"` // says when to cancel: nothing that a runner sees
}

func (f *file) make(name string, d definition) ([]Job, error) {
	if len(d.Script) == 0 {
		return nil, fmt.Errorf("no script")
	}
	if d.Stage == "" {
		d.Stage = "test"
	}
	stage := slices.Index(f.stages, d.Stage)
	if stage < 0 {
		return nil, fmt.Errorf("stage %s is not one of %s", d.Stage, strings.Join(f.stages, ", "))
	}
	if d.When == "" {
		d.When = "on_success"
	}
	if !slices.Contains([]string{"on_success", "on_failure", "always"}, d.When) {
		return nil, fmt.Errorf("when: %s is not supported", d.When)
	}
	j := Job{Tags: d.Tags, When: d.When, stage: stage, MayFail: d.AllowFailure.may}
	j.Name, j.Stage = name, d.Stage
	j.Image = d.Image.job()
	for _, s := range d.Services {
		j.Services = append(j.Services, s.job())
	}
	// GitLab joins what comes before and the script into one step.
	j.Script = append(slices.Clone(d.BeforeScript), d.Script...)
	j.AfterScript = d.AfterScript
	j.Artifacts = d.Artifacts.rules()
	j.Caches = d.Cache.rules()
	j.Needs = d.needs()
	all := maps.Clone(f.variables)
	if all == nil {
		all = variables{}
	}
	maps.Copy(all, d.Variables)
	j.Variables = all.list()
	return d.Parallel.apply(j)
}

// needs are those of the job; what dependencies leaves out gives no artifacts.
func (d definition) needs() []Need {
	if d.Needs == nil && d.Dependencies == nil {
		return nil
	}
	out := []Need{}
	if d.Needs == nil {
		for _, name := range *d.Dependencies {
			out = append(out, Need{Job: name})
		}
		return out
	}
	no := false
	for _, n := range *d.Needs {
		if d.Dependencies != nil && !slices.Contains(*d.Dependencies, n.Job) {
			n.Artifacts = &no
		}
		out = append(out, Need(n))
	}
	return out
}

// texts is a line or a list of lines, which may hold lists.
type texts []string

// UnmarshalYAML implements yaml.Unmarshaler.
func (t *texts) UnmarshalYAML(n *yaml.Node) error {
	switch n.Kind {
	case yaml.ScalarNode:
		*t = append(*t, n.Value)
		return nil
	case yaml.SequenceNode:
		for _, c := range n.Content {
			if err := t.UnmarshalYAML(c); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("line %d: neither text nor a list of it", n.Line)
}

// image is a name, or a mapping with one.
type image struct {
	Name       string    `yaml:"name"`
	Alias      string    `yaml:"alias"`
	Entrypoint []string  `yaml:"entrypoint"`
	Command    []string  `yaml:"command"`
	Variables  variables `yaml:"variables"`
	PullPolicy texts     `yaml:"pull_policy"`
	Docker     struct {
		User string `yaml:"user"`
	} `yaml:"docker"`
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (i *image) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		i.Name = n.Value
		return nil
	}
	type plain image
	return known(n, (*plain)(i))
}

func (i image) job() coordinator.Image {
	return coordinator.Image{Name: i.Name, Alias: i.Alias, Entrypoint: i.Entrypoint, Command: i.Command,
		Variables: i.Variables.list(), PullPolicy: i.PullPolicy, User: i.Docker.User}
}

// known decodes a node into a struct that must have a field for each key.
func known(n *yaml.Node, into any) error {
	var v any
	if err := n.Decode(&v); err != nil {
		return err
	}
	return strict(v, into)
}

// variables are values by name.
type variables map[string]variable

type variable struct {
	Value       string `yaml:"value"`
	Description string `yaml:"description"` // for people
	Expand      *bool  `yaml:"expand"`
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (v *variable) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		v.Value = n.Value
		return nil
	}
	type plain variable
	return known(n, (*plain)(v))
}

func (v variables) list() []coordinator.Variable {
	var out []coordinator.Variable
	for _, name := range slices.Sorted(maps.Keys(v)) {
		out = append(out, coordinator.Variable{Key: name, Value: v[name].Value, Public: true, Raw: v[name].Expand != nil && !*v[name].Expand})
	}
	return out
}

type need Need

// UnmarshalYAML implements yaml.Unmarshaler.
func (d *need) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		d.Job = n.Value
		return nil
	}
	type plain need
	return known(n, (*plain)(d))
}

type mayFail struct{ may bool }

// UnmarshalYAML implements yaml.Unmarshaler.
func (m *mayFail) UnmarshalYAML(n *yaml.Node) error { return n.Decode(&m.may) }

// parallel is a number of copies, or the lists of values that they have.
type parallel struct {
	count  int
	matrix []map[string]texts
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *parallel) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return n.Decode(&p.count)
	}
	var m struct {
		Matrix []map[string]texts `yaml:"matrix"`
	}
	if err := known(n, &m); err != nil {
		return err
	}
	p.matrix = m.Matrix
	return nil
}

// apply makes the copies, named as GitLab names them.
func (p parallel) apply(j Job) ([]Job, error) {
	var out []Job
	add := func(name string, more ...coordinator.Variable) {
		c := j
		c.Name = name
		c.Variables = append(slices.Clone(j.Variables), more...)
		out = append(out, c)
	}
	text := func(name, value string) coordinator.Variable {
		return coordinator.Variable{Key: name, Value: value, Public: true}
	}
	switch {
	case p.count > maxJobs:
		return nil, fmt.Errorf("parallel: %d is more than %d", p.count, maxJobs)
	case p.count > 0:
		for i := 1; i <= p.count; i++ {
			add(fmt.Sprintf("%s %d/%d", j.Name, i, p.count), text("CI_NODE_INDEX", fmt.Sprint(i)), text("CI_NODE_TOTAL", fmt.Sprint(p.count)))
		}
	case p.matrix != nil:
		for _, m := range p.matrix {
			names := slices.Sorted(maps.Keys(m))
			rows := [][]string{nil}
			for _, name := range names {
				var longer [][]string
				for _, row := range rows {
					for _, value := range m[name] {
						longer = append(longer, append(slices.Clone(row), value))
					}
				}
				if rows = longer; len(rows) > maxJobs {
					return nil, fmt.Errorf("parallel: more than %d jobs", maxJobs)
				}
			}
			for _, row := range rows {
				var vars []coordinator.Variable
				for i, value := range row {
					vars = append(vars, text(names[i], value))
				}
				add(fmt.Sprintf("%s: [%s]", j.Name, strings.Join(row, ", ")), vars...)
			}
		}
	default:
		out = []Job{j}
	}
	return out, nil
}
