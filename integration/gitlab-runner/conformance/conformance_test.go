package conformance

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gitlab.com/gitlab-org/gitlab-runner/common"
	"gitlab.com/gitlab-org/gitlab-runner/common/buildtest"
	"gitlab.com/gitlab-org/gitlab-runner/common/spec"
	"gitlab.com/gitlab-org/gitlab-runner/executors/custom"
	"gitlab.com/gitlab-org/gitlab-runner/network"
	"gitlab.com/gitlab-org/gitlab-runner/session"
	_ "gitlab.com/gitlab-org/gitlab-runner/shells" // registers bash
)

// What integration.TestRunnersOwnSuite tells.
const (
	configVariable = "HALLMARK_RUNNER_CONFIG" // config.toml, with a [[runners]] named profile
	tokenVariable  = "HALLMARK_RUNNER_TOKEN"  // of the runner that gets the suite's jobs
	suiteVariable  = "HALLMARK_SUITE"         // names of all functions that the suite has
)

const profile = "hermetic"

// A suiteTest is one function of the suite's.
type suiteTest struct {
	run func(*testing.T, *common.RunnerConfig)
	// cannot says, in place of run, why the function does not apply.
	cannot string
}

// each adapts a function that makes its own builds.
func each(f func(*testing.T, *common.RunnerConfig, buildtest.BuildSetupFn)) suiteTest {
	return suiteTest{run: func(t *testing.T, config *common.RunnerConfig) { f(t, config, fromGitLab) }}
}

// one adapts a function that takes a build.
func one(f func(*testing.T, *common.Build), script ...string) suiteTest {
	return suiteTest{run: func(t *testing.T, config *common.RunnerConfig) { f(t, build(t, config, script...)) }}
}

// Why some do not apply.
const (
	noCleanup = "it reads what git removed at the end: here the whole work tree goes with its sandbox, and nothing cleans it before"
	noProxy   = "the runner puts proxy_exec before its shell's command line, and a custom executor's driver gets no command line, only the script"
	noLocal   = "it is the Remote one with a repository on the runner's disk, and jobs come from GitLab"
	noTest    = "it only runs a build, as all others do through it"
)

// suite is what common/buildtest exports. A name that is not here fails.
var suite = map[string]suiteTest{
	"RunBuild":                                      one(succeeds, "echo Hello World"),
	"RunBuildReturningOutput":                       {cannot: noTest},
	"RunBuildWithCancel":                            each(buildtest.RunBuildWithCancel),
	"RunBuildWithCleanupGitClone":                   one(buildtest.RunBuildWithCleanupGitClone, "true"),
	"RunBuildWithCleanupGitFetch":                   {cannot: noCleanup},
	"RunBuildWithCleanupNormalSubmoduleStrategy":    {cannot: noCleanup},
	"RunBuildWithCleanupRecursiveSubmoduleStrategy": {cannot: noCleanup},
	"RunBuildWithExecutorCancel":                    each(buildtest.RunBuildWithExecutorCancel),
	"RunBuildWithExpandedFileVariable":              each(buildtest.RunBuildWithExpandedFileVariable),
	"RunBuildWithJobOutputLimitExceeded":            {cannot: noLocal},
	"RunBuildWithMasking":                           each(buildtest.RunBuildWithMasking),
	"RunBuildWithMaskingProxyExec":                  {cannot: noProxy},
	"RunBuildWithOptions":                           {cannot: noTest},
	"RunBuildWithPassingEnvsJobIsolation":           each(buildtest.RunBuildWithPassingEnvsJobIsolation),
	"RunBuildWithPassingEnvsMultistep":              each(buildtest.RunBuildWithPassingEnvsMultistep),
	"RunBuildWithScriptBodyLeakOnCancel":            each(buildtest.RunBuildWithScriptBodyLeakOnCancel),
	"RunBuildWithSections":                          one(buildtest.RunBuildWithSections, "echo \"Hello\nWorld\""),
	"RunBuildWithStdinClosed":                       each(buildtest.RunBuildWithStdinClosed),
	"RunBuildWithTrace":                             {cannot: noTest},
	"RunRemoteBuildWithJobOutputLimitExceeded":      each(buildtest.RunRemoteBuildWithJobOutputLimitExceeded),
}

func succeeds(t *testing.T, b *common.Build) {
	if err := buildtest.RunBuild(t, b); err != nil {
		t.Error(err)
	}
}

func TestSuite(t *testing.T) {
	for name, c := range suite {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.cannot != "" {
				t.Log("does not apply:", c.cannot)
				return
			}
			c.run(t, config(t))
		})
	}
}

func TestSuiteIsComplete(t *testing.T) {
	names := strings.Split(os.Getenv(suiteVariable), ",")
	if len(names) < 10 {
		t.Fatalf("%s lists %d functions", suiteVariable, len(names))
	}
	for _, name := range names {
		if _, ok := suite[name]; !ok {
			t.Errorf("common/buildtest has %s, which is neither run nor said not to apply", name)
		}
	}
	for name := range suite {
		if !slices.Contains(names, name) {
			t.Errorf("common/buildtest has no %s any more", name)
		}
	}
}

// config is the runner that its admin configured.
func config(t *testing.T) *common.RunnerConfig {
	t.Helper()
	c := common.NewConfig()
	if err := c.LoadConfig(os.Getenv(configVariable)); err != nil {
		t.Fatal(err)
	}
	for _, r := range c.Runners {
		if r.Name == profile {
			r.Token = os.Getenv(tokenVariable)
			return r
		}
	}
	t.Fatalf("no runner %q in %s", profile, os.Getenv(configVariable))
	return nil
}

// build is a build with a script.
func build(t *testing.T, config *common.RunnerConfig, script ...string) *common.Build {
	t.Helper()
	response, err := common.GetRemoteBuildResponse(script...)
	if err != nil {
		t.Fatal(err)
	}
	b := &common.Build{Job: response, Runner: config, SystemInterrupt: make(chan os.Signal, 1)}
	fromGitLab(t, b)
	return b
}

// fromGitLab gives a build of the suite's a job that GitLab knows.
func fromGitLab(t *testing.T, b *common.Build) {
	t.Helper()
	job := request(t, *b.Runner)
	job.Steps, job.Cache = b.Steps, b.Cache
	for _, v := range b.Variables {
		switch v.Key {
		case "CI_JOB_TOKEN": // the suite's is no token
		case "GIT_STRATEGY":
			// none, to do without git: what our admin's runner takes is a matter
			// of its own (sources are verified), and there is git.
			if v.Value != "none" {
				job.Variables = append(job.Variables, v)
			}
		default:
			job.Variables = append(job.Variables, v)
		}
	}
	job.Features.TokenMaskPrefixes = append(job.Features.TokenMaskPrefixes, b.Features.TokenMaskPrefixes...)
	b.Job = *job
	b.ExecutorProvider = custom.NewProvider("gitlab-runner")
	b.Session = &session.Session{DisconnectCh: make(chan error), TimeoutCh: make(chan error)}
}

// request takes a job from GitLab.
func request(t *testing.T, config common.RunnerConfig) *spec.Job {
	t.Helper()
	client := network.NewGitLabClient()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if job, healthy := client.RequestJob(t.Context(), config, nil); job != nil {
			return job
		} else if !healthy {
			t.Fatal("GitLab refuses the runner")
		}
	}
	t.Fatal("GitLab has no job")
	return nil
}
