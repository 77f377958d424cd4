package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"hallmark.build/sandbox"
)

// A PullPolicy says when a registry is asked for an image.
type PullPolicy string

// The pull policies of GitLab's image:pull_policy.
const (
	Always       PullPolicy = "always"         // always
	IfNotPresent PullPolicy = "if-not-present" // when the image is not here
	Never        PullPolicy = "never"          // never: the image must be here
)

// ParsePullPolicies refuses every word that is no pull policy.
func ParsePullPolicies(words []string) ([]PullPolicy, error) {
	list := make([]PullPolicy, len(words))
	for i, w := range words {
		switch p := PullPolicy(w); p {
		case Always, IfNotPresent, Never:
			list[i] = p
		default:
			return nil, fmt.Errorf("pull policy %q: want always, if-not-present or never", w)
		}
	}
	return list, nil
}

// PullPolicies are what an admin says of them. Both may be empty: then images
// are always asked for.
type PullPolicies struct {
	Default []PullPolicy // for images that say nothing, in order
	Allowed []PullPolicy // empty: those of Default
}

// For is the policies to try for an image, in order: those that the job asked
// for, or the admin's, without those that the admin does not allow.
func (p PullPolicies) For(asked []string) ([]PullPolicy, error) {
	byDefault := p.Default
	if len(byDefault) == 0 {
		byDefault = []PullPolicy{Always}
	}
	allowed := p.Allowed
	if len(allowed) == 0 {
		allowed = byDefault
	}
	wanted, source := byDefault, "the runner's configuration (images.pull_policy)"
	if len(asked) > 0 {
		var err error
		if wanted, err = ParsePullPolicies(asked); err != nil {
			return nil, &sandbox.UserError{Err: err, Hint: "check pull_policy in .gitlab-ci.yml"}
		}
		source = ".gitlab-ci.yml (pull_policy)"
	}
	wanted = slices.Compact(slices.Clone(wanted))
	list := slices.DeleteFunc(slices.Clone(wanted), func(w PullPolicy) bool { return !slices.Contains(allowed, w) })
	if len(list) > 0 {
		return list, nil
	}
	err := fmt.Errorf("pull policy %s of %s: this runner allows %s alone", words(wanted), source, words(allowed))
	if len(asked) == 0 {
		return nil, errors.Join(err, errors.New("images.allowed_pull_policies admits none of images.pull_policy"))
	}
	return nil, &sandbox.UserError{Err: err, Hint: fmt.Sprintf("use one that the runner allows (%s), or ask its admin to add yours to images.allowed_pull_policies", words(allowed))}
}

func words(list []PullPolicy) string {
	s := make([]string, len(list))
	for i, p := range list {
		s[i] = string(p)
	}
	return strings.Join(s, ", ")
}
