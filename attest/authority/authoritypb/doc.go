// Package authoritypb is the wire form of the protocol between a runner host and the authority.
package authoritypb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative authority.proto enrolment.proto
