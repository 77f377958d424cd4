package sigstore

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"time"
)

// Audience is whom tokens are for unless their claims say otherwise.
const Audience = "sigstore"

// An Issuer gives out OIDC tokens. It says what it is told to.
type Issuer struct {
	URL string
	key *rsa.PrivateKey
}

func newIssuer() (*Issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return &Issuer{key: key}, nil
}

// ServeHTTP serves what whoever checks a token asks for.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		i.answer(w, map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"RS256"},
		})
	case "/keys":
		exponent := big.NewInt(int64(i.key.E)).Bytes()
		i.answer(w, map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": base64url(i.key.N.Bytes()), "e": base64url(exponent),
		}}})
	default:
		http.NotFound(w, r)
	}
}

func (i *Issuer) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

// Token makes a token with these claims, good for ten minutes.
func (i *Issuer) Token(claims map[string]any) (string, error) {
	now := time.Now()
	all := map[string]any{
		"iss": i.URL, "aud": Audience, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(10 * time.Minute).Unix(),
	}
	maps.Copy(all, claims)
	body, err := json.Marshal(all)
	if err != nil {
		return "", err
	}
	signed := base64url([]byte(`{"alg":"RS256","kid":"1","typ":"JWT"}`)) + "." + base64url(body)
	digest := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, digest[:])
	if err != nil {
		return "", err
	}
	return signed + "." + base64url(sig), nil
}

// Account are the claims of a service's login.
func Account(address string) map[string]any {
	return map[string]any{"sub": address, "email": address, "email_verified": true}
}

// Job are the claims of a GitLab job's token, as far as Fulcio reads them.
func Job(id, host, project, ref, sha string) map[string]any {
	definition := host + "/" + project + "//.gitlab-ci.yml@" + ref
	return map[string]any{
		"sub": "project_path:" + project + ":ref_type:branch:ref:main", "job_id": id, "project_path": project, "sha": sha,
		"ci_config_ref_uri": definition, "ci_config_sha": sha,
	}
}

func base64url(data []byte) string { return base64.RawURLEncoding.EncodeToString(data) }
