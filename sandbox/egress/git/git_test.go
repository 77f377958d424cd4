package git

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	one = "1111111111111111111111111111111111111111"
	two = "2222222222222222222222222222222222222222"
)

func pkt(lines ...string) string {
	var b strings.Builder
	for _, l := range lines {
		switch l {
		case "flush":
			b.WriteString("0000")
		case "delim":
			b.WriteString("0001")
		default:
			fmt.Fprintf(&b, "%04x%s\n", len(l)+5, l)
		}
	}
	return b.String()
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	fmt.Fprint(z, s)
	z.Close()
	return b.String()
}

func TestParseRequest(t *testing.T) {
	fetch2 := pkt("command=fetch", "agent=git/2.39.5", "object-format=sha1", "delim", "thin-pack", "no-progress",
		"ofs-delta", "deepen 20", "want "+two, "want "+one, "want "+two, "have "+one, "done", "flush")
	for _, tt := range []struct {
		name, body, encoding, command string
		wants                         []string
	}{
		{"version 2", fetch2, "", Fetch, []string{one, two}},
		{"compressed", zipped(fetch2), "gzip", Fetch, []string{one, two}},
		{"version 0", pkt("want "+one+" multi_ack_detailed side-band-64k agent=x", "want "+two, "deepen 1", "flush", "have "+two, "done"), "", Fetch, []string{one, two}},
		{"in two parts", zipped(pkt("want "+two)) + zipped(pkt("want "+one)), "gzip", Fetch, []string{one, two}},
		{"refs", pkt("command=ls-refs", "agent=x", "delim", "peel", "ref-prefix refs/heads/", "flush"), "", Refs, nil},
		{"nothing", pkt("command=fetch", "delim", "done", "flush"), "", Fetch, nil},
		{"sha256", pkt("want " + strings.Repeat("a", 64)), "", Fetch, []string{strings.Repeat("a", 64)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRequest(strings.NewReader(tt.body), tt.encoding)
			if err != nil || got.Command != tt.command || !slices.Equal(got.Wants, tt.wants) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestParseRequestRefuses(t *testing.T) {
	many := make([]string, MaxWants+1)
	for i := range many {
		many[i] = fmt.Sprintf("want %040x", i)
	}
	for _, tt := range []struct{ name, body, encoding, want string }{
		{"empty", "", "", "is empty"},
		{"no line", "hello", "", `"hell" is no length`},
		{"length of three", "0003", "", `"0003" is no length`},
		{"cut off in a length", "00", "", "is cut off"},
		{"cut off in a line", "0010want", "", "is cut off"},
		{"other command", pkt("command=object-info", "flush"), "", `command "object-info" is not known`},
		{"second command", pkt("command=ls-refs", "delim", "command=fetch", "want "+one), "", `command "fetch" is not known`},
		{"objects of a list of refs", pkt("command=ls-refs", "want "+one), "", "names no object"},
		{"upper case", pkt("want " + strings.Repeat("A", 40)), "", "names no object"},
		{"a name", pkt("want main"), "", "names no object"},
		{"a ref", pkt("command=fetch", "delim", "want-ref refs/heads/main"), "", "lets the server choose"},
		{"packs elsewhere", pkt("command=fetch", "delim", "packfile-uris https"), "", "lets the server choose"},
		{"too many", pkt(many...), "", "more than 4096 objects"},
		{"too long", strings.Repeat(pkt("have "+one), MaxRequest/40), "", "more than 1048576 bytes"},
		{"a bomb", zipped(strings.Repeat(pkt("have "+one), MaxRequest/40)), "gzip", "more than 1048576 bytes"},
		{"more behind", zipped(pkt("want "+one)) + "more", "gzip", "is cut off"},
		{"not compressed", "0000", "gzip", "EOF"},
		{"unknown encoding", "0000", "zstd", `encoding "zstd" is not known`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseRequest(strings.NewReader(tt.body), tt.encoding)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v, %v; want %q", got, err, tt.want)
			}
		})
	}
}

// TestRealGit reads what git itself sends, in each version of its protocol.
func TestRealGit(t *testing.T) {
	dir := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main", "origin")
	git("-C", "origin", "commit", "-q", "--allow-empty", "-m", "one")
	git("-C", "origin", "branch", "other")
	git("-C", "origin", "commit", "-q", "--allow-empty", "-m", "two")
	main, other := git("-C", "origin", "rev-parse", "main"), git("-C", "origin", "rev-parse", "other")
	for _, version := range []string{"0", "2"} {
		t.Run("version "+version, func(t *testing.T) {
			srv, asked := serve(t, dir+"/origin")
			clone := "clone" + version
			git("init", "-q", clone)
			git("-C", clone, "-c", "protocol.version="+version, "fetch", "-q", "--depth=1", srv+"/origin",
				"refs/heads/main:refs/heads/a", "refs/heads/other:refs/heads/b")
			want := []string{main, other}
			slices.Sort(want)
			var fetched bool
			for _, req := range asked() {
				if req.Command == Fetch {
					fetched = true
					if !slices.Equal(req.Wants, want) {
						t.Errorf("wants %q, want %q", req.Wants, want)
					}
				}
			}
			if !fetched {
				t.Error("no fetch was seen")
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(pkt("command=fetch", "delim", "want "+one, "done", "flush")), "")
	f.Add([]byte(zipped(pkt("want "+one+" caps"))), "gzip")
	f.Add([]byte("0003"), "identity")
	f.Fuzz(func(t *testing.T, body []byte, encoding string) {
		req, err := ParseRequest(bytes.NewReader(body), encoding)
		if err != nil {
			return
		}
		if req.Command != Fetch && req.Command != Refs || req.Command == Refs && len(req.Wants) > 0 {
			t.Errorf("%+v", req)
		}
		if !slices.IsSorted(req.Wants) || len(req.Wants) > MaxWants {
			t.Errorf("wants %q", req.Wants)
		}
		// Nobody may ask for an object unseen.
		if encoding == "" && bytes.HasPrefix(body, []byte("0032want "+one+"\n")) && !slices.Contains(req.Wants, one) {
			t.Errorf("%q: the first want is missing from %q", body, req.Wants)
		}
	})
}
