package gitlab_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"hallmark.build/attest/gitlab"
)

const audience = "https://ci.example.com/hallmark"

var (
	tokenTime = time.Date(2026, 11, 26, 15, 0, 0, 0, time.UTC)
	goodKey   = newKey(2048)
	otherKey  = newKey(2048)
	weakKey   = newKey(1024)
)

func newKey(bits int) *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		panic(err)
	}
	return k
}

// issuer is a GitLab that signs ID tokens. Tests change what it says.
type issuer struct {
	*httptest.Server
	discovery map[string]any
	keys      jose.JSONWebKeySet
	redirect  string
	asked     atomic.Int32
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{keys: jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: goodKey.Public(), KeyID: "good", Use: "sig", Algorithm: "RS256"},
		{Key: weakKey.Public(), KeyID: "weak", Use: "sig"},
		{Key: otherKey.Public(), KeyID: "enc", Use: "enc"},
		{Key: []byte("shared"), KeyID: "shared"},
	}}}
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) { answer(w, i.discovery) })
	mux.HandleFunc("GET /oauth/discovery/keys", func(w http.ResponseWriter, r *http.Request) {
		i.asked.Add(1)
		if i.redirect != "" {
			http.Redirect(w, r, i.redirect, http.StatusFound)
			return
		}
		answer(w, i.keys)
	})
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	i.discovery = map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/oauth/discovery/keys"}
	return i
}

