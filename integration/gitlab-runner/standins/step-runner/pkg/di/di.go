// Package di is a stand-in: a container that offers an empty service.
package di

import (
	"log/slog"

	"gitlab.com/gitlab-org/step-runner/pkg/runner"
	"gitlab.com/gitlab-org/step-runner/proto"
)

type Container struct{}

func NewContainer(...func(*Container)) *Container { return &Container{} }

func WithBuiltinFunc(string, runner.BuiltinFunction) func(*Container) { return func(*Container) {} }
func WithOperatorLogger(*slog.Logger) func(*Container)                { return func(*Container) {} }

func (*Container) StepRunnerService() (proto.StepRunnerServer, error) {
	return proto.UnimplementedStepRunnerServer{}, nil
}
