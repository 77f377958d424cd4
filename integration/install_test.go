package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstallPutsEverythingWhereTheDefaultsLook installs into a directory and
// checks the places that defaults and units name.
func TestInstallPutsEverythingWhereTheDefaultsLook(t *testing.T) {
	root := t.TempDir()
	install := func() {
		t.Helper()
		cmd := exec.Command("integration/setup/install.sh", "bin", ".cache/bin")
		cmd.Dir = theWorld.Root
		cmd.Env = append(os.Environ(), "DESTDIR="+root)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	install()
	for _, daemon := range []string{"sandboxd", "attestd"} {
		unit := string(read(t, filepath.Join(root, "usr/lib/systemd/system/hallmark-"+daemon+".service")))
		_, start, _ := strings.Cut(unit, "ExecStart=")
		program, _, _ := strings.Cut(start, " ")
		config := "/etc/hallmark/" + daemon + ".toml"
		if !strings.Contains(start, " -config "+config+"\n") {
			t.Errorf("the unit of %s does not name %s", daemon, config)
		}
		for _, file := range []string{program, config} {
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, name := range []string{"hallmark-executor", "hallmark-init", "containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := os.Stat(filepath.Join(root, "usr/lib/hallmark", name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"SECURITY.md", "docs/install.md", "attest/buildtype.md"} {
		if _, err := os.Stat(filepath.Join(root, "usr/share/doc/hallmark", name)); err != nil {
			t.Error(err)
		}
	}
	// A second time, as an upgrade does: what the admin wrote stays.
	config := filepath.Join(root, "etc/hallmark/sandboxd.toml")
	if err := os.WriteFile(config, []byte("# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	install()
	if got := string(read(t, config)); got != "# mine\n" {
		t.Errorf("an upgrade changed the configuration to %q", got)
	}
}
