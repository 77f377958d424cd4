package auth

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

func parse(t *testing.T, text string) File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestParse(t *testing.T) {
	f := parse(t, `{
		"HttpHeaders": {"User-Agent": "x"}, "psFormat": "",
		"auths": {
			"https://index.docker.io/v1/": {"auth": "`+basic("hub", "p:w")+`"},
			"Registry.example.com:443": {"username": "plain", "password": "pw", "email": "a@b"},
			"registry.example.com/group/project:1": {"auth": "`+basic("deep", "pw\x00")+`"},
			"token.example.com": {"identitytoken": "idt"},
			"empty.example.com": {}
		}}`)
	want := map[string]Login{
		"docker.io":                          {User: "hub", Password: "p:w"},
		"registry.example.com":               {User: "plain", Password: "pw"},
		"registry.example.com/group/project": {User: "deep", Password: "pw"},
		"token.example.com":                  {IdentityToken: "idt"},
	}
	if d := cmp.Diff(want, f.logins); d != "" {
		t.Error(d)
	}
}

func TestParseRefuses(t *testing.T) {
	many := strings.Builder{}
	for i := range maxEntries + 1 {
		fmt.Fprintf(&many, `"r%d.example.com": {},`, i)
	}
	for name, text := range map[string]string{
		"nothing":           ``,
		"not JSON":          `{"auths": {`,
		"a list":            `[]`,
		"two values":        `{} {}`,
		"twice":             `{"auths": {}, "auths": {}}`,
		"twice, by case":    `{"auths": {}, "Auths": {}}`,
		"registry twice":    `{"auths": {"sesame.example": {}, "sesame.example": {}}}`,
		"deep":              strings.Repeat(`{"a":`, 40) + `1` + strings.Repeat(`}`, 40),
		"not UTF-8":         "{\"a\": \"\xff\"}",
		"too many":          `{"auths": {` + strings.TrimSuffix(many.String(), ",") + `}}`,
		"too large":         `{"a": "` + strings.Repeat("x", maxFile) + `"}`,
		"not base64":        `{"auths": {"a.example": {"auth": "sesame sesame"}}}`,
		"no colon":          `{"auths": {"a.example": {"auth": "` + base64.StdEncoding.EncodeToString([]byte("sesame")) + `"}}}`,
		"no user":           `{"auths": {"a.example": {"auth": "` + basic("", "sesame") + `"}}}`,
		"control character": `{"auths": {"a.example": {"username": "a\nb", "password": "sesame"}}}`,
		"long secret":       `{"auths": {"a.example": {"username": "a", "password": "` + strings.Repeat("x", maxSecret+1) + `"}}}`,
		"number":            `{"auths": {"a.example": {"username": 1}}}`,
		"blank in a name":   `{"auths": {"a b": {}}}`,
		"no host":           `{"auths": {"https://": {}}}`,
		"helper's path":     `{"credHelpers": {"a.example": "../../tmp/sesame"}}`,
		"store's path":      `{"credsStore": "/tmp/sesame"}`,
		"store of blanks":   `{"credsStore": "a b"}`,
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Parse([]byte(text))
			if err == nil {
				t.Fatalf("parsed to %v", f)
			}
			if strings.Contains(err.Error(), "sesame") {
				t.Errorf("quotes the text: %v", err)
			}
		})
	}
}

func TestFindFollowsGitLabsPrecedence(t *testing.T) {
	job := parse(t, `{"auths": {"a.example": {"username": "job"}, "b.example/deep/er": {"username": "job-deep"}, "docker.io": {"username": "job-hub"}}}`)
	host := parse(t, `{"auths": {"a.example": {"username": "host"}, "b.example": {"username": "host-b"}, "a.example/group": {"username": "host-group"}}}`)
	ring := &Ring{}
	ring.AddJob("variable", job)
	ring.AddHost("file", host)
	ring.AddLogin("gitlab", "b.example", Login{User: "gitlab-b"})
	ring.AddLogin("gitlab", "c.example:443", Login{User: "gitlab-c"})
	for _, c := range []struct{ registry, repository, user, from string }{
		{"a.example", "x", "job", "variable"},
		{"a.example", "group/x", "host-group", "file"}, // the longest path wins
		{"a.example", "groupx", "job", "variable"},
		{"b.example", "deep/er/x", "job-deep", "variable"},
		{"b.example", "deep/other", "host-b", "file"},
		{"c.example", "x/y", "gitlab-c", "gitlab"},
		{"c.example:443", "x/y", "gitlab-c", "gitlab"},
		{"c.example:5000", "x/y", "", ""},
		{"docker.io", "library/alpine", "job-hub", "variable"},
		{"evil-a.example", "x", "", ""},
		{"example", "a.example", "", ""},
	} {
		l, from, err := ring.Find(t.Context(), c.registry, c.repository)
		if err != nil || l.User != c.user || from != c.from {
			t.Errorf("%s/%s: %q from %q, %v; want %q from %q", c.registry, c.repository, l.User, from, err, c.user, c.from)
		}
	}
}

