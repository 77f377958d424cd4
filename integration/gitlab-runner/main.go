// Command gitlab-runner is GitLab Runner 19.4.0, built from its own packages
// for the integration tests: its commands, network client, shells, caches in S3
// and Azure, the executors custom, docker and shell, and the helper commands that
// job scripts call.
//
// Only the wiring is here. README.md says which modules are replaced by
// stand-ins and what they cannot do.
package main

import (
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli"

	"gitlab.com/gitlab-org/gitlab-runner/commands"
	"gitlab.com/gitlab-org/gitlab-runner/commands/helpers"
	"gitlab.com/gitlab-org/gitlab-runner/common"
	"gitlab.com/gitlab-org/gitlab-runner/executors"
	"gitlab.com/gitlab-org/gitlab-runner/executors/custom"
	"gitlab.com/gitlab-org/gitlab-runner/executors/docker"
	"gitlab.com/gitlab-org/gitlab-runner/executors/shell"
	clihelpers "gitlab.com/gitlab-org/gitlab-runner/helpers/cli"
	"gitlab.com/gitlab-org/gitlab-runner/log"
	"gitlab.com/gitlab-org/gitlab-runner/network"

	_ "gitlab.com/gitlab-org/gitlab-runner/cache/azure" // registers caches in object storage
	_ "gitlab.com/gitlab-org/gitlab-runner/cache/s3v2"
	_ "gitlab.com/gitlab-org/gitlab-runner/shells" // registers bash
)

func main() {
	defer exitOnLoggedPanic()
	if err := run(os.Args); err != nil {
		logrus.Fatal(err)
	}
}

// exitOnLoggedPanic turns logrus's Panic, which has printed its message, into
// an exit status.
func exitOnLoggedPanic() {
	switch r := recover().(type) {
	case nil:
	case *logrus.Entry:
		os.Exit(1)
	default:
		panic(r)
	}
}

func run(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	providers := executors.NewProviderRegistry(map[string]common.ExecutorProvider{
		"custom": custom.NewProvider("gitlab-runner"),
		"docker": docker.NewProvider(),
		"shell":  shell.NewProvider(self),
	})
	for _, p := range providers.All() {
		if err := common.ValidateExecutorProvider(p); err != nil {
			return err
		}
	}
	requests := network.NewAPIRequestsCollector()
	client := network.NewGitLabClient(
		network.WithAPIRequestsCollector(requests),
		network.WithCertificateDirectory(commands.GetDefaultCertificateDirectory()),
		network.WithExecutorProviderFunc(providers.GetByName),
	)

	app := cli.NewApp()
	app.Name = filepath.Base(args[0])
	app.Usage = "GitLab Runner, built for integration tests"
	app.Version = common.AppVersion.ShortLine()
	cli.VersionPrinter = common.AppVersion.Printer
	app.Commands = []cli.Command{
		commands.NewRunCommand(client, requests, providers),
		commands.NewRunSingleCommand(client, providers),
		commands.NewRegisterCommand(client, providers),
		commands.NewUnregisterCommand(client),
		commands.NewVerifyCommand(client),
		commands.NewListCommand(),
		commands.NewLintCommand(),
		helpers.NewArtifactsDownloaderCommand(),
		helpers.NewArtifactsUploaderCommand(),
		helpers.NewCacheArchiverCommand(),
		helpers.NewCacheExtractorCommand(),
		helpers.NewCacheInitCommand(),
		helpers.NewHealthCheckCommand(),
		helpers.NewProbeURLCommand(),
		helpers.NewProxyExecCommand(),
		helpers.NewReadLogsCommand(),
		helpers.NewVerifyVersionCommand(),
	}
	app.CommandNotFound = func(_ *cli.Context, name string) {
		logrus.Fatalf("command %q not found", name)
	}
	clihelpers.InitCli()
	clihelpers.LogRuntimePlatform(app)
	clihelpers.FixHOME(app)
	clihelpers.WarnOnBool(args)
	log.ConfigureLogging(app)
	return app.Run(args)
}
