package law

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "hallmark.build"

// mayImport is the import law: a package's imports of ours, complete. Tests
// are free. A trailing /... stands for everything below.
var mayImport = map[string][]string{
	"executor":                     {},
	"executor/joblog":              {},
	"config":                       {"config/..."},
	"config/...":                   {"config/..."},
	"sandbox":                      {},
	"sandbox/record":               {},
	"sandbox/policy":               {"sandbox"},
	"sandbox/egress":               {"sandbox", "sandbox/record", "sandbox/policy", "sandbox/egress/..."},
	"sandbox/egress/blocks":        {},
	"sandbox/egress/git":           {},
	"sandbox/image":                {"sandbox", "sandbox/image/auth"},
	"sandbox/image/auth":           {},
	"sandbox/image/shelf":          {"sandbox/image", "sandbox/image/auth"},
	"sandbox/cache":                {},
	"sandbox/workspace":            {"sandbox", "sandbox/record", "sandbox/workspace/..."},
	"sandbox/workspace/...":        {"sandbox", "sandbox/record", "sandbox/workspace/..."},
	"sandbox/disk":                 {},
	"sandbox/containerd":           {"sandbox", "sandbox/image", "sandbox/image/auth", "sandbox/containerd/..."},
	"sandbox/containerd/...":       {"sandbox/containerd/..."},
	"sandbox/host":                 {"executor", "executor/...", "sandbox", "sandbox/...", "config/tomlfile"},
	"attest":                       {"sandbox/record"},
	"attest/internal/...":          {},
	"attest/attesttest":            {"attest", "sandbox/record"},
	"attest/gitlab":                {"attest/internal/..."},
	"attest/sign":                  {"attest", "attest/internal/...", "attest/sign/key"},
	"attest/sign/key":              {"attest/internal/...", "attest/sign/key/token"},
	"attest/sign/key/keytest":      {},
	"attest/sign/key/token":        {"attest/internal/private"},
	"attest/store":                 {"attest"},
	"attest/store/internal/...":    {},
	"attest/store/embedded":        {"attest", "attest/internal/...", "attest/store", "attest/store/internal/..."},
	"attest/store/fleet":           {"attest", "attest/internal/...", "attest/store", "attest/store/internal/..."},
	"attest/store/storetest":       {"attest", "attest/attesttest", "attest/store"},
	"attest/tlog":                  {"attest/internal/..."},
	"attest/authority/authoritypb": {},
	"attest/authority/invitation":  {},
	"attest/authority/client":      {"attest/authority/authoritypb", "attest/authority/invitation", "attest/internal/..."},
	"attest/authority":             {"attest", "attest/authority/authoritypb", "attest/authority/invitation", "attest/gitlab", "attest/internal/...", "attest/sign", "attest/store", "sandbox/record"},
	"attest/policy":                {"attest", "config/tomlfile"},
	"attest/verify":                {"attest", "attest/internal/sigstore", "attest/policy", "sandbox/record"},
	"attest/verify/verifytest":     {"attest", "attest/policy", "attest/verify", "sandbox/record"},
	"attest/report":                {"attest/verify", "attest/policy"},
	"cmd/hallmark":                 {"attest/...", "config", "config/..."},
	"cmd/hallmark-executor":        {"executor"},
	"cmd/hallmark-init":            {"sandbox/containerd/..."},
	"cmd/hallmark-pkcs11":          {"attest/sign/key/token"},
	"cmd/hallmark-sandboxd":        {"config", "sandbox", "sandbox/...", "attest/authority/..."},
	"cmd/hallmark-attestd":         {"config", "attest", "attest/..."},
	"integration":                  {"..."},
	"integration/...":              {"..."},
}