// programs puts credential helpers into the way of this process.
func programs(t *testing.T, scripts map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestHostsHelpersAreAsked(t *testing.T) {
	programs(t, map[string]string{
		"good":   `[ "$1" = get ] && read -r server; echo "{\"ServerURL\":\"$server\",\"Username\":\"user of $server\",\"Secret\":\"s\"}"`,
		"token":  `echo '{"Username":"<token>","Secret":"idt"}'`,
		"none":   `echo credentials not found in native keychain; exit 1`,
		"broken": `echo sesame; echo sesame >&2; exit 2`,
		"chatty": `while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx || exit; done`,
	})
	ring := &Ring{}
	ring.AddHost("file", parse(t, `{
		"credsStore": "good",
		"credHelpers": {"none.example": "none", "token.example": "token", "broken.example": "broken", "chatty.example": "chatty", "absent.example": "absent", "https://good.example": "good"},
		"auths": {"broken.example": {"username": "fallback"}}}`))
	ring.AddLogin("gitlab", "none.example", Login{User: "gitlab"})
	for _, c := range []struct {
		registry string
		want     Login
		fails    bool
	}{
		{"good.example", Login{User: "user of https://good.example", Password: "s"}, false},
		{"token.example", Login{IdentityToken: "idt"}, false},
		{"none.example", Login{User: "gitlab"}, false},
		{"broken.example", Login{User: "fallback"}, true},
		{"chatty.example", Login{}, true},
		{"absent.example", Login{}, true},
		{"docker.io", Login{User: "user of https://index.docker.io/v1/", Password: "s"}, false},
		{"other.example", Login{User: "user of other.example", Password: "s"}, false},
	} {
		l, _, err := ring.Find(t.Context(), c.registry, "x")
		if d := cmp.Diff(c.want, l); d != "" || (err != nil) != c.fails {
			t.Errorf("%s: %v %s", c.registry, err, d)
		}
		if err != nil && strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: quotes the helper: %v", c.registry, err)
		}
	}
}

// What a job brings along names no program that is run.
func TestJobsHelpersAreNeverRun(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	programs(t, map[string]string{"evil": "touch " + mark + `; echo '{"Username":"u","Secret":"s"}'`})
	text := `{"credsStore": "evil", "credHelpers": {"a.example": "evil"}}`
	f := parse(t, text)
	if d := cmp.Diff([]string{"evil"}, f.Programs()); d != "" {
		t.Error(d)
	}
	find := func(add func(*Ring)) Login {
		ring := &Ring{}
		add(ring)
		l, _, err := ring.Find(context.Background(), "a.example", "x")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := find(func(r *Ring) { r.AddJob("variable", f) }); !l.Anonymous() {
		t.Errorf("a job's helper gave %#v", l)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Fatal("a job's helper was run")
	}
	if l := find(func(r *Ring) { r.AddHost("file", f) }); l.User != "u" {
		t.Error("the test's helper does not work")
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error("the test's helper leaves no mark")
	}
}

func TestReadRefusesWhatOthersCanWrite(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	for mode, ok := range map[os.FileMode]bool{0o600: true, 0o644: true, 0o620: false, 0o602: false} {
		if err := os.WriteFile(file, []byte(`{}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(file); (err == nil) != ok {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	for _, bad := range []string{filepath.Dir(file), file + ".none", os.DevNull} {
		if _, err := Read(bad); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
}

func TestLoginsDoNotPrint(t *testing.T) {
	l := Login{User: "sesame", Password: "sesame", IdentityToken: "sesame"}
	for _, s := range []string{fmt.Sprint(l), fmt.Sprintf("%#v", l), fmt.Sprintf("%+v", &l), l.LogValue().String()} {
		if strings.Contains(s, "sesame") {
			t.Errorf("%q", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"` + basic("a", "b") + `"},"r/p:1":{"identitytoken":"x"}},"credHelpers":{"a":"b"},"credsStore":"c"}`))
	f.Add([]byte(`{"auths":{"a":{},"A":{}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		for path, l := range file.logins {
			if path == "" || pathOf(path) != path || l.Anonymous() || l.check() != nil {
				t.Errorf("%q: %q", path, l.User)
			}
		}
		for _, p := range file.Programs() {
			if strings.ContainsAny(p, "/ ") {
				t.Errorf("program %q", p)
			}
		}
	})
}
