package verify

import (
	"os"
	"strings"
	"testing"
)

// TestAdvisoriesHaveTests keeps the list of faults that other verifiers had,
// each with the test here in which it would show.
func TestAdvisoriesHaveTests(t *testing.T) {
	var source strings.Builder
	for _, file := range []string{"verify_test.go", "log_test.go", "keys_test.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(text)
	}
	for _, a := range []struct{ id, fault, test, name string }{
		{"CVE-2026-39395", "accepted when the payload did not parse", "TestPayloadThatIsNoStatement", "not JSON"},
		{"CVE-2022-35929", "accepted another type of attestation", "TestEachCheckFailsAlone", "predicate type"},
		{"CVE-2022-36056", "accepted a bundle of another blob", "TestEachCheckFailsAlone", "another artifact"},
		{"CVE-2026-22703", "accepted a log entry of something else", "TestLog", "entry of another statement"},
		{"CVE-2026-49834", "let one log meet a threshold of several", "TestLog", "one log counted twice"},
		{"CVE-2026-24122", "accepted an expired intermediate without a log", "TestExpiredIntermediate", ""},
		{"CVE-2026-54787", "ignored when a key was valid", "TestGenerations", "old key after its end"},
		{"CVE-2026-39984", "believed a timestamp's own certificate", "TestEachCheckFailsAlone", "untrusted timestamp authority with its certificate in the token"},
		{"CVE-2024-45395", "never came to an end on a huge bundle", "TestEachCheckFailsAlone", "a million log entries"},
		{"CVE-2025-25204", "ended well without any attestation", "TestUndecided", "no bundle"},
		{"CVE-2026-44310", "ended well after a panic", "TestPanicIsNoAcceptance", ""},
	} {
		if !strings.Contains(source.String(), "func "+a.test+"(t *testing.T)") || !strings.Contains(source.String(), `"`+a.name) {
			t.Errorf("%s (%s): no test %s with a case %q", a.id, a.fault, a.test, a.name)
		}
	}
}
