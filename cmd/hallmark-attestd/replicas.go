package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"hallmark.build/attest/store"
	"hallmark.build/attest/store/fleet"
	"hallmark.build/config"
)

// agree refuses to be a replica beside others that have other secrets, speak
// for another GitLab or use another log: it would go on with their attempts. An
// embedded store has one replica.
func agree(ctx context.Context, cfg config.Attestd, st store.Store, secret []byte, door hostDoor) error {
	f, ok := st.(*fleet.Store)
	if !ok {
		return nil
	}
	values := map[string]string{
		"builder_uri": cfg.BuilderURI, "gitlab_url": cfg.GitLabURL.String(), "commitment.key": fingerprint(secret), "log": cfg.Log.Kind + " " + cfg.Log.URL,
	}
	if door.ca != nil {
		pin := door.ca.Pin()
		values["keys/hosts.pem"] = hex.EncodeToString(pin[:])
	}
	if err := f.Agree(ctx, values); err != nil {
		return &hintedError{err, "replicas have commitment.key and keys/ of state_dir in common, and these settings; to change them, stop all and run hallmark-attestd restored"}
	}
	return nil
}

// fingerprint names a secret without telling it.
func fingerprint(secret []byte) string {
	sum := sha256.Sum256(append([]byte("hallmark fingerprint\x00"), secret...))
	return hex.EncodeToString(sum[:])
}
