// Package runner is a stand-in: the interfaces a builtin step is written to.
package runner

import (
	"context"
	"io"
	"reflect"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"gitlab.com/gitlab-org/step-runner/proto"
)

var (
	KindString = reflect.TypeFor[*structpb.Value_StringValue]()
	KindBool   = reflect.TypeFor[*structpb.Value_BoolValue]()
	KindList   = reflect.TypeFor[*structpb.Value_ListValue]()
)

type BuiltinResult struct{}

type BuiltinFunction interface {
	Spec() *proto.Spec
	Run(context.Context, BuiltinContext) (BuiltinResult, error)
}

type BuiltinContext interface {
	GetInput(name string, kind reflect.Type) (*structpb.Value, error)
	GetInputWithDefault(name string, kind reflect.Type, spec map[string]*proto.Spec_Content_Input) (*structpb.Value, error)
	GetJobVars() map[string]*structpb.Value
	GetEnvs() map[string]string
	GetEnvList() []string
	Pipe() (stdout, stderr io.Writer)
	WorkDir() string
	GracefulExitDelay() time.Duration
	ListenCancel(context.Context) (context.Context, context.CancelFunc)
}
