package verify

import (
	"fmt"
	"strings"
	"testing"

	"hallmark.build/attest/verify/verifytest"
)

// TestWitnesses: how many cosignatures a policy can ask for, and what is none.
func TestWitnesses(t *testing.T) {
	a := verifytest.New(t)
	log, second := a.NewLog("log.example.com"), a.NewLog("two.example.com")
	a.Logs = []any{log.Trusted(), second.Trusted()}
	one, two, other := a.NewWitness("one.example", 1), a.NewWitness("two.example", 2), a.NewWitness("three.example", 3)
	next, namesake := a.NewWitness("one.example", 4), a.NewWitness("one.example", 5)
	ask := func(n int, keys ...*verifytest.Witness) string {
		var quoted []string
		for _, k := range keys {
			quoted = append(quoted, fmt.Sprintf("%q", k.Key()))
		}
		return fmt.Sprintf("witnesses = [%s]\nmin_witnesses = %d\n", strings.Join(quoted, ", "), n)
	}
	envelope := func(entry map[string]any) map[string]any { return verifytest.At(entry, "inclusionProof", "checkpoint") }
	type signed = verifytest.Signed
	for _, tt := range []struct {
		name, policy string
		entries      func(signed) []any
		want         Status
		detail       string
	}{
		{"none asked for, one there", "", func(s signed) []any { return []any{one.Cosign(log.Entry(s))} }, Pass, "as entry 0"},
		{"one of one", ask(1, one), func(s signed) []any { return []any{one.Cosign(log.Entry(s))} }, Pass, "log.example.com as entry 0, seen by one.example"},
		{"one of two", ask(1, one, two), func(s signed) []any { return []any{two.Cosign(log.Entry(s))} }, Pass, "seen by two.example"},
		{"two of two", ask(2, one, two), func(s signed) []any { return []any{two.Cosign(one.Cosign(log.Entry(s)))} }, Pass, "seen by one.example, two.example"},
		{"one, and a stranger", ask(1, one), func(s signed) []any { return []any{one.Cosign(other.Cosign(log.Entry(s)))} }, Pass, "seen by one.example"},
		{"none", ask(1, one), func(s signed) []any { return []any{log.Entry(s)} }, Fail, "was seen by none of them"},
		{"one where two are asked for", ask(2, one, two), func(s signed) []any { return []any{one.Cosign(log.Entry(s))} }, Fail, "log.example.com was seen by one.example"},
		{"a stranger alone", ask(1, one), func(s signed) []any { return []any{other.Cosign(log.Entry(s))} }, Fail, "was seen by none of them"},
		{"another key of the name", ask(1, one), func(s signed) []any { return []any{namesake.Cosign(log.Entry(s))} }, Fail, "was seen by none of them"},
		{"one witness twice", ask(2, one, two), func(s signed) []any { return []any{one.Cosign(one.Cosign(log.Entry(s)))} }, Fail, "was seen by one.example"},
		{"one witness with two keys", ask(2, one, next, two), func(s signed) []any { return []any{next.Cosign(one.Cosign(log.Entry(s)))} }, Fail, "was seen by one.example"},
		{"one witness by its next key", ask(1, one, next), func(s signed) []any { return []any{next.Cosign(log.Entry(s))} }, Pass, "seen by one.example"},
		{"signature of another checkpoint of the log", ask(1, one), func(s signed) []any {
			s2 := s
			s2.Payload = []byte("{}")
			e, line := log.Entry(s), one.Line(envelope(log.Entry(s2))["envelope"].(string))
			envelope(e)["envelope"] = envelope(e)["envelope"].(string) + line
			return []any{e}
		}, Fail, "was not signed by witness one.example"},
		{"signature of another log's checkpoint of the same tree", ask(1, one), func(s signed) []any {
			e, line := log.Entry(s), one.Line(envelope(second.Entry(s))["envelope"].(string))
			envelope(e)["envelope"] = envelope(e)["envelope"].(string) + line
			return []any{e}
		}, Fail, "was not signed by witness one.example"},
		{"another log's whole checkpoint", ask(1, one), func(s signed) []any {
			e := log.Entry(s)
			envelope(e)["envelope"] = envelope(one.Cosign(second.Entry(s)))["envelope"]
			return []any{e}
		}, Fail, "not each entry"},
		{"before the log's signature", ask(1, one), func(s signed) []any {
			e := log.Entry(s)
			text, line, _ := strings.Cut(envelope(e)["envelope"].(string), "\n\n")
			envelope(e)["envelope"] = text + "\n\n" + one.Line(text+"\n\n") + line
			return []any{e}
		}, Fail, "before its log"},
		{"of the log that nobody needs", ask(1, one), func(s signed) []any { return []any{one.Cosign(log.Entry(s)), second.Entry(s)} }, Pass, "this signature is in https://log.example.com as entry 0, seen by one.example"},
		{"of one log where two are asked for", "min_logs = 2\n" + ask(1, one), func(s signed) []any { return []any{one.Cosign(log.Entry(s)), second.Entry(s)} }, Fail, "https://two.example.com was seen by none of them"},
		{"of both", "min_logs = 2\n" + ask(1, one), func(s signed) []any { return []any{one.Cosign(log.Entry(s)), one.Cosign(second.Entry(s))} }, Pass, "seen by one.example"},
		{"no entry", ask(1, one), func(signed) []any { return []any{} }, Fail, "in 0 trusted logs"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bundle := a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) { f.LogEntries = tt.entries })
			v := judgeBundle(t, a, bundle, tt.policy)
			if got := status(v, "log"); got != tt.want || v.Verified() != (tt.want == Pass) || !strings.Contains(dump(v), tt.detail) {
				t.Errorf("log is %s, want %s, %q\n%s", got, tt.want, tt.detail, dump(v))
			}
		})
	}
	t.Run("no log in the trusted root", func(t *testing.T) {
		a.Logs = nil
		v := judgeBundle(t, a, a.Bundle(verifytest.Statement()), ask(1, one))
		if v.Verified() || status(v, "log") != Fail {
			t.Error(dump(v))
		}
	})
}

