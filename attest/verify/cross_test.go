package verify_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hallmark.build/attest"
	"hallmark.build/attest/attesttest"
	"hallmark.build/attest/policy"
	"hallmark.build/attest/sign"
	"hallmark.build/attest/tlog"
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
	log := openLog(t, uri)
	for range 3 { // so that there is a path up to the root
		draft, err := signer.Sign(t.Context(), statements[0])
		if err != nil {
			t.Fatal(err)
		}
		if bundle, err = log.Enter(t.Context(), draft); err != nil {
			t.Fatal(err)
		}
	}
	trusted, err := signer.Trusted()
	if err != nil {
		t.Fatal(err)
	}
	trusted.Tlogs = log.Trusted()
	if root, err = sign.EncodeTrustedRoot(trusted); err != nil {
		t.Fatal(err)
	}
	return bundle, root
}

func openLog(t *testing.T, uri string) *tlog.BuiltIn {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key, err := tlog.FileKey(filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	base, err := url.Parse(uri + "/log")
	if err != nil {
		t.Fatal(err)
	}
	log, err := tlog.Open(t.Context(), tlog.Options{
		Tiles: filepath.Join(dir, "tiles"), History: filepath.Join(dir, "history"), BaseURL: base, Key: key,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := log.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return log
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
				if (c.Status == verify.Fail) != (c.Name == tt.fails) || c.Status == verify.NotChecked {
					t.Errorf("%+v", c)
				}
			}
		})
	}
}

// TestEveryFieldCounts changes each value of a bundle in turn: takes it away,
// empties it, doubles it, swaps it for something like it. No field is there for
// nothing, and none has a second way to be written.
func TestEveryFieldCounts(t *testing.T) {
	const uri = "https://ci.example.com/hallmark"
	bundle, root := authoritysBundle(t, uri, "content")
	pol, err := policy.Parse(fmt.Appendf(nil, "builder_ids = %q\nissuer = %q\nsource = %q\nref = %q\n",
		uri+"/hermetic", uri, attesttest.Opened().External.Source, attesttest.Opened().External.Ref))
	if err != nil {
		t.Fatal(err)
	}
	accepted := func(text []byte) bool {
		return verify.Artifact(t.Context(), sha256.Sum256([]byte("content")), "file", [][]byte{text}, pol, root).Verified()
	}
	var v any
	if err := json.Unmarshal(bundle, &v); err != nil {
		t.Fatal(err)
	}
	if !accepted(marshal(t, v)) {
		t.Fatal("the bundle is not accepted as it is")
	}
	changes := 0
	each(v, "bundle", func(path string, value any, put func(any)) {
		for what, other := range changed(value) {
			put(other)
			if changes++; accepted(marshal(t, v)) {
				t.Errorf("%s %s: accepted", path, what)
			}
		}
		put(value)
	})
	if changes < 100 || !accepted(marshal(t, v)) {
		t.Errorf("%d changes", changes)
	}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// gone is what each puts in place of a value to take its key away.
type gone struct{}

// each calls f for every value below v with a function that replaces it.
func each(v any, path string, f func(path string, value any, put func(any))) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			f(path+"."+key, value, func(other any) {
				if other == (gone{}) {
					delete(v, key)
				} else {
					v[key] = other
				}
			})
			each(value, path+"."+key, f)
		}
	case []any:
		for i, value := range v {
			f(fmt.Sprintf("%s[%d]", path, i), value, func(other any) {
				if v[i] = other; other == (gone{}) {
					v[i] = nil // a list cannot lose an element in place
				}
			})
			each(value, fmt.Sprintf("%s[%d]", path, i), f)
		}
	}
}

// changed are values like one, and unlike it.
func changed(value any) map[string]any {
	all := map[string]any{"gone": gone{}, "null": nil, "of another type": 7.5}
	switch v := value.(type) {
	case string:
		all["empty"], all["longer"], all["cut"] = "", v+v, v[:len(v)/2]
		all["with white space"] = v + " "
		if upper := strings.ToUpper(v); upper != v {
			all["in upper case"] = upper
		}
		if n, err := strconv.Atoi(v); err == nil {
			all["one more"], all["a bare number"], all["negative"] = strconv.Itoa(n+1), n, "-"+v
		}
		if len(v) > 8 {
			flipped := []byte(v)
			if flipped[4]++; flipped[4] == '/'+1 || flipped[4] == '9'+1 || flipped[4] == 'z'+1 || flipped[4] == 'Z'+1 {
				flipped[4] = 'A'
			}
			all["with another character"] = string(flipped)
		}
	case []any:
		all["empty"], all["doubled"] = []any{}, append(append([]any{}, v...), v...)
	case map[string]any:
		more := maps.Clone(v)
		more["note"] = "x"
		all["empty"], all["with one more key"], all["in a list"] = map[string]any{}, more, []any{v}
	}
	return all
}
