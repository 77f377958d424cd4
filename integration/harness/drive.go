package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hallmark.build/integration/world"
)

// Drive calls the driver as the runner does for a payload, and as the runner's user.
func Drive(t *testing.T, payload []byte, call ...string) (output string, code int) {
	t.Helper()
	dir, err := World.Temp("driver")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "response.json")
	if err := os.WriteFile(file, payload, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, file} {
		if err := os.Chown(name, world.RunnerUID, world.RunnerUID); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(Within(t, time.Minute), "/usr/lib/hallmark/hallmark-executor", call...)
	cmd.Dir = dir
	cmd.Env = []string{
		"TMPDIR=" + dir, "BUILD_FAILURE_EXIT_CODE=1", "SYSTEM_FAILURE_EXIT_CODE=2", "JOB_RESPONSE_FILE=" + file,
		"BUILD_EXIT_CODE_FILE=" + filepath.Join(dir, "build_exit_code"), "HALLMARK_SESSION=" + strings.Repeat("5", 32),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: world.RunnerUID, Gid: world.RunnerUID}}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return Plain(string(out)), cmd.ProcessState.ExitCode()
}
