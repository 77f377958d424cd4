package verify_test

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/policy"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/verify"
	"hallmark.build/sandbox/record"
)

// authoritysBundle makes a record, a statement, a bundle and a trusted root the
// way the authority does, about a file of the given content.
func authoritysBundle(t *testing.T, uri, content string) (bundle, root []byte) {
	t.Helper()
	events := attesttest.Job()
	for i, ev := range events {
		if u, ok := ev.Data.(record.Upload); ok {
			u.Entries[1].SHA256 = attesttest.SHA256(content)
			events[i].Data = u
		}
	}
	entries, err := attesttest.Entries(time.Now().Add(-time.Minute), events)
	if err != nil {
		t.Fatal(err)
	}
	statements, err := attest.Statements(entries, attest.Facts{BuilderID: uri + "/hermetic", GitLabURL: "https://gitlab.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	signer, err := sign.Open(t.Context(), sign.Options{Dir: dir, Issuer: uri})
	if err != nil {
		t.Fatal(err)
	}
	bundle, err = signer.Sign(t.Context(), statements[0])
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := signer.Trusted()
	if err != nil {
		t.Fatal(err)
	}
	if root, err = sign.EncodeTrustedRoot(trusted); err != nil {
		t.Fatal(err)
	}
	return bundle, root
}

// TestWhatTheAuthoritySigns verifies what packages attest and sign make of a
// record, and refuses it for anything else. The two ends share no code.
func TestWhatTheAuthoritySigns(t *testing.T) {
	const uri = "https://ci.example.com/hallmark"
	bundle, root := authoritysBundle(t, uri, "content")
	opened := attesttest.Opened()
	sound := `builder_ids = "` + uri + `/hermetic"
issuer = "` + uri + `"
source = "` + opened.External.Source + `"
ref = "` + opened.External.Ref + `"
project = "` + opened.External.Project + `"
require_protected = true
subject = "dist/*"
max_age = "1h"
allowed_input_hosts = []
allowed_images = "registry.example.com/*"
[completeness]
sources = "hermetic"
images = "hermetic"
packages = "hermetic"
files = "hermetic"
`
	for _, tt := range []struct{ name, content, old, new, fails string }{
		{name: "sound", content: "content"},
		{name: "another file", content: "Content", fails: "subject"},
		{name: "another builder", content: "content", old: "/hermetic\"\n", new: "/firewalled\"\n", fails: "builder"},
		{name: "another issuer", content: "content", old: `issuer = "https://ci`, new: `issuer = "https://x`, fails: "builder"},
		{name: "another source", content: "content", old: "project.git", new: "other.git", fails: "source"},
		{name: "another ref", content: "content", old: "heads/main", new: "tags/main", fails: "ref"},
		{name: "another project", content: "content", old: "group/project\"", new: "group/other\"", fails: "project"},
		{name: "another name", content: "content", old: "dist/*", new: "bin/*", fails: "subject"},
		{name: "other images", content: "content", old: "registry.example.com/*", new: "registry.example.com/x/*", fails: "images"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := sound
			if tt.old != "" {
				if text = strings.Replace(sound, tt.old, tt.new, 1); text == sound {
					t.Fatal("the edit changed nothing")
				}
			}
			pol, err := policy.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			v := verify.Artifact(t.Context(), sha256.Sum256([]byte(tt.content)), "file", [][]byte{bundle}, pol, root)
			if v.Verified() != (tt.fails == "") {
				t.Errorf("%s %s", v.Outcome(), v.Reason)
			}
			for _, c := range v.Checks {
				if (c.Status == verify.Fail) != (c.Name == tt.fails) || c.Status == verify.NotChecked && c.Name != "log" {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}
