package executor

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEnvironments(t *testing.T) {
	j := &Job{
		Git: GitInfo{RepoURL: "https://gitlab.example.com/group/project.git"}, Image: Image{Name: "alpine"}, Runner: RunnerInfo{Timeout: 60},
		Variables: []Variable{
			{Key: "PUBLIC", Value: "p", Public: true},
			{Key: "SECRET", Value: "hidden", Masked: true},
			{Key: "LEAKS", Value: "<$SECRET>", Public: true},
			{Key: "RAW", Value: "$PUBLIC", Public: true, Raw: true},
			{Key: "TWICE", Value: "one", Public: true},
			{Key: "TWICE", Value: "two", Public: true},
			{Key: "FILE", Value: "content", Public: true, File: true},
			{Key: "CHAIN", Value: "$LEAKS", Public: true},
			{Key: "DIR", Value: "$CI_PROJECT_DIR/x", Public: true},
			{Key: "CI_RUNNER_VERSION", Value: "forged", Public: true},
			{Key: "OVER", Value: "job", Public: true},
		},
	}
	s := Image{Variables: []Variable{
		{Key: "PASSWORD", Value: "$SECRET"},
		{Key: "PLAIN", Value: "a${PUBLIC}b$$c$1d"},
		{Key: "OWN", Value: "$PASSWORD"},
		{Key: "ASIS", Value: "$SECRET", Raw: true},
		{Key: "CERT", Value: "pem", File: true},
		{Key: "AT", Value: "$FILE"},
		{Key: "OVER", Value: "service"},
	}}
	got := j.ServiceEnv(s, "/builds", "19.4.0")
	slices.Sort(got)
	want := []string{
		"ASIS=$SECRET", "AT=/builds/group/project.tmp/FILE", "CERT=/builds/group/project.tmp/CERT", "CHAIN=<$SECRET>",
		"CI_BUILDS_DIR=/builds", "CI_JOB_IMAGE=alpine", "CI_JOB_STATUS=running", "CI_JOB_TIMEOUT=60",
		"CI_PROJECT_DIR=/builds/group/project", "CI_RUNNER_VERSION=19.4.0", "CI_SERVER=yes", "CI_SHARED_ENVIRONMENT=true",
		"DIR=/builds/group/project/x", "FILE=/builds/group/project.tmp/FILE", "LEAKS=<hidden>", "OVER=service", "OWN=$SECRET",
		"PASSWORD=hidden", "PLAIN=apb$cd", "PUBLIC=p", "RAW=$PUBLIC", "RUNNER_TEMP_PROJECT_DIR=/builds/group/project.tmp", "TWICE=two",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got = j.BuildEnv("/builds", "19.4.0")
	slices.Sort(got)
	want = []string{
		"CHAIN=<$SECRET>", "CI_BUILDS_DIR=/builds", "CI_JOB_IMAGE=alpine", "CI_JOB_STATUS=running", "CI_JOB_TIMEOUT=60",
		"CI_PROJECT_DIR=/builds/group/project", "CI_RUNNER_VERSION=19.4.0", "CI_SERVER=yes", "CI_SHARED_ENVIRONMENT=true",
		"DIR=/builds/group/project/x", "FILE=/builds/group/project.tmp/FILE", "LEAKS=<hidden>", "OVER=job",
		"PUBLIC=p", "RAW=$PUBLIC", "RUNNER_TEMP_PROJECT_DIR=/builds/group/project.tmp", "SECRET=hidden", "TWICE=two",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the build's: %s", diff)
	}
	if v := j.ExpandAll("u-$PUBLIC-$CI_JOB_TIMEOUT", "/builds", "19.4.0"); v != "u-p-60" {
		t.Errorf("expanded to %q", v)
	}
}

// A payload of a few megabytes can stand for more than there is memory, or time.
func TestVariablesAreNoBomb(t *testing.T) {
	const refs = 1 << 20
	for name, vars := range map[string][]Variable{
		"one after the other": {{Key: "A", Value: strings.Repeat("a", refs)}, {Key: "B", Value: strings.Repeat("$A", refs)}},
		"in itself":           {{Key: "A", Value: strings.Repeat("$A", refs)}},
	} {
		j := &Job{Variables: vars, Caches: []Cache{{Key: strings.Repeat("$B", refs)}}}
		if err := j.CheckVariables("/builds", "19.4.0"); err == nil {
			t.Errorf("%s: not refused", name)
		}
		size := len(j.Setting("B")) + len(j.ExpandAll("$B$B", "/builds", "19.4.0"))
		for _, kv := range append(j.BuildEnv("/builds", "19.4.0"), j.ServiceEnv(Image{Variables: []Variable{{Key: "C", Value: "$B$B"}}}, "/builds", "19.4.0")...) {
			size += len(kv)
		}
		for _, k := range j.CacheKeys() {
			size += len(k.Value)
		}
		if size > 8*maxExpanded {
			t.Errorf("%s: %d bytes", name, size)
		}
	}
	j := &Job{Variables: []Variable{{Key: "A", Value: "a"}, {Key: "B", Value: strings.Repeat("$A", 1000)}}}
	if err := j.CheckVariables("/builds", "19.4.0"); err != nil {
		t.Error(err)
	}
}

func TestSwitchIsTheLastOneOfItsName(t *testing.T) {
	for name, tc := range map[string]struct {
		values []string
		want   bool
	}{
		"none": {nil, false}, "on": {[]string{"true"}, true}, "one": {[]string{"1"}, true}, "capitals": {[]string{"TRUE"}, true},
		"overridden": {[]string{"true", "false"}, false}, "overridden to on": {[]string{"true", "1"}, true},
		"empty last": {[]string{"true", ""}, false}, "two": {[]string{"true", "2"}, false}, "yes": {[]string{"true", "yes"}, false},
		"nonsense": {[]string{"maybe"}, false}, "nonsense last": {[]string{"true", "maybe"}, false},
		"a reference": {[]string{"$ON"}, true}, "a reference last": {[]string{"false", "$ON"}, true},
	} {
		j := &Job{Variables: []Variable{{Key: "ON", Value: "true"}}}
		for _, v := range tc.values {
			j.Variables = append(j.Variables, Variable{Key: "X", Value: v})
		}
		if got := j.Switch("X"); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// FuzzServiceEnv holds that an environment has each name once, and the job's
// hidden values only where the service names them.
func FuzzServiceEnv(f *testing.F) {
	f.Add("A", "$B", "B", "${A")
	f.Add("RUNNER_TEMP_PROJECT_DIR", "/x", "$", "$$$")
	f.Fuzz(func(t *testing.T, key, value, other, own string) {
		j := &Job{Variables: []Variable{{Key: "HIDDEN", Value: "top-secret-value"}, {Key: key, Value: value, Public: true}, {Key: other, Value: value, Public: true, File: true}}}
		seen := map[string]bool{}
		for _, kv := range j.ServiceEnv(Image{Variables: []Variable{{Key: "OWN", Value: own}}}, "/builds", "1") {
			name, content, _ := strings.Cut(kv, "=")
			if !strings.Contains(key+other, "=") && seen[name] {
				t.Fatalf("%q twice", name)
			}
			seen[name] = true
			if strings.Contains(content, "top-secret-value") && !strings.Contains(key+value+other+own, "HIDDEN") && !strings.Contains(key+value+other+own, "top-secret-value") {
				t.Fatalf("%q has a hidden value", kv)
			}
		}
	})
}
