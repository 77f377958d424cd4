// Package proto is a stand-in: plain structs in place of the protobuf
// messages a builtin's Spec uses, and a server that serves nothing.
package proto

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

type ValueType int32

const (
	ValueType_string ValueType = iota
	ValueType_boolean
	ValueType_array
)

type Spec struct{ Spec *Spec_Content }

func (s *Spec) GetSpec() *Spec_Content { return s.Spec }

type Spec_Content struct {
	Inputs map[string]*Spec_Content_Input
}

func (c *Spec_Content) GetInputs() map[string]*Spec_Content_Input { return c.Inputs }

type Spec_Content_Input struct {
	Type      ValueType
	Default   *structpb.Value
	Sensitive bool
}

type StepRunnerServer interface{ mustEmbedUnimplemented() }

type UnimplementedStepRunnerServer struct{}

func (UnimplementedStepRunnerServer) mustEmbedUnimplemented() {}

// RegisterStepRunnerServer registers nothing: every call answers Unimplemented.
func RegisterStepRunnerServer(grpc.ServiceRegistrar, StepRunnerServer) {}
