package integration

import (
	"os"
	"testing"

	"hallmark.build/integration/harness"
	"hallmark.build/integration/world"
	"hallmark.build/sandbox/record"
)

// theWorld is what every test stands in. It is set once, before the first.
var theWorld *world.World

func TestMain(m *testing.M) {
	os.Exit(harness.Main(m, world.Options{Prepare: prepareBenchmarks}, func(w *world.World) error {
		theWorld = w
		return nil
	}))
}

// What the tests say most, without the name of the package that it is from.
var (
	hermetic     = harness.Hermetic
	firewalled   = harness.Firewalled
	start        = harness.Start
	run          = harness.Run
	wait         = harness.Wait
	within       = harness.Within
	waitTrace    = harness.WaitTrace
	expect       = harness.Expect
	mention      = harness.Mention
	never        = harness.Never
	archive      = harness.Archive
	plain        = harness.Plain
	lines        = harness.Lines
	exitCode     = harness.ExitCode
	attestations = harness.Attestations
	attested     = harness.Attested
	unattested   = harness.Unattested
	evidence     = harness.Evidence
	keep         = harness.Keep
	trustedRoot  = harness.TrustedRoot
	auditPolicy  = harness.AuditPolicy
	program      = harness.Program
	cosign       = harness.Cosign
)

func dataOf[T any](t *testing.T, entries []record.Entry, kind record.Kind) []T {
	t.Helper()
	return harness.DataOf[T](t, entries, kind)
}
