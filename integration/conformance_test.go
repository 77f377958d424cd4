package integration

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/images"
	"hallmark.build/integration/world"
)

const (
	suiteToken   = "glrt-suite0123456789012"
	suiteProgram = ".cache/bin/conformance.test"
)

// TestRunnersOwnSuite runs the tests that GitLab Runner publishes for executors
// (common/buildtest) through its custom executor, the admin's config.toml and
// our programs. What of them applies stands in
// integration/gitlab-runner/conformance.
func TestRunnersOwnSuite(t *testing.T) {
	dir, err := theWorld.Temp("suite")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chown(dir, world.RunnerUID, world.RunnerUID); err != nil {
		t.Fatal(err)
	}
	feed(t)
	cmd := exec.CommandContext(within(t, 10*time.Minute), filepath.Join(theWorld.Root, suiteProgram), "-test.v", "-test.parallel=4")
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8",
		"HALLMARK_RUNNER_CONFIG=" + world.RunnerFile, "HALLMARK_RUNNER_TOKEN=" + suiteToken,
		"HALLMARK_SUITE=" + strings.Join(suiteFunctions(t), ","),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: world.RunnerUID, Gid: world.RunnerUID}}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) }
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("the suite ends with %v:\n%s", err, plain(out.String()))
	}
	report(t, out.String())
	gone(t)
}

var verdict = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): TestSuite/(\S+)`)

// report has each test of the suite's as one of ours.
func report(t *testing.T, out string) {
	t.Helper()
	found := verdict.FindAllStringSubmatch(out, -1)
	if len(found) < 25 {
		t.Errorf("the suite tells of %d tests, want at least 25", len(found))
	}
	for _, m := range found {
		t.Run(m[2], func(t *testing.T) {
			if m[1] != "PASS" {
				t.Error(m[1])
			}
		})
	}
}

// feed has a job ready for the suite at any time, until the test is over.
func feed(t *testing.T) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-done
		theWorld.GitLab.Withdraw()
	})
	go func() {
		defer close(done)
		for {
			a, err := theWorld.GitLab.AddJob(coordinator.Job{
				Project: "group/project", Name: "suite", Runner: suiteToken, Script: []string{"true"},
				Image: coordinator.Image{Name: theWorld.Images[images.Helper]},
			})
			if err != nil {
				t.Error(err)
				return
			}
			for a.State() == coordinator.Pending {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
}

// suiteFunctions lists what common/buildtest exports to run.
func suiteFunctions(t *testing.T) []string {
	t.Helper()
	cmd := exec.CommandContext(within(t, time.Minute), "go", "list", "-f", "{{.Dir}}", "gitlab.com/gitlab-org/gitlab-runner/common/buildtest")
	cmd.Dir = filepath.Join(theWorld.Root, "integration", "gitlab-runner")
	cmd.Env = append(os.Environ(), "GOPROXY=off")
	dir, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("go list: %w", err))
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Run") {
				names = append(names, f.Name.Name)
			}
		}
	}
	slices.Sort(names)
	return names
}