// TestEveryByteOfACosignature changes each character of a witness's line: none
// is as good as it was.
func TestEveryByteOfACosignature(t *testing.T) {
	a := verifytest.New(t)
	log, one := a.NewLog("log.example.com"), a.NewWitness("one.example", 1)
	p := parsePolicy(t, fmt.Sprintf("witnesses = %q\nmin_witnesses = 1\n", one.Key()))
	keys, err := p.WitnessKeys()
	if err != nil {
		t.Fatal(err)
	}
	var whole string
	a.Logs = []any{log.Trusted()}
	a.Bundle(verifytest.Statement(), func(f *verifytest.Forgery) {
		f.LogEntries = func(s verifytest.Signed) []any {
			e := log.Entry(s)
			whole = verifytest.At(e, "inclusionProof", "checkpoint")["envelope"].(string)
			return []any{e}
		}
	})
	line := one.Line(whole)
	if by, err := witnessesOf(whole+line, keys); err != nil || len(by) != 1 {
		t.Fatalf("%v, %v", by, err)
	}
	for i := range line {
		changed := []byte(line)
		changed[i] ^= 1
		if by, err := witnessesOf(whole+string(changed), keys); err == nil && len(by) > 0 {
			t.Errorf("character %d, %q: seen by %v", i, changed, by)
		}
	}
}

// FuzzWitnesses holds that nobody but a witness makes its signature.
func FuzzWitnesses(f *testing.F) {
	a := verifytest.New(f)
	one := a.NewWitness("one.example", 1)
	const text = "log.example.com\n1\nAAAA\n\n"
	line := one.Line(text)
	f.Add(text+line, "two.example "+line)
	f.Add(text, line)
	p := parsePolicy(f, fmt.Sprintf("witnesses = %q\nmin_witnesses = 1\n", a.NewWitness("one.example", 2).Key()))
	keys, err := p.WitnessKeys()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		if by, err := witnessesOf(before+after, keys); err == nil && len(by) > 0 {
			t.Errorf("seen by %v", by)
		}
	})
}
