package gitlabci

import (
	"fmt"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"

	"hallmark.build/integration/coordinator"
)

type artifacts struct {
	Name      string           `yaml:"name"`
	Paths     []string         `yaml:"paths"`
	Exclude   []string         `yaml:"exclude"`
	Untracked bool             `yaml:"untracked"`
	When      string           `yaml:"when"`
	ExpireIn  string           `yaml:"expire_in"`
	ExposeAs  string           `yaml:"expose_as"` // for the merge request
	Reports   map[string]texts `yaml:"reports"`
}

// reports that GitLab has the runner upload each as a file of its own, with the
// name that the file gets.
var reports = map[string]string{
	"junit": "junit.xml", "dotenv": ".env", "codequality": "gl-code-quality-report.json",
	"sast": "gl-sast-report.json", "metrics": "metrics.txt",
}

func (a *artifacts) rules() []coordinator.ArtifactRule {
	if a == nil {
		return nil
	}
	var out []coordinator.ArtifactRule
	if len(a.Paths) > 0 || a.Untracked {
		out = append(out, coordinator.ArtifactRule{Name: a.Name, Untracked: a.Untracked, Paths: a.Paths, Exclude: a.Exclude,
			When: a.When, Type: "archive", Format: "zip", ExpireIn: a.ExpireIn})
	}
	for _, kind := range slices.Sorted(maps.Keys(a.Reports)) {
		out = append(out, coordinator.ArtifactRule{Name: reports[kind], Paths: a.Reports[kind], When: "always",
			Type: kind, Format: "gzip", ExpireIn: a.ExpireIn})
	}
	return out
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (a *artifacts) UnmarshalYAML(n *yaml.Node) error {
	type plain artifacts
	if err := known(n, (*plain)(a)); err != nil {
		return err
	}
	for kind := range a.Reports {
		if reports[kind] == "" {
			return fmt.Errorf("artifacts: report %s is not supported", kind)
		}
	}
	return nil
}

type cache struct {
	Key          string   `yaml:"key"`
	Paths        []string `yaml:"paths"`
	Untracked    bool     `yaml:"untracked"`
	Policy       string   `yaml:"policy"`
	When         string   `yaml:"when"`
	FallbackKeys []string `yaml:"fallback_keys"`
}

// caches is one cache or a list of them.
type caches []cache

// UnmarshalYAML implements yaml.Unmarshaler.
func (c *caches) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		var one cache
		if err := known(n, &one); err != nil {
			return err
		}
		*c = caches{one}
		return nil
	}
	return known(n, (*[]cache)(c))
}

// unprotected is what GitLab appends to the keys of jobs of unprotected refs.
const unprotected = "-non_protected"

func (c caches) rules() []coordinator.CacheRule {
	var out []coordinator.CacheRule
	for _, one := range c {
		key := one.Key
		if key == "" {
			key = "default"
		}
		r := coordinator.CacheRule{Key: key + unprotected, Untracked: one.Untracked, Policy: one.Policy, Paths: one.Paths, When: one.When}
		for _, k := range one.FallbackKeys {
			r.FallbackKeys = append(r.FallbackKeys, k+unprotected)
		}
		out = append(out, r)
	}
	return out
}
