package workspace

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseModules(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want map[string]string
	}{
		"as git writes it": {"[submodule \"lib\"]\n\tpath = third party/lib\n\turl = ../lib.git\n\tbranch = main\n[submodule \"b\"]\n\tpath=b\n\turl=https://x.example.com/b\n",
			map[string]string{"third party/lib": "../lib.git", "b": "https://x.example.com/b"}},
		"comments and quotes": {"# c\n; c\n[submodule \"a\"]\n\tPATH = \"a b \" # c\n\turl = x ; c\n\tignore\n", map[string]string{"a b ": "x"}},
		"escapes":             {"[submodule \"a\"]\n\tpath = \"q\\\"\\\\\"\n\turl = u\n", map[string]string{`q"\`: "u"}},
		"in two sections":     {"[submodule \"a\"]\npath = p\n[submodule \"b\"]\npath = o\nurl = v\n[submodule \"a\"]\nurl = u\n", map[string]string{"p": "u", "o": "v"}},
		"the last counts":     {"[submodule \"a\"]\npath = p\nurl = u\nurl = v\n", map[string]string{"p": "v"}},
		"one path twice":      {"[submodule \"a\"]\npath = p\nurl = u\n[submodule \"b\"]\npath = p\nurl = v\n", map[string]string{"p": ""}},
		"none":                {"", map[string]string{}},
		"another section":     {"[core]\nfsmonitor = x\n", nil},
		"before any section":  {"path = p\n", nil},
		"over two lines":      {"[submodule \"a\"]\npath = p\\\n\turl = u\n", nil},
		"an open quote":       {"[submodule \"a\"]\npath = \"p\n", nil},
		"a quote in a name":   {"[submodule \"a\\\"b\"]\npath = p\n", nil},
	} {
		if diff := cmp.Diff(c.want, parseModules([]byte(c.text))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestModuleURL(t *testing.T) {
	const base = "https://gitlab.example.com:8443/group/sub/project.git"
	for raw, want := range map[string]string{
		"../lib.git":                                "https://gitlab.example.com:8443/group/sub/lib.git",
		"../../other/lib":                           "https://gitlab.example.com:8443/group/other/lib",
		"./in.git":                                  "https://gitlab.example.com:8443/group/sub/project.git/in.git",
		"../../../../../x/y":                        "https://gitlab.example.com:8443/x/y",
		"https://Git.example.org/acme/lib.git/":     "https://git.example.org/acme/lib.git",
		"http://git.example.org/acme/lib":           "http://git.example.org/acme/lib",
		"https://user:secret@git.example.org/a/lib": "https://git.example.org/a/lib",
		"git@git.example.org:acme/lib.git":          "https://git.example.org/acme/lib.git",
		"ssh://git@git.example.org:22/acme/lib.git": "https://git.example.org/acme/lib.git",
		"git@gitlab.example.com:group/lib.git":      "https://gitlab.example.com:8443/group/lib.git",
		"ssh://git@gitlab.example.com/group/lib":    "https://gitlab.example.com:8443/group/lib",
		"":                                          "",
		"lib":                                       "",
		"/srv/git/lib.git":                          "",
		"file:///srv/git/lib.git":                   "",
		"git://git.example.org/lib.git":             "",
		"ext::sh -c evil":                           "",
		"https://git.example.org/a?b=c":             "",
		"https://git.example.org/a#b":               "",
		"https://git.example.org/a/../b":            "",
		"https://git.example.org/a b":               "",
		"https://git.example.org/":                  "",
		"https:///a/b":                              "",
		"https://git.example.org/a@b":               "",
		"https://x/" + strings.Repeat("a", 4096):    "",
	} {
		if got := moduleURL(base, raw); got != want {
			t.Errorf("%q is %q, want %q", raw, got, want)
		}
	}
	if got := moduleURL("", "../lib.git"); got != "" {
		t.Errorf("relative to nothing: %q", got)
	}
}

func FuzzModules(f *testing.F) {
	f.Add([]byte("[submodule \"a\"]\n\tpath = p\n\turl = ../x.git # c\n"))
	f.Add([]byte("[submodule \"a\"]\n\turl = \"git@h:\\\"x\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, raw := range parseModules(data) {
			got := moduleURL("https://gitlab.example.com/group/project.git", raw)
			if strings.ContainsAny(got, "@?#%\\ \n\t") || got != "" && !strings.HasPrefix(got, "https://") && !strings.HasPrefix(got, "http://") {
				t.Errorf("%q became %q", raw, got)
			}
		}
	})
}
