// Package conformance runs GitLab Runner's own executor suite, common/buildtest,
// through its custom executor and our driver.
//
// It is built as a test binary, which integration.TestRunnersOwnSuite starts on
// a runner host, as the runner's user. The suite makes builds of its own, of a
// project on gitlab.com; here each takes a job from GitLab as a runner does and
// keeps of the suite's what a tenant decides: scripts, variables, caches. So our
// programs see jobs that GitLab knows, and nothing is relaxed for them.
package conformance
