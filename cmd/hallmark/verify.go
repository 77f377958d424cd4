package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hallmark.build/attest/policy"
	"hallmark.build/attest/report"
	"hallmark.build/attest/verify"
)

const bundleSuffix = ".sigstore.json"

const verifyHelp = `Decide whether FILE was built the way a policy wants.

FILE is an artifact, or its digest as sha256:HEX. Its attestation is a bundle:
FILE` + bundleSuffix + ` unless --bundle or --from says where else. Nothing is
fetched from the network, unless --from names an authority to ask.

The answer is on standard output, one line a check. Exit code 0 means verified,
1 could not decide, 2 usage, 3 refused.`

type verifyFlags struct {
	policy, trustedRoot, from string
	bundles                   []string
	json, brief               bool
}

func newVerify() *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify FILE --policy FILE --trusted-root FILE",
		Short: "Decide whether a file was built the way a policy wants",
		Long:  verifyHelp,
		Example: `  hallmark verify app.tar.gz --policy acme.toml --trusted-root trusted_root.json
  hallmark verify app.tar.gz --policy acme.toml --trusted-root trusted_root.json --from https://audit.example.com`,
		Args: oneArg("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(); err != nil {
				return err
			}
			return f.run(cmd.Context(), args[0], cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.policy, "policy", "", "what to expect, a TOML `FILE` (required)")
	flags.StringVar(&f.trustedRoot, "trusted-root", "", "whom to believe, a `FILE` as hallmark-attestd trusted-root prints it (required)")
	flags.StringArrayVar(&f.bundles, "bundle", nil, "a `FILE` with a bundle; may be given several times")
	flags.StringVar(&f.from, "from", "", "`URL` of an authority to ask for bundles")
	flags.BoolVar(&f.json, "json", false, "print the verdict as JSON")
	flags.BoolVar(&f.brief, "brief", false, "print failures first, and of the rest only the names")
	flags.SortFlags = false
	return cmd
}

// misplacedHelp reports a wish for help in a command that also says what to
// verify: an artifact may be called "--help", and help ends well.
func misplacedHelp(cmd *cobra.Command) bool {
	return cmd.Name() == "verify" && cmd.Flags().NFlag() > 1
}

func (f *verifyFlags) check() error {
	const hint = "see hallmark verify --help"
	switch {
	case f.policy == "":
		return &usageError{errors.New("no policy given"), "name one with --policy: without it nothing is expected"}
	case f.trustedRoot == "":
		return &usageError{errors.New("no trusted root given"), "name one with --trusted-root: without it nobody is believed"}
	case f.from != "" && f.bundles != nil:
		return &usageError{errors.New("--from and --bundle do not go together"), hint}
	case f.json && f.brief:
		return &usageError{errors.New("--json and --brief do not go together"), hint}
	}
	if f.from != "" {
		if _, err := serverURL(f.from); err != nil {
			return &usageError{fmt.Errorf("--from %s: %w", report.Clean(f.from), err), "as https://audit.example.com"}
		}
	}
	return nil
}

func (f *verifyFlags) run(ctx context.Context, name string, stdout io.Writer) error {
	pol, err := policy.Load(f.policy)
	if err != nil {
		return err
	}
	root, err := readFile(f.trustedRoot, verify.MaxTrustedRoot)
	if err != nil {
		return &failure{err, "hallmark-attestd trusted-root prints one"}
	}
	digest, isFile, err := digestOf(name)
	if err != nil {
		return err
	}
	bundles, err := f.find(ctx, name, isFile, digest)
	if err != nil {
		return err
	}
	return f.print(stdout, verify.Artifact(ctx, digest, name, bundles, pol, root))
}

// print writes the verdict, and only then says what it means.
func (f *verifyFlags) print(stdout io.Writer, v verify.Verdict) error {
	var err error
	if f.json {
		err = report.JSON(stdout, v, version, time.Now())
	} else {
		err = report.Text(stdout, v, report.Options{
			Color: wantsColor(stdout), Brief: f.brief, Policy: f.policy, TrustedRoot: f.trustedRoot,
		})
	}
	switch {
	case err != nil:
		return fmt.Errorf("write the verdict: %w", err)
	case v.Verified():
		return nil
	case v.Outcome() == verify.Undecided:
		return &failure{errors.New(report.Clean(v.Reason)), v.Hint}
	}
	return errRefused
}

// digestOf reads the artifact as a stream, whatever its size. A name that looks
// like a digest is one, unless there is such a file.
func digestOf(name string) (digest verify.Digest, isFile bool, err error) {
	if d, err := verify.ParseDigest(name); err == nil {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return d, false, nil
		}
	}
	file, err := os.Open(name)
	if err != nil {
		return verify.Digest{}, false, plain(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return verify.Digest{}, false, plain(err)
	}
	if info.IsDir() {
		return verify.Digest{}, false, &failure{fmt.Errorf("%s: is a directory", report.Clean(name)), "bundles attest files: name one"}
	}
	digest, err = verify.Hash(file)
	if err != nil {
		return verify.Digest{}, false, plain(err)
	}
	return digest, true, nil
}

// find reads the bundles from where the flags say.
func (f *verifyFlags) find(ctx context.Context, name string, isFile bool, digest verify.Digest) ([][]byte, error) {
	if f.from != "" {
		return fetch(ctx, f.from, digest)
	}
	files := f.bundles
	if files == nil {
		const hint = "name one with --bundle, or an authority to ask with --from"
		if !isFile {
			return nil, &failure{fmt.Errorf("no bundle for %s", digest), hint}
		}
		beside := name + bundleSuffix
		if _, err := os.Stat(beside); errors.Is(err, fs.ErrNotExist) {
			return nil, &failure{fmt.Errorf("no bundle for %s: there is no %s", report.Clean(name), report.Clean(beside)), hint}
		}
		files = []string{beside}
	}
	if len(files) > verify.MaxBundles {
		return nil, &failure{fmt.Errorf("%d bundles: more than %d", len(files), verify.MaxBundles), "give only those that attest this artifact"}
	}
	var bundles [][]byte
	for _, file := range files {
		data, err := readFile(file, verify.MaxBundle)
		if err != nil {
			return nil, err
		}
		bundles = append(bundles, data)
	}
	return bundles, nil
}

// readFile reads a file of at most most bytes.
func readFile(name string, most int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, plain(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, plain(err)
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s: more than %d MiB", report.Clean(name), most>>20)
	}
	return data, nil
}

// plain takes the system call out of a file's error.
func plain(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", report.Clean(pe.Path), pe.Err)
	}
	return err
}

// serverURL checks the address of an authority.
func serverURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return nil, errors.New("not a URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, errors.New("not an absolute http or https URL")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("has more than host and path")
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), ""
	return u, nil
}

// wantsColor says yes only to a terminal whose user has not said no.
func wantsColor(w io.Writer) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	file, ok := w.(*os.File)
	return ok && isTerminal(file)
}
