package image_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hallmark.build/sandbox"
	"hallmark.build/sandbox/image"
)

func TestPullPolicies(t *testing.T) {
	const (
		a = image.Always
		i = image.IfNotPresent
		n = image.Never
	)
	type list = []image.PullPolicy
	for name, c := range map[string]struct {
		rules image.PullPolicies
		asked []string
		want  list
		user  bool
		say   []string
	}{
		"nothing said":            {image.PullPolicies{}, nil, list{a}, false, nil},
		"the admin's":             {image.PullPolicies{Default: list{a, i}}, nil, list{a, i}, false, nil},
		"the job's":               {image.PullPolicies{Allowed: list{a, i, n}}, []string{"never", "if-not-present"}, list{n, i}, false, nil},
		"cut":                     {image.PullPolicies{Allowed: list{a, i}}, []string{"never", "if-not-present", "always"}, list{i, a}, false, nil},
		"the admin's, cut":        {image.PullPolicies{Default: list{a, n}, Allowed: list{n, i}}, nil, list{n}, false, nil},
		"not allowed by default":  {image.PullPolicies{}, []string{"never"}, nil, true, []string{"never", ".gitlab-ci.yml", "allows always alone"}},
		"not allowed":             {image.PullPolicies{Default: list{i}, Allowed: list{a, i}}, []string{"never"}, nil, true, []string{"always, if-not-present"}},
		"no policy":               {image.PullPolicies{}, []string{"sometimes"}, nil, true, []string{`"sometimes"`, "if-not-present"}},
		"the admin's not allowed": {image.PullPolicies{Default: list{a}, Allowed: list{n}}, nil, nil, false, []string{"images.pull_policy"}},
	} {
		got, err := c.rules.For(c.asked)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if (err != nil) != (c.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
		user, is := errors.AsType[*sandbox.UserError](err)
		if is != c.user || is && user.Hint == "" {
			t.Errorf("%s: blames the job: %v, hint %+v", name, is, user)
		}
		for _, word := range c.say {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not say %q", name, err, word)
			}
		}
	}
}
