package interop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest/verify/verifytest"
)

var update = flag.Bool("update", false, "write what the peers say into the documentation")

// table is where auditors read what the peers let through.
const table = "attest/verify/PEERS.md"

// A mutation is one change to something that every verifier accepts.
type mutation struct {
	what      string
	statement func(s map[string]any)      // then signed
	forge     func(f *verifytest.Forgery) // how it is signed
	bundle    func(b map[string]any)
	bytes     func(bundle []byte) []byte
	root      func(r map[string]any)
	rootBytes func(root []byte) []byte
}

// A forger has an authority and a log whose keys mutations may use.
type forger struct {
	*verifytest.Authority
	log *verifytest.Log
	at  time.Time
}

func newForger(t *testing.T) *forger {
	a := verifytest.New(t)
	log := a.NewLog("log.example.test")
	a.Logs = []any{log.Trusted()}
	return &forger{a, log, time.Now().UTC().Truncate(time.Second)}
}

// question makes what a verifier is asked after the change.
func (f *forger) question(t *testing.T, m mutation) question {
	t.Helper()
	finished := func(s map[string]any) {
		meta := object(s, "predicate", "runDetails", "metadata")
		meta["startedOn"], meta["finishedOn"] = f.at.Add(-time.Minute).Format(time.RFC3339), f.at.Format(time.RFC3339)
	}
	edits := []func(map[string]any){finished}
	if m.statement != nil {
		edits = append(edits, m.statement)
	}
	text := f.Bundle(verifytest.Statement(edits...), func(g *verifytest.Forgery) {
		g.SignedAt, g.Leaf = f.at, verifytest.LeafTemplate(g.Identity, verifytest.Issuer, f.at)
		g.LogEntries = func(s verifytest.Signed) []any { return []any{f.log.Entry(s)} }
		if m.forge != nil {
			m.forge(g)
		}
	})
	text = edit(t, text, m.bundle)
	if m.bytes != nil {
		text = m.bytes(text)
	}
	root := edit(t, f.TrustedRoot(), m.root)
	if m.rootBytes != nil {
		root = m.rootBytes(root)
	}
	return question{
		artifact: write(t, "app", verifytest.Artifact()), bundle: write(t, "app.sigstore.json", text),
		root: write(t, "trusted_root.json", root), policy: write(t, "policy.toml", []byte(verifytest.Policy)),
		identity: verifytest.BuilderID, issuer: verifytest.Issuer,
	}
}

func edit(t *testing.T, text []byte, f func(map[string]any)) []byte {
	t.Helper()
	if f == nil {
		return text
	}
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	f(v)
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// object is the object at a path of keys; a list stands for its first element.
func object(v any, path ...string) map[string]any {
	for _, key := range path {
		v = v.(map[string]any)[key]
		if list, ok := v.([]any); ok {
			v = list[0]
		}
	}
	return v.(map[string]any)
}

func set(value any, path ...string) func(map[string]any) {
	last := len(path) - 1
	return func(v map[string]any) { object(v, path[:last]...)[path[last]] = value }
}

// again doubles the first element of a list.
func again(path ...string) func(map[string]any) {
	last := len(path) - 1
	return func(v map[string]any) {
		at := object(v, path[:last]...)
		list := at[path[last]].([]any)
		at[path[last]] = append(list, list[0])
	}
}

func replace(old, text string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(text), 1) }
}

