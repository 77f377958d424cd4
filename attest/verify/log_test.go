package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"

	"hallmark.build/attest/verify/verifytest"
)

func TestLog(t *testing.T) {
	a := verifytest.New(t)
	log, second, unknown := a.NewLog("one.example.com"), a.NewLog("two.example.com"), a.NewLog("three.example.com")
	rotated := a.NewLog("one.example.com")
	a.Logs = []any{log.Trusted(), second.Trusted(), rotated.Trusted()}
	for _, tt := range []struct {
		name    string
		entries func(verifytest.Signed) []any
		want    Status
	}{
		{"none", nil, Fail},
		{"left out", func(verifytest.Signed) []any { return []any{} }, Fail},
		{"logged", func(s verifytest.Signed) []any { return []any{log.Entry(s)} }, Pass},
		{"in two logs", func(s verifytest.Signed) []any { return []any{log.Entry(s), second.Entry(s)} }, Pass},
		{"one log counted twice", func(s verifytest.Signed) []any {
			return []any{log.Entry(s), renumbered(log.Entry(s))}
		}, Fail},
		{"one entry twice", func(s verifytest.Signed) []any { return []any{log.Entry(s), log.Entry(s)} }, Fail},
		{"two keys of one log", func(s verifytest.Signed) []any { return []any{log.Entry(s), rotated.Entry(s)} }, Fail},
		{"in an unknown log alone", func(s verifytest.Signed) []any { return []any{unknown.Entry(s)} }, Fail},
		{"in an unknown log too", func(s verifytest.Signed) []any { return []any{log.Entry(s), unknown.Entry(s)} }, Fail},
		{"entry of another statement", func(s verifytest.Signed) []any {
			s.Payload = verifytest.Statement(external("project", "evil/app"))
			return []any{log.Entry(s)}
		}, Fail},
		{"entry of another signature of the same statement", func(s verifytest.Signed) []any {
			s.Signature = append([]byte{}, s.Signature...)
			s.Signature[len(s.Signature)-1] ^= 1
			return []any{log.Entry(s)}
		}, Fail},
		{"entry of another certificate", func(s verifytest.Signed) []any {
			s.Leaf = a.Root.Cert
			return []any{log.Entry(s)}
		}, Fail},
		{"proof of another entry", func(s verifytest.Signed) []any {
			other := s
			other.Payload = []byte("{}")
			e := log.Entry(s)
			e["inclusionProof"] = log.Entry(other)["inclusionProof"]
			return []any{e}
		}, Fail},
		{"checkpoint of another log", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["inclusionProof"].(map[string]any)["checkpoint"] = second.Entry(s)["inclusionProof"].(map[string]any)["checkpoint"]
			return []any{e}
		}, Fail},
		{"time that nobody signed", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["integratedTime"] = "1764000000"
			return []any{e}
		}, Fail},
		{"promise that nobody signed", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["integratedTime"], e["inclusionPromise"] = "1764000000", map[string]any{"signedEntryTimestamp": "AAAA"}
			return []any{e}
		}, Fail},
		{"stranger's signature before the log's", func(s verifytest.Signed) []any { return []any{cosigned(log.Entry(s), true)} }, Fail},
		{"witness's signature after the log's", func(s verifytest.Signed) []any { return []any{cosigned(log.Entry(s), false)} }, Pass},
		{"other index", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["logIndex"] = "1"
			return []any{e}
		}, Fail},
		{"other index in the proof too", func(s verifytest.Signed) []any { return []any{renumbered(log.Entry(s))} }, Fail},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) { f.LogEntries = tt.entries })
			v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, parsePolicy(t), a.TrustedRoot())
			got := status(v, "log")
			if status(v, "bundle") == Fail { // what an entry says is not even of the right form
				got = Fail
			}
			if got != tt.want || v.Verified() != (tt.want != Fail) {
				t.Errorf("log is %s, verdict %s\n%s", got, v.Outcome(), dump(v))
			}
		})
	}
	t.Run("no proof", func(t *testing.T) {
		bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
			f.LogEntries = func(s verifytest.Signed) []any {
				e := log.Entry(s)
				delete(e, "inclusionProof")
				return []any{e}
			}
		})
		if v := judgeBundle(t, a, bundle); v.Verified() || status(v, "bundle") != Fail {
			t.Error(dump(v))
		}
	})
}

// of is a trusted log with its operator.
func of(operator string, log *verifytest.Log) any {
	trusted := log.Trusted().(map[string]any)
	trusted["operator"] = operator
	return trusted
}

// renumbered is an entry that says twice that it is another.
func renumbered(entry map[string]any) map[string]any {
	entry["logIndex"] = "1"
	entry["inclusionProof"].(map[string]any)["logIndex"] = "1"
	return entry
}