func (i *issuer) verifier(t *testing.T) *gitlab.IDTokens {
	t.Helper()
	base, err := url.Parse(i.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	v, err := gitlab.NewIDTokens(base, audience, nil, func() time.Time { return tokenTime })
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// claims are as GitLab 18.9 has them.
func (i *issuer) claims() map[string]any {
	return map[string]any{
		"iss": i.URL, "aud": audience, "sub": "project_path:group/project:ref_type:branch:ref:main", "jti": "0c7c",
		"iat": tokenTime.Unix(), "nbf": tokenTime.Unix() - 5, "exp": tokenTime.Unix() + 3600,
		"project_id": "77", "job_project_id": "77", "pipeline_id": "9001", "job_id": "4242", "user_id": "3",
		"sha": facts().SHA, "ref": "main", "ref_type": "branch", "runner_id": 7, "runner_environment": "self-hosted",
		"ci_config_ref_uri": "gitlab.example.com/group/project//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": facts().SHA,
	}
}

func sign(t *testing.T, algorithm jose.SignatureAlgorithm, key any, kid string, payload any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key}, (&jose.SignerOptions{}).WithHeader("kid", kid))
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func confirmedFacts() gitlab.Facts {
	f := facts()
	f.Runner = 7
	return f
}

func TestIDToken(t *testing.T) {
	i := newIssuer(t)
	v := i.verifier(t)
	for range 2 {
		have, err := v.Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", i.claims()), confirmedFacts())
		if err != nil {
			t.Fatal(err)
		}
		want := gitlab.Identity{
			Issuer: i.URL, Subject: "project_path:group/project:ref_type:branch:ref:main", ID: "0c7c", Issued: tokenTime,
			ConfigURI: "gitlab.example.com/group/project//.gitlab-ci.yml@refs/heads/main", ConfigSHA: facts().SHA,
			Runner: 7, Environment: "self-hosted",
		}
		if diff := cmp.Diff(want, have); diff != "" {
			t.Error(diff)
		}
	}
	if n := i.asked.Load(); n != 1 {
		t.Errorf("asked for the keys %d times", n)
	}
}

// TestIDTokenOfAnotherJob changes one claim at a time.
func TestIDTokenOfAnotherJob(t *testing.T) {
	for field, change := range map[string]map[string]any{
		"id token's issuer":      {"iss": "https://gitlab.example.com"},
		"id token's audience":    {"aud": "sigstore"},
		"id token's time":        {"exp": tokenTime.Unix() - 3600},
		"id token's job_id":      {"job_id": "4243"},
		"id token's project_id":  {"job_project_id": "78"},
		"id token's pipeline_id": {"pipeline_id": "1"},
		"id token's user_id":     {"user_id": "4"},
		"id token's sha":         {"sha": strings.Repeat("0", 40)},
		"id token's ref":         {"ref": "release"},
		"id token's ref_type":    {"ref_type": "tag"},
		"id token's runner_id":   {"runner_id": 8},
		"id token":               {"job_id": "4242x"},
	} {
		i := newIssuer(t)
		c := i.claims()
		maps.Copy(c, change)
		_, err := i.verifier(t).Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", c), confirmedFacts())
		if d, ok := errors.AsType[*gitlab.Disagreement](err); !ok || d.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	for name, change := range map[string]map[string]any{
		"not yet":       {"nbf": tokenTime.Unix() + 3600},
		"from tomorrow": {"iat": tokenTime.Unix() + 86400},
		"no expiry":     {"exp": nil},
		"no issue":      {"iat": nil},
		"no job":        {"job_id": nil},
		"no commit":     {"sha": nil},
		"long subject":  {"sub": strings.Repeat("x", 2000)},
	} {
		i := newIssuer(t)
		c := i.claims()
		maps.Copy(c, change)
		_, err := i.verifier(t).Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", c), confirmedFacts())
		if _, ok := errors.AsType[*gitlab.Disagreement](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIDTokenOfOldAndMergeRequestPipelines(t *testing.T) {
	i := newIssuer(t)
	c := i.claims()
	delete(c, "job_project_id") // before GitLab 18.4
	if _, err := i.verifier(t).Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", c), confirmedFacts()); err != nil {
		t.Error(err)
	}
	c = i.claims()
	c["project_id"], c["ref"] = "78", "feature" // a fork's branch
	f := confirmedFacts()
	f.Ref = "refs/merge-requests/1/head"
	if _, err := i.verifier(t).Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", c), f); err != nil {
		t.Error(err)
	}
}

// TestIDTokenForgeries are signed by anybody but GitLab.
func TestIDTokenForgeries(t *testing.T) {
	i := newIssuer(t)
	good := sign(t, jose.RS256, goodKey, "good", i.claims())
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"empty":             "",
		"text":              "a.b.c",
		"no signature":      parts[0] + "." + parts[1] + ".",
		"none":              "eyJhbGciOiJub25lIiwia2lkIjoiZ29vZCJ9." + parts[1] + ".",
		"another key":       sign(t, jose.RS256, otherKey, "good", i.claims()),
		"unknown key":       sign(t, jose.RS256, otherKey, "other", i.claims()),
		"no key id":         sign(t, jose.RS256, goodKey, "", i.claims()),
		"encryption key":    sign(t, jose.RS256, otherKey, "enc", i.claims()),
		"weak key":          sign(t, jose.RS256, weakKey, "weak", i.claims()),
		"shared secret":     sign(t, jose.HS256, make([]byte, 32), "good", i.claims()),
		"another algorithm": sign(t, jose.PS256, goodKey, "good", i.claims()),
		"another payload":   parts[0] + "." + strings.Split(sign(t, jose.RS256, goodKey, "good", map[string]any{}), ".")[1] + "." + parts[2],
		"not an object":     sign(t, jose.RS256, goodKey, "good", []int{1}),
		"huge":              sign(t, jose.RS256, goodKey, "good", map[string]any{"x": strings.Repeat("x", gitlab.MaxIDToken)}),
	} {
		_, err := i.verifier(t).Verify(t.Context(), token, confirmedFacts())
		if _, ok := errors.AsType[*gitlab.Disagreement](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeysFromElsewhere has answers that would bring another's keys. They prove
// nothing about the job: nobody knows more than before.
func TestKeysFromElsewhere(t *testing.T) {
	elsewhere := newIssuer(t)
	for name, change := range map[string]func(*issuer){
		"another host":       func(i *issuer) { i.discovery["jwks_uri"] = elsewhere.URL + "/oauth/discovery/keys" },
		"another scheme":     func(i *issuer) { i.discovery["jwks_uri"] = "https" + i.URL[4:] + "/oauth/discovery/keys" },
		"another issuer":     func(i *issuer) { i.discovery["issuer"] = elsewhere.URL },
		"no keys":            func(i *issuer) { delete(i.discovery, "jwks_uri") },
		"a user":             func(i *issuer) { i.discovery["jwks_uri"] = "http://x@" + i.URL[7:] + "/oauth/discovery/keys" },
		"a way out":          func(i *issuer) { i.discovery["jwks_uri"] = i.URL + "/oauth/../../keys" },
		"a redirect":         func(i *issuer) { i.redirect = elsewhere.URL + "/oauth/discovery/keys" },
		"a redirect at home": func(i *issuer) { i.redirect = i.URL + "/.well-known/openid-configuration" },
		"down":               func(i *issuer) { i.Close() },
	} {
		i := newIssuer(t)
		token := sign(t, jose.RS256, goodKey, "good", i.claims())
		v := i.verifier(t)
		change(i)
		_, err := v.Verify(t.Context(), token, confirmedFacts())
		if _, security := errors.AsType[*gitlab.Disagreement](err); err == nil || security {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := elsewhere.asked.Load(); n > 0 {
		t.Errorf("another's keys were asked for %d times", n)
	}
}

func TestKeysAreFetchedAgainForANewOne(t *testing.T) {
	i := newIssuer(t)
	v := i.verifier(t)
	if _, err := v.Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", i.claims()), confirmedFacts()); err != nil {
		t.Fatal(err)
	}
	i.keys.Keys = []jose.JSONWebKey{{Key: otherKey.Public(), KeyID: "next", Use: "sig"}}
	if _, err := v.Verify(t.Context(), sign(t, jose.RS256, otherKey, "next", i.claims()), confirmedFacts()); err != nil {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), sign(t, jose.RS256, goodKey, "good", i.claims()), confirmedFacts()); err == nil {
		t.Error("a key that GitLab took back is still believed")
	}
}

func FuzzIDToken(f *testing.F) {
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("eyJhbGciOiJSUzI1NiIsImtpZCI6Imdvb2QifQ.e30.AAAA")
	base, err := url.Parse("http://127.0.0.1:1")
	if err != nil {
		f.Fatal(err)
	}
	v, err := gitlab.NewIDTokens(base, audience, nil, time.Now)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(t.Context(), token, facts()); err == nil {
			t.Errorf("%q: accepted without any key", token)
		}
	})
}

func FuzzClaims(f *testing.F) {
	f.Add([]byte(`{"iss":"http://127.0.0.1:1","aud":"` + audience + `","iat":1795705200,"exp":1795705260,"job_id":"4242"}`))
	f.Add([]byte(`{"aud":[1],"exp":1e999,"runner_id":"\u0037"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		id, err := gitlab.ReadClaims(payload, audience, tokenTime, facts())
		// Claims agree with the facts only if they are about them.
		named := strings.Contains(string(payload), "4242") || strings.Contains(string(payload), `\u`)
		if err == nil && (len(id.Subject) > 1024 || !named) {
			t.Errorf("%q: accepted", payload)
		}
	})
}

func FuzzKeys(f *testing.F) {
	text, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: goodKey.Public(), KeyID: "good"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA","kid":"x"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, public := range gitlab.ParseKeys(text) {
			if !public {
				t.Errorf("%q: a secret is taken for a key", text)
			}
		}
	})
}
