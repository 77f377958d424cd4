package integration

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"hallmark.build/integration/coordinator"
	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
)

// TestAuthorityElsewhere has the runner host join an authority as if it were on
// another machine. Jobs are attested over mutual TLS, until it is revoked.
func TestAuthorityElsewhere(t *testing.T) {
	reconfigure(t, theWorld.Attestd, "/etc/hallmark/attestd.toml", func(old string) string {
		return "listen = \"127.0.0.1:8471\"\nserver_names = [\"127.0.0.1\"]\n" + old
	})
	join(t)
	reconfigure(t, theWorld.Sandboxd, "/etc/hallmark/sandboxd.toml", func(old string) string {
		return old + "\n[authority]\naddress = \"127.0.0.1:8471\"\n"
	})
	job := hermetic("echo out > out.txt")
	job.Artifacts = coordinator.Archive("out.txt")
	r := run(t, job)
	expect(t, r, coordinator.Success, "")
	attested(t, r)
	if _, metrics := harness.Get(t, "/metrics"); !bytes.Contains(metrics, []byte(`hallmark_calls_total{method="Close",code="OK",host="runner-1"} 1`)) {
		t.Errorf("the job was not closed by runner-1:\n%s", metrics)
	}

	if out, code := program(t, "hallmark-attestd", "hosts", "revoke", "runner-1"); code != 0 {
		t.Fatal(out)
	}
	r = run(t, hermetic("echo not reached"))
	expect(t, r, coordinator.Failed, "runner_system_failure")
	mention(t, r, "host runner-1 was revoked")
	never(t, r, "\nnot reached")
}

// join makes the runner host known to the authority.
func join(t *testing.T) {
	t.Helper()
	token, errs, code, err := theWorld.Program(within(t, time.Minute), "hallmark-attestd", "enrol", "runner-1", "-project", "group/**")
	if err != nil || code != 0 {
		t.Fatalf("exit %d, %v\n%s", code, err, errs)
	}
	if out, code := program(t, "hallmark-sandboxd", "join", strings.TrimSpace(token)); code != 0 || !strings.Contains(out, "this host is runner-1: it may attest group/** under hermetic") {
		t.Fatalf("exit %d\n%s", code, out)
	}
}

// reconfigure changes a daemon's file for the rest of the test.
func reconfigure(t *testing.T, d *world.Daemon, file string, change func(string) string) {
	t.Helper()
	old := read(t, file)
	if err := os.WriteFile(file, []byte(change(string(old))), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, old, 0o644); err != nil {
			t.Error(err)
		}
		restart(t, d)
	})
	restart(t, d)
}

func restart(t *testing.T, d *world.Daemon) {
	t.Helper()
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if err := d.Start(); err != nil {
		t.Error(err)
	}
}
