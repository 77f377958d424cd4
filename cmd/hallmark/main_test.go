package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/rogpeppe/go-internal/testscript"

	"hallmark.build/attest/verify/verifytest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hallmark": main})
}

var update = flag.Bool("update", false, "write what scripts print into them")

// TestScripts runs whole command lines. Besides testscript's own commands:
//
//	exits CODE COMMAND...         run and expect the exit code
//	attest FILE [OUT] [K=V...]    sign FILE into OUT (FILE.sigstore.json); K is
//	                              a path into the statement, V its new value
//	                              with Go's escapes
//	attest-logged FILE [OUT] [K=V...]  the same, with an entry in a log
//	attest-witnessed FILE [OUT] [K=V...]  the same, and one of the example
//	              policy's witness has cosigned the log's checkpoint
//	sparse FILE SIZE              make a file of zeros
//	toml FILE                     FILE is TOML
//
// and the files policy.toml and root.json, which go with what attest signs;
// logged.json is root.json with the log. At $FROM is a server; see [authority].
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *update, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: setup,
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "attest": attestFile, "attest-logged": attestLogged, "attest-witnessed": attestWitnessed, "sparse": sparse, "toml": isTOML,
		},
	})
}

type (
	signerKey struct{}
	logKey    struct{}
)

func setup(env *testscript.Env) error {
	t := env.T().(testing.TB)
	signer := verifytest.New(t)
	env.Values[signerKey{}] = signer
	server := httptest.NewServer(authority(env.WorkDir))
	env.Defer(server.Close)
	env.Setenv("FROM", server.URL)
	log := signer.NewLog("log.example.com")
	env.Values[logKey{}] = log
	return errors.Join(
		os.WriteFile(filepath.Join(env.WorkDir, "policy.toml"), []byte(verifytest.Policy), 0o644),
		os.WriteFile(filepath.Join(env.WorkDir, "root.json"), signer.TrustedRoot(), 0o644),
		os.WriteFile(filepath.Join(env.WorkDir, "logged.json"), signer.TrustedRoot(func(root map[string]any) {
			root["tlogs"] = []any{log.Trusted()}
		}), 0o644),
	)
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d\nstdout:\n%s\nstderr:\n%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

func attestFile(ts *testscript.TestScript, neg bool, args []string) { attest(ts, neg, args) }

func attestLogged(ts *testscript.TestScript, neg bool, args []string) {
	attest(ts, neg, args, func(f *verifytest.Forgery) {
		f.LogEntries = func(s verifytest.Signed) []any { return []any{ts.Value(logKey{}).(*verifytest.Log).Entry(s)} }
	})
}

func attestWitnessed(ts *testscript.TestScript, neg bool, args []string) {
	attest(ts, neg, args, func(f *verifytest.Forgery) {
		f.LogEntries = func(s verifytest.Signed) []any {
			witness := ts.Value(signerKey{}).(*verifytest.Authority).NewWitness("witness.example.com", 1)
			return []any{witness.Cosign(ts.Value(logKey{}).(*verifytest.Log).Entry(s))}
		}
	})
}

func attest(ts *testscript.TestScript, neg bool, args []string, edits ...func(*verifytest.Forgery)) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: attest FILE [OUT] [K=V...]")
	}
	file, out := args[0], args[0]+bundleSuffix
	args = args[1:]
	if len(args) > 0 && !strings.Contains(args[0], "=") {
		out, args = args[0], args[1:]
	}
	f, err := os.Open(ts.MkAbs(file))
	ts.Check(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	ts.Check(err)
	at := time.Now().UTC().Truncate(time.Second)
	statement := verifytest.Statement(func(s map[string]any) {
		s["subject"] = []any{map[string]any{"name": file, "digest": map[string]any{"sha256": fmt.Sprintf("%x", h.Sum(nil))}}}
		meta := verifytest.At(s, "predicate", "runDetails", "metadata")
		meta["startedOn"], meta["finishedOn"] = at.Add(-time.Minute).Format(time.RFC3339), at.Format(time.RFC3339)
		for _, arg := range args {
			path, value, _ := strings.Cut(arg, "=")
			value, err := strconv.Unquote(`"` + value + `"`)
			ts.Check(err)
			keys := strings.Split(path, "/")
			verifytest.At(s, keys[:len(keys)-1]...)[keys[len(keys)-1]] = value
		}
	})
	bundle := ts.Value(signerKey{}).(*verifytest.Authority).Bundle(statement, append(edits, func(f *verifytest.Forgery) {
		f.SignedAt, f.Leaf = at, verifytest.LeafTemplate(f.Identity, verifytest.Issuer, at)
	})...)
	ts.Check(os.WriteFile(ts.MkAbs(out), bundle, 0o644))
}

