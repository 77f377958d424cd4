package main

import (
	_ "embed"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"hallmark.build/attest/report"
)

//go:embed runner.toml.tmpl
var runnerTemplate string

const runnerHelp = `Print the [[runners]] block of GitLab Runner's config.toml that runs jobs under
Hallmark.

Append it to the file of a registered runner, or give it to
gitlab-runner register --template-config. Feature flags are pinned, because a
flag that is not pinned can be set by a job.`

type runnerFlags struct {
	profile, url, name, driver, socket, tokenFile string
}

func newRunner() *cobra.Command {
	return group("runner", "Set up GitLab Runner", newRunnerConfig())
}

func newRunnerConfig() *cobra.Command {
	var f runnerFlags
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the block of config.toml that runs jobs under Hallmark",
		Long:  runnerHelp,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.profile, "profile", "hermetic", "security mode, `NAME`: hermetic or firewalled")
	flags.StringVar(&f.url, "url", "", "GitLab's `URL` (default: left to registering)")
	flags.StringVar(&f.tokenFile, "token-file", "", "`FILE` with the runner's token (default: left to registering)")
	flags.StringVar(&f.name, "name", "", "the runner's `NAME` (default: hallmark-PROFILE)")
	flags.StringVar(&f.driver, "driver", "/usr/lib/hallmark/hallmark-executor", "`PATH` of hallmark-executor")
	flags.StringVar(&f.socket, "socket", "", "`PATH` of hallmark-sandboxd's socket (default: the driver's own)")
	flags.SortFlags = false
	return cmd
}

// runnerBlock is what the template is filled with.
type runnerBlock struct {
	Profile, Name, URL, Token, Driver string
	Args                              []string // before the call's name
}

func (f *runnerFlags) run(stdout io.Writer) error {
	if err := f.check(); err != nil {
		return err
	}
	block := runnerBlock{Profile: f.profile, Name: f.name, URL: f.url, Driver: f.driver}
	if block.Name == "" {
		block.Name = "hallmark-" + f.profile
	}
	if f.socket != "" {
		block.Args = append(block.Args, "-socket", f.socket)
	}
	block.Args = append(block.Args, "-profile", f.profile)
	if f.tokenFile != "" {
		token, err := readToken(f.tokenFile)
		if err != nil {
			return err
		}
		block.Token = token
	}
	t, err := template.New("runner").Funcs(template.FuncMap{"quote": quoteTOML, "args": argsTOML}).Parse(runnerTemplate)
	if err != nil {
		return err
	}
	return t.Execute(stdout, block)
}

func (f *runnerFlags) check() error {
	if f.profile != "hermetic" && f.profile != "firewalled" {
		return &usageError{fmt.Errorf("--profile %s: want hermetic or firewalled", report.Clean(f.profile)), ""}
	}
	if f.url != "" {
		u, err := url.Parse(f.url)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return &usageError{fmt.Errorf("--url %s: not an absolute http or https URL", report.Clean(f.url)), "as https://gitlab.example.com"}
		}
	}
	for flag, path := range map[string]string{"--driver": f.driver, "--socket": f.socket} {
		if (path != "" || flag == "--driver") && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
			return &usageError{fmt.Errorf("%s %s: want a clean absolute path", flag, report.Clean(path)), ""}
		}
	}
	return nil
}

// readToken reads a token from a file: on the command line every user of the
// machine could see it.
func readToken(file string) (string, error) {
	const most = 4096
	f, err := os.Open(file)
	if err != nil {
		return "", plain(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", plain(err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(data) > most || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", &failure{fmt.Errorf("%s: not a token", report.Clean(file)), "the file holds the token alone, as glrt-…"}
	}
	return token, nil
}

// quoteTOML writes a basic string. TOML's escapes are a part of Go's; what Go
// would write differently, \x and the like, is taken out of the way.
func quoteTOML(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// argsTOML writes the arguments of one call.
func argsTOML(args []string, call string) string {
	quoted := make([]string, 0, len(args)+1)
	for _, arg := range append(args[:len(args):len(args)], call) {
		quoted = append(quoted, quoteTOML(arg))
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// newVersion prints what was built, for reports.
func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "hallmark", version)
			return err
		},
	}
}