// neverLink names, per binary, import paths whose presence would give it a
// power that its privilege must not have.
var neverLink = map[string][]string{
	"hallmark-executor": {"github.com/...", "golang.org/x/...", "google.golang.org/...", "net/http", module + "/attest/...", module + "/sandbox/..."},
	"hallmark-init":     {"github.com/...", "google.golang.org/...", "net/http", "crypto/tls", module + "/attest/...", module + "/executor/..."},
	"hallmark-sandboxd": {module + "/attest/sign", module + "/attest/store/...", module + "/attest/authority", module + "/attest/verify", "github.com/digitorus/...", "github.com/sigstore/..."},
	"hallmark-attestd":  {"github.com/containerd/...", "github.com/opencontainers/...", "github.com/go-git/...", "github.com/google/nftables/...", "html/template", module + "/sandbox/egress/...", module + "/sandbox/host", module + "/sandbox/workspace/...", module + "/sandbox/containerd/...", module + "/executor/..."},
	"hallmark":          {"github.com/containerd/...", "github.com/go-git/...", "modernc.org/...", module + "/attest/sign", module + "/attest/store/...", module + "/attest/authority", module + "/sandbox/host", module + "/executor/..."},
}

type pkg struct {
	ImportPath string
	Doc        string
	Name       string
	Imports    []string
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module+"/")
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(rel) + " "
		}
		if !strings.HasPrefix(p.Doc, want) || !strings.HasSuffix(p.Doc, ".") {
			t.Errorf("%s: package comment %q: want one sentence that starts with %q", rel, p.Doc, want)
		}
	}
}

func TestImportsPointAlongTheDataLine(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module+"/")
		allowed, ok := lawFor(rel)
		if !ok {
			t.Errorf("%s: not in the import law: add it with what it may import", rel)
			continue
		}
		for _, imp := range p.Imports {
			ours, is := strings.CutPrefix(imp, module+"/")
			if is && !matches(allowed, ours) {
				t.Errorf("%s imports %s, which stands behind it on the data line", rel, ours)
			}
		}
	}
}

func TestLawNamesNothingThatIsGone(t *testing.T) {
	have := packages(t)
	for rule := range mayImport {
		if !slices.ContainsFunc(have, func(p pkg) bool {
			return matches([]string{rule}, strings.TrimPrefix(p.ImportPath, module+"/"))
		}) {
			t.Errorf("the import law names %s, which does not exist", rule)
		}
	}
}

func TestBinariesLinkOnlyWhatTheirPrivilegeAllows(t *testing.T) {
	for binary, never := range neverLink {
		// grpcnotrace is how the binaries are built: gRPC's tracing pages are
		// HTML that nobody serves.
		deps := strings.Fields(goList(t, "-tags", "grpcnotrace", "-deps", "-f", "{{.ImportPath}}", module+"/cmd/"+binary))
		if len(deps) < 10 {
			t.Fatalf("%s: only %d packages listed", binary, len(deps))
		}
		for _, d := range deps {
			if matches(never, d) {
				t.Errorf("%s links %s", binary, d)
			}
		}
	}
}

func TestDriverIsStandardLibraryOnly(t *testing.T) {
	for _, d := range strings.Fields(goList(t, "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+"/cmd/hallmark-executor")) {
		if !strings.HasPrefix(d, module+"/") {
			t.Errorf("hallmark-executor links %s", d)
		}
	}
}

// lawFor finds the rule of a package: its own, or the nearest one with /... .
func lawFor(rel string) ([]string, bool) {
	if allowed, ok := mayImport[rel]; ok {
		return allowed, true
	}
	for dir := path.Dir(rel); dir != "."; dir = path.Dir(dir) {
		if allowed, ok := mayImport[dir+"/..."]; ok {
			return allowed, true
		}
	}
	return nil, false
}

func matches(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if dir, below := strings.CutSuffix(pattern, "..."); below {
			return strings.HasPrefix(p+"/", dir)
		}
		return p == pattern
	})
}

func packages(t *testing.T) []pkg {
	t.Helper()
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(goList(t, "-json=ImportPath,Doc,Name,Imports", module+"/...")))
	for {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages listed", len(all))
	}
	return all
}

func goList(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}