func sparse(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: sparse FILE SIZE")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o644))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}

func isTOML(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: toml FILE")
	}
	var v map[string]any
	_, err := toml.Decode(ts.ReadFile(args[0]), &v)
	ts.Check(err)
}

// authority serves, below each of these paths, what an authority or something
// that is none may answer:
//
//	/ok        the bundles *.served.json of the work directory
//	/empty     an empty list
//	/none      404
//	/down      500
//	/page      a page of HTML
//	/moved     a redirect to /ok
//	/away      a redirect to another host
//	/loop      a redirect to itself
//	/huge      more than anybody should read
//	/cut       an answer that breaks off
func authority(dir string) http.Handler {
	const subjects = "/v1/subjects/{digest}"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ok"+subjects, func(w http.ResponseWriter, r *http.Request) {
		files, _ := filepath.Glob(filepath.Join(dir, "*.served.json"))
		type attestation struct {
			Bundle json.RawMessage `json:"bundle"`
			URL    string          `json:"url"`
		}
		var answer struct {
			Attestations []attestation `json:"attestations"`
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				panic(err)
			}
			answer.Attestations = append(answer.Attestations, attestation{data, "x"})
		}
		json.NewEncoder(w).Encode(answer)
	})
	mux.HandleFunc("GET /empty"+subjects, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"attestations":[]}`) })
	mux.HandleFunc("GET /down"+subjects, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "down", http.StatusInternalServerError) })
	mux.HandleFunc("GET /page"+subjects, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") })
	mux.HandleFunc("GET /moved"+subjects, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(r.URL.Path, "/moved", "/ok", 1), http.StatusFound)
	})
	mux.HandleFunc("GET /away"+subjects, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://evil.example/", http.StatusFound)
	})
	mux.HandleFunc("GET /loop"+subjects, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) })
	mux.HandleFunc("GET /huge"+subjects, func(w http.ResponseWriter, r *http.Request) {
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for range maxAnswer>>20 + 1 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("GET /cut"+subjects, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, `{"attestations":[`)
	})
	return mux
}

// TestPanicIsNoAnswer: Go's own exit code for a panic is 2, which would read as
// a usage error.
func TestPanicIsNoAnswer(t *testing.T) {
	var errs bytes.Buffer
	code := run(context.Background(), []string{"version"}, nil, panicking{}, &errs)
	if code != exitUndecided || !strings.Contains(errs.String(), "error: internal: ") {
		t.Errorf("exit %d, %s", code, errs.String())
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("write") }

// TestExplainNeverAcceptsAnError: whatever error there is, the exit code is not 0.
func TestExplainNeverAcceptsAnError(t *testing.T) {
	for _, err := range []error{
		errors.New("x"), errRefused, &usageError{err: errors.New("x")}, &failure{err: errors.New("x")},
		fmt.Errorf("x: %w", errRefused), context.Canceled, io.EOF,
	} {
		if code := explain(io.Discard, err); code == exitOK {
			t.Errorf("%v is no error", err)
		}
	}
	if code := explain(io.Discard, nil); code != exitOK {
		t.Errorf("exit %d without an error", code)
	}
}

// TestRunnerBlock reads the printed block as GitLab Runner does, and holds what
// the design asks of it.
func TestRunnerBlock(t *testing.T) {
	for _, profile := range []string{"hermetic", "firewalled"} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"runner", "config", "--profile", profile, "--url", "https://gitlab.example.com", "--name", `a "b" \c` + "\n"}, nil, &out, &errs); code != 0 {
			t.Fatalf("exit %d, %s", code, errs.String())
		}
		var file struct {
			Runners []struct {
				Name, URL, Token, Executor, Shell string
				BuildsDir                         string                 `toml:"builds_dir"`
				CacheDir                          string                 `toml:"cache_dir"`
				DebugTraceDisabled                bool                   `toml:"debug_trace_disabled"`
				FeatureFlags                      map[string]bool        `toml:"feature_flags"`
				CustomBuildDir                    struct{ Enabled bool } `toml:"custom_build_dir"`
				Custom                            map[string]any
			}
		}
		md, err := toml.Decode(out.String(), &file)
		if err != nil || len(md.Undecoded()) > 0 || len(file.Runners) != 1 {
			t.Fatalf("%v, %v\n%s", err, md.Undecoded(), out.String())
		}
		r := file.Runners[0]
		if r.Name != `a "b" \c`+"\n" || r.URL != "https://gitlab.example.com" || r.Token != "" || r.Executor != "custom" || r.Shell != "bash" ||
			r.BuildsDir != "/builds" || r.CacheDir != "/cache" || !r.DebugTraceDisabled || r.CustomBuildDir.Enabled {
			t.Errorf("%+v", r)
		}
		for flag, want := range map[string]bool{
			"FF_MASK_ALL_DEFAULT_TOKENS": true, "FF_HASH_CACHE_KEYS": true, "FF_SECRET_RESOLVING_FAILS_IF_MISSING": true,
			"FF_TIMESTAMPS": true, "FF_ENABLE_JOB_INPUTS_INTERPOLATION": true,
			"FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY": true, "FF_GIT_URLS_WITHOUT_TOKENS": false,
			"FF_ENABLE_JOB_CLEANUP": false,
			"FF_NETWORK_PER_BUILD":  false, "FF_USE_GIT_BUNDLE_URIS": false, "FF_CONCRETE": false, "FF_SCRIPT_TO_STEP_MIGRATION": false,
			"FF_SUSPENDABLE_ENVIRONMENTS": false,
		} {
			if got, pinned := r.FeatureFlags[flag]; !pinned || got != want {
				t.Errorf("%s is %v, pinned %v", flag, got, pinned)
			}
		}
		for _, flag := range []string{"FF_POSIXLY_CORRECT_ESCAPES", "FF_SCRIPT_SECTIONS", "FF_ENABLE_BASH_EXIT_CODE_CHECK", "FF_USE_LEGACY_BASH_EVAL"} {
			if _, pinned := r.FeatureFlags[flag]; pinned {
				t.Errorf("%s is pinned: jobs that set it elsewhere would notice", flag)
			}
		}
		graceful, force := r.Custom["graceful_kill_timeout"].(int64), r.Custom["force_kill_timeout"].(int64)
		// common/consts.go: WaitForBuildFinishTimeout is five minutes.
		if graceful > 120 || force > 120 || graceful+force >= 300 || graceful <= 100 {
			t.Errorf("kill timeouts %d and %d s", graceful, force)
		}
		for _, call := range []string{"config", "prepare", "run", "cleanup"} {
			want := fmt.Sprint([]any{"-profile", profile, call})
			if r.Custom[call+"_exec"] != "/usr/lib/hallmark/hallmark-executor" || fmt.Sprint(r.Custom[call+"_args"]) != want {
				t.Errorf("%s: %v %v", call, r.Custom[call+"_exec"], r.Custom[call+"_args"])
			}
		}
	}
}

// BenchmarkStart measures whole processes: one that only tells its version, and
// one that verifies a small artifact.
func BenchmarkStart(b *testing.B) {
	dir := b.TempDir()
	bin := filepath.Join(dir, "hallmark")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	signer := verifytest.New(b)
	at := time.Now().UTC().Truncate(time.Second)
	bundle := signer.Bundle(verifytest.Statement(func(s map[string]any) {
		meta := verifytest.At(s, "predicate", "runDetails", "metadata")
		meta["startedOn"], meta["finishedOn"] = at.Format(time.RFC3339), at.Format(time.RFC3339)
	}), func(f *verifytest.Forgery) {
		f.SignedAt, f.Leaf = at, verifytest.LeafTemplate(f.Identity, verifytest.Issuer, at)
	})
	for name, data := range map[string][]byte{
		"app": verifytest.Artifact(), "app.sigstore.json": bundle, "root.json": signer.TrustedRoot(), "policy.toml": []byte(verifytest.Policy),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for name, args := range map[string][]string{
		"version": {"version"}, "verify": {"verify", "app", "--policy", "policy.toml", "--trusted-root", "root.json"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cmd := exec.Command(bin, args...)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
			}
		})
	}
}
