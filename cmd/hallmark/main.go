// Command hallmark verifies artifacts, checks configuration and prints what a GitLab Runner needs.
//
// It holds no keys and talks to no daemon. `hallmark verify` opens no network
// connection unless it is given --from.
//
// Exit codes of verify: 0 verified, 1 could not decide (something could not be
// read, or there was nothing to judge), 2 usage, 3 refused. Other commands: 0
// fine, 1 something is wrong, 2 usage. No output option changes them.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"hallmark.build/config"
	"hallmark.build/config/tomlfile"
)

// Exit codes.
const (
	exitOK        = 0
	exitUndecided = 1
	exitUsage     = 2
	exitRefused   = 3
)

// version is set when the program is built.
var version = "devel"

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. A panic is a fault of ours and never an answer: it must
// not end with Go's own code for it, which means usage here.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	defer func() {
		if cause := recover(); cause != nil {
			fmt.Fprintf(stderr, "error: internal: %v\n", cause)
			code = exitUndecided
		}
	}()
	root := newRoot()
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	var misplaced error
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		if misplacedHelp(cmd) {
			misplaced = &usageError{errors.New("help and a verdict do not go together"), "an artifact of such a name follows --"}
			return
		}
		help(cmd, args)
	})
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := cmp.Or(root.ExecuteContext(ctx), misplaced)
	var usage *usageError
	if err != nil && !started && !errors.As(err, &usage) {
		err = &usageError{err, "see hallmark help"} // cobra's own: no command was reached
	}
	return explain(stderr, err)
}

// A usageError is a command line that makes no sense.
type usageError struct {
	err  error
	hint string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// A failure is an error with what the reader can do about it.
type failure struct {
	err  error
	hint string
}

func (e *failure) Error() string { return e.err.Error() }
func (e *failure) Unwrap() error { return e.err }

// errRefused is a verdict that is already on stdout.
var errRefused = errors.New("refused")

// explain tells an error and turns it into an exit code. What nobody
// classified is no acceptance and no refusal.
func explain(stderr io.Writer, err error) int {
	var usage *usageError
	var fail *failure
	var problems config.Errors
	var problem *config.Error
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errRefused):
		return exitRefused
	case errors.As(err, &usage):
		tell(stderr, usage.Error(), usage.hint)
		return exitUsage
	case errors.As(err, &problems):
		for _, one := range problems {
			tell(stderr, one.Error(), one.Hint)
		}
	case errors.As(err, &problem):
		tell(stderr, problem.Error(), problem.Hint)
	case errors.As(err, &fail):
		tell(stderr, fail.Error(), fail.hint)
	default:
		tell(stderr, err.Error(), "")
	}
	return exitUndecided
}

func tell(w io.Writer, text, hint string) {
	fmt.Fprintf(w, "error: %s\n", text)
	if hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "hallmark",
		Short:         "Verify what GitLab jobs produced, and set up runners that attest it",
		Args:          noArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &usageError{errors.New("no command given"), "see hallmark help"}
		},
	}
	root.SetVersionTemplate("hallmark {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err, "see " + cmd.CommandPath() + " --help"}
	})
	root.CompletionOptions.DisableDefaultCmd = true // it ends well for a shell that it does not know
	root.AddCommand(newVerify(), newConfig(), newRunner(), newCompletion(root), newVersion())
	root.SetHelpCommand(newHelp(root))
	return root
}

// newHelp replaces cobra's, which ends well for a command that does not exist.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Tell about a command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd := root
			for _, name := range args {
				next := child(cmd, name)
				if next == nil {
					return unknownCommand(cmd, name)
				}
				cmd = next
			}
			return cmd.Help()
		},
	}
}

func child(cmd *cobra.Command, name string) *cobra.Command {
	for _, c := range cmd.Commands() {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

func unknownCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	hint := "see " + cmd.CommandPath() + " --help"
	if near := tomlfile.Nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q?", cmd.CommandPath()+" "+near)
	}
	return &usageError{fmt.Errorf("unknown command %q", name), hint}
}

// noArgs is for commands that take none; those with subcommands are told apart
// by an argument that is none of these.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case cmd.HasSubCommands():
		return unknownCommand(cmd, args[0])
	}
	return &usageError{fmt.Errorf("%s takes no arguments", cmd.CommandPath()), "see " + cmd.CommandPath() + " --help"}
}

// oneArg is for commands that take one thing, called name.
func oneArg(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return &usageError{fmt.Errorf("%s wants one %s, not %d", cmd.CommandPath(), name, len(args)), "see " + cmd.CommandPath() + " --help"}
	}
}

// group is a command that only holds others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return &usageError{fmt.Errorf("%s wants a command", cmd.CommandPath()), "see " + cmd.CommandPath() + " --help"}
		},
	}
	cmd.AddCommand(commands...)
	return cmd
}

func newCompletion(root *cobra.Command) *cobra.Command {
	shell := func(name string, write func(io.Writer) error) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: "Print the script for " + name, Args: noArgs,
			RunE: func(cmd *cobra.Command, _ []string) error { return write(cmd.OutOrStdout()) },
		}
	}
	return group("completion", "Print a script that completes command lines in a shell",
		shell("bash", func(w io.Writer) error { return root.GenBashCompletionV2(w, true) }),
		shell("zsh", root.GenZshCompletion),
		shell("fish", func(w io.Writer) error { return root.GenFishCompletion(w, true) }),
	)
}
