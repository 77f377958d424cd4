package main

import (
	"time"

	"hallmark.build/attest/gitlab"
	"hallmark.build/config"
)

// openGitLab makes the clients of a configuration's GitLab: for questions about
// jobs, and for their ID tokens.
func openGitLab(cfg config.Attestd) (*gitlab.Client, *gitlab.IDTokens, error) {
	roots, err := pool("gitlab_ca", cfg.GitLabCA)
	if err != nil {
		return nil, nil, err
	}
	client, err := gitlab.New(cfg.GitLabURL, roots)
	if err != nil {
		return nil, nil, err
	}
	if cfg.GitLabTokenFile != "" {
		client = client.WithToken(gitlab.TokenFile(cfg.GitLabTokenFile))
	}
	tokens, err := gitlab.NewIDTokens(cfg.GitLabURL, cfg.IDTokenAudience, roots, time.Now)
	return client, tokens, err
}