func (f *forger) mutations(t *testing.T) []mutation {
	material, entry := "verificationMaterial", []string{"verificationMaterial", "tlogEntries"}
	ended := f.at.Add(-time.Minute).Format(time.RFC3339)
	stranger := verifytest.New(t)
	return append([]mutation{
		{what: "an unknown key in the bundle", bundle: set("x", "note")},
		{what: "a key of the bundle twice", bytes: replace(`{"dsseEnvelope":`, `{"dsseEnvelope":{},"dsseEnvelope":`)},
		{what: "a key of the bundle in another case", bytes: replace(`"payloadType"`, `"PayloadType"`)},
		{what: "base64 with a line break", bytes: replace(`"payload":"eyJ`, `"payload":"eyJ\n`)},
		{what: "more after the bundle", bytes: func(b []byte) []byte { return append(b, "{}"...) }},
		{what: "bundle v0.2", bundle: set("application/vnd.dev.sigstore.bundle+json;version=0.2", "mediaType")},
		{what: "a key id, which nothing vouches for", bundle: set("prod", "dsseEnvelope", "signatures", "keyid")},
		{what: "the signature twice", bundle: again("dsseEnvelope", "signatures")},
		{what: "a chain in place of the certificate", bundle: func(b map[string]any) {
			m := object(b, material)
			m["x509CertificateChain"] = map[string]any{"certificates": []any{m["certificate"]}}
			delete(m, "certificate")
		}},
		{what: "the statement changed", bundle: func(b map[string]any) {
			env := object(b, "dsseEnvelope")
			payload, err := base64.StdEncoding.DecodeString(env["payload"].(string))
			if err != nil {
				t.Fatal(err)
			}
			env["payload"] = base64.StdEncoding.EncodeToString(bytes.Replace(payload, []byte("refs/heads/main"), []byte("refs/heads/evil"), 1))
		}},

		{what: "no timestamp", bundle: set([]any{}, material, "timestampVerificationData", "rfc3161Timestamps")},
		{what: "the timestamp twice", bundle: again(material, "timestampVerificationData", "rfc3161Timestamps")},
		{what: "a timestamp of another signature", forge: func(g *verifytest.Forgery) {
			g.Stamped = func([]byte) []byte { return []byte("another") }
		}},
		{what: "a timestamp of a stranger, with his certificate", forge: func(g *verifytest.Forgery) { g.TSA = &stranger.TSA }},

		{what: "no log entry", bundle: set([]any{}, entry...)},
		{what: "the log entry twice", bundle: again(entry...)},
		{what: "the log entry twice, under two numbers", bundle: func(b map[string]any) {
			m := object(b, material)
			var other map[string]any
			text, err := json.Marshal(object(b, entry...))
			if err != nil || json.Unmarshal(text, &other) != nil {
				t.Fatal(err)
			}
			other["logIndex"] = "7"
			m["tlogEntries"] = append(m["tlogEntries"].([]any), other)
		}},
		{what: "another number of the log entry", bundle: set("7", append(entry, "logIndex")...)},
		{what: "another number in the log entry's proof", bundle: set("7", append(entry, "inclusionProof", "logIndex")...)},
		{what: "another tree size in the log entry's proof", bundle: set("7", append(entry, "inclusionProof", "treeSize")...)},
		{what: "another root in the log entry's proof", bundle: set(strings.Repeat("A", 43)+"=", append(entry, "inclusionProof", "rootHash")...)},
		{what: "a log entry that calls itself another version", bundle: set("0.0.1", append(entry, "kindVersion", "version")...)},
		{what: "a log entry with a time that nobody signed", bundle: set(fmt.Sprint(f.at.Unix()), append(entry, "integratedTime")...)},
		{what: "a log entry of a stranger's log", forge: logged(func(s verifytest.Signed) []any { return []any{stranger.NewLog("log.example.test").Entry(s)} })},
		{what: "a log entry of another statement", forge: logged(func(s verifytest.Signed) []any {
			s.Payload = []byte("{}")
			return []any{f.log.Entry(s)}
		})},
		{what: "a log entry of another signature", forge: logged(func(s verifytest.Signed) []any {
			s.Signature = bytes.Clone(s.Signature)
			s.Signature[len(s.Signature)-1] ^= 1
			return []any{f.log.Entry(s)}
		})},
		{what: "a log entry of another certificate", forge: logged(func(s verifytest.Signed) []any {
			s.Leaf = f.Root.Cert
			return []any{f.log.Entry(s)}
		})},
		{what: "a checkpoint of another tree", forge: logged(func(s verifytest.Signed) []any {
			e, other := f.log.Entry(s), s
			other.Payload = []byte("{}")
			object(e, "inclusionProof")["checkpoint"] = object(f.log.Entry(other), "inclusionProof")["checkpoint"]
			return []any{e}
		})},
		{what: "a checkpoint signed by a stranger first", forge: logged(func(s verifytest.Signed) []any {
			e := f.log.Entry(s)
			at := object(e, "inclusionProof", "checkpoint")
			note := at["envelope"].(string)
			at["envelope"] = strings.Replace(note, "\n\n", "\n\n— stranger.example "+base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 68))+"\n", 1)
			return []any{e}
		})},

		{what: "an identity that goes on after ours", forge: identity(f, verifytest.BuilderID+"-2", verifytest.Issuer)},
		{what: "another issuer", forge: identity(f, verifytest.BuilderID, "https://gitlab.example.test")},
		{what: "a second identity in the certificate", forge: leaf(func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "ci.example.com", Path: "/hallmark/firewalled"})
		})},
		{what: "two issuers in the certificate", forge: leaf(func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte("https://other.example.test") })},
		{what: "a certificate that is not for code", forge: leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })},
		{what: "a certificate that is not for signatures", forge: leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })},
		{what: "a certificate signed by itself", forge: func(g *verifytest.Forgery) { g.Parent = nil }},
		{what: "signed after the certificate's end", forge: func(g *verifytest.Forgery) { g.SignedAt = g.SignedAt.Add(11 * time.Minute) }},
		{what: "a key on another curve", forge: func(g *verifytest.Forgery) {
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			g.LeafKey = key
		}},

		{what: "a trusted root of somebody else", rootBytes: func([]byte) []byte { return stranger.TrustedRoot() }},
		{what: "a trusted root that stopped trusting the certificate authority before", root: set(ended, "certificateAuthorities", "validFor", "end")},
		{what: "a trusted root that stopped trusting the clock before", root: set(ended, "timestampAuthorities", "validFor", "end")},
		{what: "a trusted root that stopped trusting the log before", root: set(ended, "tlogs", "publicKey", "validFor", "end")},
		{what: "a trusted root with the log's key twice, ended and not", root: func(r map[string]any) {
			r["tlogs"] = []any{f.log.TrustedIn("2026-01-01T00:00:00Z", ended), f.log.Trusted()}
		}},
		{what: "a trusted root without the log", root: set([]any{}, "tlogs")},
		{what: "a key of the trusted root twice", rootBytes: replace(`{"certificateAuthorities":`, `{"certificateAuthorities":[],"certificateAuthorities":`)},
	}, statements()...)
}

