package gitlabci

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hallmark.build/integration/coordinator"
)

const whole = `
stages: [build, check]
default:
  image: debian
  before_script: [echo before]
variables:
  LEVEL: "1"
  LITERAL: {value: "$HOME", expand: false, description: of no use to a runner}

.base: &base
  variables: {LEVEL: "2", OWN: x}
  tags: [attested]

build:
  extends: .base
  stage: build
  script:
    - make
    - [echo one, echo two]
  after_script: echo after
  artifacts:
    name: out
    paths: [bin/]
    exclude: [bin/*.o]
    when: always
    expire_in: 1 week
    reports:
      junit: report.xml
      dotenv: build.env
  cache:
    key: deps
    paths: [deps/]
    policy: pull
    fallback_keys: [old]

check:
  <<: *base
  stage: check
  image: {name: "alpine:3", entrypoint: [""], pull_policy: [always, if-not-present], docker: {user: nobody}}
  services:
    - redis
    - {name: "postgres:15", alias: db, command: [postgres], variables: {A: b}}
  before_script: []
  script: test.sh
  needs: [build, {job: other, artifacts: false}]
  allow_failure: true
  parallel:
    matrix:
      - OS: [a, b]
        ARCH: x

other:
  stage: build
  script: "true"
  when: always
  parallel: 2
`

func TestParse(t *testing.T) {
	jobs, err := Parse([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	v := func(key, value string) coordinator.Variable {
		return coordinator.Variable{Key: key, Value: value, Public: true}
	}
	literal := coordinator.Variable{Key: "LITERAL", Value: "$HOME", Public: true, Raw: true}
	no := false
	check := Job{
		Tags: []string{"attested"}, When: "on_success", MayFail: true, stage: 2,
		Needs: []Need{{Job: "build"}, {Job: "other", Artifacts: &no}},
		Job: coordinator.Job{
			Stage: "check", Script: []string{"test.sh"},
			Image: coordinator.Image{Name: "alpine:3", Entrypoint: []string{""}, PullPolicy: []string{"always", "if-not-present"}, User: "nobody"},
			Services: []coordinator.Image{{Name: "redis"},
				{Name: "postgres:15", Alias: "db", Command: []string{"postgres"}, Variables: []coordinator.Variable{v("A", "b")}}},
		},
	}
	withVariables := func(j Job, name string, vars ...coordinator.Variable) Job {
		j.Name, j.Variables = name, vars
		return j
	}
	other := Job{When: "always", stage: 1, Job: coordinator.Job{Stage: "build", Image: coordinator.Image{Name: "debian"}, Script: []string{"echo before", "true"}}}
	want := []Job{
		{
			Tags: []string{"attested"}, When: "on_success", stage: 1,
			Job: coordinator.Job{
				Name: "build", Stage: "build", Image: coordinator.Image{Name: "debian"},
				Script: []string{"echo before", "make", "echo one", "echo two"}, AfterScript: []string{"echo after"},
				Variables: []coordinator.Variable{v("LEVEL", "2"), literal, v("OWN", "x")},
				Artifacts: []coordinator.ArtifactRule{
					{Name: "out", Paths: []string{"bin/"}, Exclude: []string{"bin/*.o"}, When: "always", Type: "archive", Format: "zip", ExpireIn: "1 week"},
					{Name: ".env", Paths: []string{"build.env"}, When: "always", Type: "dotenv", Format: "gzip", ExpireIn: "1 week"},
					{Name: "junit.xml", Paths: []string{"report.xml"}, When: "always", Type: "junit", Format: "gzip", ExpireIn: "1 week"},
				},
				Caches: []coordinator.CacheRule{{Key: "deps-non_protected", Paths: []string{"deps/"}, Policy: "pull", FallbackKeys: []string{"old-non_protected"}}},
			},
		},
		withVariables(other, "other 1/2", v("LEVEL", "1"), literal, v("CI_NODE_INDEX", "1"), v("CI_NODE_TOTAL", "2")),
		withVariables(other, "other 2/2", v("LEVEL", "1"), literal, v("CI_NODE_INDEX", "2"), v("CI_NODE_TOTAL", "2")),
		withVariables(check, "check: [x, a]", v("LEVEL", "2"), literal, v("OWN", "x"), v("ARCH", "x"), v("OS", "a")),
		withVariables(check, "check: [x, b]", v("LEVEL", "2"), literal, v("OWN", "x"), v("ARCH", "x"), v("OS", "b")),
	}
	if d := cmp.Diff(want, jobs, cmp.AllowUnexported(Job{}), cmpopts.IgnoreUnexported(coordinator.Job{}), cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

func TestRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                  "",
		"no job":                   "stages: [a]",
		"no mapping":               "[]",
		"include":                  "include: other.yml\na: {script: x}",
		"workflow":                 "workflow: {}\na: {script: x}",
		"unknown keyword":          "a: {script: x, rules: []}",
		"unknown in image":         "a: {script: x, image: {name: i, dockr: {}}}",
		"unknown in default":       "default: {retry: 2}\na: {script: x}",
		"unknown report":           "a: {script: x, artifacts: {reports: {lcov: x}}}",
		"exit codes":               "a: {script: x, allow_failure: {exit_codes: 3}}",
		"manual":                   "a: {script: x, when: manual}",
		"no script":                "a: {stage: test}",
		"unknown stage":            "a: {stage: later, script: x}",
		"unknown parent":           "a: {extends: .b, script: x}",
		"circle":                   "a: {extends: a, script: x}",
		"reference":                ".b: {script: [y]}\na: {script: [!reference [.b, script]]}",
		"two keys alike":           "a: {script: x}\na: {script: y}",
		"a mapping for a script":   "a: {script: {b: c}}",
		"many copies":              "a: {script: x, parallel: 1000000000}",
		"cache key of files":       "a: {script: x, cache: {key: {files: [f]}, paths: [p]}}",
		"more than the limit":      strings.Repeat("#", maxSize+1),
		"text where a job must be": "a: x",
	} {
		t.Run(name, func(t *testing.T) {
			if jobs, err := Parse([]byte(text)); err == nil {
				t.Errorf("accepted: %+v", jobs)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("a: {extends: a, script: x}"))
	f.Add([]byte("a: {script: x, parallel: {matrix: [{A: [1, 2], B: [3]}]}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		jobs, err := Parse(data)
		if err != nil {
			return
		}
		for _, j := range jobs {
			if j.Name == "" || len(j.Script) == 0 || j.Stage == "" {
				t.Errorf("half a job: %+v", j)
			}
		}
	})
}