// cosigned adds a signature of somebody else to an entry's checkpoint.
func cosigned(entry map[string]any, first bool) map[string]any {
	checkpoint := entry["inclusionProof"].(map[string]any)["checkpoint"].(map[string]any)
	text, signatures, _ := strings.Cut(checkpoint["envelope"].(string), "\n\n")
	other := "— witness.example " + base64.StdEncoding.EncodeToString(make([]byte, 68)) + "\n"
	if first {
		signatures = other + signatures
	} else {
		signatures += other
	}
	checkpoint["envelope"] = text + "\n\n" + signatures
	return entry
}

// TestLogsAsked: what the policy asks for, against what the trusted root names
// and the bundle has. By default a named log must have the signature, so that
// an entry cannot be stripped.
func TestLogsAsked(t *testing.T) {
	a := verifytest.New(t)
	one, two := a.NewLog("one.example.com"), a.NewLog("two.example.com")
	for _, tt := range []struct {
		name, policy   string
		trusted        []any
		entries        int
		want           Status
		detail, second string
	}{
		{name: "nothing named, nothing there", want: NotChecked},
		{name: "nothing named, one asked for", policy: "min_logs = 1", want: Fail, detail: "in 0 trusted logs", second: "trusted     none"},
		{name: "nothing named, none asked for", policy: "min_logs = 0", want: NotChecked},
		{name: "stripped", trusted: []any{one.Trusted()}, want: Fail, detail: "in 0 trusted logs", second: "trusted     https://one.example.com"},
		{name: "stripped and not asked for", policy: "min_logs = 0", trusted: []any{one.Trusted()}, want: NotChecked},
		{name: "in one of two", trusted: []any{one.Trusted(), two.Trusted()}, entries: 1, want: Pass, detail: "this signature is in https://one.example.com"},
		{name: "in one where two are asked for", policy: "min_logs = 2", trusted: []any{one.Trusted(), two.Trusted()}, entries: 1, want: Fail,
			detail: "in 1 trusted log", second: "trusted     https://one.example.com, https://two.example.com"},
		{name: "in both", policy: "min_logs = 2", trusted: []any{one.Trusted(), two.Trusted()}, entries: 2, want: Pass},
		{name: "not asked for, yet of no trusted log", policy: "min_logs = 0", trusted: []any{two.Trusted()}, entries: 1, want: Fail, detail: "not each entry"},
		{name: "in two of one operator", policy: "min_logs = 2", trusted: []any{of("x.example", one), of("x.example", two)}, entries: 2, want: Fail,
			detail: "logs of one operator", second: "x.example"},
		{name: "in one of one operator, who has two", trusted: []any{of("x.example", one), of("x.example", two)}, entries: 1, want: Pass},
		{name: "in two of two operators", policy: "min_logs = 2", trusted: []any{of("x.example", one), of("y.example", two)}, entries: 2, want: Pass},
		{name: "key ended before the signature", trusted: []any{one.TrustedIn("2026-01-01T00:00:00Z", "2026-11-22T10:04:04Z")}, entries: 1, want: Fail,
			detail: "key was not trusted at 2026-11-22T10:04:05Z", second: "trusted from 2026-01-01T00:00:00Z until 2026-11-22T10:04:04Z"},
		{name: "key ended with the signature", trusted: []any{one.TrustedIn("2026-01-01T00:00:00Z", "2026-11-22T10:04:05Z")}, entries: 1, want: Pass},
		{name: "key began long after the signature", trusted: []any{one.TrustedIn("2026-11-22T11:00:00Z", "")}, entries: 1, want: Fail, detail: "key was not trusted"},
		{name: "key began by another clock", trusted: []any{one.TrustedIn("2026-11-22T10:05:00Z", "")}, entries: 1, want: Pass},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a.Logs = tt.trusted
			bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
				f.LogEntries = func(s verifytest.Signed) []any { return []any{one.Entry(s), two.Entry(s)}[:tt.entries] }
			})
			v := judgeBundle(t, a, bundle, tt.policy)
			if got := status(v, "log"); got != tt.want || v.Verified() != (tt.want != Fail) || !strings.Contains(dump(v), tt.detail) || !strings.Contains(dump(v), tt.second) {
				t.Errorf("log is %s, want %s\n%s", got, tt.want, dump(v))
			}
		})
	}
	t.Run("one key twice", func(t *testing.T) {
		a.Logs = []any{one.TrustedIn("2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"), one.Trusted()}
		v := judgeBundle(t, a, a.Bundle(verifytest.Statement()))
		if v.Outcome() != Undecided || !strings.Contains(v.Reason, "twice") {
			t.Error(dump(v))
		}
	})
}

// TestExpiredIntermediate: an authority whose own certificate had ended when it
// was used. Other tools have accepted it where no log is asked for.
func TestExpiredIntermediate(t *testing.T) {
	at := verifytest.SignedAt()
	a := verifytest.New(t).WithIntermediate(at.AddDate(0, -2, 0), at.AddDate(0, -1, 0))
	v := judgeBundle(t, a, a.Bundle(verifytest.Statement()))
	if v.Verified() || status(v, "certificate") != Fail || !strings.Contains(dump(v), "no chain") {
		t.Error(dump(v))
	}
}
