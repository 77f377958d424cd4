package verify

import (
	"crypto/sha256"
	"strings"
	"testing"

	"hallmark.build/attest/verify/verifytest"
)

func TestLog(t *testing.T) {
	a := verifytest.New(t)
	log, second, unknown := a.NewLog("one.example.com"), a.NewLog("two.example.com"), a.NewLog("three.example.com")
	a.Logs = []any{log.Trusted(), second.Trusted()}
	for _, tt := range []struct {
		name    string
		entries func(verifytest.Signed) []any
		want    Status
	}{
		{"none", nil, NotChecked},
		{"logged", func(s verifytest.Signed) []any { return []any{log.Entry(s)} }, Pass},
		{"in two logs", func(s verifytest.Signed) []any { return []any{log.Entry(s), second.Entry(s)} }, Pass},
		{"one log counted twice", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["logIndex"] = "1"
			return []any{log.Entry(s), e}
		}, Fail},
		{"one entry twice", func(s verifytest.Signed) []any { return []any{log.Entry(s), log.Entry(s)} }, Fail},
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
		{"other index", func(s verifytest.Signed) []any {
			e := log.Entry(s)
			e["logIndex"] = "1"
			return []any{e}
		}, Fail},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) { f.LogEntries = tt.entries })
			v := artifact(t.Context(), now(), sha256.Sum256(verifytest.Artifact()), "app", [][]byte{bundle}, parsePolicy(t), a.TrustedRoot())
			if got := status(v, "log"); got != tt.want || v.Verified() != (tt.want != Fail) {
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
