package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hallmark.build/attest/report"
	"hallmark.build/config"
)

func newConfig() *cobra.Command {
	return group("config", "Check or print a daemon's configuration file", newConfigCheck(), newConfigExample())
}

func newConfigCheck() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say what is wrong with a configuration file, with line and column",
		Args:  oneArg("file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := kindOf(kind, args[0])
			if err != nil {
				return err
			}
			if err := config.Check(k, args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: a good configuration of hallmark-%s\n", report.Clean(args[0]), k)
			return err
		},
	}
	cmd.Flags().StringVar(&kind, "kind", "", "whose file it is, `NAME`: sandboxd or attestd (default: by the file's name)")
	return cmd
}

func newConfigExample() *cobra.Command {
	return &cobra.Command{
		Use:   "example sandboxd|attestd",
		Short: "Print a complete configuration file with comments",
		Args:  oneArg("kind"),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := config.ParseKind(args[0])
			if err != nil {
				return &usageError{err, ""}
			}
			_, err = io.WriteString(cmd.OutOrStdout(), config.Example(k))
			return err
		},
	}
}

// kindOf says whose file it is: by the flag, else by a name that holds one of
// the two words.
func kindOf(flag, file string) (config.Kind, error) {
	if flag != "" {
		k, err := config.ParseKind(flag)
		if err != nil {
			return "", &usageError{err, ""}
		}
		return k, nil
	}
	base := filepath.Base(file)
	sandboxd, attestd := strings.Contains(base, string(config.KindSandboxd)), strings.Contains(base, string(config.KindAttestd))
	switch {
	case sandboxd && !attestd:
		return config.KindSandboxd, nil
	case attestd && !sandboxd:
		return config.KindAttestd, nil
	}
	return "", &usageError{errors.New("the file's name does not tell whose it is"), "say --kind sandboxd or --kind attestd"}
}
