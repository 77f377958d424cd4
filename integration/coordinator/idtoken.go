package coordinator

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// idKeyName is the key id of ID tokens.
const idKeyName = "id-tokens-1"

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	base := s.URL()
	reply(w, http.StatusOK, map[string]any{
		"issuer": base, "jwks_uri": base + "/oauth/discovery/keys",
		"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"},
	})
}

func (s *Server) keys(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: s.idKey.Public(), KeyID: idKeyName, Use: "sig", Algorithm: "RS256"},
	}})
}

// addIDTokens signs what a job's id_tokens ask for.
func (s *Server) addIDTokens(j *Job) error {
	j.signed = map[string]string{}
	for name, audience := range j.IDTokens {
		token, err := s.idToken(j, audience)
		if err != nil {
			return fmt.Errorf("coordinator: id token: %w", err)
		}
		j.signed[name] = token
	}
	return nil
}

// idToken makes an ID token with GitLab's claims, most of which are strings.
func (s *Server) idToken(j *Job, audience string) (string, error) {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: s.idKey}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", idKeyName))
	if err != nil {
		return "", err
	}
	refType := "branch"
	if j.Tag {
		refType = "tag"
	}
	now, id, project := time.Now(), strconv.FormatInt(j.ID, 10), strconv.FormatInt(j.ProjectID, 10)
	return jwt.Signed(signer).Claims(map[string]any{
		"iss": s.base.String(), "aud": audience, "jti": "jti-" + id,
		"sub": "project_path:" + j.Project + ":ref_type:" + refType + ":ref:" + j.Ref,
		"iat": now.Unix(), "nbf": now.Unix() - 5, "exp": now.Add(j.Timeout).Unix(),
		"project_id": project, "job_project_id": project, "project_path": j.Project,
		"user_id": strconv.FormatInt(j.UserID, 10), "user_login": "alice",
		"pipeline_id": strconv.FormatInt(j.PipelineID, 10), "pipeline_source": "push", "job_id": id,
		"ref": j.Ref, "ref_type": refType, "ref_path": "refs/heads/" + j.Ref, "ref_protected": strconv.FormatBool(j.Protected),
		"runner_id": runnerID, "runner_environment": "self-hosted", "sha": j.SHA,
		"ci_config_ref_uri": s.base.Host + "/" + j.Project + "//.gitlab-ci.yml@refs/heads/" + j.Ref, "ci_config_sha": j.SHA,
	}).Serialize()
}
