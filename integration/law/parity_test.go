package law

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// parity are the rows of the tables in docs/parity.md on what differs from the docker
// executor: what that executor has, and what of a .gitlab-ci.yml a runner sees.
var parity = map[string][]string{
	"What the executor offers": {
		"image names", "entrypoint", "user, platform", "pull policies", "registry logins", "services", "variables of services",
		"health of services", "`CI_DEBUG_SERVICES`", "network", "volumes", "limits", "devices", "privileges", "host name, labels, log options",
		"shells", "Git: strategies, depth, submodules, LFS", "cancel, timeouts", "job inputs", "referees, autoscaling",
		"web terminal, session proxy", "native steps", "reasons of failures", "variables above 128 KiB", "Docker in Docker",
	},
	"Keywords of .gitlab-ci.yml": {
		"`image`", "`services`", "`variables`", "`before_script`, `script`", "`after_script`",
		"`artifacts`: paths, exclude, untracked", "`artifacts`: when, expire_in, expose_as", "`artifacts`: reports", "`artifacts`: dotenv",
		"`cache`", "`cache` in object storage (`[runners.cache]`)", "`needs`, `dependencies`", "`parallel`, matrix", "`when`, `allow_failure`", "`retry`", "`timeout`", "`interruptible`", "`hooks`",
		"`id_tokens`", "`secrets`", "`tags`", "`run`", "all others",
	},
}

// TestParityIsProved wants of each row what becomes of the feature, and a
// test of it or the reason why there can be none.
func TestParityIsProved(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs/parity.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := allTests(t)
	for title, want := range parity {
		var firsts []string
		for _, row := range table(string(text), title) {
			if len(row) != 3 || row[1] == "" {
				t.Errorf("docs/parity.md: %s: want three cells, all of them filled: %q", title, row)
				continue
			}
			firsts = append(firsts, row[0])
			named := reference.FindAllStringSubmatch(row[2], -1)
			reason, reasoned := strings.CutPrefix(row[2], "because ")
			if len(named) == 0 && (!reasoned || len(strings.Fields(reason)) < 4) {
				t.Errorf("docs/parity.md: %s: neither a test nor a reason: %q", row[0], row[2])
			}
			for _, m := range named {
				if dir := only(t, tests, m[1]); dir != "" && !tests[dir][m[2]] {
					t.Errorf("docs/parity.md: %s: there is no test %s.%s", row[0], dir, m[2])
				}
			}
		}
		if !slices.Equal(firsts, want) {
			t.Errorf("docs/parity.md: %s: rows %q, want %q", title, firsts, want)
		}
	}
}