// statements are mutations that the authority itself would have to sign: what a
// verifier makes of them shows how far it reads a statement.
func statements() []mutation {
	digest := fmt.Sprintf("%x", sha256.Sum256(verifytest.Artifact()))
	app := func(f func(subject map[string]any)) func(map[string]any) {
		return func(s map[string]any) { f(s["subject"].([]any)[1].(map[string]any)) }
	}
	external := func(key string, value any) func(map[string]any) {
		return set(value, "predicate", "buildDefinition", "externalParameters", key)
	}
	return []mutation{
		{what: "signed: about another artifact", statement: app(func(s map[string]any) { object(s, "digest")["sha256"] = strings.Repeat("2", 64) })},
		{what: "signed: a payload type of another kind", forge: func(g *verifytest.Forgery) { g.PayloadType = "application/json" }},
		{what: "signed: in-toto statement v0.1", statement: set("https://in-toto.io/Statement/v0.1", "_type")},
		{what: "signed: another predicate type", statement: set("https://slsa.dev/provenance/v0.2", "predicateType")},
		{what: "signed: another build type", statement: set("https://example.com/build", "predicate", "buildDefinition", "buildType")},
		{what: "signed: an unknown key at the top", statement: set("x", "acme_note")},
		{what: "signed: the artifact's digest in upper case", statement: app(func(s map[string]any) { object(s, "digest")["sha256"] = strings.ToUpper(digest) })},
		{what: "signed: a second digest that is not the artifact's", statement: app(func(s map[string]any) { object(s, "digest")["sha512"] = strings.Repeat("0", 128) })},
		{what: "signed: the artifact twice", statement: again("subject")},
		{what: "signed: the builder id of another mode", statement: set("https://ci.example.com/hallmark/firewalled", "predicate", "runDetails", "builder", "id")},
		{what: "signed: an unknown external parameter", statement: external("inputs", "x")},
		{what: "signed: another source", statement: external("source", "https://gitlab.example.com/evil/app.git")},
		{what: "signed: another ref", statement: external("ref", "refs/heads/evil")},
		{what: "signed: a failed job", statement: set("failed", "predicate", "hallmark_result", "result")},
		{what: "signed: packages that could not be seen", statement: set("declared", "predicate", "hallmark_completeness", "packages")},
		{what: "signed: an input without a digest", statement: func(s map[string]any) {
			def := object(s, "predicate", "buildDefinition")
			delete(def["resolvedDependencies"].([]any)[2].(map[string]any), "digest")
		}},
	}
}

func logged(entries func(verifytest.Signed) []any) func(*verifytest.Forgery) {
	return func(g *verifytest.Forgery) { g.LogEntries = entries }
}

func leaf(f func(*x509.Certificate)) func(*verifytest.Forgery) {
	return func(g *verifytest.Forgery) { f(g.Leaf) }
}

func identity(f *forger, name, issuer string) func(*verifytest.Forgery) {
	return func(g *verifytest.Forgery) { g.Leaf = verifytest.LeafTemplate(name, issuer, f.at) }
}

// TestMutations asks every verifier about every mutation. Ours refuses them
// all; what the others do is in the documentation, which this test writes.
func TestMutations(t *testing.T) {
	t.Parallel()
	f := newForger(t)
	var rows strings.Builder
	head, rule := "| What was changed |", "|---|"
	for _, p := range peers() {
		head, rule = head+" "+p.name+" |", rule+"---|"
	}
	fmt.Fprintf(&rows, "%s\n%s\n", head, rule)
	for _, m := range append([]mutation{{what: "nothing"}}, f.mutations(t)...) {
		q := f.question(t, m)
		fmt.Fprintf(&rows, "| %s |", m.what)
		for _, p := range peers() {
			err := p.accept(t.Context(), t, q)
			word := "refuses"
			if err == nil {
				word = "**accepts**"
			}
			if m.what == "nothing" && err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			if m.what != "nothing" && p.name == ours && err == nil {
				t.Errorf("%s: accepted", m.what)
			}
			fmt.Fprintf(&rows, " %s |", word)
		}
		rows.WriteString("\n")
	}
	compare(t, rows.String())
}

// compare holds the documentation's table against what was found.
func compare(t *testing.T, found string) {
	t.Helper()
	const begin, end = "<!-- table -->\n", "<!-- end -->\n"
	file := module(t, table)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	have, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s: no place for the table", table)
	}
	if have == found {
		return
	}
	if *update {
		if err := os.WriteFile(file, []byte(before+begin+found+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s is not what the peers do now; after looking into it: go test ./integration/interop -run TestMutations -update\n%s", table, found)
}
